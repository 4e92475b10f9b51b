/**
 * Elements of parsed markdown. Text goes in as text nodes only, so nothing that a model writes can become markup.
 * @typedef {import("./markdown.js").Block} Block
 * @typedef {import("./markdown.js").Inline} Inline
 */
import { label } from "./i18n.js";
import { parse } from "./markdown.js";

/**
 * Shows markdown in an element, and leaves the blocks alone that are there already: a growing answer is shown again
 * for every piece, and what a person selects in it must stay selected.
 */
export class MarkdownView {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    /** @type {string[]} */
    this.shown = [];
  }

  /** @param {string} text @param {boolean} [grows] whether more of it may follow */
  show(text, grows = false) {
    const blocks = parse(text, grows);
    const keys = blocks.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < keys.length && keys[same] === this.shown[same]) same++;
    const old = /** @type {HTMLElement | undefined} */ (this.root.children[same]);
    const [aside, focused] = [old?.scrollLeft ?? 0, old === document.activeElement];
    while (this.root.childNodes.length > same) this.root.lastChild?.remove();
    for (const block of blocks.slice(same)) {
      const node = blockNode(block);
      // Arabic and Hebrew run from the right; what is inside follows. Code is always read from the left.
      if (block.type !== "code") node.dir = "auto";
      this.root.append(node);
    }
    // Who scrolls wide code or a table aside while it grows is not thrown back.
    const fresh = /** @type {HTMLElement | undefined} */ (this.root.children[same]);
    if (fresh && aside) fresh.scrollLeft = aside;
    if (fresh && focused) fresh.focus({ preventScroll: true });
    this.shown = keys;
  }
}

/** @param {Block} block @returns {HTMLElement} */
function blockNode(block) {
  switch (block.type) {
    case "paragraph":
      return element("p", inlineNodes(block.children));
    case "heading":
      // The page's own headings end at level 3.
      return element(`h${Math.min(6, block.level + 3)}`, inlineNodes(block.children));
    case "code": {
      const pre = element("pre", [element("code", [block.text])]);
      // Wide code scrolls, so the keyboard must reach it.
      pre.tabIndex = 0;
      return pre;
    }
    case "rule":
      return element("hr", []);
    case "table":
      return table(block);
    case "quote":
      return element("blockquote", block.blocks.map(blockNode));
    case "list": {
      const list = element(
        block.ordered ? "ol" : "ul",
        block.items.map((item) => element("li", itemNodes(item))),
      );
      if (block.ordered && block.start !== 1) list.setAttribute("start", String(block.start));
      return list;
    }
  }
}

/** A table in a box that scrolls sideways. @param {Extract<Block, {type: "table"}>} block */
function table({ sides, head, body }) {
  const row = (cells, name) =>
    element(
      "tr",
      cells.map((cell, column) => {
        // A corner without words is no heading.
        const node = element(cell.length ? name : "td", inlineNodes(cell));
        if (node.localName === "th") node.setAttribute("scope", "col");
        node.className = sides[column];
        return node;
      }),
    );
  const parts = [element("thead", [row(head, "th")])];
  if (body.length) parts.push(element("tbody", body.map((cells) => row(cells, "td"))));
  const box = element("div", [element("table", parts)]);
  box.className = "table";
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  label(box, "aria-label", "answer.table");
  return box;
}

/** An item of one paragraph needs no paragraph. @param {Block[]} blocks */
function itemNodes(blocks) {
  const [first, ...rest] = blocks;
  if (first?.type !== "paragraph") return blocks.map(blockNode);
  return [...inlineNodes(first.children), ...rest.map(blockNode)];
}

/** @param {Inline[]} parts @returns {(Node | string)[]} */
function inlineNodes(parts) {
  return parts.flatMap(
    /** @returns {(Node | string)[]} */ (part) => {
      switch (part.type) {
        case "text":
          return [part.text];
        case "code":
          return [element("code", [part.text])];
        case "break":
          return [element("br", [])];
        case "link": {
          const link = /** @type {HTMLAnchorElement} */ (element("a", inlineNodes(part.children)));
          link.href = part.href;
          link.rel = "noopener noreferrer";
          link.target = "_blank";
          // Where it leads is said in the page's words, whatever the model calls it, unless its words are the address.
          if (link.textContent === part.href || `${link.textContent}/` === part.href) return [link];
          const host = element("span", [` (${part.host})`]);
          host.className = "link-host";
          return [link, host];
        }
        default:
          return [element(part.type, inlineNodes(part.children))];
      }
    },
  );
}

/** @param {string} name @param {(Node | string)[]} children @returns {HTMLElement} */
function element(name, children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}
