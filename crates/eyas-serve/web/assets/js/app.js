/**
 * What the parts of the page share.
 *
 * @typedef {{id: string, kind: "base" | "adapter", base: string | null}} Model
 * @typedef {{title: string, version: string, models: Model[], defaults: Record<string, any>,
 *   care: {enabled: boolean, default_region: string | null}, limits: Record<string, number>,
 *   storage: {enabled: boolean, consent_text: string | null, consent_id: string | null},
 *   auth: {required: boolean}}} Page
 */
import { getJson } from "./api.js";
import { Care } from "./care.js";
import { Conversations } from "./conversations.js";
import { toast } from "./dialogs.js";
import { loadSettings, saveSettings } from "./settings.js";
import { StorageFull, openStore } from "./store.js";

export class App {
  constructor() {
    this.store = openStore();
    /** What only this tab finds again after it was loaded anew. */
    this.tab = openStore("sessionStorage");
    this.care = new Care(this.store);
    this.conversations = new Conversations(this.store);
    /** @type {Page} */
    this.page = /** @type {any} */ (null);
    /** @type {import("./settings.js").Settings} */
    this.settings = /** @type {any} */ (null);
  }

  /** Asks the server what it serves. */
  async load() {
    this.page = await getJson("/api/page");
    this.care.fallbackRegion = this.page.care?.default_region ?? null;
    this.settings = loadSettings(this.store, this.page);
  }

  /** Takes settings and keeps them. @param {import("./settings.js").Settings} settings */
  setSettings(settings) {
    this.settings = settings;
    this.keep(() => saveSettings(this.store, this.page, settings));
    document.dispatchEvent(new CustomEvent("eyas:settings"));
  }

  /** Keeps something; says so where there is no room. @param {() => void} write */
  keep(write) {
    try {
      write();
    } catch (error) {
      if (!(error instanceof StorageFull)) throw error;
      toast("storage.full");
    }
  }

  /** Something in the store was changed from elsewhere: whoever shows it draws it again. */
  settle() {
    document.dispatchEvent(new CustomEvent("eyas:stored"));
  }

  /** What was agreed to; a new text of the operator is a new question. */
  get agreement() {
    return `1:${this.page.storage?.enabled ? this.page.storage.consent_id : ""}`;
  }

  get acknowledged() {
    return this.store.get("acknowledged", null)?.agreement === this.agreement;
  }

  /** The id to send so that the server stores an exchange, where the person agreed to that. */
  get consent() {
    return this.acknowledged && this.store.get("acknowledged", null)?.consent === true
      ? (this.page.storage?.consent_id ?? null)
      : null;
  }

  /** @param {boolean} consent whether exchanges may be stored on the server */
  acknowledge(consent) {
    const at = new Date().toISOString();
    this.keep(() => this.store.set("acknowledged", { agreement: this.agreement, consent, at }));
    document.dispatchEvent(new CustomEvent("eyas:acknowledged"));
  }
}
