/**
 * What people see before the first question: what this is and is not, and an acknowledgement; then examples.
 */
import { drawing, h, svg } from "./dom.js";
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
    horizon(),
    h("h1", {}, app.page.title),
    h("p.lead", { say: "welcome.lead" }),
    h("ul.aims", {}, ...AIMS.map(([icon, key]) => h("li", {}, drawing(icon), h("span", { say: key })))),
    app.acknowledged ? examples(ask) : before(app, begin),
  );
}

/** Hills at dawn, and a young falcon above them. */
function horizon() {
  return svg(
    "svg",
    { viewBox: "0 0 480 190", class: "horizon", "aria-hidden": "true", focusable: "false" },
    svg("circle", { class: "sun", cx: 318, cy: 96, r: 44 }),
    svg("path", { class: "far", d: "M60 190C130 150 190 118 250 122 330 128 380 92 480 84V190Z" }),
    svg("path", { class: "near", d: "M150 190C230 168 270 150 330 156 390 162 430 134 480 128V190Z" }),
    svg("path", {
      class: "bird",
      d: "M220 62C231 51 243 50 251 57 257 45 271 37 289 38 276 44 266 54 260 65 256 63 250 64 246 69 247 64 247 61 244 59 237 57 229 58 220 62Z",
    }),
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
