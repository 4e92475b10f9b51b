/** Mood, questionnaires, and both over time. Nothing of it is sent. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { onSizes, useBrowser } from "../harness.mjs";

useBrowser();

const answer = (page, item, value) => page.check(`input[name=item-${item}][value="${value}"]`);

async function saveMood(page, value, note = "") {
  await page.click(`label[for=mood-${value}]`);
  await page.fill("#mood-note", note);
  await page.click(".mood button[type=submit]");
}

onSizes("moods are saved with a note, drawn, listed and deleted", async (site) => {
  const { page } = site;
  await site.view("check-in");
  await page.waitForSelector("text=Once you save a mood");
  await saveMood(page, 2, "a grey day");
  await saveMood(page, 4);
  await page.waitForFunction(() => document.querySelectorAll(".chart .dot").length === 2);
  assert.match(await page.getAttribute(".chart svg", "aria-label"), /^Mood: 2 records, from 2 on .* to 4 on /);
  await page.click("summary");
  assert.match(await page.textContent(".scroll tbody"), /Low · a grey day/);
  await page.click(".scroll tbody tr:last-child button");
  await page.click("dialog button.danger");
  await page.waitForFunction(() => document.querySelectorAll(".chart .dot").length === 1);
  await page.reload();
  await page.waitForSelector(".chart .dot");
  const outside = site.server.requests.filter((r) => r.body);
  assert.deepEqual(outside, [], "nothing is sent");
});

onSizes("PHQ-9: item 9 above zero shows help at once, and takes it back", async (site) => {
  const { page } = site;
  await site.view("check-in");
  await page.click("button[aria-label='Start PHQ-9']");
  await answer(page, 8, 0);
  assert.equal(await page.locator(".item .care").count(), 0);
  await answer(page, 8, 1);
  await page.waitForSelector(".item .care a[href='tel:999']");
  assert.match(await page.textContent("#polite"), /Helplines are shown below/);
  assert.match(await page.textContent(".questionnaire"), /1 of 9 answered/);
  await answer(page, 8, 0);
  assert.equal(await page.locator(".item .care").count(), 0);
});

onSizes("PHQ-9: what is open is named, then the score is explained without a diagnosis, and kept", async (site) => {
  const { page } = site;
  await site.view("check-in");
  await page.click("button[aria-label='Start PHQ-9']");
  for (let item = 0; item < 7; item++) await answer(page, item, 1);
  await page.click(".items button[type=submit]");
  assert.match(await page.textContent(".items .trouble"), /Still open: 8, 9/);
  assert.equal(await page.evaluate(() => document.activeElement.name), "item-7");
  await answer(page, 7, 2);
  await answer(page, 8, 2);
  await page.click(".items button[type=submit]");
  const result = await page.textContent(".result");
  assert.match(result, /11 of 27.*Moderate.*no diagnosis/s);
  assert.match(await page.textContent(".questionnaire"), /Kroenke.*Pfizer/s);
  await page.waitForSelector(".result + .care a[href='tel:999']");
  await page.click(".result button.main");
  await page.waitForSelector(".check-in:not([hidden])");
  await page.selectOption("#series", { label: "PHQ-9" });
  await page.waitForFunction(() => document.querySelectorAll(".chart .dot").length === 1);
  await page.waitForSelector(".chart svg[aria-label^='PHQ-9']");
  assert.match(await page.getAttribute(".chart svg", "aria-label"), /^PHQ-9: 1 records/);
  const kept = await page.evaluate(() => localStorage.getItem("eyas.scores"));
  assert.doesNotMatch(kept, /answers/);
});

onSizes("GAD-7 and WHO-5 are scored by their own rules; not keeping keeps nothing", async (site) => {
  const { page } = site;
  await site.view("check-in");
  await page.click("button[aria-label='Start GAD-7']");
  for (let item = 0; item < 7; item++) await answer(page, item, 2);
  await page.click(".items button[type=submit]");
  assert.match(await page.textContent(".result"), /14 of 21.*Moderate/s);
  await page.click(".result button:not(.main)");
  await page.click("button[aria-label='Start WHO-5']");
  for (let item = 0; item < 5; item++) await answer(page, item, 3);
  await page.click(".items button[type=submit]");
  assert.match(await page.textContent(".result"), /60 %.*Good/s);
  assert.equal(await page.evaluate(() => localStorage.getItem("eyas.scores")), null);
  assert.deepEqual(
    site.server.requests.filter((r) => r.body),
    [],
    "no answer leaves the browser",
  );
});

onSizes("a questionnaire under way goes on in the other language", async (site) => {
  const { page } = site;
  await site.view("check-in");
  await page.click("button[aria-label='Start GAD-7']");
  await answer(page, 0, 3);
  await site.side();
  await page.selectOption("#language", "zh-Hant");
  await page.waitForSelector("text=感覺緊張、焦慮或急躁");
  assert.ok(await page.isChecked("input[name=item-0][value='3']"));
});

onSizes("records are exported as JSON and CSV, and deleted together", async (site) => {
  const { page } = site;
  await site.view("check-in");
  await saveMood(page, 3, "=1+1");
  await page.waitForSelector(".chart svg");
  const saved = async (button) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click(`text=${button}`)]);
    return [download.suggestedFilename(), await readFile(await download.path(), "utf8")];
  };
  const [jsonName, json] = await saved("As JSON");
  assert.match(jsonName, /^eyas-records-\d{4}-\d\d-\d\d\.json$/);
  assert.equal(JSON.parse(json).mood[0].value, 3);
  const [csvName, csv] = await saved("As CSV");
  assert.match(csvName, /\.csv$/);
  assert.match(csv, /,mood,3,5,,'=1\+1\r\n$/);
  await page.click("text=Delete moods and scores");
  await page.click("dialog button.danger");
  await page.waitForSelector("text=Once you save a mood");
  assert.equal(await page.evaluate(() => localStorage.getItem("eyas.mood")), null);
});
