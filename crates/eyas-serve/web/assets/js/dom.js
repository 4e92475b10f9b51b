/**
 * Elements, with words that follow the language.
 */
import { label, say } from "./i18n.js";

/**
 * An element. `say` is the key of its words, or `[key, values]`; `label` the same for `aria-label`; `on` its listeners;
 * other properties are attributes: true sets, false and undefined leave out.
 * @param {string} name with classes, as in `button.quiet`
 * @param {Record<string, any>} [props]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(name, props = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  if (tag === "button") node.setAttribute("type", "button");
  for (const [key, value] of Object.entries(props)) {
    if (key === "on") for (const [type, fn] of Object.entries(value)) node.addEventListener(type, fn);
    else if (key === "say") say(node, ...words(value));
    else if (key === "label") label(node, "aria-label", ...words(value));
    else if (key === "hint") label(node, "placeholder", ...words(value));
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(key, String(value));
  }
  node.append(.../** @type {(Node | string)[]} */ (children.filter(Boolean)));
  return node;
}

/** @param {string | [string, Record<string, unknown>]} value @returns {[string, Record<string, unknown>?]} */
const words = (value) => (typeof value === "string" ? [value] : value);

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element. @param {string} name @param {Record<string, string | number>} attributes @param {...(Node | string)} children */
export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

/** A button with a drawing and words. */
export function iconButton(name, icon, say, props = {}) {
  return h(name, props, drawing(icon), h("span", { say }));
}

/** Lines on a grid of 24, drawn with round strokes. */
const DRAWINGS = {
  arrow: "M12 19V6M6 11.5 12 5.5l6 6",
  back: "M19 12H6M11.5 6 5.5 12l6 6",
  chart: "M4 19h16M6 15l4-5 4 3 5-7",
  close: "M6.5 6.5l11 11M17.5 6.5l-11 11",
  columns: "M4.5 5.5h6v13h-6zM13.5 5.5h6v13h-6z",
  copy: "M9 9h10.5v10.5H9zM15 9V4.5H4.5V15H9",
  down: "M12 5v13M6 12.5l6 6 6-6",
  edit: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  globe: "M12 3.5a8.5 8.5 0 100 17 8.5 8.5 0 000-17zM3.5 12h17M12 3.5c-5 5-5 12 0 17M12 3.5c5 5 5 12 0 17",
  help: "M12 20C5 15.5 3.5 12 3.5 9a4.3 4.3 0 018.5-1.2A4.3 4.3 0 0120.5 9c0 3-1.5 6.5-8.5 11z",
  menu: "M4 7h16M4 12h16M4 17h10",
  message: "M5 5.5h14v10.5h-8L7 19.5V16H5z",
  moon: "M19 14.5A7.5 7.5 0 0110 5a7.5 7.5 0 109 9.5z",
  phone: "M6 4h3.5l1.5 4.5-2 1.5a12 12 0 005 5l1.5-2 4.5 1.5V18a2 2 0 01-2 2C10.5 20 4 13.5 4 6a2 2 0 012-2z",
  plus: "M12 5v14M5 12h14",
  retry: "M19 12a7 7 0 11-2-5M19 4v4h-4",
  save: "M12 4v11M7 10.5l5 5 5-5M5 19.5h14",
  settings: "M4 7.5h9M17 7.5h3M15 5v5M4 16.5h3M11 16.5h9M9 14v5",
  stop: "M6 6h12v12H6z",
  sun: "M12 8a4 4 0 100 8 4 4 0 000-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  trash: "M4.5 7h15M9.5 7V4.5h5V7M6.5 7l1 12.5h9l1-12.5M10 10.5v5.5M14 10.5v5.5",
};

/** A drawing that says nothing of its own. @param {keyof typeof DRAWINGS} name */
export function drawing(name) {
  return svg(
    "svg",
    { viewBox: "0 0 24 24", width: 20, height: 20, class: "drawing", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: DRAWINGS[name] }),
  );
}
