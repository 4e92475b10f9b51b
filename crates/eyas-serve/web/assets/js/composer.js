/**
 * The text box: Enter sends, Shift and Enter begin a new line, and Enter that ends the choice of a Chinese character
 * does neither.
 */
import { drawing, h } from "./dom.js";
import { label, say } from "./i18n.js";

/** Safari ends a composition just before the key that ended it. */
const AFTER_COMPOSITION_MS = 50;

export class Composer {
  /**
   * @param {{labelKey: string, hintKey: string, send: (text: string) => void, stop: () => void}} options
   */
  constructor({ labelKey, hintKey, send, stop }) {
    this.send = send;
    this.stop = stop;
    this.busy = false;
    this.composed = -Infinity;
    this.text = h("textarea", {
      rows: 1,
      label: labelKey,
      hint: hintKey,
      enterkeyhint: "send",
      on: {
        keydown: (event) => this.key(event),
        input: () => this.fit(),
        compositionend: (event) => {
          this.composed = event.timeStamp;
        },
      },
    });
    this.button = h("button.main", { on: { click: () => this.press() } });
    this.keys = h("span.keys", { say: "composer.keys" });
    this.note = h("span", { say: "composer.note" });
    this.root = h(
      "div.composer",
      {},
      h("div.box", {}, this.text, this.button),
      h("div.under", {}, this.note, this.keys),
    );
    this.setBusy(false);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.altKey) return;
    // 229 is how some browsers say that an input method has taken the key.
    const composing = event.isComposing || event.keyCode === 229;
    if (composing || event.timeStamp - this.composed < AFTER_COMPOSITION_MS) return;
    event.preventDefault();
    if (!this.busy) this.submit();
  }

  press() {
    if (this.busy) this.stop();
    else this.submit();
  }

  submit() {
    const text = this.text.value.trim();
    if (!text || this.text.disabled) {
      this.text.focus();
      return;
    }
    this.text.value = "";
    this.fit();
    this.send(text);
  }

  /** Puts words into the box. @param {string} text */
  put(text) {
    this.text.value = text;
    this.fit();
    this.focus();
  }

  /** The box grows with its text; its style limits it. */
  fit() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight}px`;
  }

  /** Whether an answer is under way, which the button stops. @param {boolean} busy */
  setBusy(busy) {
    this.busy = busy;
    this.button.replaceChildren(drawing(busy ? "stop" : "arrow"));
    label(this.button, "aria-label", busy ? "composer.stop" : "composer.send");
  }

  /** @param {boolean} enabled */
  setEnabled(enabled) {
    this.text.disabled = !enabled;
    this.button.disabled = !enabled;
    say(this.note, enabled ? "composer.note" : "composer.first");
  }

  focus() {
    this.text.focus();
  }
}
