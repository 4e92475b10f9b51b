/**
 * How help is shown: emergency number, helplines, steps to calm down, and the choice of region. All of it is from a
 * checked table; nothing of it is written by a model.
 */
import { asHelp, smsUrl, telUrl } from "./care.js";
import { drawing, h } from "./dom.js";
import { currentLanguage, date, say, t } from "./i18n.js";
import { safeUrl } from "./markdown.js";
import { MarkdownView } from "./markdown_dom.js";

/** Where nothing fits what was said better. */
const STEPS = ["care.step.1", "care.step.2", "care.step.3", "care.step.4"];

/**
 * A card of help.
 * @param {import("./app.js").App} app
 * @param {{care?: any, words?: string, headingKey?: string, goOn?: () => void}} options
 *   `care` is the server's answer in a crisis: its helplines fit what was said. Without it the region's are shown.
 *   `words`, in markdown, come first; the emergency numbers follow their first paragraph, to be seen at once.
 * @returns {HTMLElement}
 */
export function careCard(app, { care, words = "", headingKey = "care.heading", goOn } = {}) {
  const [first, ...rest] = words.split(/\n{2,}/);
  const parts = { urgent: h("div.lines"), lines: h("div.lines"), grounding: h("div") };
  const card = h(
    "section.care",
    { label: headingKey },
    h("h3", { say: headingKey }),
    prose(first),
    parts.urgent,
    prose(rest.join("\n\n")),
    parts.lines,
    regionChoice(app, (region) => fill(app, parts, region)),
    parts.grounding,
    care?.follow_up && h("p.prose", {}, care.follow_up),
    goOn &&
      h("div", {}, h("button.go-on", { on: { click: goOn } }, drawing("message"), h("span", { say: "care.go_on" }))),
    h("p.small.soft", { say: "care.source" }),
  );
  if (care?.helplines?.length) show(parts, asHelp(care));
  else fill(app, parts, app.care.region);
  return card;
}

/** @param {string} words in markdown */
function prose(words) {
  const root = h("div.prose");
  new MarkdownView(root).show(words);
  return root;
}

/**
 * The words that open the answer to a crisis. Its text stands alone and repeats the helplines as a list, which the card
 * shows better; where it is built in another way, all of it is shown.
 * @param {string} text
 */
export function openingOf(text) {
  return /^([\s\S]*?)\n+\*\*[^\n]*\*\*\n+- /.exec(text)?.[1] ?? text;
}

/**
 * Where the parts of help go: emergency numbers, other lines, steps.
 * @typedef {{urgent: HTMLElement, lines: HTMLElement, grounding: HTMLElement}} Parts
 */

/** @param {import("./app.js").App} app @param {Parts} parts @param {string} region */
async function fill(app, parts, region) {
  try {
    show(parts, await app.care.help(region));
  } catch {
    parts.urgent.replaceChildren(h("p", { say: "care.unreachable" }), h("p", { say: "care.emergency" }));
    parts.lines.replaceChildren();
  }
}

/** @param {Parts} parts @param {import("./care.js").Help} help */
function show({ urgent, lines, grounding }, help) {
  const list = (those) => h("ul", {}, ...those.map(lineItem));
  const emergency = help.helplines.filter((line) => line.kind === "emergency");
  const steps = help.grounding.length
    ? help.grounding.map((step) => h("li", {}, step))
    : STEPS.map((key) => h("li", { say: key }));
  // Without a region the number is not known, but it must be named.
  urgent.replaceChildren(emergency.length ? list(emergency) : h("p", { say: "care.emergency" }));
  lines.replaceChildren(list(help.helplines.filter((line) => line.kind !== "emergency")));
  grounding.replaceChildren(h("h4", { say: "care.grounding" }), h("ol", {}, ...steps));
}

/** @param {import("./care.js").Helpline} line */
function lineItem(line) {
  const url = line.url && safeUrl(line.url);
  const languages = line.languages.filter((tag) => tag).map(languageName);
  return h(
    `li.${line.kind}`,
    {},
    h("h4", {}, line.name),
    h(
      "div.ways",
      {},
      line.phone &&
        way(telUrl(line.phone), "phone", line.phone, ["care.call", { name: line.name, number: line.phone }]),
      line.sms && way(smsUrl(line.sms), "message", line.sms, ["care.text", { name: line.name, number: line.sms }]),
      url && h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, drawing("globe"), url.host),
    ),
    h(
      "p.small.soft",
      {},
      [line.hours, languages.join(t("list")), t("care.checked", { date: date(line.checked, { dateStyle: "medium" }) })]
        .filter(Boolean)
        .join(" · "),
    ),
  );
}

/** A number that can be pressed, or its words where it is not one number. */
function way(url, icon, words, label) {
  return url ? h("a", { href: url, label }, drawing(icon), words) : h("span", {}, words);
}

/** @param {string} tag */
function languageName(tag) {
  try {
    return new Intl.DisplayNames([currentLanguage()], { type: "language" }).of(tag) ?? tag;
  } catch {
    return tag;
  }
}

/** @param {import("./app.js").App} app @param {(region: string) => void} chosen */
function regionChoice(app, chosen) {
  const select = h("select", {
    on: {
      change: () => {
        app.care.region = select.value;
        chosen(select.value);
      },
    },
  });
  const none = h("option", { value: "", say: "care.no_region" });
  select.append(none);
  app.care.regions().then(
    (regions) => {
      select.append(...regions.map(({ code, name }) => h("option", { value: code }, name)));
      select.value = app.care.region;
      if (select.selectedIndex < 0) select.value = "";
    },
    () => say(none, "care.regions_unreachable"),
  );
  return h("label.region", {}, h("span.small", { say: "care.region" }), select);
}
