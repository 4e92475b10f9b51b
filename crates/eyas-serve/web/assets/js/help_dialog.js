/**
 * "Get help now": the helplines of the region, from anywhere on the page, also while the server is away.
 */
import { careCard } from "./care_card.js";
import { openDialog } from "./dialogs.js";
import { h } from "./dom.js";

/** @param {import("./app.js").App} app */
export function openHelp(app) {
  openDialog("help.heading", [h("p", { say: "help.text" }), careCard(app, { headingKey: "help.lines" })], {
    className: "help-dialog",
  });
}
