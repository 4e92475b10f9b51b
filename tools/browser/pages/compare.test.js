/** Two models side by side, and the blind comparison that counts. */
import assert from "node:assert/strict";
import { onSizes, useBrowser } from "../harness.mjs";

useBrowser();

const columns = (page) => page.locator(".round").last().locator(".columns > .answer");

onSizes("both models answer the same question, alone, under their names", async (site) => {
  const { page, server } = site;
  await site.view("compare");
  await site.ask("How to take care of mental health?");
  const bodies = server.questions();
  assert.deepEqual(bodies.map((b) => b.model).sort(), ["falcon-small", "mental-health"]);
  for (const body of bodies) assert.equal(body.messages.length, 1);
  assert.match(await columns(page).nth(0).textContent(), /falcon-small.*common conditions/s);
  assert.match(await columns(page).nth(1).textContent(), /mental-health.*Sleep/s);
  assert.equal(await page.locator(".vote button").count(), 0, "names are known, so nothing is counted");
  const boxes = await Promise.all([columns(page).nth(0).boundingBox(), columns(page).nth(1).boundingBox()]);
  assert.equal(boxes[0].y === boxes[1].y, site.size === "desktop", "beside each other where there is room");
});

onSizes("both answers can be stopped", async (site) => {
  const { page } = site;
  await site.view("compare");
  await site.ask("slow", false);
  await page.waitForFunction(() => /word2/.test(document.querySelector(".round .prose")?.textContent ?? ""));
  await page.click("#view-compare [data-say-aria-label='composer.stop']");
  await site.answered();
  assert.equal(await page.locator(".round", { hasText: "You stopped this answer" }).count(), 1);
});

onSizes("blind: names are hidden until a choice, which counts for the model, not the side", async (site) => {
  const { page } = site;
  await site.view("compare");
  await page.check("#blind");
  let tuned = 0;
  for (let round = 0; round < 6; round++) {
    await site.ask(`question ${round}`);
    const last = page.locator(".round").last();
    await last.locator(".vote button").first().waitFor();
    assert.doesNotMatch(await last.textContent(), /falcon-small|mental-health/);
    const tunedFirst = /Sleep/.test(await columns(page).nth(0).textContent());
    if (round === 5) {
      await last.locator("button", { hasText: "Equally good" }).click();
    } else {
      await last.locator("button", { hasText: tunedFirst ? "A is better" : "B is better" }).click();
      tuned++;
    }
    assert.match(
      await last.locator(".vote").textContent(),
      tunedFirst ? /A was mental-health, B was falcon-small/ : /A was falcon-small, B was mental-health/,
    );
    assert.equal(await last.locator(".vote button").count(), 0, "one choice a round");
  }
  const rows = () =>
    page
      .locator(".tally tbody tr")
      .evaluateAll((all) => all.map((row) => [...row.children].slice(0, 2).map((c) => c.textContent)));
  assert.deepEqual(await rows(), [
    ["falcon-small", "0"],
    ["mental-health", String(tuned)],
    ["Equally good", "1"],
  ]);
  await page.reload();
  await page.waitForSelector(".tally tbody tr");
  assert.deepEqual((await rows())[1], ["mental-health", String(tuned)]);
  await page.click(".tally button");
  await page.click("dialog button.danger");
  await page.waitForSelector(".tally", { state: "hidden" });
});

onSizes(
  "a crisis, a stopped answer and a failed one are not counted",
  async (site) => {
    const { page } = site;
    await site.view("compare");
    await page.check("#blind");
    await site.ask("I want to end my life");
    await page.waitForSelector("text=not counted");
    assert.equal(await page.locator(".vote button").count(), 0);
    await page.waitForSelector("#view-compare .care a[href='tel:999']");
    await site.ask("fail", false);
    await page.waitForSelector("text=An answer is missing");
    assert.equal(await page.locator(".vote button").count(), 0);
  },
  { errors: /Failed to load resource/ },
);

onSizes(
  "with one model the view says what is missing",
  async (site) => {
    await site.view("compare");
    await site.page.waitForSelector("text=This server offers one model");
    assert.ok(await site.page.locator("#view-compare textarea").isDisabled());
    await site.checkAccess();
  },
  { server: { page: (p) => ({ ...p, models: p.models.slice(0, 1) }) } },
);
