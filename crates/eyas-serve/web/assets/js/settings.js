/**
 * How answers are made: the recipe's values unless a person changes them. The server names the defaults and limits.
 *
 * @typedef {{model: string, temperature: number, top_p: number, repetition_penalty: number, max_tokens: number,
 *   seed: number | null, system: string | null, remember: number, tidy: boolean}} Settings
 *   A `system` of null leaves the recipe's instructions in place.
 */
import { Store } from "./store.js";

/** Key, smallest, largest and step of each number. */
export const NUMBERS = [
  { key: "temperature", min: 0, max: 2, step: 0.05 },
  { key: "top_p", min: 0.05, max: 1, step: 0.05 },
  { key: "repetition_penalty", min: 1, max: 2, step: 0.05 },
  { key: "max_tokens", min: 16, max: 2048, step: 16 },
  // A question and its answer are two turns.
  { key: "remember", min: 0, max: 20, step: 2 },
];
export const MAX_SEED = 2 ** 32 - 1;

/**
 * What the server says is usual.
 * @param {any} page the answer of `/api/page`
 * @returns {Settings}
 */
export function defaultSettings(page) {
  const models = page.models ?? [];
  // The tuned model is what people come for.
  const model = (models.find((m) => m.kind === "adapter") ?? models[0])?.id ?? "";
  return { ...page.defaults, model, seed: null };
}

/** The range of a number, within the server's limits. @param {(typeof NUMBERS)[number]} number @param {any} page */
export function range(number, page) {
  const limit = page.limits?.[number.key] ?? page.limits?.[`max_${number.key}`];
  return { ...number, max: typeof limit === "number" ? Math.max(number.min, Math.min(number.max, limit)) : number.max };
}

/**
 * The kept settings over the defaults; what does not fit is left out, so an old or broken record does no harm.
 * @param {Store} store @param {any} page @returns {Settings}
 */
export function loadSettings(store, page) {
  const settings = defaultSettings(page);
  /** @type {Record<string, any>} */
  const kept = store.get("settings", {});
  if (typeof kept !== "object" || kept === null) return settings;
  for (const number of NUMBERS) {
    const { min, max } = range(number, page);
    const value = kept[number.key];
    if (typeof value === "number" && value >= min && value <= max) settings[number.key] = value;
  }
  if (Number.isInteger(kept.seed) && kept.seed >= 0 && kept.seed <= MAX_SEED) settings.seed = kept.seed;
  if (typeof kept.system === "string") settings.system = kept.system;
  if (typeof kept.tidy === "boolean") settings.tidy = kept.tidy;
  if ((page.models ?? []).some((m) => m.id === kept.model)) settings.model = kept.model;
  return settings;
}

/**
 * Keeps what differs from the defaults, so that new defaults of the server reach those who never changed them.
 * @param {Store} store @param {any} page @param {Settings} settings
 */
export function saveSettings(store, page, settings) {
  const usual = defaultSettings(page);
  const changed = Object.fromEntries(Object.entries(settings).filter(([key, value]) => value !== usual[key]));
  if (Object.keys(changed).length) store.set("settings", changed);
  else store.remove("settings");
}
