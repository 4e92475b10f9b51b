/**
 * What was exported as JSON comes back, beside what is there.
 */
import { isConversation } from "./conversations.js";
import { isMood, isScore } from "./records.js";
import { isVote, votes } from "./votes.js";

/** The file is no export of this page. */
export class NotAnExport extends Error {}

/**
 * Adds what an export holds; what is there already stays, the newer of two versions of a conversation wins.
 * @param {import("./store.js").Store} store
 * @param {string} text
 * @returns {number} how many entries are new
 */
export function restore(store, text) {
  const found = parse(text);
  const list = (key) => (Array.isArray(found[key]) ? found[key] : []);
  let added = 0;
  for (const conversation of list("conversations").filter(isConversation)) {
    const key = `conversation.${conversation.id}`;
    const old = store.get(key, null);
    if (isConversation(old) && old.updated >= conversation.updated) continue;
    store.set(key, { ...conversation, turns: conversation.turns.map(withoutNumbers) });
    added++;
  }
  for (const [key, fits] of /** @type {const} */ ([
    ["mood", isMood],
    ["scores", isScore],
  ])) {
    const old = store.get(key, []);
    const known = new Set(old.map((record) => record.id));
    const fresh = list(key).filter((record) => fits(record) && !known.has(record.id));
    if (fresh.length) store.set(key, [...old, ...fresh]);
    added += fresh.length;
  }
  const counted = new Set(votes(store).map((vote) => JSON.stringify(vote)));
  const fresh = list("votes").filter((vote) => isVote(vote) && !counted.has(JSON.stringify(vote)));
  if (fresh.length) store.set("votes", [...votes(store), ...fresh]);
  return added + fresh.length;
}

/** @param {string} text */
function parse(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new NotAnExport("not JSON", { cause: error });
  }
  if (found?.format !== "eyas-page" || found.version !== 1) throw new NotAnExport("another format");
  return found;
}

/** Numbers to call come from the server's table, never from a file. @param {import("./conversations.js").Turn} turn */
function withoutNumbers(turn) {
  if (!turn.answer?.care) return turn;
  const { category, follow_up } = /** @type {any} */ (turn.answer.care);
  return { ...turn, answer: { ...turn.answer, care: { category, follow_up } } };
}
