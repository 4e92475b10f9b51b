/**
 * The conversation's view: the welcome, the thread, the text box. The thread, with all that an answer needs, is loaded
 * after the first paint.
 */
import { Composer } from "./composer.js";
import { missingPart } from "./dialogs.js";
import { h } from "./dom.js";
import { welcome } from "./welcome.js";

export class Talk {
  /** @param {import("./app.js").App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    /** @type {import("./thread.js").Thread | null} */
    this.thread = null;
    this.intro = h("div");
    this.turns = h("div.thread");
    /** @type {Promise<import("./thread.js").Thread> | undefined} */
    this.loading = undefined;
    this.composer = new Composer({
      labelKey: "composer.label",
      hintKey: "composer.hint",
      send: (text) => this.ask(text),
      stop: () => this.thread?.stop(),
    });
    root.append(this.intro, this.turns, this.composer.root);
    const draft = app.tab.get("draft", "");
    this.open(app.tab.get("open", null));
    if (draft) this.composer.put(draft);
    app.tab.remove("draft");
    // Words that were not sent are there again with the page, in this tab alone: whoever opens another sees none.
    addEventListener("pagehide", () => {
      const text = this.composer.text.value;
      if (text && app.acknowledged) app.keep(() => app.tab.set("draft", text));
    });
  }

  /** The thread, once. @returns {Promise<import("./thread.js").Thread>} */
  load() {
    this.loading ??= import("./thread.js").then(({ Thread }) => {
      this.thread = new Thread(this.app, this);
      return this.thread;
    });
    return this.loading;
  }

  /** Shows a kept conversation, or begins one. @param {string | null} id */
  async open(id) {
    this.thread?.stop();
    const { conversations } = this.app;
    const conversation = (id && conversations.get(id)) || conversations.create();
    this.conversation = conversation;
    this.refresh();
    this.tell();
    if (!conversation.turns.length && !this.thread) return;
    try {
      const thread = await this.load();
      if (this.conversation === conversation) thread.show(conversation);
    } catch {
      missingPart();
    }
  }

  /** @param {string} text */
  async ask(text) {
    if (!this.app.acknowledged) return;
    // At once, so that a second press while parts are loading sends nothing.
    this.composer.setBusy(true);
    try {
      const thread = await this.load();
      if (thread.conversation !== this.conversation) thread.show(this.conversation);
      thread.ask(text);
    } catch {
      // The words are there again after the page was loaded again.
      this.composer.setBusy(false);
      this.composer.put(text);
      this.app.keep(() => this.app.tab.set("draft", text));
      missingPart();
    }
  }

  /** What depends on the conversation's state: the welcome and the text box. */
  refresh() {
    const begun = this.conversation.turns.length > 0 && this.app.acknowledged;
    const begin = () => {
      this.refresh();
      this.composer.focus();
    };
    // Drawn again only when something else is to be seen, so that the focus stays.
    const state = `${begun}${this.app.acknowledged}`;
    if (state !== this.shown) {
      this.shown = state;
      this.intro.replaceChildren(
        begun ? h("h1.unseen", {}, this.app.page.title) : welcome(this.app, { ask: (text) => this.ask(text), begin }),
      );
    }
    this.composer.setEnabled(this.app.acknowledged);
    this.composer.setBusy(this.thread?.busy ?? false);
  }

  /** Tells the list at the side, and what shows this conversation again after the page was loaded anew. */
  tell() {
    this.app.keep(() => this.app.tab.set("open", this.conversation.id));
    document.dispatchEvent(new CustomEvent("eyas:conversations", { detail: { open: this.conversation.id } }));
  }
}
