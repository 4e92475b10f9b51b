import assert from "node:assert/strict";
import test from "node:test";
import {
  Conversations,
  messagesFor,
  newTurn,
  titleOf,
} from "../../../crates/eyas-serve/web/assets/js/conversations.js";
import { asCsv, asMarkdown, everything } from "../../../crates/eyas-serve/web/assets/js/export.js";
import { Records } from "../../../crates/eyas-serve/web/assets/js/records.js";
import {
  defaultSettings,
  loadSettings,
  range,
  saveSettings,
  NUMBERS,
} from "../../../crates/eyas-serve/web/assets/js/settings.js";
import { NotAnExport, restore } from "../../../crates/eyas-serve/web/assets/js/restore.js";
import { Store, StorageFull, newId } from "../../../crates/eyas-serve/web/assets/js/store.js";
import { addVote, shuffled, totals, votes } from "../../../crates/eyas-serve/web/assets/js/votes.js";
import { page } from "../fixtures.mjs";

/** The browser's storage, with room for so many characters. */
function storage(room = Infinity) {
  const map = new Map();
  return {
    get length() {
      return map.size;
    },
    key: (i) => [...map.keys()][i] ?? null,
    getItem: (key) => map.get(key) ?? null,
    removeItem: (key) => map.delete(key),
    setItem(key, value) {
      if (value.length > room) throw new DOMException("quota exceeded", "QuotaExceededError");
      map.set(key, value);
    },
  };
}

test("values come back, and broken ones give the fallback", () => {
  const raw = storage();
  const store = new Store(raw);
  store.set("a", { b: [1] });
  assert.deepEqual(store.get("a", null), { b: [1] });
  raw.setItem("eyas.c", "{broken");
  assert.equal(store.get("c", 7), 7);
  assert.equal(store.get("none", 8), 8);
});

test("clearing takes the page's own keys and no others", () => {
  const raw = storage();
  raw.setItem("other", "x");
  const store = new Store(raw);
  for (const key of ["a", "b", "conversation.1"]) store.set(key, 1);
  assert.deepEqual(store.keys("conversation."), ["conversation.1"]);
  store.clear();
  assert.deepEqual(store.keys(), []);
  assert.equal(raw.getItem("other"), "x");
});

test("a full storage says so; none at all keeps for the page's life", () => {
  const full = new Store(storage(10));
  assert.ok(full.lasting);
  assert.throws(() => full.set("a", "x".repeat(20)), StorageFull);
  const none = new Store(null);
  assert.ok(!none.lasting);
  none.set("a", 1);
  assert.equal(none.get("a", 0), 1);
});

test("identifiers differ", () => assert.equal(new Set(Array.from({ length: 1000 }, newId)).size, 1000));

test("conversations are listed newest first; broken records are left out", () => {
  const store = new Store(storage());
  const all = new Conversations(store);
  const [first, second] = [all.create(), all.create()];
  first.turns.push(newTurn("one"));
  second.turns.push(newTurn("two"));
  store.set(`conversation.${first.id}`, { ...first, updated: "2025-01-01T00:00:00Z" });
  all.save(second);
  store.set("conversation.bad", { id: "bad", turns: [{}], updated: "x" });
  store.set("conversation.null", null);
  assert.deepEqual(
    all.list().map((c) => c.id),
    [second.id, first.id],
  );
  assert.equal(all.get("bad"), null);
  all.remove(second.id);
  assert.equal(all.list().length, 1);
});

test("a title is the first question, shortened by characters", () => {
  assert.equal(titleOf({ turns: [newTurn("  a\n b ")] }), "a b");
  assert.equal([...titleOf({ turns: [newTurn("🙂".repeat(80))] })].length, 60);
});

test("messages: system when given, answered turns, the question", () => {
  const answered = { ...newTurn("q1"), answer: { text: "a1", model: "m", finish: "stop" } };
  const failed = { ...newTurn("q2"), answer: { text: "", model: "m", finish: "error" } };
  assert.deepEqual(messagesFor([answered, failed], "q3"), [
    { role: "user", content: "q1" },
    { role: "assistant", content: "a1" },
    { role: "user", content: "q3" },
  ]);
  assert.equal(messagesFor([], "q", "be kind")[0].content, "be kind");
  assert.equal(messagesFor(Array(50).fill(answered), "q").length, 41);
});

test("settings: only changes are kept, and nonsense is ignored", () => {
  const store = new Store(storage());
  const usual = defaultSettings(page());
  assert.equal(usual.model, "mental-health");
  assert.deepEqual(
    [usual.temperature, usual.top_p, usual.repetition_penalty, usual.max_tokens, usual.remember],
    [0.4, 0.6, 1.3, 256, 2],
  );
  saveSettings(store, page(), { ...usual, temperature: 1, system: "x" });
  assert.deepEqual(store.get("settings", null), { temperature: 1, system: "x" });
  assert.equal(loadSettings(store, page()).temperature, 1);
  store.set("settings", { temperature: 99, top_p: "1", seed: 1.5, model: "gone", tidy: "no", remember: -1 });
  assert.deepEqual(loadSettings(store, page()), usual);
  store.set("settings", null);
  assert.deepEqual(loadSettings(store, page()), usual);
  saveSettings(store, page(), usual);
  assert.equal(store.get("settings", "none"), "none");
});

test("a server's limit narrows the range", () => {
  const entry = NUMBERS.find((n) => n.key === "max_tokens");
  assert.equal(range(entry, { limits: { max_tokens: 100 } }).max, 100);
  assert.equal(range(entry, page()).max, 2047);
});

test("moods and scores: kept in order of time, removed one by one or all", () => {
  const store = new Store(storage());
  const records = new Records(store);
  records.addMood(4, "fine");
  records.addScore({ questionnaire: "phq-9", score: 5, highest: 27, band: "Mild" });
  store.set("mood", [
    ...records.moods(),
    { id: "x", at: "2020-01-01T00:00:00Z", value: 1, note: "" },
    { id: "y", at: "no", value: 9 },
    null,
  ]);
  assert.deepEqual(
    records.moods().map((m) => m.value),
    [1, 4],
  );
  records.remove("x");
  assert.equal(records.moods().length, 1);
  records.clear();
  assert.equal(records.moods().length + records.scores().length, 0);
});

test("CSV quotes, and a note is never a formula", () => {
  const records = new Records(new Store(storage()));
  records.addMood(3, '=HYPERLINK("https://evil.example")');
  records.addMood(3, "a, b\nc");
  const csv = asCsv(records);
  assert.match(csv, /,"'=HYPERLINK\(""https:\/\/evil\.example""\)"\r\n/);
  assert.match(csv, /,"a, b\nc"\r\n/);
});

test("Markdown quotes what a person wrote", () => {
  const turn = { ...newTurn("# not a heading\nline two"), answer: { text: "**yes**", model: "m", finish: "stopped" } };
  const text = asMarkdown([{ id: "1", created: "", updated: "", turns: [turn] }], {
    you: "You",
    stopped: "stopped",
    title: "T",
  });
  assert.match(text, /^> # not a heading$/m);
  assert.match(text, /^> line two$/m);
  assert.match(text, /\*\*yes\*\*/);
  assert.match(text, /\*stopped\*/);
});

test("an export comes back beside what is there, once", () => {
  const old = new Store(storage());
  const all = new Conversations(old);
  const conversation = all.create();
  const care = { category: "suicide", follow_up: "f", helplines: [{ phone: "0900 evil" }] };
  conversation.turns.push({ ...newTurn("q"), answer: { text: "a", model: "m", finish: "stop", care } });
  all.save(conversation);
  new Records(old).addMood(2, "n");
  new Records(old).addScore({ questionnaire: "phq-9", score: 5, highest: 27, band: "Mild" });
  addVote(old, { models: ["a", "b"], preferred: "a", question: "q" });
  const text = JSON.stringify(everything({ store: old, conversations: all }));
  const store = new Store(storage());
  new Records(store).addMood(4, "here");
  assert.equal(restore(store, text), 4);
  assert.equal(restore(store, text), 0, "the second time nothing is new");
  assert.deepEqual(new Set(new Records(store).moods().map((m) => m.value)), new Set([2, 4]));
  assert.equal(totals(votes(store))[0].wins[0], 1);
  const back = new Conversations(store).get(conversation.id);
  assert.deepEqual(
    back.turns[0].answer.care,
    { category: "suicide", follow_up: "f" },
    "numbers never come from a file",
  );
});

test("what is no export is refused, and broken entries are left out", () => {
  const store = new Store(storage());
  for (const text of ["{", "null", "[]", '{"format":"eyas-page","version":2}'])
    assert.throws(() => restore(store, text), NotAnExport);
  const bad = {
    format: "eyas-page",
    version: 1,
    conversations: [{ id: 1 }, { id: "x", updated: "u", turns: [{ id: "t", question: "q", answer: { text: 5 } }] }],
    mood: [{ id: "m", at: "x" }],
    scores: "no",
    votes: [{ models: ["a"] }, { models: ["a", "b"], preferred: "c" }],
  };
  assert.equal(restore(store, JSON.stringify(bad)), 0);
  assert.deepEqual(store.keys(), []);
});

test("votes count for the model, whatever side it was on", () => {
  const store = new Store(storage());
  addVote(store, { models: ["b", "a"], preferred: "a", question: "1" });
  addVote(store, { models: ["a", "b"], preferred: "a", question: "2" });
  addVote(store, { models: ["a", "b"], preferred: null, question: "3" });
  addVote(store, { models: ["a", "c"], preferred: "c", question: "4" });
  assert.deepEqual(totals(votes(store)), [
    { models: ["a", "b"], wins: [2, 0], ties: 1 },
    { models: ["a", "c"], wins: [0, 1], ties: 0 },
  ]);
});

test("the order of two is by chance", () => {
  assert.deepEqual(
    shuffled(["a", "b"], () => 0.4),
    ["a", "b"],
  );
  assert.deepEqual(
    shuffled(["a", "b"], () => 0.6),
    ["b", "a"],
  );
});
