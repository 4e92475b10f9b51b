/** What goes wrong is said in words, nothing is lost, and trying again works. */
import assert from "node:assert/strict";
import test from "node:test";
import { Site, onSizes, useBrowser } from "../harness.mjs";
import { startFakeServer } from "../fake_server.mjs";

useBrowser();

/** Failed requests are on the console in any case. */
const errors = /Failed to load resource/;

onSizes(
  "too many questions: the time to wait counts down, then trying again is possible",
  async (site) => {
    const { page } = site;
    await site.ask("busy", false);
    const button = page.locator(".trouble button");
    await button.waitFor();
    assert.match(await page.textContent(".trouble"), /Many people are asking/);
    assert.ok(await button.isDisabled());
    assert.match(await button.textContent(), /Try again in [12] s/);
    await page.waitForFunction(() => !document.querySelector(".trouble button").disabled);
    await button.click();
    await page.waitForFunction(() => /in [12] s/.test(document.querySelector(".trouble button")?.textContent ?? ""));
    await page.waitForFunction(() => !document.querySelector(".trouble button").disabled);
    await button.click();
    await page.waitForSelector(".prose ol");
    assert.equal(await page.locator(".trouble").count(), 0);
  },
  { errors },
);

onSizes(
  "a connection that breaks keeps what came; a question that is too long and a server that fails are explained",
  async (site) => {
    const { page } = site;
    await site.ask("break", false);
    await page.waitForSelector(".trouble");
    assert.match(await page.locator(".turn").last().textContent(), /word10.*broke off in the middle/s);
    await site.ask("long question", false);
    await page.waitForFunction(() => document.querySelectorAll(".trouble").length === 2);
    assert.match(await page.locator(".trouble").last().textContent(), /too long for the model.*5000 tokens/s);
    await site.ask("fail", false);
    await page.waitForFunction(() => document.querySelectorAll(".trouble").length === 3);
    assert.match(await page.locator(".trouble").last().textContent(), /not your fault.*engine stumbled/s);
    await site.ask("vanish", false);
    await page.waitForFunction(() => document.querySelectorAll(".trouble").length === 4);
    assert.match(await page.locator(".trouble").last().textContent(), /cannot be reached/);
    await site.ask("restart", false);
    await page.waitForFunction(() => document.querySelectorAll(".trouble").length === 5);
    assert.match(await page.locator(".trouble").last().textContent(), /not ready.*Get help now.*Try again in [1-5] s/s);
    assert.equal(await site.answer().locator("button:visible", { hasText: "Try again" }).count(), 1);
    await site.checkAccess();
  },
  { errors: /Failed to load resource|ERR_/ },
);

onSizes(
  "a long wait is explained",
  async (site) => {
    await site.ask("silent", false);
    await site.page.waitForSelector("text=Still working", { timeout: 12_000 });
  },
  { sizes: ["desktop"] },
);

onSizes(
  "a key is asked for where the server wants one, and is not stored",
  async (site) => {
    const { page } = site;
    await site.ask("hello", false);
    await page.fill(".trouble input[type=password]", "secret-key");
    await page.click(".trouble button");
    await page.waitForSelector(".prose ol");
    const stored = await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }));
    assert.doesNotMatch(stored, /secret-key/);
  },
  { server: { key: "secret-key" }, errors },
);

for (const size of /** @type {const} */ (["phone", "desktop"])) {
  test(
    `the page says so when the server is gone, and starts when it is back (${size})`,
    { timeout: 60_000 },
    async () => {
      const fake = await startFakeServer();
      const site = await Site.open(fake, size, { errors: /ERR_|Failed to load/ });
      const { page } = site;
      await page.route("**/api/page", (route) => route.abort());
      await page.reload();
      await page.waitForSelector(".trouble");
      assert.match(await page.textContent(".trouble"), /cannot be reached/);
      await page.unroute("**/api/page");
      await page.click(".trouble button");
      await page.waitForSelector("#acknowledge");
      site.check();
      await site.context.close();
      await fake.stop();
    },
  );

  test(`without storage the page works and says that nothing is kept (${size})`, { timeout: 60_000 }, async () => {
    const fake = await startFakeServer();
    const init = () =>
      Object.defineProperty(window, "localStorage", {
        get() {
          throw new DOMException("denied", "SecurityError");
        },
      });
    const site = await Site.open(fake, size, { init });
    await site.page.waitForSelector("text=This browser keeps nothing");
    await site.page.click("#acknowledge");
    await site.ask("hello");
    assert.equal(await site.answer().locator("ol li").count(), 3);
    site.check();
    await site.context.close();
    await fake.stop();
  });
}

onSizes(
  "a question is not lost when the page's own parts cannot be loaded",
  async (site) => {
    const { page } = site;
    await page.route("**/thread.js", (route) => route.abort());
    await page.reload();
    await page.waitForSelector("html[data-ready]");
    await site.ask("hello", false);
    await page.waitForSelector(".toast");
    assert.equal(await page.inputValue("#view-talk textarea"), "hello");
    assert.equal(site.server.questions().length, 0);
    await page.unroute("**/thread.js");
    await page.click(".toast button");
    await page.waitForSelector("html[data-ready]");
    await page.waitForFunction(() => document.querySelector("#view-talk textarea").value === "hello");
    await page.press("#view-talk textarea", "Enter");
    await site.answered();
    assert.equal(site.server.questions().length, 1, "asking again works");
  },
  { errors: /ERR_FAILED/, sizes: ["desktop"] },
);
