import assert from "node:assert/strict";
import test from "node:test";
import { alarming, bandOf, highest, score, unanswered } from "../../../crates/eyas-serve/web/assets/js/scoring.js";
import { questionnaires } from "../fixtures.mjs";

const [phq9, gad7, who5] = ["phq-9", "gad-7", "who-5"].map((id) => questionnaires("en").find((q) => q.id === id));

test("nothing is scored before every item is answered", () => {
  const answers = Array(9).fill(1);
  answers[4] = null;
  assert.equal(score(phq9, answers), null);
  assert.deepEqual(unanswered(phq9, answers), [4]);
  assert.deepEqual(unanswered(phq9, []).length, 9);
});

test("a value that is no option counts as unanswered", () => {
  assert.deepEqual(unanswered(gad7, [0, 1, 2, 3, 4, -1, 1.5]), [4, 5, 6]);
});

test("published cut-offs of PHQ-9", () => {
  const limits = {
    0: "Minimal",
    4: "Minimal",
    5: "Mild",
    9: "Mild",
    10: "Moderate",
    14: "Moderate",
    15: "Moderately severe",
    19: "Moderately severe",
    20: "Severe",
    27: "Severe",
  };
  for (const [value, name] of Object.entries(limits)) assert.equal(bandOf(phq9, Number(value)).name, name, value);
  assert.equal(highest(phq9), 27);
});

test("sums, and WHO-5 as a percentage", () => {
  assert.equal(score(phq9, [3, 2, 1, 0, 3, 2, 1, 0, 1]).score, 13);
  assert.equal(score(gad7, Array(7).fill(3)).score, 21);
  assert.equal(score(who5, [3, 2, 1, 4, 5]).score, 60);
  assert.equal(highest(who5), 100);
});

test("every score a questionnaire can have lies in one band", () => {
  for (const q of [phq9, gad7, who5]) {
    for (let value = 0; value <= highest(q); value += q.factor) {
      assert.equal(q.bands.filter((b) => value >= b.from && value <= b.to).length, 1, `${q.id} ${value}`);
    }
  }
});

test("item 9 of PHQ-9 above zero calls for help before the rest is answered", () => {
  const answers = Array(9).fill(null);
  assert.deepEqual(alarming(phq9, answers), []);
  answers[8] = 0;
  assert.deepEqual(alarming(phq9, answers), []);
  answers[8] = 1;
  assert.deepEqual(alarming(phq9, answers), [8]);
});
