/**
 * How one feels just now: one of five faces, and a note if one likes.
 */
import { toast } from "./dialogs.js";
import { h, svg } from "./dom.js";
import { MOODS } from "./records.js";

/** Where the mouth's middle is, from sad to glad, below or above its ends. */
const MOUTHS = [-4, -2, 0, 2.5, 5];

/**
 * @param {import("./app.js").App} app
 * @param {import("./records.js").Records} records
 * @param {() => void} added
 */
export function moodForm(app, records, added) {
  const note = h("textarea", { id: "mood-note", rows: 2, maxlength: 500, hint: "mood.note_hint" });
  const choices = MOODS.map((value) =>
    h("input", { type: "radio", name: "mood", value, required: true, id: `mood-${value}` }),
  );
  const save = (event) => {
    event.preventDefault();
    const chosen = choices.find((choice) => choice.checked);
    if (!chosen) return;
    app.keep(() => {
      records.addMood(Number(chosen.value), note.value.trim());
      form.reset();
      toast("mood.saved");
      added();
    });
  };
  const form = h(
    "form.sheet.mood",
    { on: { submit: save } },
    h(
      "fieldset",
      {},
      h("legend", { say: "mood.heading" }),
      h(
        "div.faces",
        {},
        ...choices.map((choice, i) =>
          h("label", { for: choice.id }, choice, face(MOUTHS[i]), h("span", { say: `mood.${i + 1}` })),
        ),
      ),
    ),
    h("label", { for: "mood-note", say: "mood.note" }),
    note,
    h("div", {}, h("button.main", { type: "submit", say: "mood.save" })),
  );
  return form;
}

/** @param {number} bend */
function face(bend) {
  return svg(
    "svg",
    { viewBox: "0 0 40 40", width: 40, height: 40, class: "face", "aria-hidden": "true", focusable: "false" },
    svg("circle", { cx: 20, cy: 20, r: 17 }),
    svg("path", { d: `M14 15.5v2M26 15.5v2M12.5 ${25.5 - bend / 2}q7.5 ${bend * 1.6} 15 0` }),
  );
}
