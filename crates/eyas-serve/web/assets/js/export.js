/**
 * What people take with them: everything as JSON, conversations as Markdown, records as CSV.
 */
import { titleOf } from "./conversations.js";
import { Records } from "./records.js";
import { votes } from "./votes.js";

/** @param {import("./app.js").App} app */
export function everything(app) {
  const records = new Records(app.store);
  return {
    format: "eyas-page",
    version: 1,
    exported: new Date().toISOString(),
    settings: app.store.get("settings", {}),
    conversations: app.conversations.list(),
    mood: records.moods(),
    scores: records.scores(),
    votes: votes(app.store),
  };
}

/**
 * Conversations as Markdown. What people wrote is quoted, so that it stays what it was.
 * @param {import("./conversations.js").Conversation[]} conversations
 * @param {{you: string, stopped: string, title: string}} words
 */
export function asMarkdown(conversations, words) {
  const parts = [`# ${words.title}`];
  for (const conversation of conversations) {
    parts.push(`## ${titleOf(conversation)}`);
    for (const { asked, question, answer } of conversation.turns) {
      parts.push(`**${words.you}** (${asked})`, question.replace(/^/gm, "> "));
      if (!answer) continue;
      parts.push(`**${answer.model}**`, answer.text.trim());
      if (answer.finish === "stopped") parts.push(`*${words.stopped}*`);
    }
  }
  return `${parts.join("\n\n")}\n`;
}

/** @param {Records} records */
export function asCsv(records) {
  const rows = [
    ["at", "kind", "value", "highest", "band", "note"],
    ...records.moods().map((m) => [m.at, "mood", m.value, 5, "", m.note]),
    ...records.scores().map((s) => [s.at, s.questionnaire, s.score, s.highest, s.band, ""]),
  ];
  return `${rows.map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}

/** A spreadsheet must not take a note for a formula. @param {string | number} value */
function cell(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** @param {string} name @param {string} type @param {string} text */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  // The browser reads it after this.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A file name with the day. @param {string} what @param {string} ending */
export const fileName = (what, ending) => `${what}-${new Date().toISOString().slice(0, 10)}.${ending}`;
