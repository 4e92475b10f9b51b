/**
 * Self-assessment and monitoring: mood, questionnaires, and both over time. Nothing of it leaves the browser.
 */
import { ApiError, getJson } from "./api.js";
import { h } from "./dom.js";
import { currentLanguage } from "./i18n.js";
import { loadCss } from "./lazy_css.js";
import { moodForm } from "./mood_form.js";
import { QuestionnaireForm } from "./questionnaire_form.js";
import { Records } from "./records.js";
import { recordsView } from "./records_view.js";
import { troubleBox } from "./trouble.js";

export class CheckIn {
  /** @param {import("./app.js").App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.records = new Records(app.store);
    /** @type {import("./scoring.js").Questionnaire[]} */
    this.questionnaires = [];
    this.overview = h("div.check-in");
    this.form = h("div", { hidden: true });
    root.append(this.overview, this.form);
    document.addEventListener("eyas:language", () => this.load());
    document.addEventListener("eyas:stored", () => this.drawHistory());
    loadCss("check_in").then(() => this.load());
  }

  async load() {
    this.error = null;
    try {
      const found = await getJson("/api/care/questionnaires", { language: currentLanguage() });
      this.questionnaires = found.questionnaires;
    } catch (error) {
      this.error = error instanceof ApiError ? error : new ApiError("broken", `${error}`);
    }
    this.draw();
    // A questionnaire being filled in goes on in the new language with the answers given.
    const open = this.open && this.questionnaires.find((q) => q.id === this.open.questionnaire.id);
    if (open) this.fillIn(open, this.open.answers);
  }

  draw() {
    const list = h("div.cards");
    if (this.error) list.append(troubleBox(this.error, () => this.load()));
    else list.append(...this.questionnaires.map((q) => this.card(q)));
    this.history = h("section.sheet", { "aria-labelledby": "records-heading" });
    this.overview.replaceChildren(
      h("h1", { say: "check_in.heading" }),
      h("p.soft", { say: "check_in.text" }),
      moodForm(this.app, this.records, () => this.drawHistory()),
      h(
        "section",
        { "aria-labelledby": "questionnaires-heading" },
        h("h2", { id: "questionnaires-heading", say: "questionnaires" }),
        list,
      ),
      this.history,
    );
    this.drawHistory();
  }

  drawHistory() {
    if (!this.history) return;
    recordsView(this.app, this.records, this.questionnaires, this.history);
  }

  /** @param {import("./scoring.js").Questionnaire} questionnaire */
  card(questionnaire) {
    return h(
      "article.sheet",
      {},
      h("h3", {}, questionnaire.title),
      h("p", {}, questionnaire.about),
      h("p.small.soft", { say: ["questionnaire.items", { count: questionnaire.items.length }] }),
      h("button", {
        say: "questionnaire.start",
        label: ["questionnaire.start_name", { title: questionnaire.title }],
        on: { click: () => this.fillIn(questionnaire) },
      }),
    );
  }

  /** @param {import("./scoring.js").Questionnaire} questionnaire @param {import("./scoring.js").Answers} [answers] */
  fillIn(questionnaire, answers) {
    this.open = new QuestionnaireForm(this.app, questionnaire, {
      answers,
      keep: (score) => this.app.keep(() => this.records.addScore(score)),
      close: () => this.closeForm(),
    });
    this.overview.hidden = true;
    this.form.hidden = false;
    this.form.replaceChildren(this.open.root);
    this.open.focus();
    scrollTo({ top: 0, behavior: "instant" });
  }

  closeForm() {
    this.open = null;
    this.form.hidden = true;
    this.form.replaceChildren();
    this.overview.hidden = false;
    this.drawHistory();
    scrollTo({ top: 0, behavior: "instant" });
    document.getElementById("main")?.focus({ preventScroll: true });
  }
}
