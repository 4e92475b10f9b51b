/**
 * When to say that this is a program: at the start, and again each time a session has gone on for long.
 */
export class SessionClock {
  /** @param {() => number} [now] milliseconds */
  constructor(now = Date.now) {
    this.now = now;
    this.turns = 0;
    this.since = null;
  }

  /**
   * Counts a question, and says whether a reminder is due with it. After one, both counts begin anew.
   * @param {{turns?: number, minutes?: number}} policy
   */
  count({ turns = Infinity, minutes = Infinity } = {}) {
    this.since ??= this.now();
    this.turns++;
    const due = this.turns >= turns || this.now() - this.since >= minutes * 60_000;
    if (due) {
      this.turns = 0;
      this.since = this.now();
    }
    return due;
  }
}
