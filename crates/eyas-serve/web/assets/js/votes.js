/**
 * Preferences between two models whose names were hidden, kept in this browser.
 *
 * @typedef {{at: string, models: [string, string], preferred: string | null, question: string}} Vote
 *   `models` in the order in which they were shown; `preferred` is null for a tie.
 * @typedef {{models: [string, string], wins: [number, number], ties: number}} Total
 */
const KEY = "votes";

/** @param {import("./store.js").Store} store @returns {Vote[]} */
export function votes(store) {
  const found = store.get(KEY, []);
  return Array.isArray(found) ? found.filter(isVote) : [];
}

/** @param {any} vote @returns {vote is Vote} */
export function isVote(vote) {
  const { models, preferred } = vote ?? {};
  return Array.isArray(models) && models.length === 2 && (preferred === null || models.includes(preferred));
}

/** @param {import("./store.js").Store} store @param {Omit<Vote, "at">} vote */
export function addVote(store, vote) {
  store.set(KEY, [...votes(store), { at: new Date().toISOString(), ...vote }]);
}

/** @param {import("./store.js").Store} store */
export function clearVotes(store) {
  store.remove(KEY);
}

/**
 * Totals of each pair of models, whatever the order in which they were shown.
 * @param {Vote[]} all
 * @returns {Total[]}
 */
export function totals(all) {
  /** @type {Map<string, Total>} */
  const pairs = new Map();
  for (const { models, preferred } of all) {
    const pair = /** @type {[string, string]} */ ([...models].sort());
    const key = JSON.stringify(pair);
    const total = pairs.get(key) ?? { models: pair, wins: [0, 0], ties: 0 };
    if (preferred === null) total.ties++;
    else if (pair.includes(preferred)) total.wins[pair.indexOf(preferred)]++;
    pairs.set(key, total);
  }
  return [...pairs.values()];
}

/** The two in an order by chance. @template T @param {[T, T]} pair @param {() => number} [random] @returns {[T, T]} */
export function shuffled([a, b], random = Math.random) {
  return random() < 0.5 ? [a, b] : [b, a];
}
