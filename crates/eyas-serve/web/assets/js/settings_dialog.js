/**
 * The dialog in which people change how answers are made.
 */
import { openDialog, toast } from "./dialogs.js";
import { h } from "./dom.js";
import { number as inWords, t } from "./i18n.js";
import { MAX_SEED, NUMBERS, defaultSettings, range } from "./settings.js";
import { loadCss } from "./lazy_css.js";

/** @param {import("./app.js").App} app */
export async function openSettings(app) {
  await loadCss("settings");
  const fields = fieldsOf(app);
  fields.set(app.settings);
  const save = (event) => {
    event.preventDefault();
    app.setSettings(fields.get());
    dialog.close();
    toast("settings.saved");
  };
  const form = h(
    "form.settings",
    { on: { submit: save } },
    ...fields.nodes,
    h(
      "div.row.ends",
      {},
      h("button", { say: "settings.reset", on: { click: () => fields.set(defaultSettings(app.page)) } }),
      h("button.main", { type: "submit", say: "save" }),
    ),
  );
  const dialog = openDialog("settings", [h("p.soft", { say: "settings.text" }), form]);
}

/** The form's fields, and how settings go in and out. @param {import("./app.js").App} app */
function fieldsOf(app) {
  const model = h(
    "select",
    { id: "set-model" },
    ...app.page.models.map((m) => h("option", { value: m.id }, modelName(m))),
  );
  const numbers = NUMBERS.map((entry) => slider(range(entry, app.page)));
  const seed = h("input", {
    id: "set-seed",
    type: "number",
    min: 0,
    max: MAX_SEED,
    step: 1,
    inputmode: "numeric",
    hint: "settings.seed.random",
  });
  const system = h("textarea", { id: "set-system", rows: 4, hint: "settings.system.usual" });
  const tidy = h("input", { id: "set-tidy", type: "checkbox" });
  const nodes = [
    labelled("set-model", "settings.model", model),
    ...numbers.map((n) => n.root),
    labelled("set-seed", "settings.seed", seed, "settings.seed.about"),
    labelled("set-system", "settings.system", system, "settings.system.about"),
    h(
      "label.check",
      {},
      tidy,
      h("span", {}, h("span", { say: "settings.tidy" }), h("br"), h("span.small.soft", { say: "settings.tidy.about" })),
    ),
  ];
  return {
    nodes,
    set(settings) {
      model.value = settings.model;
      for (const n of numbers) n.set(settings[n.key]);
      seed.value = settings.seed ?? "";
      system.value = settings.system ?? "";
      tidy.checked = settings.tidy;
    },
    /** @returns {import("./settings.js").Settings} */
    get() {
      return {
        model: model.value,
        .../** @type {any} */ (Object.fromEntries(numbers.map((n) => [n.key, n.get()]))),
        seed: seed.value === "" ? null : Number(seed.value),
        // An empty field leaves the instructions to the server.
        system: system.value.trim() ? system.value : null,
        tidy: tidy.checked,
      };
    },
  };
}

/** A model's name with what it is. @param {import("./app.js").Model} model */
export function modelName(model) {
  return t(model.kind === "adapter" ? "model.tuned" : "model.base", { model: model.id });
}

/** @param {{key: string, min: number, max: number, step: number}} entry */
function slider({ key, min, max, step }) {
  const id = `set-${key}`;
  const input = h("input", { id, type: "range", min, max, step, "aria-describedby": `${id}-about` });
  const shown = h("output", { for: id });
  const show = () => {
    shown.textContent = inWords(Number(input.value));
  };
  input.addEventListener("input", show);
  return {
    key,
    root: h(
      "div.field",
      {},
      h("label", { for: id, say: `settings.${key}` }),
      shown,
      input,
      h("p.small.soft", { id: `${id}-about`, say: `settings.${key}.about` }),
    ),
    set: (value) => {
      input.value = String(value);
      show();
    },
    get: () => Number(input.value),
  };
}

function labelled(id, key, field, about) {
  if (about) field.setAttribute("aria-describedby", `${id}-about`);
  return h(
    "div.field",
    {},
    h("label", { for: id, say: key }),
    field,
    about && h("p.small.soft", { id: `${id}-about`, say: about }),
  );
}
