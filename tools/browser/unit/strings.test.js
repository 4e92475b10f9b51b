import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";
import en from "../../../crates/eyas-serve/web/assets/strings/en.js";
import zh from "../../../crates/eyas-serve/web/assets/strings/zh-Hant.js";

const WEB = new URL("../../../crates/eyas-serve/web/", import.meta.url);
const values = (text) => (text.match(/\{\w+\}/g) ?? []).sort();

test("both languages have the same words, with the same values", () => {
  assert.deepEqual(Object.keys(zh), Object.keys(en));
  for (const key of Object.keys(en)) {
    assert.deepEqual(values(zh[key]), values(en[key]), key);
    assert.ok(en[key].trim() && zh[key].trim(), key);
  }
});

test("Chinese words are Chinese, and English ones are not", () => {
  const names = new Set(["answer.by", "compare.name", "settings.top_p", "result.percent", "list"]);
  for (const key of Object.keys(zh).filter((key) => !names.has(key))) {
    assert.match(zh[key], /\p{Script=Han}/u, key);
    assert.doesNotMatch(en[key], /\p{Script=Han}/u, key);
  }
});

test("every key that is used has words, and all words are used", () => {
  const sources = readdirSync(new URL("assets/js/", WEB)).map((name) =>
    readFileSync(new URL(`assets/js/${name}`, WEB), "utf8"),
  );
  const source = [...sources, readFileSync(new URL("index.html", WEB), "utf8")].join("\n");
  const said = [
    ...source.matchAll(/\b(?:say|label|hint|labelKey|hintKey|headingKey):? \[?"([a-z_.\d]+)"/g),
    ...source.matchAll(/data-say(?:-[a-z-]+)?="([a-z_.\d]+)"/g),
    ...source.matchAll(/\bt\("([a-z_.\d]+)"/g),
    ...source.matchAll(/\b(?:toast|confirm|openDialog)\("([a-z_.\d]+)"/g),
  ].map((m) => m[1]);
  assert.ok(said.length > 80);
  for (const key of said) assert.ok(key in en, `${key} has no words`);
  // Keys made of parts, such as `mood.3`, are found by their beginning.
  const made = /^(mood|theme|trouble|example|aim|before\.is|before\.is_not|settings|data|care|answer)\./;
  for (const key of Object.keys(en)) assert.ok(source.includes(`"${key}"`) || made.test(key), `${key} is not used`);
});

test("Chinese words use Chinese signs", () => {
  for (const [key, text] of Object.entries(zh))
    assert.doesNotMatch(text, /\p{Script=Han}[,:;?!(]|[,;?!)]\p{Script=Han}/u, key);
});
