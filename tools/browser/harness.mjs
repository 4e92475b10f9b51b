/**
 * Chromium for the browser tests: one browser a file, a fresh profile for each test, and what must hold on every page:
 * nothing on the console, no request to another origin, nothing serious found by axe.
 */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { startFakeServer } from "./fake_server.mjs";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const SHOTS = fileURLToPath(new URL("screenshots/", import.meta.url));

export const SIZES = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 800 } };

/** @type {import("playwright-core").Browser} */
let browser;

/** Starts the browser before the file's tests and ends it after them. */
export function useBrowser() {
  before(async () => {
    mkdirSync(SHOTS, { recursive: true });
    browser = await chromium.launch({
      executablePath: CHROMIUM,
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
      ],
    });
  });
  after(() => browser?.close());
}

/**
 * A test on phone and on desktop size, each with its own server and profile.
 * @param {string} name
 * @param {(site: Site) => Promise<void>} run
 * @param {{server?: object, sizes?: (keyof typeof SIZES)[], locale?: string, colorScheme?: "light" | "dark",
 *   begun?: boolean, errors?: RegExp}} [options]
 *   `begun` presses the acknowledgement first; `errors` is what the console may say in this test.
 */
export function onSizes(name, run, { server = {}, sizes = ["phone", "desktop"], begun = true, ...look } = {}) {
  for (const size of sizes) {
    test(`${name} (${size})`, { timeout: 90_000 }, async () => {
      const fake = await startFakeServer(server);
      const site = await Site.open(fake, size, look);
      try {
        if (begun) await site.page.click("#acknowledge");
        await run(site);
        site.check();
      } finally {
        await site.context.close();
        await fake.stop().catch(() => {});
      }
    });
  }
}

export class Site {
  /** @param {any} server @param {keyof typeof SIZES} size */
  static async open(server, size, { locale = "en-GB", colorScheme = "light", errors, init } = {}) {
    const context = await browser.newContext({
      viewport: SIZES[size],
      isMobile: size === "phone",
      hasTouch: size === "phone",
      locale,
      colorScheme,
      reducedMotion: "reduce",
      permissions: ["clipboard-read", "clipboard-write"],
      acceptDownloads: true,
    });
    if (init) await context.addInitScript(init);
    const page = await context.newPage();
    page.setDefaultTimeout(10_000);
    const site = new Site(server, size, context, page, errors);
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) site.complaints.push(message.text());
    });
    page.on("pageerror", (error) => site.complaints.push(`${error.stack}`));
    page.on("request", (request) => site.requests.push(request.url()));
    await page.goto(server.url);
    await page.waitForSelector("html[data-ready], .trouble");
    return site;
  }

  constructor(server, size, context, page, errors) {
    Object.assign(this, { server, size, context, page, errors });
    /** @type {string[]} */
    this.complaints = [];
    /** For a whole answer, in milliseconds. */
    this.patience = 10_000;
    /** @type {string[]} */
    this.requests = [];
  }

  /** Nothing on the console but what is expected, nothing from elsewhere. */
  check() {
    const unexpected = this.complaints.filter((text) => !this.errors?.test(text));
    assert.deepEqual(unexpected, [], "console");
    const outside = this.requests.filter((url) => !url.startsWith(this.server.url) && !/^(data|blob):/.test(url));
    assert.deepEqual(outside, [], "requests to other origins");
  }

  /** Nothing serious, and no sideways scrolling. @param {string} [within] */
  async checkAccess(within) {
    await this.page.evaluate(AXE);
    const found = await this.page.evaluate(
      (root) => globalThis.axe.run(root ?? document, { resultTypes: ["violations"] }),
      within ?? null,
    );
    const serious = found.violations
      .filter((v) => ["serious", "critical"].includes(v.impact))
      .map((v) => `${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("; ")}`);
    assert.deepEqual(serious, []);
    // A phone's window grows with what is too wide, so it is compared to the size that was asked for.
    const width = this.page.viewportSize().width;
    const wide = (await this.page.evaluate(() => document.documentElement.scrollWidth)) - width;
    assert.ok(wide <= 0, `the page is ${wide} px wider than the window`);
  }

  /** @param {string} name */
  async shot(name, options = {}) {
    if (options.fullPage) await this.page.evaluate(() => scrollTo(0, 0));
    await this.page.screenshot({ path: `${SHOTS}${name}-${this.size}.png`, ...options });
  }

  /** Sends a question with the keyboard. @param {string} question @param {boolean} [done] whether to wait for the answer's end */
  async ask(question, done = true) {
    const box = this.page.locator("section:not([hidden]) > .composer textarea");
    await box.fill(question);
    await box.press("Enter");
    if (done) await this.answered();
  }

  /** Waits until nothing is being written. */
  async answered() {
    await this.page.waitForSelector("section:not([hidden]) > .composer button[data-say-aria-label='composer.send']", {
      timeout: this.patience,
    });
    await this.page.waitForSelector("section:not([hidden]) .actions:not([hidden])");
  }

  /** Opens the column at the side where it is not there already. */
  async side() {
    if (this.size === "phone") await this.page.click("#menu");
  }

  /** The text of the last answer. */
  answer() {
    return this.page.locator("#view-talk .answer").last();
  }

  /** Goes to a view by its link. @param {"talk" | "compare" | "check-in"} name */
  async view(name) {
    await this.page.click(`.views a[href="#${name}"]`);
    await this.page.waitForSelector(`#view-${name}:not([hidden])`);
  }
}
