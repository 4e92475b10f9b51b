import assert from "node:assert/strict";
import test from "node:test";
import { SseParser } from "../../../crates/eyas-serve/web/assets/js/sse.js";

const stream =
  '\ufeff: hello\r\ndata: {"a":1}\r\n\r\nevent: note\ndata: one\ndata: two\n\nid: 7\nretry: 5\ndata\rdata:x\r\rdata:  y\n\ndata: [DONE]\n\n';
const expected = [
  { event: "message", data: '{"a":1}' },
  { event: "note", data: "one\ntwo" },
  { event: "message", data: "\nx" },
  { event: "message", data: " y" },
  { event: "message", data: "[DONE]" },
];

test("a whole stream at once", () => assert.deepEqual(new SseParser().push(stream), expected));

test("the same stream cut anywhere", () => {
  for (let size = 1; size < 12; size++) {
    const parser = new SseParser();
    const events = [];
    for (let at = 0; at < stream.length; at += size) events.push(...parser.push(stream.slice(at, at + size)));
    assert.deepEqual(events, expected, `pieces of ${size}`);
  }
});

test("an event without its blank line is not given", () => {
  assert.deepEqual(new SseParser().push("data: half\n"), []);
});

test("an event without data is none", () => assert.deepEqual(new SseParser().push("event: x\n\n"), []));
