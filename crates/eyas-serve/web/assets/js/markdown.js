/**
 * Markdown as a tree, from text that nobody vouches for.
 *
 * The model's words are parsed into plain data, and `markdown_dom.js` makes elements of it; no HTML is ever parsed.
 * What is known: paragraphs, headings, lists, quotations, rules, tables, fenced code, code spans, emphasis,
 * strike-through and links to https. Everything else, HTML and images among it, stays text. Time is linear in the text
 * but for bounded look-ahead, and nesting is bounded.
 *
 * @typedef {{type: "text", text: string} | {type: "code", text: string} | {type: "break"}
 *   | {type: "strong" | "em" | "del", children: Inline[]}
 *   | {type: "link", href: string, host: string, children: Inline[]}} Inline
 * @typedef {{type: "paragraph", children: Inline[]} | {type: "heading", level: number, children: Inline[]}
 *   | {type: "code", text: string, language: string} | {type: "rule"} | {type: "quote", blocks: Block[]}
 *   | {type: "list", ordered: boolean, start: number, items: Block[][]}
 *   | {type: "table", sides: import("./markdown_table.js").Side[], head: Inline[][], body: Inline[][][]}} Block
 */
import { tableAt } from "./markdown_table.js";

/** Quotations, lists and emphasis within each other; what lies deeper is plain. */
const MAX_DEPTH = 6;
const MAX_LINK_TEXT = 400;
const MAX_URL = 2000;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)|$)/;
/** Controls, and marks of text direction that could disguise where a link leads. */
const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;

/**
 * The blocks of a text.
 * @param {string} text
 * @param {boolean} [grows] whether more may follow, so that what is unfinished is shown as what it becomes
 * @returns {Block[]}
 */
export function parse(text, grows = false) {
  const lines = text.replace(/\r\n?/g, "\n").replace(UNSEEN, "").replace(/\t/g, "    ").split("\n");
  return blocks(lines, 0, grows);
}

/** @param {string[]} lines @param {number} depth @param {boolean} grows @returns {Block[]} */
function blocks(lines, depth, grows) {
  /** @type {Block[]} */
  const out = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    if (!line.trim()) {
      i++;
      continue;
    }
    const fence = FENCE.exec(line);
    if (fence) {
      i = code(lines, i, fence, out);
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      out.push({
        type: "heading",
        level: heading[1].length,
        children: inline((heading[2] ?? "").replace(/\s+#+\s*$/, "")),
      });
      i++;
      continue;
    }
    if (RULE.test(line)) {
      out.push({ type: "rule" });
      i++;
      continue;
    }
    if (depth < MAX_DEPTH && QUOTE.test(line)) {
      const inner = [];
      while (i < lines.length && QUOTE.test(lines[i])) inner.push(lines[i++].replace(QUOTE, ""));
      out.push({ type: "quote", blocks: blocks(inner, depth + 1, grows && i === lines.length) });
      continue;
    }
    if (depth < MAX_DEPTH && ITEM.test(line)) {
      i = list(lines, i, depth, grows, out);
      continue;
    }
    const table = tableOf(lines, i, depth, grows);
    if (table) {
      const { sides, head, body, next } = table;
      const row = (cells) => cells.map((cell) => inline(cell));
      out.push({ type: "table", sides, head: row(head), body: body.map(row) });
      i = next;
      continue;
    }
    const paragraph = [line.trim()];
    i++;
    while (i < lines.length && !interrupts(lines, i, depth, grows)) paragraph.push(lines[i++].trim());
    out.push({ type: "paragraph", children: inline(paragraph.join("\n")) });
  }
  return out;
}

/** Whether a line ends the paragraph before it. */
function interrupts(lines, i, depth, grows) {
  return startsBlock(lines[i], depth) || tableOf(lines, i, depth, grows) !== null;
}

/** @param {string[]} lines @param {number} i @param {number} depth @param {boolean} grows */
function tableOf(lines, i, depth, grows) {
  return tableAt(lines, i, { grows, ends: (line) => startsBlock(line, depth) });
}

/** Whether a line is blank, or begins a block that one line is enough to tell. @param {string} line @param {number} depth */
function startsBlock(line, depth) {
  if (!line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  return depth < MAX_DEPTH && (QUOTE.test(line) || ITEM.test(line));
}

/** A fenced block; an open one runs to the end, as it does while it is streamed. */
function code(lines, start, fence, out) {
  const [mark, size] = [fence[1][0], fence[1].length];
  const body = [];
  let i = start + 1;
  for (; i < lines.length; i++) {
    const end = lines[i].trim();
    if (end.length >= size && [...end].every((c) => c === mark)) break;
    body.push(lines[i]);
  }
  out.push({ type: "code", text: body.join("\n"), language: fence[2].slice(0, 40) });
  return i + 1;
}

/** Items of one kind, with blank lines between them or not. */
function list(lines, start, depth, grows, out) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[start]));
  const kind = first[2].at(-1);
  const ordered = /\d/.test(first[2]);
  /** @type {Block[][]} */
  const items = [];
  let i = start;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[2].at(-1) !== kind || RULE.test(lines[i])) break;
    const width = item[0].length > 8 ? item[1].length + item[2].length + 1 : item[0].length;
    // People and models indent inner lists by two or more, whatever the width of the marker.
    const inside = item[1].length + 2;
    const body = [lines[i].slice(width)];
    i++;
    let blank = false;
    for (; i < lines.length; i++) {
      const line = lines[i];
      if (!line.trim()) {
        blank = true;
        body.push("");
        continue;
      }
      const indent = line.search(/\S/);
      if (indent >= inside) body.push(line.slice(Math.min(indent, width)));
      else if (blank || interrupts(lines, i, depth, grows)) break;
      else body.push(line.trim());
      blank = false;
    }
    items.push(blocks(body, depth + 1, grows && i === lines.length));
  }
  out.push({ type: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, items });
  return i;
}

/**
 * The inline parts of a paragraph. A line's end is a break, as in chats.
 * @param {string} text
 * @param {boolean} [links] whether links are made; not inside a link
 * @returns {Inline[]}
 */
export function inline(text, links = true) {
  /** @type {Inline[]} */
  const nodes = [];
  const runs = [];
  let plain = "";
  const flush = () => {
    if (plain) nodes.push({ type: "text", text: plain });
    plain = "";
  };
  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if (c === "\\" && /[\\`*_~[\]()#+\-.!>{}|"]/.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
    } else if (c === "\n") {
      flush();
      nodes.push({ type: "break" });
      i++;
    } else if (c === "`") {
      const ticks = /^`+/.exec(text.slice(i, i + 32))?.[0] ?? "`";
      const end = closing(text, i + ticks.length, ticks);
      if (end < 0) {
        plain += ticks;
        i += ticks.length;
      } else {
        flush();
        nodes.push({
          type: "code",
          text: text
            .slice(i + ticks.length, end)
            .replace(/\n/g, " ")
            .replace(/^ (.*\S.*) $/, "$1"),
        });
        i = end + ticks.length;
      }
    } else if (c === "*" || c === "_" || c === "~") {
      let size = 1;
      while (text[i + size] === c) size++;
      if (c === "~" && size !== 2) plain += text.slice(i, i + size);
      else {
        flush();
        runs.push({ at: nodes.length, mark: c, size, ...flanks(text, i, size, c) });
        nodes.push({ type: "text", text: text.slice(i, i + size) });
      }
      i += size;
    } else if (links && (c === "[" || (c === "!" && text[i + 1] === "["))) {
      const found = bracketed(text, c === "!" ? i + 1 : i);
      if (!found) {
        plain += c;
        i++;
        continue;
      }
      flush();
      const target = c === "!" ? null : safeUrl(found.url);
      const children = inline(found.text, false);
      // A link that is not kept, and an image, leave their words.
      if (target) nodes.push({ type: "link", ...target, children });
      else nodes.push(...children);
      i = found.end;
    } else if (links && c === "h" && text.startsWith("https://", i) && !/\w/.test(text[i - 1] ?? "")) {
      const raw = /^[^\s<>"'`*\\^{}|]+/.exec(text.slice(i, i + MAX_URL))?.[0] ?? "";
      const url = raw.replace(/[.,;:!?)\]'\u3001\u3002\u300d\u300f\uff01\uff09\uff0c\uff1a\uff1b\uff1f]+$/u, "");
      const target = safeUrl(url);
      flush();
      if (target) nodes.push({ type: "link", ...target, children: [{ type: "text", text: url }] });
      else plain = url;
      i += url.length;
    } else {
      plain += c;
      i++;
    }
  }
  flush();
  return merge(emphasise(nodes, runs));
}

/** Where a run of exactly these back-ticks is next, within reach. */
function closing(text, from, ticks) {
  const limit = Math.min(text.length, from + 4000);
  for (let i = from; i < limit; i++) {
    if (text[i] !== "`") continue;
    let size = 1;
    while (text[i + size] === "`") size++;
    if (size === ticks.length) return i;
    i += size - 1;
  }
  return -1;
}

/** Whether a run of marks can open or close emphasis: CommonMark's flanking rules. */
function flanks(text, at, size, mark) {
  const before = text[at - 1] ?? " ";
  const after = text[at + size] ?? " ";
  const space = /\s/;
  const sign = /[\p{P}\p{S}]/u;
  const left = !space.test(after) && (!sign.test(after) || space.test(before) || sign.test(before));
  const right = !space.test(before) && (!sign.test(before) || space.test(after) || sign.test(after));
  if (mark !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || sign.test(before)), closes: right && (!left || sign.test(after)) };
}

/** `[text](url)` from an opening bracket, within reach. */
function bracketed(text, open) {
  let depth = 0;
  const limit = Math.min(text.length, open + MAX_LINK_TEXT);
  for (let i = open; i < limit; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "[") depth++;
    else if (text[i] === "]" && --depth === 0) {
      if (text[i + 1] !== "(") return null;
      const tail = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"\n]{0,200}")?\s*\)/.exec(
        text.slice(i + 1, i + 1 + MAX_URL),
      );
      return tail && { text: text.slice(open + 1, i), url: tail[1], end: i + 1 + tail[0].length };
    }
  }
  return null;
}

/**
 * An address that may be linked to: https, a host with a dot, no user name that could pass for a host.
 * @param {string} raw
 * @returns {{href: string, host: string} | null}
 */
export function safeUrl(raw) {
  if (!/^https:\/\/[^/\\\s]/i.test(raw)) return null;
  try {
    const url = new URL(raw);
    if (url.protocol !== "https:" || url.username || url.password || !url.hostname.includes(".")) return null;
    return { href: url.href, host: url.host };
  } catch {
    return null;
  }
}

/**
 * Pairs the runs of marks, nearest first, as CommonMark does.
 *
 * Every run keeps its place in `nodes`; a pair wraps what lies between them. The marks that a closer looked past in
 * vain are remembered, which keeps the time linear.
 */
function emphasise(nodes, runs) {
  /** What each run still has on its outer sides: wrappers are built from inside outwards. */
  const stack = [];
  const bottom = new Map();
  const wraps = [];
  for (const run of runs) {
    while (run.closes && run.size > 0) {
      const key = `${run.mark}${run.opens}${run.size % 3}`;
      const floor = bottom.get(key) ?? 0;
      let k = stack.length - 1;
      for (; k >= floor; k--) {
        const open = stack[k];
        if (open.mark !== run.mark || open.size === 0) continue;
        const odd = (open.closes || run.opens) && (open.size + run.size) % 3 === 0 && (open.size % 3 || run.size % 3);
        if (!odd || run.mark === "~") break;
      }
      if (k < floor) {
        bottom.set(key, stack.length);
        break;
      }
      const open = stack[k];
      stack.length = k + 1;
      for (const [name, value] of bottom) bottom.set(name, Math.min(value, stack.length));
      const used = open.size >= 2 && run.size >= 2 ? 2 : 1;
      const type = run.mark === "~" ? "del" : used === 2 ? "strong" : "em";
      wraps.push({ from: open.at, to: run.at, type });
      open.size -= used;
      run.size -= used;
      if (open.size === 0) stack.pop();
    }
    if (run.size > 0 && run.opens) stack.push(run);
  }
  for (const run of runs) nodes[run.at].text = run.mark.repeat(run.size);
  return nest(nodes, wraps);
}

/** Puts nodes inside their wrappers. Pairs never cross, so a stack is enough. */
function nest(nodes, wraps) {
  const opens = new Map();
  const closes = new Map();
  // A later pair of the same run lies further out: it opens first and closes last.
  for (const wrap of wraps) {
    opens.set(wrap.from, [wrap, ...(opens.get(wrap.from) ?? [])]);
    closes.set(wrap.to, (closes.get(wrap.to) ?? 0) + 1);
  }
  const root = [];
  const stack = [root];
  nodes.forEach((node, at) => {
    const ending = closes.get(at) ?? 0;
    for (let n = 0; n < ending; n++) if (stack.length > 1) stack.pop();
    if (node.type !== "text" || node.text) stack.at(-1).push(node);
    for (const wrap of opens.get(at) ?? []) {
      // Beyond any sensible depth the marks go and the words stay.
      const child = { type: wrap.type, children: stack.length > MAX_DEPTH ? stack.at(-1) : [] };
      if (stack.length <= MAX_DEPTH) stack.at(-1).push(child);
      stack.push(child.children);
    }
  });
  return root;
}

/** Joins neighbouring texts. */
function merge(nodes) {
  const out = [];
  for (const node of nodes) {
    if (node.children && node.type !== "link") node.children = merge(node.children);
    const last = out.at(-1);
    if (node.type === "text" && last?.type === "text") last.text += node.text;
    else out.push(node);
  }
  return out;
}
