import assert from "node:assert/strict";
import test from "node:test";
import { parse } from "../../../crates/eyas-serve/web/assets/js/markdown.js";

const words = (cells) => cells.map((cell) => cell.map((part) => part.text ?? `<${part.type}>`).join(""));
/** A block as rows of words; other blocks as their type. */
const rows = (block) => (block.type === "table" ? [words(block.head), ...block.body.map(words)] : block.type);
const read = (text, grows = false) => parse(text, grows).map(rows);

const PLAN = "| Time | What |\n|------|:----:|\n| 9 pm | Phone away |\n| 10 pm | Bed |";

test("headings, sides and rows", () => {
  const [table] = parse(PLAN);
  assert.deepEqual(rows(table), [
    ["Time", "What"],
    ["9 pm", "Phone away"],
    ["10 pm", "Bed"],
  ]);
  assert.deepEqual(table.sides, ["start", "middle"]);
  assert.deepEqual(parse("|a|b|c|\n|:-|-:|-|")[0].sides, ["start", "end", "start"]);
});

test("bars at the edges may be left out, and spaces do not matter", () => {
  const expected = [
    [
      ["a", "b"],
      ["1", "2"],
    ],
  ];
  for (const text of ["a | b\n--- | ---\n1 | 2", "  |a|b|\n  |-|-|\n  |1|2|", "a|b|\n-|-|\n1|2|"])
    assert.deepEqual(read(text), expected, text);
});

test("cells hold emphasis, code, links and escaped bars, and HTML stays text", () => {
  const [table] = parse(
    "| a | b | c | d | e |\n|-|-|-|-|-|\n| **x** | `p\\|q` | [g](https://a.example) | 1\\|2 | <b onclick=x> |",
  );
  assert.deepEqual(
    table.body[0].map((cell) => [cell[0].type, cell[0].text]),
    [
      ["strong", undefined],
      ["code", "p|q"],
      ["link", undefined],
      ["text", "1|2"],
      ["text", "<b onclick=x>"],
    ],
  );
});

test("addresses that do harm are no links in a cell either", () => {
  const [table] = parse("| a |\n|---|\n| [x](javascript:alert(1)) ![p](https://evil.example/p.png) |");
  assert.deepEqual(words(table.body[0]), ["x p"]);
});

test("rows may be short, and of long ones nothing is lost", () => {
  assert.deepEqual(read("|a|b|c|\n|-|-|-|\n|1|\n|1|2|3|4|5|"), [
    [
      ["a", "b", "c"],
      ["1"],
      ["1", "2", "3 | 4 | 5"],
    ],
  ]);
});

test("a table ends at a blank line or another block, and may follow a paragraph or an item at once", () => {
  assert.deepEqual(read(`${PLAN}\n\nafter`), [rows(parse(PLAN)[0]), "paragraph"]);
  assert.deepEqual(read(`before\n${PLAN}\n- item`), ["paragraph", rows(parse(PLAN)[0]), "list"]);
  assert.deepEqual(read(`- item\n${PLAN}`), ["list", rows(parse(PLAN)[0])]);
  assert.deepEqual(parse(`1. item\n\n${PLAN.replace(/^/gm, "   ")}`)[0].items[0].map(rows)[1], rows(parse(PLAN)[0]));
  assert.deepEqual(parse(PLAN.replace(/^/gm, "> "))[0].blocks.map(rows), [rows(parse(PLAN)[0])]);
});

test("what is no table stays text", () => {
  for (const text of ["a | b", "| a | b |", "|a|b|\n|-|", "|a|b|\n|-|x|", "|a|\n\n|-|", "yes | no\nor | and"])
    assert.deepEqual(read(text), text.includes("\n\n") ? ["paragraph", "paragraph"] : ["paragraph"], text);
  assert.deepEqual(read("```\n|a|b|\n|-|-|\n```"), ["code"]);
});

test("a table that is being written is a table from its first sign on", () => {
  const text = `Here is a plan:\n\n${PLAN}`;
  for (let length = text.indexOf("|") + 1; length <= text.length; length++) {
    const [first, second, ...rest] = parse(text.slice(0, length), true);
    assert.equal(first.type, "paragraph");
    assert.equal(second.type, "table", JSON.stringify(text.slice(0, length)));
    assert.equal(rest.length, 0);
    const signs = JSON.stringify([second.head, second.body]);
    assert.doesNotMatch(signs, /[|]|--/, JSON.stringify(text.slice(0, length)));
  }
  const half = "words\n\n| no table";
  assert.deepEqual(read(half), ["paragraph", "paragraph"], "what was never finished is text in the end");
});

test("hostile tables take no long time and no much room", () => {
  const n = 20_000;
  const wide = `${"|a".repeat(n)}\n${"|-".repeat(n)}`;
  const inputs = [
    "|".repeat(n),
    "|\n".repeat(n),
    "|-|\n".repeat(n),
    `|a|\n|${"-".repeat(n)}`,
    `|a|\n|${" ".repeat(n)}`,
    `|a|\n|-|\n${"|".repeat(n)}`,
    `${wide}\n${"|\n".repeat(n)}`,
    "\\|".repeat(n),
    "a|\\".repeat(n),
  ];
  for (const input of inputs) {
    for (const grows of [false, true]) {
      const start = performance.now();
      const size = JSON.stringify(parse(input, grows)).length;
      const ms = performance.now() - start;
      assert.ok(ms < 1500, `${input.slice(0, 12)}… took ${ms} ms`);
      assert.ok(size < 60 * input.length + 1000, `${input.slice(0, 12)}… makes ${size} bytes`);
    }
  }
});
