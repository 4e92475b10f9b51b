/**
 * What people see before the first question: what this is and is not, and an acknowledgement; then examples.
 */
import { drawing, h } from "./dom.js";
import { t } from "./i18n.js";

const AIMS = /** @type {const} */ ([
  ["message", "aim.learn"],
  ["help", "aim.support"],
  ["chart", "aim.assess"],
  ["phone", "aim.respond"],
]);
/** The first three are the recipe's. */
const EXAMPLES = ["example.1", "example.2", "example.3", "example.4", "example.5", "example.6"];

/**
 * @param {import("./app.js").App} app
 * @param {{ask: (question: string) => void, begin: () => void}} does
 * @returns {HTMLElement}
 */
export function welcome(app, { ask, begin }) {
  return h(
    "div.welcome",
    {},
    h("h1", {}, app.page.title),
    h("p.lead", { say: "welcome.lead" }),
    h("ul.aims", {}, ...AIMS.map(([icon, key]) => h("li", {}, drawing(icon), h("span", { say: key })))),
    app.acknowledged ? examples(ask) : before(app, begin),
  );
}

/** @param {import("./app.js").App} app @param {() => void} begin */
function before(app, begin) {
  const list = (prefix, count) =>
    h("ul", {}, ...Array.from({ length: count }, (_, i) => h("li", { say: `${prefix}.${i + 1}` })));
  const storage = app.page.storage;
  const agree = h("input", { type: "checkbox" });
  const consent = storage?.enabled && [
    h("h3", { say: "before.storage" }),
    h("p.consent", {}, storage.consent_text ?? ""),
    h("label.check", {}, agree, h("span", { say: "before.consent" })),
  ];
  const start = () => {
    app.acknowledge(agree.checked);
    begin();
  };
  return h(
    "section.before.sheet",
    { "aria-labelledby": "before-heading" },
    h("h2", { id: "before-heading", say: "before.heading" }),
    h(
      "div.two",
      {},
      h("div", {}, h("h3", { say: "before.is" }), list("before.is", 4)),
      h("div", {}, h("h3", { say: "before.is_not" }), list("before.is_not", 4)),
    ),
    h("p.notice", { say: "before.danger" }),
    h("p", { say: storage?.enabled ? "before.privacy_stored" : "before.privacy" }),
    ...(consent || []),
    h("div", {}, h("button.main", { id: "acknowledge", say: "before.acknowledge", on: { click: start } })),
  );
}

/** @param {(question: string) => void} ask */
function examples(ask) {
  const example = (key) => h("li", {}, h("button", { say: key, on: { click: () => ask(t(key)) } }));
  return h(
    "section.examples",
    { "aria-labelledby": "examples-heading" },
    h("h2", { id: "examples-heading", say: "examples" }),
    h("ul", {}, ...EXAMPLES.map(example)),
  );
}
