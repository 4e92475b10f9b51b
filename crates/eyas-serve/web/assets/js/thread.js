/**
 * Questions and answers of one conversation, and what can be done with them: ask, stop, try again, change.
 */
import { Announcer, announce } from "./announcer.js";
import { answer } from "./answering.js";
import { getJson } from "./api.js";
import { newTurn } from "./conversations.js";
import { toast } from "./dialogs.js";
import { drawing, h } from "./dom.js";
import { currentLanguage, t } from "./i18n.js";
import { SessionClock } from "./reminders.js";
import { TurnView, reminderNote } from "./turn_view.js";

/** How near the end of the page counts as following the answer. */
const NEAR_END_PX = 120;
/** Between the bar at the top and the turn below it. */
const GAP_PX = 16;

export class Thread {
  /** @param {import("./app.js").App} app @param {import("./talk.js").Talk} talk */
  constructor(app, talk) {
    this.app = app;
    this.talk = talk;
    this.root = talk.turns;
    this.conversation = talk.conversation;
    this.clock = new SessionClock();
    /** @type {{start?: string, long_session?: string, policy?: {turns: number, minutes: number}}} */
    this.reminders = {};
    /** @type {TurnView[]} */
    this.views = [];
    /** @type {AbortController | null} */
    this.running = null;
    /** What has come of the answer under way. @type {{turn: any, answer: any} | null} */
    this.part = null;
    this.jump = h(
      "button.jump",
      { hidden: true, label: "jump", on: { click: () => this.toEnd() } },
      drawing("down"),
    );
    talk.composer.root.prepend(this.jump);
    addEventListener("scroll", () => this.noticeScroll(), { passive: true });
    addEventListener("hashchange", () => this.noticeScroll());
    document.addEventListener("eyas:language", () => this.loadReminders());
    // A phone may end a page that is out of sight without another word.
    addEventListener("pagehide", () => this.keepPart());
    document.addEventListener("visibilitychange", () => document.hidden && this.keepPart());
    this.loadReminders();
  }

  async loadReminders() {
    try {
      this.reminders = await getJson("/api/care/reminders", { language: currentLanguage() });
    } catch {
      // Without the table there are no reminders; the welcome has said it.
    }
    this.showStartReminder();
  }

  get busy() {
    return this.running !== null;
  }

  /** @param {import("./conversations.js").Conversation} conversation */
  show(conversation) {
    this.stop();
    this.running = this.part = null;
    this.conversation = conversation;
    this.views = conversation.turns.map((turn) => this.viewOf(turn));
    this.root.replaceChildren(...this.views.map((view) => view.root));
    this.showStartReminder();
    this.refresh();
    this.toLast();
  }

  /** Said once above the first answer. */
  showStartReminder() {
    this.startNote?.remove();
    if (!this.reminders.start || !this.views.length) return;
    this.startNote = reminderNote(this.reminders.start);
    this.root.prepend(this.startNote);
  }

  /** @param {import("./conversations.js").Turn} turn */
  viewOf(turn) {
    const view = new TurnView(this.app, turn, {
      edit: (text) => this.edit(turn, text),
      retry: () => this.retry(turn),
      goOn: () => this.talk.composer.focus(),
    });
    // A conversation that was left may still draw once.
    view.answer.grew = () => this.views.includes(view) && this.follow();
    return view;
  }

  refresh() {
    for (const view of this.views) view.setState({ busy: this.busy, last: view === this.views.at(-1) });
    this.talk.refresh();
  }

  /** @param {string} text */
  ask(text) {
    if (this.busy) return;
    const turn = newTurn(text);
    this.conversation.turns.push(turn);
    const view = this.viewOf(turn);
    this.views.push(view);
    this.root.append(view.root);
    if (this.views.length === 1) this.showStartReminder();
    this.remindOfTime(view);
    this.run(view);
  }

  /** @param {TurnView} view */
  remindOfTime(view) {
    const { policy, long_session } = this.reminders;
    if (!this.clock.count(policy) || !long_session) return;
    view.root.before(reminderNote(long_session));
    announce(long_session);
  }

  /** Asks a changed question in the place of the old one; what followed is cut, and can be brought back. */
  edit(turn, text) {
    if (this.busy) return;
    const place = this.conversation.turns.indexOf(turn);
    const before = structuredClone(this.conversation);
    this.conversation.turns.splice(place);
    this.show(this.conversation);
    this.ask(text);
    toast(place < before.turns.length - 1 ? "question.branch_cut" : "question.replaced", {
      say: "undo",
      run: () => {
        // An answer that is still being written belongs to no conversation any more.
        this.conversation.turns.splice(0);
        this.app.keep(() => this.app.conversations.save(before));
        this.talk.open(before.id);
      },
    });
  }

  /** @param {import("./conversations.js").Turn} turn */
  retry(turn) {
    const view = this.views.find((v) => v.turn === turn);
    if (view && !this.busy) this.run(view);
  }

  /** @param {TurnView} view */
  async run(view) {
    const { app, conversation } = this;
    const running = new AbortController();
    this.running = running;
    const model = app.settings.model;
    const turn = view.turn;
    const before = conversation.turns.slice(0, conversation.turns.indexOf(turn));
    const earlier = turn.answer;
    const announcer = new Announcer(announce);
    app.keep(() => app.conversations.save(conversation));
    this.talk.tell();
    view.wait(model);
    this.refresh();
    this.toLast();
    // What was pressed may be hidden now; the button that stops is where the keyboard goes on.
    if (document.activeElement !== this.talk.composer.text) this.talk.composer.button.focus({ preventScroll: true });
    announce(t("answer.waiting"));
    const grows = (growing) => {
      if (this.running === running) this.part = { turn, answer: growing };
      // A fixed answer is short and urgent: it is said at its end, whole.
      if (!growing.care) announcer.update(growing.text);
      view.answer.grow(growing);
    };
    const asked = { model, before, question: turn.question };
    const { answer: given, error } = await answer(app, asked, running.signal, grows);
    // A second try that was stopped before its first word takes nothing away.
    const found = given.finish === "stopped" && !given.text && earlier?.text ? earlier : given;
    if (this.running === running) this.running = this.part = null;
    // A conversation deleted meanwhile must not come back.
    if (!conversation.turns.includes(turn) || !app.conversations.get(conversation.id)) return;
    turn.answer = found;
    app.keep(() => app.conversations.save(conversation));
    if (!this.views.includes(view)) return;
    announcer.update(found.text, true);
    if (given.finish === "stopped") announce(t("answer.stopped"));
    view.setModel(found.model);
    view.answer.end(found, error, () => this.retry(turn));
    this.talk.tell();
    this.refresh();
    this.follow();
  }

  /** Ends the answer under way, if there is one. */
  stop() {
    this.running?.abort();
  }

  /** The page is being left, or may be: what has come of an answer is there when it is opened again. */
  keepPart() {
    const { app, conversation, part } = this;
    if (!part || !app.conversations.get(conversation.id)) return;
    const earlier = part.turn.answer;
    if (earlier && !part.answer.text) return;
    part.turn.answer = { ...part.answer, finish: "error" };
    app.keep(() => app.conversations.save(conversation));
    part.turn.answer = earlier;
  }

  /**
   * Keeps the end in sight while an answer grows, but no further than where reading it begins: a long answer is read
   * from its start. Who has gone on to the end is taken along; who went up is left there.
   */
  follow() {
    if (!this.following) return this.noticeScroll();
    if (scrollY > this.startOfLast() + 1) this.toEnd();
    else this.toLast();
  }

  /** To the newest turn: all of it, or its start where it is longer than the window. */
  toLast() {
    if (!this.views.length) return;
    const end = document.documentElement.scrollHeight - innerHeight;
    scrollTo({ top: Math.min(end, this.startOfLast()), behavior: "instant" });
    this.noticeScroll();
  }

  /** How far to scroll to read the newest turn from its question on, or its answer where that is help or far below. */
  startOfLast() {
    const { root, answer } = /** @type {TurnView} */ (this.views.at(-1));
    const bar = document.querySelector(".top")?.getBoundingClientRect().bottom ?? 0;
    const placeOf = (node) => node.getBoundingClientRect().top + scrollY - Math.max(0, bar) - GAP_PX;
    const least = placeOf(answer.root) - (answer.care.hidden ? innerHeight / 4 : 0);
    return Math.max(placeOf(root), least);
  }

  noticeScroll() {
    const hidden = /** @type {HTMLElement} */ (this.root.parentElement).hidden;
    if (hidden) return;
    this.following = innerHeight + scrollY >= document.documentElement.scrollHeight - NEAR_END_PX;
    this.jump.hidden = this.following || !this.views.length;
  }

  toEnd() {
    this.following = true;
    this.jump.hidden = true;
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  }
}
