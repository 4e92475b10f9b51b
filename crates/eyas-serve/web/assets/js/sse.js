/**
 * Server-sent events, read from a stream in pieces of any size, as the HTML standard describes their format.
 */
export class SseParser {
  constructor() {
    this.rest = "";
    /** @type {string[]} */
    this.data = [];
    this.event = "";
    this.started = false;
  }

  /**
   * Takes a piece of the stream and returns the events that it completes.
   * @param {string} piece
   * @returns {{event: string, data: string}[]}
   */
  push(piece) {
    if (!this.started && piece) {
      this.started = true;
      if (piece.startsWith("\ufeff")) piece = piece.slice(1);
    }
    const text = this.rest + piece;
    const events = [];
    let from = 0;
    const ends = /\r\n|\n|\r/g;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      // The line feed of this carriage return may be in the next piece.
      if (end[0] === "\r" && end.index === text.length - 1) break;
      const event = this.line(text.slice(from, end.index));
      if (event) events.push(event);
      from = end.index + end[0].length;
    }
    this.rest = text.slice(from);
    return events;
  }

  /** @param {string} line @returns {{event: string, data: string} | null} */
  line(line) {
    if (line === "") {
      const done = this.data.length ? { event: this.event || "message", data: this.data.join("\n") } : null;
      this.data = [];
      this.event = "";
      return done;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return null;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value;
    return null;
  }
}
