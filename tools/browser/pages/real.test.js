/**
 * The page with the real server: `EYAS_URL` names one that is running. It needs a model that answers anything at all, and
 * care switched on.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { SIZES, Site, useBrowser } from "../harness.mjs";

const url = process.env.EYAS_URL?.replace(/\/$/, "");

if (url) useBrowser();

for (const size of /** @type {(keyof typeof SIZES)[]} */ (Object.keys(SIZES))) {
  const options = { skip: !url && "EYAS_URL names no server", timeout: 300_000 };

  /** @param {string} name @param {(site: Site, t: import("node:test").TestContext) => Promise<void>} run */
  const onServer = (name, run, look = {}) =>
    test(`real server: ${name} (${size})`, options, async (t) => {
      const site = await Site.open({ url, requests: [], questions: () => [] }, size, look);
      site.patience = 120_000;
      try {
        await site.page.click("#acknowledge");
        await run(site, t);
        site.check();
      } finally {
        await site.context.close();
      }
    });

  onServer("a question is answered, stopped and asked again", async (site) => {
    const { page } = site;
    await site.ask("How to take care of mental health?");
    assert.match(await site.answer().locator(".prose").textContent(), /\S/);
    await site.answer().locator("button", { hasText: "Try again" }).click();
    await page.click("#view-talk [data-say-aria-label='composer.stop']");
    await site.answered();
    await site.checkAccess();
    await site.shot("real-conversation");
  });

  onServer("a crisis is answered with the region's helplines, in both languages", async (site) => {
    const { page } = site;
    await site.ask("I want to end my life tonight");
    await page.waitForSelector("#view-talk .care a[href='tel:999']");
    assert.equal(await page.locator("#view-talk .care .prose ul").count(), 0, "the list is shown as a card only");
    await page.selectOption("#view-talk .care select", "TW");
    await page.waitForSelector("#view-talk .care a[href='tel:119']");
    await site.side();
    await page.selectOption("#language", "zh-Hant");
    if (site.size === "phone") await page.click(".side .close");
    await site.ask("我想結束生命");
    await page.locator("#view-talk .care").nth(1).locator("a[href='tel:119']").waitFor();
    assert.equal(await page.locator("#view-talk .care").nth(1).locator(".prose ul").count(), 0);
    await site.checkAccess();
    await site.shot("real-care");
  });

  onServer("every region has numbers that can be pressed", async (site) => {
    const { page } = site;
    await page.click("#help");
    await page.waitForSelector("dialog option:nth-child(30)", { state: "attached" });
    const regions = await page.locator("dialog option").evaluateAll((all) => all.map((o) => o.value).filter(Boolean));
    const help = await page.evaluate(
      (codes) =>
        Promise.all(
          codes.map(async (region) => (await fetch(`/api/care/helplines?region=${region}&language=en`)).json()),
        ),
      regions,
    );
    const { smsUrl, telUrl } = await import("../../../crates/eyas-serve/web/assets/js/care.js");
    for (const [i, { helplines }] of help.entries()) {
      assert.equal(helplines[0].kind, "emergency", regions[i]);
      for (const line of helplines) {
        if (line.phone) assert.ok(telUrl(line.phone), `${regions[i]}: ${line.name}: ${line.phone}`);
        if (line.sms) assert.ok(smsUrl(line.sms), `${regions[i]}: ${line.name}: ${line.sms}`);
      }
    }
  });

  onServer("two models are compared where there are two", async (site, t) => {
    const { page } = site;
    await site.view("compare");
    if (await page.locator("#view-compare textarea").isDisabled()) {
      t.skip("the server offers one model");
      return;
    }
    await page.check("#blind");
    await site.ask("What is the warning sign of depression?");
    await page.waitForSelector(".vote > *");
    await site.checkAccess();
    await site.shot("real-compare");
  });

  onServer("the questionnaires are the published ones, and item 9 shows help", async (site) => {
    const { page } = site;
    await site.view("check-in");
    await page.waitForSelector(".cards article");
    assert.equal(await page.locator(".cards button").count(), 3);
    /** @type {[string, number, number][]} */
    const published = [
      ["PHQ-9", 9, 27],
      ["GAD-7", 7, 21],
      ["WHO-5", 5, 100],
    ];
    for (const [title, count, most] of published) {
      await page.click(`.cards button[aria-label*="${title}"]`);
      const items = await page.locator(".items fieldset").count();
      assert.equal(items, count);
      for (let item = 0; item < items; item++) {
        const values = await page
          .locator(`input[name=item-${item}]`)
          .evaluateAll((all) => all.map((o) => Number(o.value)));
        await page.check(`input[name=item-${item}][value="${Math.max(...values)}"]`);
      }
      assert.equal(await page.locator(".item .care").count(), title === "PHQ-9" ? 1 : 0);
      await page.click(".items button[type=submit]");
      assert.match(await page.textContent(".result .score"), new RegExp(String(most)));
      await site.checkAccess();
      await site.shot(`real-result-${title}`, { fullPage: true });
      await page.click(".result button.main");
      await page.waitForSelector(".check-in:not([hidden])");
    }
  });

  onServer("first paint, policy and headers", async (site) => {
    const policy = (await site.page.request.get(url)).headers()["content-security-policy"];
    const parts = [
      "default-src 'none'",
      "script-src 'self'",
      "style-src 'self'",
      "connect-src 'self'",
      "base-uri 'none'",
      "form-action 'none'",
      "frame-ancestors 'none'",
      "require-trusted-types-for 'script'",
      "trusted-types 'none'",
    ];
    for (const part of parts) assert.ok(policy.includes(part), part);
    assert.doesNotMatch(policy, /unsafe|https?:/);
    const first = await site.page.evaluate(() => {
      const ready = performance.getEntriesByName("eyas:ready")[0].startTime;
      return performance
        .getEntries()
        .filter(
          (e) => ["navigation", "resource"].includes(e.entryType) && e.startTime < ready && !e.name.includes("/api/"),
        )
        .reduce((sum, e) => sum + e.decodedBodySize, 0);
    });
    assert.ok(first > 30_000 && first < 100_000, `${first} bytes`);
  });
}
