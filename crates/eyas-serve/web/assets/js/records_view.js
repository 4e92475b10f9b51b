/**
 * Mood and scores over time: a chart, the same as a table, and what can be done with them.
 */
import { chart } from "./chart.js";
import { confirm } from "./dialogs.js";
import { drawing, h, iconButton } from "./dom.js";
import { asCsv, download, fileName } from "./export.js";
import { date, number, t } from "./i18n.js";
import { bandOf } from "./scoring.js";

/** Which series is shown, for as long as the page lives. */
let shown = "mood";

/**
 * @param {import("./app.js").App} app
 * @param {import("./records.js").Records} records
 * @param {import("./scoring.js").Questionnaire[]} questionnaires
 * @param {HTMLElement} root
 */
export function recordsView(app, records, questionnaires, root) {
  const again = () => recordsView(app, records, questionnaires, root);
  const all = series(records, questionnaires);
  const heading = h("h2", { id: "records-heading", say: "records" });
  if (!all.length) {
    root.replaceChildren(heading, h("p.soft", { say: "records.none" }));
    return;
  }
  const current = all.find((s) => s.id === shown) ?? all[0];
  const select = h("select", { id: "series" }, ...all.map((s) => h("option", { value: s.id }, s.title)));
  select.value = current.id;
  select.addEventListener("change", () => {
    shown = select.value;
    again();
    document.getElementById("series")?.focus();
  });
  const remove = async (id) => {
    if (!(await confirm("records.delete_heading", "records.delete_text", "delete"))) return;
    records.remove(id);
    again();
    document.getElementById("series")?.focus();
  };
  const clear = async () => {
    if (!(await confirm("records.clear_heading", "records.clear_text", "delete"))) return;
    records.clear();
    again();
  };
  const json = () => {
    const both = { mood: records.moods(), scores: records.scores() };
    download(fileName("eyas-records", "json"), "application/json", `${JSON.stringify(both, null, 2)}\n`);
  };
  const csv = () => download(fileName("eyas-records", "csv"), "text/csv", asCsv(records));
  root.replaceChildren(
    heading,
    h("label.field", { for: "series" }, h("span.small", { say: "records.series" }), select),
    chart(current),
    h("details", {}, h("summary", { say: "records.table" }), table(current, remove)),
    h("p.small.soft", { say: "records.private" }),
    h(
      "div.row",
      {},
      iconButton("button", "save", "records.json", { on: { click: json } }),
      iconButton("button", "save", "records.csv", { on: { click: csv } }),
      iconButton("button.danger", "trash", "records.clear", { on: { click: clear } }),
    ),
  );
}

/**
 * Everything that has at least one record.
 * @returns {import("./chart.js").Series[]}
 */
function series(records, questionnaires) {
  const moods = records
    .moods()
    .map((m) => ({ id: m.id, at: m.at, value: m.value, words: t(`mood.${m.value}`), note: m.note }));
  const found = [
    { id: "mood", title: t("records.mood"), from: 1, to: 5, bands: [], points: moods, labels: (v) => t(`mood.${v}`) },
  ];
  const scores = records.scores();
  for (const id of new Set(scores.map((s) => s.questionnaire))) {
    const own = scores.filter((s) => s.questionnaire === id);
    const questionnaire = questionnaires.find((q) => q.id === id);
    found.push({
      id,
      title: questionnaire?.title ?? id,
      from: 0,
      to: own[0].highest,
      bands: questionnaire?.bands ?? [],
      // The band in the language of the page, where the questionnaire is known.
      points: own.map((s) => ({
        id: s.id,
        at: s.at,
        value: s.score,
        words: (questionnaire && bandOf(questionnaire, s.score)?.name) ?? s.band,
        note: "",
      })),
      labels: null,
    });
  }
  return found.filter((s) => s.points.length);
}

/** @param {import("./chart.js").Series} current @param {(id: string) => void} remove */
function table(current, remove) {
  return h(
    "div.scroll",
    { tabindex: 0, role: "region", label: "records.table" },
    h(
      "table",
      {},
      h("caption.unseen", {}, current.title),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ...["records.when", "records.value", "records.meaning"].map((key) => h("th", { scope: "col", say: key })),
          h("td"),
        ),
      ),
      h(
        "tbody",
        {},
        ...current.points
          .toReversed()
          .map((point) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, date(point.at)),
              h("td", {}, number(point.value)),
              h("td", {}, [point.words, point.note].filter(Boolean).join(" · ")),
              h(
                "td",
                {},
                h(
                  "button.icon",
                  { label: ["records.delete", { when: date(point.at) }], on: { click: () => remove(point.id) } },
                  drawing("trash"),
                ),
              ),
            ),
          ),
      ),
    ),
  );
}
