/**
 * What went wrong, in words, with a way to try again.
 */
import { setKey } from "./api.js";
import { h } from "./dom.js";
import { say } from "./i18n.js";

const HELP_ALL_THE_SAME = ["gone", "broken", "busy", "unready", "failed"];

/**
 * @param {import("./api.js").ApiError} error
 * @param {() => void} [retry]
 * @returns {HTMLElement}
 */
export function troubleBox(error, retry) {
  const words = h("p", { say: `trouble.${error.trouble}` });
  const box = h("div.trouble", { role: "alert" }, words);
  // The server's own words help where the request itself is at fault.
  if (["rejected", "failed", "too_long"].includes(error.trouble)) {
    box.append(h("p.small.soft", { say: ["trouble.detail", { detail: error.message }] }));
  }
  // Whoever wrote in need must not wait for the server.
  if (HELP_ALL_THE_SAME.includes(error.trouble)) box.append(h("p.small.soft", { say: "trouble.help" }));
  if (!retry) return box;
  const button = h("button", { say: "retry", on: { click: retry } });
  if (error.trouble === "key") box.append(keyForm(retry));
  else box.append(button);
  if (error.retryAfter) countDown(button, error.retryAfter);
  return box;
}

/** @param {HTMLButtonElement} button @param {number} seconds */
function countDown(button, seconds) {
  button.disabled = true;
  const end = Date.now() + seconds * 1000;
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    if (left <= 0) {
      button.disabled = false;
      say(button, "retry");
      return;
    }
    say(button, "retry_in", { seconds: left });
    setTimeout(tick, 250);
  };
  tick();
}

/** @param {() => void} retry */
function keyForm(retry) {
  const field = h("input", { type: "password", autocomplete: "off", required: true, label: "key.label" });
  const send = (event) => {
    event.preventDefault();
    setKey(field.value.trim());
    retry();
  };
  return h("form.row", { on: { submit: send } }, field, h("button.main", { type: "submit", say: "key.use" }));
}
