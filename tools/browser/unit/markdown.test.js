import assert from "node:assert/strict";
import test from "node:test";
import { parse, safeUrl } from "../../../crates/eyas-serve/web/assets/js/markdown.js";

const text = (text) => ({ type: "text", text });
const paragraph = (...children) => ({ type: "paragraph", children });

/** All text of a tree, with the types around it. */
function outline(nodes) {
  return nodes
    .map((node) => {
      const inner = node.children ?? node.blocks ?? node.items?.flat() ?? node.head?.concat(...node.body).flat();
      return inner
        ? `${node.type}(${outline(inner)})`
        : node.type === "text"
          ? node.text
          : `${node.type}[${node.text ?? ""}]`;
    })
    .join("");
}

test("paragraphs keep their line ends", () => {
  assert.deepEqual(parse("one\ntwo\n\nthree"), [
    paragraph(text("one"), { type: "break" }, text("two")),
    paragraph(text("three")),
  ]);
});

test("numbered advice is one list, with blank lines in between or not", () => {
  for (const source of ["1. Sleep\n2. Walk\n3. Talk", "1. Sleep\n\n2. Walk\n\n3. Talk"]) {
    const [list, ...rest] = parse(source);
    assert.equal(rest.length, 0, source);
    assert.equal(list.items.length, 3, source);
    assert.equal(list.start, 1);
  }
});

test("a list starts where its first number says", () => assert.equal(parse("4. four\n5. five")[0].start, 4));

test("an item's text may go on in the next line, and inner lists belong to their item", () => {
  const [list] = parse("1. Breathe\n   slowly\n  - in\n  - out\n2. Rest");
  assert.equal(
    outline([list]),
    "list(paragraph(Breathebreak[]slowly)list(paragraph(in)paragraph(out))paragraph(Rest))",
  );
});

test("bullets of another kind begin another list", () => assert.equal(parse("- a\n* b").length, 2));

test("headings, rules, quotations and code", () => {
  assert.deepEqual(parse("## Rest ##\n---\n> quiet\n```js\n<b>*x*</b>\n```"), [
    { type: "heading", level: 2, children: [text("Rest")] },
    { type: "rule" },
    { type: "quote", blocks: [paragraph(text("quiet"))] },
    { type: "code", text: "<b>*x*</b>", language: "js" },
  ]);
});

test("a fence that is still open runs to the end, as while streaming", () => {
  assert.deepEqual(parse("```\nx\ny"), [{ type: "code", text: "x\ny", language: "" }]);
});

test("emphasis nests as CommonMark says", () => {
  const cases = {
    "*a*": "paragraph(em(a))",
    "**a**": "paragraph(strong(a))",
    "***a***": "paragraph(em(strong(a)))",
    "**a *b* c**": "paragraph(strong(a em(b) c))",
    "*a **b** c*": "paragraph(em(a strong(b) c))",
    "~~a~~ ~b~": "paragraph(del(a) ~b~)",
    snake_case_name: "paragraph(snake_case_name)",
    "2 * 3 * 4": "paragraph(2 * 3 * 4)",
    "**open": "paragraph(**open)",
    "a* b": "paragraph(a* b)",
    "***a** b*": "paragraph(em(strong(a) b))",
    "**a*": "paragraph(*em(a))",
    "*a**": "paragraph(em(a)*)",
    "*a _b* c_": "paragraph(em(a _b) c_)",
    "\\*a\\*": "paragraph(*a*)",
    "`*a*`": "paragraph(code[*a*])",
    "**重要**": "paragraph(strong(重要))",
  };
  for (const [source, expected] of Object.entries(cases)) assert.equal(outline(parse(source)), expected, source);
});

test("links go to https and name their host", () => {
  const [{ children }] = parse("See [the **guide**](https://example.org/a?b=1) or https://example.com/x.");
  assert.deepEqual(
    children.filter((c) => c.type === "link").map((c) => [c.href, c.host]),
    [
      ["https://example.org/a?b=1", "example.org"],
      ["https://example.com/x", "example.com"],
    ],
  );
});

test("addresses that do harm are no links, in any spelling", () => {
  const bad = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "\u0001javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:x",
    "http://example.org",
    "//example.org",
    "/etc/passwd",
    "#top",
    "tel:+15551234",
    "sms:999",
    "mailto:a@b.c",
    "file:///etc/passwd",
    "https:example.org",
    "https:/example.org",
    "https://user:pass@example.org",
    "https://example.org@evil.example",
    "https://localhost/",
    "https://",
    "https:///example.org",
    "https:\\\\example.org",
    "blob:https://example.org/x",
    "view-source:https://example.org",
  ];
  for (const url of bad) {
    assert.equal(safeUrl(url), null, url);
    assert.ok(
      !JSON.stringify(parse(`[x](${url}) <${url}>`)).includes('"link"') || url.includes("https://example.org"),
      url,
    );
  }
});

test("a sign after a bare address is not part of it", () => {
  for (const sign of [".", ",", ")", "\uff0c", "\u3002", "\uff09"]) {
    const [{ children }] = parse(`see https://example.org/a${sign}`);
    assert.equal(children.find((c) => c.type === "link").href, "https://example.org/a", sign);
  }
});

test("a host of look-alike letters is shown as what it is", () => {
  assert.equal(safeUrl("https://аpple.com/")?.host, "xn--pple-43d.com");
});

test("HTML and images stay text", () => {
  const source =
    '<img src=x onerror=alert(1)><script>alert(1)</script> ![pixel](https://evil.example/p.png "t") &lt;b&gt;';
  assert.deepEqual(parse(source), [
    paragraph(text("<img src=x onerror=alert(1)><script>alert(1)</script> pixel &lt;b&gt;")),
  ]);
});

test("marks that turn text around are dropped", () => {
  assert.deepEqual(parse("a\u202egro.live\u202c \u2066x\u2069\u0000"), [paragraph(text("agro.live x"))]);
});

test("a link in a link's text is not made", () => {
  const [{ children }] = parse("[a [b](https://b.example) c](https://a.example)");
  assert.ok(children.filter((c) => c.type === "link").every((c) => c.children.every((d) => d.type !== "link")));
});

/** The deepest nesting of a tree. */
function depth(node) {
  if (Array.isArray(node)) return Math.max(0, ...node.map(depth));
  return node && typeof node === "object" ? 1 + Math.max(0, ...Object.values(node).map(depth)) : 0;
}

test("hostile input takes no long time and no deep tree", () => {
  const n = 20_000;
  const repeated = [
    ..."*`[#\\",
    ...["*a ", "a* ", "**a ", "_a*", "[a](", "`a", "`a``", "1. ", "https://", "![", "~~a", "```\n", "- a\n"],
  ];
  const followed = ["> ", "- ", "* ", "-"];
  const inputs = [
    ...repeated.map((part) => part.repeat(n)),
    ...followed.map((part) => part.repeat(n) + "x"),
    `${" ".repeat(n)}x\n`.repeat(3),
    "*a_".repeat(n) + "_b*".repeat(n),
    "***a".repeat(n) + "b***".repeat(n),
  ];
  for (const input of inputs) {
    const start = performance.now();
    const tree = parse(input);
    const ms = performance.now() - start;
    assert.ok(ms < 1500, `${input.slice(0, 12)}… took ${ms} ms`);
    assert.ok(tree.length > 0);
    assert.ok(depth(tree) < 40, `${input.slice(0, 12)}… is deep`);
  }
});

test("random text loses no letters and never throws", () => {
  let seed = 7;
  const random = (n) => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % n;
  const parts = [
    "*",
    "**",
    "_",
    "`",
    "```",
    "[",
    "](",
    ")",
    "https://a.example",
    "\n",
    "\n\n",
    "- ",
    "1. ",
    "> ",
    "# ",
    "a",
    "b",
    " ",
    "~~",
    "\\",
    "<",
    ">",
    "字",
    "!",
    "|",
    "\n|a|\n|-|\n",
  ];
  for (let round = 0; round < 3000; round++) {
    const source = Array.from({ length: random(40) }, () => parts[random(parts.length)]).join("");
    const kept = JSON.stringify(parse(source));
    for (const letter of ["字", "b"]) {
      const count = (s) => s.split(letter).length - 1;
      // Addresses of dropped links and info strings of fences go; nothing else does.
      if (/https|```/.test(source) || source.includes("](")) continue;
      const shown = count(outline(parse(source)).replace(/\w+[([]/g, ""));
      assert.equal(shown, count(source), JSON.stringify(source) + kept);
    }
  }
});
