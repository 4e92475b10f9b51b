/**
 * Two models answer the same question, side by side; or blind, so that a preference owes nothing to a name.
 */
import { announce } from "./announcer.js";
import { answer } from "./answering.js";
import { Composer } from "./composer.js";
import { confirm } from "./dialogs.js";
import { h } from "./dom.js";
import { number, say, t } from "./i18n.js";
import { loadCss } from "./lazy_css.js";
import { modelName } from "./settings_dialog.js";
import { AnswerView } from "./turn_view.js";
import { addVote, clearVotes, shuffled, totals, votes } from "./votes.js";

const LETTERS = ["A", "B"];

export class Compare {
  /** @param {import("./app.js").App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    /** @type {AbortController | null} */
    this.running = null;
    loadCss("compare").then(() => this.draw());
    for (const event of ["eyas:language", "eyas:stored"]) document.addEventListener(event, () => this.drawTotals());
    document.addEventListener("eyas:acknowledged", () => this.refresh());
  }

  draw() {
    const models = this.app.page.models;
    const tuned = models.find((m) => m.kind === "adapter");
    const base = models.find((m) => m.id === tuned?.base) ?? models[0];
    this.choices = [base, tuned ?? models[1]].map((model, side) => this.modelChoice(model, side));
    this.blind = h("input", { type: "checkbox", id: "blind" });
    this.rounds = h("div.rounds");
    this.tally = h("section.tally", { "aria-labelledby": "tally-heading" });
    this.composer = new Composer({
      labelKey: "compare.label",
      hintKey: "compare.hint",
      send: (text) => this.ask(text),
      stop: () => this.running?.abort(),
    });
    this.first = h("p.notice", {}, h("a", { href: "#talk", say: "compare.first" }));
    this.root.append(
      h(
        "div.compare-head",
        {},
        h("h1", { say: "compare.heading" }),
        h("p.soft", { say: "compare.text" }),
        this.first,
        models.length < 2
          ? h("p.notice", { say: "compare.one_model" })
          : h(
              "div.pair",
              {},
              ...this.choices.map((select, side) =>
                h("label", {}, h("span.small", { say: ["compare.model", { number: side + 1 }] }), select),
              ),
              h(
                "label.check",
                {},
                this.blind,
                h(
                  "span",
                  {},
                  h("span", { say: "compare.blind" }),
                  h("br"),
                  h("span.small.soft", { say: "compare.blind_about" }),
                ),
              ),
            ),
        this.tally,
      ),
      this.rounds,
      this.composer.root,
    );
    this.drawTotals();
    this.refresh();
  }

  modelChoice(chosen, side) {
    const models = this.app.page.models;
    const select = h(
      "select",
      { id: `compare-${side}` },
      ...models.map((m) => h("option", { value: m.id }, modelName(m))),
    );
    if (chosen) select.value = chosen.id;
    return select;
  }

  refresh() {
    if (!this.composer) return;
    this.first.hidden = this.app.acknowledged;
    this.composer.setEnabled(this.app.acknowledged && this.app.page.models.length > 1);
    this.composer.setBusy(this.running !== null);
  }

  /** @param {string} question */
  async ask(question) {
    if (this.running) return;
    const running = new AbortController();
    this.running = running;
    const blind = this.blind.checked;
    const chosen = /** @type {[string, string]} */ (this.choices.map((select) => select.value));
    const models = blind ? shuffled(chosen) : chosen;
    const round = new Round(this.app, { question, models, blind, voted: () => this.drawTotals() });
    this.rounds.append(round.root);
    this.refresh();
    round.root.scrollIntoView({ block: "start", behavior: "instant" });
    announce(t("answer.waiting"));
    await round.run(running.signal);
    this.running = null;
    this.refresh();
    announce(t(blind ? "compare.ready_blind" : "compare.ready"));
  }

  drawTotals() {
    if (!this.tally) return;
    const all = totals(votes(this.app.store));
    this.tally.hidden = !all.length;
    const reset = async () => {
      if (!(await confirm("votes.reset_heading", "votes.reset_text", "votes.reset"))) return;
      clearVotes(this.app.store);
      this.drawTotals();
      this.composer.focus();
    };
    this.tally.replaceChildren(
      h("h2", { id: "tally-heading", say: "votes.heading" }),
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ...["votes.model", "votes.preferred", "votes.share"].map((key) => h("th", { scope: "col", say: key })),
          ),
        ),
        ...all.map(pairRows),
      ),
      h("div.row", {}, h("button.quiet.first", { say: "votes.reset", on: { click: reset } })),
    );
  }
}

/** @param {import("./votes.js").Total} total */
function pairRows({ models, wins, ties }) {
  const count = wins[0] + wins[1] + ties;
  const row = (name, value) => {
    const share = value / count;
    const bar = h("span.bar");
    bar.style.width = `${share * 100}%`;
    return h(
      "tr",
      {},
      h("th", { scope: "row", ...(name ? {} : { say: "votes.tie" }) }, name),
      h("td", {}, number(value)),
      h("td", {}, h("span.share", {}, `${Math.round(share * 100)} %`), h("span.track", { "aria-hidden": "true" }, bar)),
    );
  };
  return h("tbody", {}, row(models[0], wins[0]), row(models[1], wins[1]), row("", ties));
}

/** One question to two models. */
class Round {
  /**
   * @param {import("./app.js").App} app
   * @param {{question: string, models: [string, string], blind: boolean, voted: () => void}} options
   */
  constructor(app, { question, models, blind, voted }) {
    this.app = app;
    this.question = question;
    this.models = models;
    this.blind = blind;
    this.voted = voted;
    /** @type {import("./conversations.js").Answer[]} */
    this.answers = [];
    this.names = models.map((id, side) =>
      h("span", { say: blind ? ["compare.letter", { letter: LETTERS[side] }] : ["compare.name", { model: id }] }),
    );
    this.views = models.map((_, side) => this.column(side));
    this.vote = h("div.vote");
    this.root = h(
      "article.round",
      {},
      h("div.question", {}, h("h2.unseen", { say: "question.heading" }), h("p.words", {}, question)),
      h("div.columns", {}, ...this.views.map((view) => view.root)),
      this.vote,
    );
  }

  column(side) {
    return new AnswerView(this.app, { by: h("h3", {}, this.names[side]) });
  }

  /** @param {AbortSignal} signal */
  async run(signal) {
    for (const view of this.views) view.wait();
    await Promise.all(this.models.map((_, side) => this.runSide(side, signal)));
    this.offer();
  }

  /** @param {number} side @param {AbortSignal} signal */
  async runSide(side, signal) {
    const view = this.views[side];
    const asked = { model: this.models[side], before: [], question: this.question };
    const { answer: found, error } = await answer(this.app, asked, signal, (growing) => view.grow(growing));
    this.answers[side] = found;
    view.end(found, error, async () => {
      view.wait();
      await this.runSide(side, new AbortController().signal);
      this.offer();
    });
  }

  /** A choice, once both answers are whole. */
  offer() {
    if (!this.blind || this.chosen) return;
    const whole = this.answers.every((a) => ["stop", "length"].includes(a?.finish) && a.text && !a.care);
    if (this.answers.some((a) => a.finish === "error")) {
      this.vote.replaceChildren(h("p.notice", { say: "compare.unfinished" }));
      return;
    }
    if (!whole) {
      // A fixed answer in a crisis, or half an answer, says nothing about a model.
      this.chosen = true;
      this.reveal("compare.no_vote", {});
      return;
    }
    const button = (preferred, key, letter) =>
      h("button", { say: [key, { letter }], on: { click: () => this.choose(preferred) } });
    this.vote.replaceChildren(
      h("p", { say: "compare.which" }),
      h(
        "div.row",
        {},
        button(this.models[0], "compare.better", LETTERS[0]),
        button(this.models[1], "compare.better", LETTERS[1]),
        button(null, "compare.tie", ""),
      ),
    );
    this.vote.scrollIntoView({ block: "nearest", behavior: "instant" });
  }

  /** @param {string | null} preferred */
  choose(preferred) {
    this.chosen = true;
    const { models, question } = this;
    this.app.keep(() => addVote(this.app.store, { models, preferred, question }));
    this.reveal("compare.was", { a: models[0], b: models[1] });
    this.vote.querySelector("p")?.focus();
    this.voted();
  }

  /** @param {string} key @param {Record<string, string>} values */
  reveal(key, values) {
    this.names.forEach((name, side) =>
      say(name, "compare.letter_name", { letter: LETTERS[side], model: this.models[side] }),
    );
    this.vote.replaceChildren(h("p.notice", { tabindex: -1, say: [key, values] }));
  }
}
