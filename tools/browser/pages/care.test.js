/** Help: the answer to a crisis, the button at the top, regions, and help while the server is away. */
import assert from "node:assert/strict";
import { onSizes, useBrowser } from "../harness.mjs";

useBrowser();

const numbers = (page, within) =>
  page.locator(`${within} .ways a`).evaluateAll((all) => all.map((a) => a.getAttribute("href")));

onSizes("a crisis is answered with helplines to press, steps, and a way to go on", async (site) => {
  const { page, server } = site;
  await site.ask("I want to end my life");
  const card = page.locator("#view-talk .care");
  assert.match(await card.textContent(), /really glad you told me.*call 999 now/s);
  assert.deepEqual(await numbers(page, "#view-talk .care"), [
    "tel:999",
    "tel:116123",
    "https://www.samaritans.org/",
    "sms:85258?body=SHOUT",
    "https://giveusashout.org/",
    "tel:08082000247",
    "https://www.nationaldomesticabusehelpline.org.uk/",
    "https://findahelpline.com/",
  ]);
  assert.equal(await card.locator("ol li").count(), 3);
  assert.equal(
    await page.locator("#view-talk .turn > .answer > .prose p").count(),
    0,
    "the card shows all of it, once",
  );
  await card.locator(".go-on").click();
  assert.ok(await page.locator("#view-talk textarea").evaluate((node) => node === document.activeElement));
  await site.ask("thank you");
  assert.equal(server.questions().length, 2, "the conversation goes on");
  await page.reload();
  await site.side();
  await page.click(".past .open");
  await page.waitForSelector("#view-talk .care .ways a");
});

onSizes("the first number to call is in sight, and stays there, whatever the window", async (site) => {
  const { page } = site;
  const phones = ["390x844", "375x667", "320x568", "390x450"];
  for (const size of site.size === "phone" ? phones : ["1280x800", "640x400"]) {
    const [width, height] = size.split("x").map(Number);
    await page.setViewportSize({ width, height });
    await site.ask(`I want to end my life ${width}`);
    const number = page.locator("#view-talk .care").last().locator("a[href='tel:999']");
    const [box, from, to] = [
      await number.boundingBox(),
      await page.evaluate(() => document.querySelector(".top").getBoundingClientRect().bottom),
      await page.evaluate(() => document.querySelector("#view-talk .composer").getBoundingClientRect().top),
    ];
    assert.ok(box.y >= from && box.y + box.height <= to, `${size}: ${box.y}, between ${from} and ${to}`);
    assert.ok(await page.locator("#view-talk .turn").last().locator(".by").isHidden(), "no model is named");
    assert.equal(await site.answer().locator("button:visible", { hasText: "Try again" }).count(), 0);
    await site.shot(`care-${size}`);
  }
});

onSizes("the region can be changed where help is shown, and is remembered", async (site) => {
  const { page, server } = site;
  await site.ask("I want to end my life");
  await page.selectOption("#view-talk .care select", "TW");
  await page.waitForSelector("#view-talk .care a[href='tel:1925']");
  await page.reload();
  await page.waitForSelector("html[data-ready]");
  await page.click("#help");
  await page.waitForSelector("dialog a[href='tel:1925']");
  assert.equal(await page.inputValue("dialog select"), "TW");
  await page.keyboard.press("Escape");
  await site.ask("hello");
  assert.equal(server.questions().at(-1).eyas.region, "TW");
});

onSizes(
  "help is there before anything is agreed to, in every view, and gives the focus back",
  async (site) => {
    const { page } = site;
    for (const view of ["talk", "compare", "check-in"]) {
      await site.view(view);
      await page.focus("#help");
      await page.keyboard.press("Enter");
      await page.waitForSelector("dialog a[href='tel:999']");
      assert.equal(await page.evaluate(() => document.activeElement?.tagName), "H2", "the heading has the focus");
      await page.keyboard.press("Escape");
      await page.waitForSelector("dialog", { state: "detached" });
      assert.equal(await page.evaluate(() => document.activeElement?.id), "help");
    }
  },
  { begun: false },
);

onSizes(
  "help opens while the server is away",
  async (site) => {
    const { page, server } = site;
    await page.waitForFunction(() => Object.keys(localStorage).some((key) => key.startsWith("eyas.help.lines")));
    await page.waitForLoadState("networkidle");
    await server.stop();
    await page.click("#help");
    await page.waitForSelector("dialog a[href='tel:999']");
    await page.evaluate(() =>
      Object.keys(localStorage)
        .filter((key) => key.startsWith("eyas.help.lines"))
        .forEach((key) => localStorage.removeItem(key)),
    );
    await page.keyboard.press("Escape");
    await page.click("#help");
    await page.waitForSelector("dialog .lines p");
    assert.match(await page.textContent("dialog .lines"), /112.*911.*999/s);
  },
  { errors: /ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET/ },
);

onSizes(
  "help names numbers even when its own parts cannot be loaded",
  async (site) => {
    const { page } = site;
    await page.route("**/help_dialog.js", (route) => route.abort());
    await page.reload();
    await page.waitForSelector("html[data-ready]");
    await page.click("#help");
    await page.waitForSelector("dialog");
    assert.match(await page.textContent("dialog"), /112.*911.*999/s);
  },
  { errors: /ERR_FAILED/ },
);

onSizes("without a region the emergency number is named by place", async (site) => {
  const { page } = site;
  await page.click("#help");
  await page.selectOption("dialog select", "");
  await page.waitForSelector("dialog .lines > p");
  assert.match(await page.textContent("dialog .care"), /112.*911.*999.*Find A Helpline/s);
  assert.equal(await page.locator("dialog .care ol li").count(), 4, "steps that always fit");
});
