/**
 * Scores of questionnaires, from the table that the server sends. Nothing of it leaves the browser.
 *
 * @typedef {{value: number, label: string}} Option
 * @typedef {{from: number, to: number, name: string, text: string, shows_help: boolean}} Band
 * @typedef {{id: string, title: string, about: string, stem: string, items: string[], options: Option[],
 *   factor: number, unit: "sum" | "percentage", bands: Band[], help_items: number[], help_text: string, note: string,
 *   source: string, source_url: string, licence: string}} Questionnaire
 * @typedef {(number | null)[]} Answers one for each item; null where there is none yet
 */

/** The items, from 0, without an answer. @param {Questionnaire} questionnaire @param {Answers} answers */
export function unanswered(questionnaire, answers) {
  const known = new Set(questionnaire.options.map((option) => option.value));
  return questionnaire.items.map((_, item) => item).filter((item) => !known.has(/** @type {number} */ (answers[item])));
}

/**
 * The score and its band; null until every item is answered, since none of these instruments allows for gaps.
 * @param {Questionnaire} questionnaire
 * @param {Answers} answers
 * @returns {{score: number, band: Band | null} | null}
 */
export function score(questionnaire, answers) {
  if (unanswered(questionnaire, answers).length) return null;
  const sum = questionnaire.items.reduce((total, _, item) => total + /** @type {number} */ (answers[item]), 0);
  const value = sum * questionnaire.factor;
  return { score: value, band: bandOf(questionnaire, value) };
}

/** @param {Questionnaire} questionnaire @param {number} value */
export function bandOf(questionnaire, value) {
  return questionnaire.bands.find((band) => value >= band.from && value <= band.to) ?? null;
}

/** The highest score there is. @param {Questionnaire} questionnaire */
export function highest(questionnaire) {
  const most = Math.max(...questionnaire.options.map((option) => option.value));
  return most * questionnaire.items.length * questionnaire.factor;
}

/** The items answered above zero that call for help at once. @param {Questionnaire} questionnaire @param {Answers} answers */
export function alarming(questionnaire, answers) {
  return questionnaire.help_items.filter((item) => Number(answers[item]) > 0);
}
