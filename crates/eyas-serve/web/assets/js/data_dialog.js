/**
 * Everything that this browser keeps: take it along, or clear it.
 */
import { confirm, openDialog } from "./dialogs.js";
import { h, iconButton } from "./dom.js";
import { asMarkdown, download, everything, fileName } from "./export.js";
import { t } from "./i18n.js";

/** @param {import("./app.js").App} app */
export function openData(app) {
  const found = everything(app);
  const counts = {
    conversations: found.conversations.length,
    moods: found.mood.length,
    scores: found.scores.length,
    votes: found.votes.length,
  };
  const json = () =>
    download(fileName("eyas", "json"), "application/json", `${JSON.stringify(everything(app), null, 2)}\n`);
  const words = { you: t("export.you"), stopped: t("answer.stopped"), title: app.page.title };
  const markdown = () =>
    download(fileName("eyas-conversations", "md"), "text/markdown", asMarkdown(app.conversations.list(), words));
  openDialog("data", [
    h("p", { say: "data.text" }),
    h("p", { say: ["data.counts", counts] }),
    h(
      "div.row",
      {},
      iconButton("button", "save", "data.json", { on: { click: json } }),
      iconButton("button", "save", "data.markdown", { disabled: !counts.conversations, on: { click: markdown } }),
    ),
    h("p.soft", { say: "data.clear_text" }),
    h(
      "div.row",
      {},
      iconButton("button.danger", "trash", "data.clear", { id: "clear", on: { click: () => clear(app) } }),
    ),
  ]);
}

/** @param {import("./app.js").App} app */
async function clear(app) {
  if (!(await confirm("data.clear_heading", "data.clear_sure", "data.clear"))) return;
  app.store.clear();
  // The page begins anew, so that nothing is left in memory either.
  location.replace("/");
}
