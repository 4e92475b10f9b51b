/**
 * One question and its answer on the page.
 */
import { careCard, openingOf } from "./care_card.js";
import { copy } from "./clipboard.js";
import { drawing, h, iconButton } from "./dom.js";
import { say } from "./i18n.js";
import { MarkdownView } from "./markdown_dom.js";
import { troubleBox } from "./trouble.js";

/** After this long without a word, waiting is explained. */
const PATIENCE_MS = 8000;

/** What the ends of an answer say; the usual one says nothing. */
const ENDS = { length: "answer.length", stopped: "answer.stopped", content_filter: "answer.filtered" };

/** An answer that grows. Also used where two models answer the same question. */
export class AnswerView {
  /**
   * @param {import("./app.js").App} app
   * @param {{by: HTMLElement, actions?: HTMLElement[], goOn?: () => void}} parts
   */
  constructor(app, { by, actions = [], goOn }) {
    this.app = app;
    this.goOn = goOn;
    this.care = h("div.helped", { hidden: true });
    this.prose = h("div.prose");
    this.markdown = new MarkdownView(this.prose);
    this.notes = h("div");
    this.copyButton = iconButton("button.quiet", "copy", "copy", { on: { click: () => copy(this.text) } });
    this.text = "";
    /** Not where a fixed answer would come again, nor beside a box that offers the same. */
    this.canRetry = true;
    this.buttons = h("div.actions", { hidden: true }, this.copyButton, ...actions);
    this.root = h("div.answer", {}, h("div.by", {}, by), this.care, this.prose, this.notes, this.buttons);
    this.frame = 0;
    /** Called after more of it is drawn. @type {(() => void) | undefined} */
    this.grew = undefined;
  }

  /** Before the first word. */
  wait() {
    this.markdown.show("");
    this.care.hidden = true;
    this.care.replaceChildren();
    this.buttons.hidden = true;
    const words = h("span", { say: "answer.waiting" });
    this.notes.replaceChildren(h("div.waiting", {}, words));
    this.patience = setTimeout(() => say(words, "answer.still_waiting"), PATIENCE_MS);
  }

  /** A part of the answer. Drawn once a frame, however fast it comes. @param {import("./conversations.js").Answer} answer */
  grow(answer) {
    clearTimeout(this.patience);
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.show(answer, true);
      if (answer.text || answer.care) this.notes.replaceChildren();
      this.grew?.();
    });
  }

  /** @param {import("./conversations.js").Answer} answer @param {boolean} [grows] whether more of it may follow */
  show(answer, grows = false) {
    if (answer.care) this.showCare(answer, !grows);
    else this.markdown.show(answer.text, grows);
  }

  /**
   * In a crisis the answer is fixed text, and the card shows all of it. The helplines are there with the first piece; the
   * opening words are drawn again at the end, when all of them have come.
   */
  showCare(answer, whole) {
    if (!this.care.hidden && !whole) return;
    const words = openingOf(answer.text);
    this.care.replaceChildren(careCard(this.app, { care: answer.care, words, goOn: this.goOn }));
    this.care.hidden = false;
  }

  /**
   * The end.
   * @param {import("./conversations.js").Answer} answer
   * @param {import("./api.js").ApiError | null} [error]
   * @param {() => void} [retry]
   */
  end(answer, error = null, retry = undefined) {
    clearTimeout(this.patience);
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.show(answer);
    const notes = [];
    if (answer.replaced) notes.push(h("p.small.soft", { say: "answer.replaced" }));
    if (answer.finish in ENDS) notes.push(h("p.small.soft", { say: ENDS[answer.finish] }));
    if (answer.finish === "stop" && !answer.text && !answer.care) notes.push(h("p.soft", { say: "answer.empty" }));
    this.canRetry = !answer.care && !(error && retry);
    if (error) notes.push(troubleBox(error, retry));
    else if (answer.finish === "error") notes.push(h("p.small.soft", { say: "answer.broken" }));
    this.notes.replaceChildren(...notes);
    this.text = answer.text;
    this.copyButton.hidden = !answer.text;
    this.buttons.hidden = false;
  }
}

/** What is shown of an answer of which nothing came before the page was left. */
const LOST = { text: "", model: "", finish: "error" };

/** @param {string} text */
export function reminderNote(text) {
  return h("div.reminder", { role: "note" }, drawing("message"), h("p", {}, text));
}

/**
 * A turn of the conversation. `edit` and `retry` are what its buttons do.
 */
export class TurnView {
  /**
   * @param {import("./app.js").App} app
   * @param {import("./conversations.js").Turn} turn
   * @param {{edit: (text: string) => void, retry: () => void, goOn: () => void}} does
   */
  constructor(app, turn, does) {
    this.turn = turn;
    this.does = does;
    this.by = h("span", {});
    this.words = h("p.words", {}, turn.question);
    this.editButton = iconButton("button.quiet", "edit", "edit", { on: { click: () => this.openEditor() } });
    this.question = h("div.question", {}, h("h3.unseen", { say: "question.heading" }), this.words, this.editButton);
    this.retryButton = iconButton("button.quiet", "retry", "retry", { on: { click: does.retry } });
    this.answer = new AnswerView(app, { by: this.by, actions: [this.retryButton], goOn: does.goOn });
    this.root = h("article.turn", {}, this.question, h("h3.unseen", { say: "answer.heading" }), this.answer.root);
    this.setModel(turn.answer?.model ?? "");
    this.answer.end(turn.answer ?? LOST);
  }

  /** @param {string} model */
  setModel(model) {
    if (model) say(this.by, "answer.by", { model });
  }

  wait(model) {
    this.setModel(model);
    this.answer.wait();
  }

  /** While an answer is written nothing else may be asked; only the last answer can be asked for again. */
  setState({ busy, last }) {
    this.editButton.disabled = busy;
    this.retryButton.hidden = !last || !this.answer.canRetry;
    this.retryButton.disabled = busy;
  }

  openEditor() {
    const field = h("textarea", { label: "question.edit", rows: 3 });
    field.value = this.turn.question;
    const close = () => {
      this.question.replaceChildren(...old);
      this.editButton.focus();
    };
    const save = (event) => {
      event?.preventDefault();
      const text = field.value.trim();
      if (!text) return;
      close();
      this.does.edit(text);
    };
    const old = [...this.question.childNodes];
    const form = h(
      "form",
      {
        on: {
          submit: save,
          keydown: (event) => {
            if (event.key === "Escape") close();
          },
        },
      },
      field,
      h("p.small.soft", { say: "question.cut" }),
      h(
        "div.row",
        {},
        h("button", { say: "cancel", on: { click: close } }),
        h("button.main", { type: "submit", say: "question.again" }),
      ),
    );
    this.question.replaceChildren(form);
    field.focus();
    form.scrollIntoView({ block: "nearest" });
  }
}
