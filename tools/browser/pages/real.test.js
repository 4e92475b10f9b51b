/**
 * The page with the real server: `EYAS_URL` names one that is running. It needs a base and two adapters that answer
 * differently, such as those of `tools/serve/tuned.py`, and care switched on.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { SIZES, Site, useBrowser } from "../harness.mjs";

const url = process.env.EYAS_URL?.replace(/\/$/, "");

if (url) useBrowser();

/** @param {Site} site @returns {Promise<{id: string, kind: string}[]>} */
const offered = async (site) => (await (await site.page.request.get(`${url}/api/page`)).json()).models;

/** The bodies of questions that the page sends from now on. @param {import("playwright-core").Page} page */
function requestsOf(page) {
  /** @type {any[]} */
  const bodies = [];
  page.on("request", (request) => {
    if (request.method() === "POST") bodies.push(request.postDataJSON());
  });
  return bodies;
}

/** What the API says to a body that the page sent. @param {Site} site @param {any} body */
async function again(site, body) {
  const response = await site.page.request.post(`${url}/v1/chat/completions`, { data: { ...body, stream: false } });
  return (await response.json()).choices[0].message.content;
}

/** Of a text what is left however it is drawn: letters. @param {string} text */
const lettersOf = (text) => text.replace(/[^\p{L}]/gu, "");

/** @param {import("playwright-core").Locator} answer */
const shown = async (answer) => lettersOf(await answer.locator(".prose").textContent());

/** Changes settings as a person does. @param {Site} site @param {Record<string, string | number | boolean>} values */
async function set(site, values) {
  const { page } = site;
  await site.side();
  await page.click("#settings");
  await page.waitForSelector("dialog .settings");
  for (const [key, value] of Object.entries(values)) {
    if (key === "tidy") await page.setChecked("#set-tidy", Boolean(value));
    else if (key === "model") await page.selectOption("#set-model", `${value}`);
    else await page.fill(`#set-${key}`, `${value}`);
  }
  await page.click("dialog button[type=submit]");
  await page.waitForSelector("dialog", { state: "detached" });
  if (site.size === "phone") await page.click(".side .close");
}

/**
 * Presses the button that stops once the last answers of a view have each grown, and one of them more than once.
 * @param {import("playwright-core").Page} page @param {"talk" | "compare"} view @param {number} answers
 */
const stopAfter = (page, view, answers) =>
  page.evaluate(
    ({ view, answers }) =>
      new Promise((resolve) => {
        const root = document.querySelector(`#view-${view}`);
        const seen = new Set();
        const watch = new MutationObserver(() => {
          const button = root.querySelector("[data-say-aria-label='composer.stop']");
          const texts = [...root.querySelectorAll(".answer .prose")].slice(-answers).map((prose) => prose.textContent);
          if (!button || texts.length < answers || texts.includes("")) return;
          seen.add(texts.join("\n"));
          if (seen.size < 2) return;
          watch.disconnect();
          button.click();
          resolve(seen.size);
        });
        watch.observe(root, { subtree: true, childList: true, characterData: true });
      }),
    { view, answers },
  );

/** Waits until the server computes for nobody. @param {Site} site */
async function idle(site) {
  for (let tries = 0; tries < 100; tries++) {
    const figures = await (await site.page.request.get(`${url}/metrics`)).text();
    if (/^eyas_active_sequences 0$/m.test(figures)) return;
    await site.page.waitForTimeout(50);
  }
  assert.fail("the server goes on with an answer that was stopped");
}

for (const size of /** @type {(keyof typeof SIZES)[]} */ (Object.keys(SIZES))) {
  const options = { skip: !url && "EYAS_URL names no server", timeout: 90_000 };

  /** @param {string} name @param {(site: Site, t: import("node:test").TestContext) => Promise<void>} run */
  const onServer = (name, run, look = {}) =>
    test(`real server: ${name} (${size})`, options, async (t) => {
      const site = await Site.open({ url, requests: [], questions: () => [] }, size, look);
      site.patience = 60_000;
      try {
        await site.page.click("#acknowledge");
        await run(site, t);
        site.check();
      } finally {
        await site.context.close();
      }
    });

  onServer("each model answers in its own words, which are those of the API", async (site) => {
    const { page } = site;
    const models = await offered(site);
    assert.ok(models.length > 2, `the server offers ${models.length} models; start it with two adapters`);
    const sent = requestsOf(page);
    const texts = [];
    for (const { id } of models) {
      await set(site, { model: id, temperature: 0, max_tokens: 96, remember: 0 });
      await site.ask("What helps?");
      assert.match(await site.answer().locator(".by").textContent(), new RegExp(id));
      const expected = await again(site, sent.at(-1));
      assert.equal(sent.at(-1).model, id);
      texts.push(await shown(site.answer()));
      assert.equal(texts.at(-1), lettersOf(expected), id);
    }
    assert.equal(new Set(texts).size, models.length, "no two models say the same");
    await site.checkAccess();
    await site.shot("real-models");
  });

  onServer("a long answer streams, is stopped and asked again", async (site) => {
    const { page } = site;
    const base = (await offered(site)).find((model) => model.kind === "base");
    // Tidied, it would come by sentences; a base with random weights ends none.
    await set(site, { model: base.id, max_tokens: 1904, tidy: false });
    const stopped = stopAfter(page, "talk", 1);
    await site.ask("How to take care of mental health?", false);
    await stopped;
    await site.answered();
    assert.match(await site.answer().textContent(), /You stopped this answer/);
    const kept = await shown(site.answer());
    assert.ok(kept.length > 0, "what came stays");
    await page.waitForTimeout(500);
    assert.equal(await shown(site.answer()), kept, "nothing more comes");
    await idle(site);
    await site.answer().locator("button", { hasText: "Try again" }).click();
    await page.click("#view-talk [data-say-aria-label='composer.stop']");
    await site.answered();
    await idle(site);
    await site.checkAccess();
    await site.shot("real-stopped");
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

  onServer("base and adapter answer side by side, and both are stopped", async (site) => {
    const { page } = site;
    const models = await offered(site);
    const sent = requestsOf(page);
    await set(site, { temperature: 0, max_tokens: 96 });
    await site.view("compare");
    await site.ask("What is the warning sign of depression?");
    const bodies = sent.splice(0);
    assert.deepEqual(bodies.map((body) => body.model).sort(), [models[0].id, models[1].id].sort());
    const columns = page.locator(".round").last().locator(".columns > .answer");
    for (const [side, model] of models.slice(0, 2).entries()) {
      assert.match(await columns.nth(side).locator(".by").textContent(), new RegExp(model.id));
      const expected = await again(site, bodies.find((body) => body.model === model.id));
      assert.equal(await shown(columns.nth(side)), lettersOf(expected), model.id);
    }
    await site.checkAccess();
    await site.shot("real-side-by-side");

    await set(site, { max_tokens: 1904, tidy: false });
    await page.selectOption("#compare-1", models[0].id);
    const stopped = stopAfter(page, "compare", 2);
    await site.ask("How to take care of mental health?", false);
    await stopped;
    await site.answered();
    assert.equal(await page.locator(".round").last().getByText("You stopped this answer").count(), 2);
    await idle(site);
  });

  onServer("a blind comparison of two adapters counts for the one that was better", async (site) => {
    const { page } = site;
    const [first, second] = (await offered(site)).filter((model) => model.kind === "adapter").map((model) => model.id);
    const sent = requestsOf(page);
    await set(site, { temperature: 0, max_tokens: 96 });
    await site.view("compare");
    await page.selectOption("#compare-0", first);
    await page.selectOption("#compare-1", second);
    await page.check("#blind");
    for (let round = 0; round < 3; round++) {
      await site.ask("What helps?");
      const bodies = sent.splice(0);
      const last = page.locator(".round").last();
      await last.locator(".vote button").first().waitFor();
      const names = await last.textContent();
      assert.ok(![first, second].some((name) => names.includes(name)), "no name before the choice");
      const expected = await again(site, bodies.find((body) => body.model === first));
      const isFirstA = (await shown(last.locator(".columns > .answer").first())) === lettersOf(expected);
      await last.locator("button", { hasText: isFirstA ? "A is better" : "B is better" }).click();
      const [a, b] = isFirstA ? [first, second] : [second, first];
      assert.match(await last.locator(".vote").textContent(), new RegExp(`A was ${a}, B was ${b}`));
    }
    const rows = await page
      .locator(".tally tbody tr")
      .evaluateAll((all) => all.map((row) => [...row.children].slice(0, 2).map((cell) => cell.textContent)));
    assert.deepEqual(Object.fromEntries(rows), { [first]: "3", [second]: "0", "Equally good": "0" });
    await site.checkAccess();
    await site.shot("real-blind");
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
