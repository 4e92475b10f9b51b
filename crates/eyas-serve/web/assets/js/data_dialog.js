/**
 * Everything that this browser keeps: take it along, or clear it.
 */
import { confirm, openDialog } from "./dialogs.js";
import { h, iconButton } from "./dom.js";
import { asMarkdown, download, everything, fileName } from "./export.js";
import { say, t } from "./i18n.js";
import { NotAnExport, restore } from "./restore.js";
import { StorageFull } from "./store.js";

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
    restoring(app),
    h("p.soft", { say: "data.clear_text" }),
    h(
      "div.row",
      {},
      iconButton("button.danger", "trash", "data.clear", { id: "clear", on: { click: () => clear(app) } }),
    ),
  ]);
}

/** A choice of a file that was exported. @param {import("./app.js").App} app */
function restoring(app) {
  const said = h("p", { role: "status" });
  // The browser's own control speaks the browser's language, not the page's.
  const input = h("input", { type: "file", id: "restore", accept: "application/json,.json", hidden: true });
  input.addEventListener("change", async () => {
    const file = input.files[0];
    if (!file) return;
    try {
      say(said, "data.restored", { count: restore(app.store, await file.text()) });
      app.settle();
    } catch (error) {
      if (!(error instanceof NotAnExport || error instanceof StorageFull)) throw error;
      say(said, error instanceof StorageFull ? "storage.full" : "data.not_an_export");
    }
    input.value = "";
  });
  const choose = iconButton("button", "retry", "data.restore", { on: { click: () => input.click() } });
  return h("div.restore", {}, h("div.row", {}, choose), input, said);
}

/** @param {import("./app.js").App} app */
async function clear(app) {
  if (!(await confirm("data.clear_heading", "data.clear_sure", "data.clear"))) return;
  app.store.clear();
  app.tab.clear();
  // The page begins anew, so that nothing is left in memory either.
  location.replace("/");
}
