/**
 * A questionnaire to fill in, and its result. An answer that calls for help shows help at once.
 */
import { announce } from "./announcer.js";
import { careCard } from "./care_card.js";
import { toast } from "./dialogs.js";
import { h, iconButton } from "./dom.js";
import { say, t } from "./i18n.js";
import { safeUrl } from "./markdown.js";
import { alarming, highest, score, unanswered } from "./scoring.js";

export class QuestionnaireForm {
  /**
   * @param {import("./app.js").App} app
   * @param {import("./scoring.js").Questionnaire} questionnaire
   * @param {{answers?: import("./scoring.js").Answers, keep: (score: any) => void, close: () => void}} options
   */
  constructor(app, questionnaire, { answers, keep, close }) {
    this.app = app;
    this.questionnaire = questionnaire;
    this.keep = keep;
    this.close = close;
    this.answers = answers ?? questionnaire.items.map(() => null);
    this.progress = h("p.small.soft", { role: "status" });
    this.missing = h("p.trouble", { role: "alert", hidden: true });
    this.items = questionnaire.items.map((text, item) => this.item(text, item));
    this.heading = h("h1", { tabindex: -1 }, questionnaire.title);
    this.result = h("div", { hidden: true });
    const finish = (event) => {
      event.preventDefault();
      this.finish();
    };
    this.form = h(
      "form.items",
      { novalidate: true, on: { submit: finish } },
      h("p.stem", {}, questionnaire.stem),
      ...this.items.map((parts) => parts.root),
      this.progress,
      this.missing,
      h("div.row", {}, h("button.main", { type: "submit", say: "questionnaire.finish" })),
    );
    this.root = h(
      "div.questionnaire",
      {},
      h("div.row", {}, iconButton("button.quiet.first", "back", "back", { on: { click: close } })),
      this.heading,
      h("p", {}, questionnaire.about),
      h("p.notice", { say: "questionnaire.private" }),
      this.form,
      this.result,
      source(questionnaire),
    );
    for (const [item, value] of this.answers.entries()) if (value !== null) this.showHelp(item);
    this.count();
  }

  focus() {
    this.heading.focus({ preventScroll: true });
  }

  /** @param {string} text @param {number} item */
  item(text, item) {
    const help = h("div");
    const options = this.questionnaire.options.map(({ value, label }) => {
      const input = h("input", {
        type: "radio",
        name: `item-${item}`,
        value,
        checked: this.answers[item] === value,
        on: { change: () => this.choose(item, value) },
      });
      return h("label", {}, input, h("span", {}, label));
    });
    const root = h(
      "div.item",
      {},
      h("fieldset", {}, h("legend", {}, `${item + 1}. ${text}`), h("div.options", {}, ...options)),
      help,
    );
    return { root, help, first: options[0].firstElementChild };
  }

  /** @param {number} item @param {number} value */
  choose(item, value) {
    this.answers[item] = value;
    this.missing.hidden = true;
    this.items[item].root.classList.remove("open");
    this.count();
    this.showHelp(item);
  }

  /** Help stands right below the answer that calls for it, as soon as it is given. @param {number} item */
  showHelp(item) {
    const { help } = this.items[item];
    const wanted = alarming(this.questionnaire, this.answers).includes(item);
    if (!wanted) help.replaceChildren();
    else if (!help.childElementCount) {
      help.append(careCard(this.app, { words: this.questionnaire.help_text }));
      announce(`${this.questionnaire.help_text} ${t("help.below")}`);
    }
  }

  count() {
    const done = this.questionnaire.items.length - unanswered(this.questionnaire, this.answers).length;
    say(this.progress, "questionnaire.progress", { done, count: this.questionnaire.items.length });
  }

  finish() {
    const open = unanswered(this.questionnaire, this.answers);
    if (open.length) {
      say(this.missing, "questionnaire.missing", { items: open.map((item) => item + 1).join(t("list")) });
      this.missing.hidden = false;
      for (const item of open) this.items[item].root.classList.add("open");
      this.items[open[0]].first.focus();
      return;
    }
    this.showResult();
  }

  showResult() {
    const { questionnaire, answers } = this;
    const found = /** @type {NonNullable<ReturnType<typeof score>>} */ (score(questionnaire, answers));
    const most = highest(questionnaire);
    const help = alarming(questionnaire, answers).length > 0;
    const record = { questionnaire: questionnaire.id, score: found.score, highest: most, band: found.band?.name ?? "" };
    const keepButton = iconButton("button.main", "save", "result.keep", {
      on: {
        click: () => {
          this.keep(record);
          toast("result.kept");
          this.close();
        },
      },
    });
    const heading = h("h2", { tabindex: -1, say: ["result.heading", { title: questionnaire.title }] });
    const key = questionnaire.unit === "percentage" ? "result.percent" : "result.score";
    this.result.replaceChildren(
      h(
        "section.sheet.result",
        {},
        heading,
        h("p.score", { say: [key, { score: found.score, highest: most }] }),
        scale(questionnaire, found.score, most),
        found.band && h("h3", {}, found.band.name),
        found.band && h("p", {}, found.band.text),
        h("p.notice", {}, questionnaire.note),
        h("div.row", {}, keepButton, h("button", { say: "result.leave", on: { click: this.close } })),
      ),
      help || found.band?.shows_help ? careCard(this.app, { words: help ? questionnaire.help_text : "" }) : "",
    );
    this.form.hidden = true;
    this.result.hidden = false;
    heading.focus({ preventScroll: true });
    this.root.scrollIntoView({ block: "start", behavior: "instant" });
  }
}

/** The bands in a row, and where the score lies. What it shows is said in words beside it. */
function scale(questionnaire, value, most) {
  const marker = h("span.marker");
  marker.style.left = `${(value / most) * 100}%`;
  const bands = questionnaire.bands.map((band) => {
    const part = h("span", {}, band.name);
    part.style.flexGrow = String(band.to - band.from + 1);
    if (value >= band.from && value <= band.to) part.className = "here";
    return part;
  });
  return h("div.scale", { "aria-hidden": "true" }, h("div.bands", {}, ...bands), marker);
}

/** @param {import("./scoring.js").Questionnaire} questionnaire */
function source(questionnaire) {
  const url = safeUrl(questionnaire.source_url);
  return h(
    "footer.small.soft.source",
    {},
    h(
      "p",
      {},
      h("strong", { say: "questionnaire.source" }),
      " ",
      questionnaire.source,
      " ",
      url && h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, url.host),
    ),
    h("p", {}, h("strong", { say: "questionnaire.licence" }), " ", questionnaire.licence),
  );
}
