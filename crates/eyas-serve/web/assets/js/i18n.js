/**
 * The page's words in two languages. An element remembers the key of its words, so that all of them change at once.
 */

export const LANGUAGES = { en: "English", "zh-Hant": "繁體中文" };

/** @type {Record<string, string>} */
let words = {};
let language = "en";
/** Values to put into an element's words. @type {WeakMap<Element, Record<string, Record<string, unknown>>>} */
const values = new WeakMap();

export const currentLanguage = () => language;

/**
 * The language of the choice kept, or else the browser's. Any Chinese is taken for Traditional.
 * @param {string | null} kept
 * @param {readonly string[]} preferred
 */
export function chooseLanguage(kept, preferred) {
  if (kept !== null && kept in LANGUAGES) return kept;
  for (const tag of preferred) {
    if (/^zh\b/i.test(tag)) return "zh-Hant";
    if (/^en\b/i.test(tag)) return "en";
  }
  return "en";
}

/** Loads a language and says everything that is on the page in it. @param {string} name */
export async function loadLanguage(name) {
  words = (await import(`../strings/${name}.js`)).default;
  language = name;
  document.documentElement.lang = name;
  for (const node of document.querySelectorAll("[data-say], [data-say-aria-label], [data-say-placeholder]")) {
    if (node instanceof HTMLElement) speak(node);
  }
  document.dispatchEvent(new CustomEvent("eyas:language"));
}

/**
 * The words of a key, with `{name}` replaced by values.
 * @param {string} key @param {Record<string, unknown>} [given]
 */
export function t(key, given = {}) {
  const text = words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in given ? String(given[name]) : whole));
}

/** Sets an element's words. @param {HTMLElement} node @param {string} key @param {Record<string, unknown>} [given] */
export function say(node, key, given) {
  node.dataset.say = key;
  remember(node, "say", given);
  node.textContent = t(key, given);
}

/**
 * Sets the words of an attribute.
 * @param {HTMLElement} node @param {"aria-label" | "placeholder"} attribute
 * @param {string} key @param {Record<string, unknown>} [given]
 */
export function label(node, attribute, key, given) {
  node.setAttribute(`data-say-${attribute}`, key);
  remember(node, attribute, given);
  node.setAttribute(attribute, t(key, given));
}

function remember(node, what, given) {
  if (given) values.set(node, { ...values.get(node), [what]: given });
}

/** @param {HTMLElement} node */
function speak(node) {
  const given = values.get(node) ?? {};
  if (node.dataset.say) node.textContent = t(node.dataset.say, given.say);
  for (const attribute of ["aria-label", "placeholder"]) {
    const key = node.getAttribute(`data-say-${attribute}`);
    if (key) node.setAttribute(attribute, t(key, given[attribute]));
  }
}

/** The language with the region that the browser prefers, for dates and numbers as people there write them. */
function locale() {
  const tags = globalThis.navigator?.languages ?? [];
  return (
    tags.find((tag) => chooseLanguage(null, [tag]) === language && tag.slice(0, 2) === language.slice(0, 2)) ?? language
  );
}

/** @param {string | number | Date} when @param {Intl.DateTimeFormatOptions} [options] */
export function date(when, options = { dateStyle: "medium", timeStyle: "short" }) {
  const value = new Date(when);
  return Number.isNaN(value.getTime()) ? "" : new Intl.DateTimeFormat(locale(), options).format(value);
}

/** @param {number} value */
export const number = (value) => new Intl.NumberFormat(locale()).format(value);
