/**
 * Tables as GitHub writes them: a row of headings, a row of dashes, then rows until a blank line.
 *
 * @typedef {"start" | "middle" | "end"} Side
 * @typedef {{sides: Side[], head: string[], body: string[][], next: number}} Table
 *   `head` and `sides` have one entry a column, a row at most as many; `next` is the first line after the table.
 */

const DASHES = /^:?-+:?$/;

/**
 * The table that begins at a line, or null.
 *
 * Of a text that still grows, a last line that begins with `|` is taken for the headings of a table, and a row of dashes
 * may be unfinished: signs that turn into a table later would be seen for a moment.
 * @param {string[]} lines
 * @param {number} at
 * @param {{grows: boolean, ends: (line: string) => boolean}} options
 *   `grows`: whether the last line may be unfinished; `ends`: whether a line begins another block
 * @returns {Table | null}
 */
export function tableAt(lines, at, { grows, ends }) {
  const line = lines[at];
  if (!line.includes("|")) return null;
  const head = cells(line);
  const unfinished = grows && at + 2 >= lines.length;
  const second = lines[at + 1] ?? "";
  const dashes = cells(second);
  const whole = dashes.length === head.length && dashes.every((cell) => DASHES.test(cell));
  const begun = second ? /^ {0,3}[|:-][\s|:-]*$/.test(second) : /^ {0,3}\|/.test(line);
  if (!whole && !(unfinished && begun)) return null;
  const sides = head.map((_, column) => sideOf(dashes[column] ?? ""));
  const body = [];
  let next = Math.min(at + 2, lines.length);
  for (; next < lines.length && !ends(lines[next]); next++) body.push(fitted(cells(lines[next]), head.length));
  return { sides, head, body, next };
}

/** The cells of a row. An escaped bar is a bar, in code too. @param {string} line */
function cells(line) {
  const row = line.trim();
  const found = [];
  let cell = "";
  for (let i = row.startsWith("|") ? 1 : 0; i < row.length; i++) {
    if (row[i] === "\\" && i + 1 < row.length) {
      i++;
      cell += row[i] === "|" ? "|" : `\\${row[i]}`;
    } else if (row[i] === "|") {
      found.push(cell.trim());
      cell = "";
    } else {
      cell += row[i];
    }
  }
  if (cell || !found.length) found.push(cell.trim());
  return found;
}

/** What is more than there are columns stays readable in the last one. @param {string[]} row @param {number} columns */
function fitted(row, columns) {
  return row.length <= columns ? row : [...row.slice(0, columns - 1), row.slice(columns - 1).join(" | ")];
}

/** @param {string} dashes @returns {Side} */
function sideOf(dashes) {
  if (!dashes.endsWith(":") || dashes === ":") return "start";
  return dashes.startsWith(":") ? "middle" : "end";
}
