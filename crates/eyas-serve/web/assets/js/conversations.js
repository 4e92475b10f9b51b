/**
 * Conversations: what was asked and answered, kept in this browser only.
 *
 * @typedef {{text: string, model: string, finish: string, care?: object, replaced?: boolean}} Answer
 *   `finish` is the model's reason, or `stopped` by the person, or `error`.
 * @typedef {{id: string, asked: string, question: string, answer: Answer | null}} Turn
 * @typedef {{id: string, created: string, updated: string, turns: Turn[]}} Conversation
 */
import { newId } from "./store.js";

const KEY = "conversation.";
/** Exchanges sent along: the server chooses what the model remembers, and looks for signs of a crisis in the rest. */
const MAX_EXCHANGES = 20;

export class Conversations {
  /** @param {import("./store.js").Store} store */
  constructor(store) {
    this.store = store;
  }

  /** All that can be read, newest first. @returns {Conversation[]} */
  list() {
    return this.store
      .keys(KEY)
      .map((key) => this.store.get(key, null))
      .filter(isConversation)
      .sort((a, b) => (a.updated < b.updated ? 1 : -1));
  }

  /** @param {string} id @returns {Conversation | null} */
  get(id) {
    const conversation = this.store.get(KEY + id, null);
    return isConversation(conversation) ? conversation : null;
  }

  /** @returns {Conversation} one that is kept from its first turn on */
  create() {
    const now = new Date().toISOString();
    return { id: newId(), created: now, updated: now, turns: [] };
  }

  /** @param {Conversation} conversation */
  save(conversation) {
    conversation.updated = new Date().toISOString();
    this.store.set(KEY + conversation.id, conversation);
  }

  /** @param {string} id */
  remove(id) {
    this.store.remove(KEY + id);
  }
}

/** @param {any} value @returns {value is Conversation} */
export function isConversation(value) {
  return (
    typeof value?.id === "string" &&
    typeof value.updated === "string" &&
    Array.isArray(value.turns) &&
    value.turns.every(isTurn)
  );
}

/** @param {any} turn */
function isTurn(turn) {
  const answer = turn?.answer ?? null;
  const known = answer === null || (typeof answer.text === "string" && typeof answer.model === "string");
  return known && typeof turn?.id === "string" && typeof turn.question === "string";
}

/** A conversation's name: its first question, shortened. @param {Conversation} conversation */
export function titleOf(conversation) {
  const text = (conversation.turns[0]?.question ?? "").replace(/\s+/g, " ").trim();
  const letters = [...text];
  return letters.length > 60 ? `${letters.slice(0, 59).join("")}…` : text;
}

/** @param {string} question @returns {Turn} */
export function newTurn(question) {
  return { id: newId(), asked: new Date().toISOString(), question, answer: null };
}

/**
 * The messages of a question: the system's when given, what came before, the question.
 * @param {Turn[]} before
 * @param {string} question
 * @param {string | null} [system] null leaves it to the server
 * @returns {import("./completion.js").Message[]}
 */
export function messagesFor(before, question, system = null) {
  /** @type {import("./completion.js").Message[]} */
  const messages = [];
  if (system !== null) messages.push({ role: "system", content: system });
  for (const turn of before.filter((turn) => turn.answer?.text).slice(-MAX_EXCHANGES)) {
    messages.push({ role: "user", content: turn.question });
    messages.push({ role: "assistant", content: /** @type {Answer} */ (turn.answer).text });
  }
  messages.push({ role: "user", content: question });
  return messages;
}
