/**
 * Dialogs. The browser keeps the focus inside and gives it back; we say where it begins.
 */
import { drawing, h } from "./dom.js";

let opened = 0;

/**
 * Opens a dialog; it is gone once it is closed.
 * @param {string} headingKey
 * @param {HTMLElement[]} content
 * @param {{className?: string, onclose?: () => void}} [options]
 * @returns {HTMLDialogElement}
 */
export function openDialog(headingKey, content, { className = "", onclose } = {}) {
  const id = `dialog-${++opened}`;
  const heading = h("h2", { say: headingKey, tabindex: -1, id, autofocus: true });
  const dialog = h(
    "dialog",
    { class: className, "aria-labelledby": id },
    h(
      "header",
      {},
      heading,
      h("button.icon", { label: "close", on: { click: () => dialog.close() } }, drawing("close")),
    ),
    h("div.content", {}, ...content),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    onclose?.();
  });
  // A press beside the dialog closes it.
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Asks before something that cannot be undone.
 * @param {string} headingKey @param {string} textKey @param {string} yesKey
 * @returns {Promise<boolean>}
 */
export function confirm(headingKey, textKey, yesKey) {
  return new Promise((resolve) => {
    let sure = false;
    const dialog = openDialog(
      headingKey,
      [
        h("p", { say: textKey }),
        h(
          "div.row",
          {},
          h("button", { say: "cancel", on: { click: () => dialog.close() } }),
          h("button.danger", {
            say: yesKey,
            on: {
              click: () => {
                sure = true;
                dialog.close();
              },
            },
          }),
        ),
      ],
      { className: "confirm", onclose: () => resolve(sure) },
    );
  });
}

/**
 * Says something for a while, with something to do about it if there is.
 * @param {string} key @param {{say: string, run: () => void}} [action]
 */
export function toast(key, action) {
  const box = /** @type {HTMLElement} */ (document.getElementById("toasts"));
  const note = h("div.toast", {}, h("span", { say: key }));
  if (action) {
    const act = () => {
      note.remove();
      action.run();
    };
    note.append(h("button", { say: action.say, on: { click: act } }));
  }
  box.replaceChildren(note);
  // Longer where there is something to decide.
  setTimeout(() => note.remove(), action ? 12_000 : 5_000);
}

/** A part of the page did not come. Browsers remember that until the page is loaded again. */
export function missingPart() {
  toast("trouble.part", { say: "reload", run: () => location.reload() });
}
