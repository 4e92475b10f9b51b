/**
 * Mood and scores over time, kept in this browser only. Of a questionnaire its score is kept, not its answers.
 *
 * @typedef {{id: string, at: string, value: number, note: string}} Mood `value` is from 1 to 5
 * @typedef {{id: string, at: string, questionnaire: string, score: number, highest: number, band: string}} Score
 */
import { newId } from "./store.js";

export const MOODS = [1, 2, 3, 4, 5];

export class Records {
  /** @param {import("./store.js").Store} store */
  constructor(store) {
    this.store = store;
  }

  /** Oldest first. @returns {Mood[]} */
  moods() {
    return list(this.store, "mood").filter(isMood);
  }

  /** @returns {Score[]} */
  scores() {
    return list(this.store, "scores").filter(isScore);
  }

  /** @param {number} value @param {string} note */
  addMood(value, note) {
    const at = new Date().toISOString();
    this.store.set("mood", [...this.moods(), { id: newId(), at, value, note }]);
  }

  /** @param {{questionnaire: string, score: number, highest: number, band: string}} score */
  addScore(score) {
    this.store.set("scores", [...this.scores(), { id: newId(), at: new Date().toISOString(), ...score }]);
  }

  /** @param {string} id */
  remove(id) {
    for (const [key, records] of /** @type {const} */ ([
      ["mood", this.moods()],
      ["scores", this.scores()],
    ])) {
      const rest = records.filter((record) => record.id !== id);
      if (rest.length < records.length) this.store.set(key, rest);
    }
  }

  /** Moods and scores, all gone. */
  clear() {
    this.store.remove("mood");
    this.store.remove("scores");
  }
}

/** @param {any} record @returns {record is Mood} */
export function isMood(record) {
  return isRecord(record) && MOODS.includes(record.value) && typeof record.note === "string";
}

/** @param {any} record @returns {record is Score} */
export function isScore(record) {
  const { score, highest, questionnaire, band } = record ?? {};
  const texts = typeof questionnaire === "string" && typeof band === "string";
  return (
    isRecord(record) && texts && Number.isFinite(score) && Number.isFinite(highest) && score >= 0 && score <= highest
  );
}

/** @param {any} record */
function isRecord(record) {
  return typeof record?.id === "string" && !Number.isNaN(Date.parse(record.at));
}

/** Oldest first. @param {import("./store.js").Store} store @param {string} key @returns {any[]} */
function list(store, key) {
  const found = store.get(key, []);
  if (!Array.isArray(found)) return [];
  return found.filter(isRecord).sort((a, b) => Date.parse(a.at) - Date.parse(b.at));
}
