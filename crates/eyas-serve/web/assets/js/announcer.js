/**
 * Says a growing answer to a screen reader: whole sentences, some at a time, each once.
 */

/** Between two announcements, so that speech is not cut off by the next piece. */
const PAUSE_MS = 3000;

export class Announcer {
  /** @param {(text: string) => void} speak @param {() => number} [now] milliseconds */
  constructor(speak, now = () => performance.now()) {
    this.speak = speak;
    this.now = now;
    this.said = 0;
    this.last = -Infinity;
  }

  /** Takes the whole text so far. @param {string} text @param {boolean} [done] */
  update(text, done = false) {
    if (!done && this.now() - this.last < PAUSE_MS) return;
    const fresh = text.slice(this.said);
    const end = done ? fresh.length : lastSentenceEnd(fresh);
    const words = plain(fresh.slice(0, end));
    this.said += end;
    if (!words) return;
    this.last = this.now();
    this.speak(words);
  }
}

/** @param {string} text */
function lastSentenceEnd(text) {
  let end = 0;
  for (const match of text.matchAll(/[.!?](?=\s)|[\u3002\uff01\uff1f]|\n/gu)) {
    // The dot of a list number ends no sentence.
    if (match[0] === "." && /(^|\s)\d+$/.test(text.slice(0, match.index))) continue;
    end = match.index + match[0].length;
  }
  return end;
}

/** Without the signs of markdown, which would be read aloud. @param {string} text */
function plain(text) {
  return text
    .split("\n")
    .map((line) => (line.trim().startsWith("|") ? row(line) : line))
    .join("\n")
    .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/[*_`#>~]+/g, "")
    .replace(/\s+/g, " ")
    .trim();
}

/** A table's row as a sentence; the row of dashes is nothing to hear. @param {string} line */
function row(line) {
  const cells = line.split("|").map((cell) => cell.trim());
  const said = cells.filter((cell) => /[^\s:-]/.test(cell));
  return said.length ? `${said.join(", ")}.` : "";
}

/**
 * Says a short text politely.
 * @param {string} text
 */
export function announce(text) {
  const region = document.getElementById("polite");
  if (!region) return;
  const line = document.createElement("p");
  line.textContent = text;
  // Old lines go, so that the region does not grow; additions alone are read.
  while (region.childElementCount > 3) region.firstElementChild?.remove();
  region.append(line);
}
