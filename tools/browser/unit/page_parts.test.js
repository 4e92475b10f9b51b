/** The small parts of the page that need no browser. */
import assert from "node:assert/strict";
import test from "node:test";
import { Announcer } from "../../../crates/eyas-serve/web/assets/js/announcer.js";
import { asTrouble } from "../../../crates/eyas-serve/web/assets/js/api.js";
import { regionOf, smsUrl, telUrl } from "../../../crates/eyas-serve/web/assets/js/care.js";
import { body, pieces } from "../../../crates/eyas-serve/web/assets/js/completion.js";
import { chooseLanguage } from "../../../crates/eyas-serve/web/assets/js/i18n.js";
import { SessionClock } from "../../../crates/eyas-serve/web/assets/js/reminders.js";
import { defaultSettings } from "../../../crates/eyas-serve/web/assets/js/settings.js";
import { page } from "../fixtures.mjs";

test("numbers as they are printed become numbers to call", () => {
  const cases = {
    988: "tel:988",
    "116 123": "tel:116123",
    "1-800-273-8255": "tel:18002738255",
    "+44 (0)20 7946 0000": "tel:+442079460000",
    "(02) 2389-2222": "tel:0223892222",
    "*4141": "tel:*4141",
    "800-HOPE (800 4673)": "tel:8004673",
    "119 ext. 8": "tel:119,8",
  };
  for (const [printed, url] of Object.entries(cases)) assert.equal(telUrl(printed), url);
});

test("what is not one number is not called", () => {
  for (const printed of ["112 / 911", "988, press 2", "1", "ask", "", "+", "12345678901234567"])
    assert.equal(telUrl(printed), null, printed);
});

test("text messages go to the one number, with the word that is asked for", () => {
  assert.equal(smsUrl("Text SHOUT to 85258"), "sms:85258?body=SHOUT");
  assert.equal(smsUrl("988"), "sms:988");
  assert.equal(smsUrl("傳送「HELLO」到 741741"), "sms:741741?body=HELLO");
  assert.equal(smsUrl("85258 or 741741"), null);
  assert.equal(smsUrl("see the page"), null);
});

test("a region comes from the first language that names one", () => {
  assert.equal(regionOf(["en", "zh-Hant-TW", "en-GB"]), "TW");
  assert.equal(regionOf(["not a tag", "es-419"]), "");
});

test("the language: kept, else the browser's, else English", () => {
  assert.equal(chooseLanguage("zh-Hant", ["en"]), "zh-Hant");
  assert.equal(chooseLanguage("fr", ["zh-TW"]), "zh-Hant");
  assert.equal(chooseLanguage(null, ["fr", "en-GB", "zh"]), "en");
  assert.equal(chooseLanguage(null, ["fr"]), "en");
});

test("a request carries settings and the extension, and no seed unless one is set", () => {
  const settings = defaultSettings(page());
  const asked = {
    model: "m",
    messages: [{ role: "user", content: "q" }],
    settings,
    language: "en",
    region: "GB",
    consent: null,
  };
  assert.deepEqual(body(asked), {
    model: "m",
    messages: asked.messages,
    stream: true,
    temperature: 0.4,
    top_p: 0.6,
    repetition_penalty: 1.3,
    max_tokens: 256,
    eyas: { language: "en", tidy: true, remember: 2, region: "GB" },
  });
  const more = body({ ...asked, region: "", consent: "v1", settings: { ...settings, seed: 0 } });
  assert.equal(more.seed, 0);
  assert.deepEqual(more.eyas, { language: "en", tidy: true, remember: 2, consent: "v1" });
});

test("chunks give text, care, notes and the end", () => {
  const chunk = (value) => [...pieces(JSON.stringify(value))];
  assert.deepEqual(chunk({ choices: [{ delta: { content: "a" }, finish_reason: null }] }), [
    { type: "text", text: "a" },
  ]);
  assert.deepEqual(chunk({ eyas: { care: { category: "x" } }, choices: [{ delta: { content: "" } }] }), [
    { type: "care", care: { category: "x" } },
  ]);
  assert.deepEqual(chunk({ eyas: { replaced: ["dose"] }, choices: [{ delta: {}, finish_reason: "stop" }] }), [
    { type: "replaced" },
    { type: "finish", reason: "stop" },
  ]);
  assert.deepEqual(chunk({ choices: [], usage: {} }), []);
  assert.throws(() => chunk({ error: { message: "m", code: "shutting_down" } }), { trouble: "unready" });
  assert.throws(() => [...pieces("<html>")], { trouble: "broken" });
});

test("statuses and codes become troubles that the page explains", () => {
  const cases = [
    [429, { code: "queue_full" }, "busy"],
    [503, {}, "unready"],
    [400, { code: "context_length_exceeded" }, "too_long"],
    [413, { code: "body_too_large" }, "too_long"],
    [401, { code: "invalid_api_key" }, "key"],
    [400, { code: "invalid_value" }, "rejected"],
    [404, {}, "rejected"],
    [500, {}, "failed"],
    [502, {}, "failed"],
  ];
  for (const [status, error, trouble] of cases) assert.equal(asTrouble(status, error).trouble, trouble, `${status}`);
  assert.equal(asTrouble(429, {}, 7).retryAfter, 7);
  assert.equal(asTrouble(429, {}, NaN).retryAfter, 5);
});

test("a screen reader hears whole sentences, each once, with pauses", () => {
  let now = 0;
  const heard = [];
  const announcer = new Announcer(
    (text) => heard.push(text),
    () => now,
  );
  announcer.update("1. **Sleep** well");
  assert.deepEqual(heard, []);
  announcer.update("1. **Sleep** well. Then");
  assert.deepEqual(heard, ["1. Sleep well."]);
  announcer.update("1. **Sleep** well. Then walk. And");
  assert.equal(heard.length, 1);
  now = 4000;
  announcer.update("1. **Sleep** well. Then walk. And see [it](https://a.example)");
  assert.deepEqual(heard.slice(1), ["Then walk."]);
  announcer.update("1. **Sleep** well. Then walk. And see [it](https://a.example)", true);
  assert.deepEqual(heard.slice(2), ["And see it"]);
  announcer.update("1. **Sleep** well. Then walk. And see [it](https://a.example)", true);
  assert.equal(heard.length, 3);
});

test("a table is heard row by row, without its signs", () => {
  const heard = [];
  const announcer = new Announcer((text) => heard.push(text));
  announcer.update("| When | What |\n|:---|---:|\n| 9 pm | **Rest** |\n", true);
  assert.deepEqual(heard, ["When, What. 9 pm, Rest."]);
});

test("Chinese sentences are told apart without spaces", () => {
  const heard = [];
  new Announcer(
    (text) => heard.push(text),
    () => 0,
  ).update("先睡好。然後");
  assert.deepEqual(heard, ["先睡好。"]);
  new Announcer(
    (text) => heard.push(text),
    () => 0,
  ).update("睡得好嗎\uff1f然後");
  assert.deepEqual(heard.slice(1), ["睡得好嗎\uff1f"]);
});

test("a reminder is due after so many questions or minutes, and again", () => {
  let now = 0;
  const clock = new SessionClock(() => now);
  const limits = { turns: 3, minutes: 10 };
  assert.deepEqual(
    [1, 2, 3, 4, 5, 6].map(() => clock.count(limits)),
    [false, false, true, false, false, true],
  );
  now = 10 * 60_000;
  assert.ok(clock.count(limits));
  assert.ok(!clock.count({}));
});
