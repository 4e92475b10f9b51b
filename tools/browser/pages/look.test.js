/**
 * Pictures of every part of the page, in light and dark and in both languages, and what axe says of each.
 */
import { onSizes, useBrowser } from "../harness.mjs";

useBrowser();

const LOOKS = [
  { locale: "en-GB", colorScheme: "light" },
  { locale: "zh-TW", colorScheme: "dark" },
  { locale: "en-GB", colorScheme: "dark" },
  { locale: "zh-TW", colorScheme: "light" },
];

for (const look of LOOKS) {
  const zh = look.locale === "zh-TW";
  const name = (part) => `${part}-${zh ? "zh" : "en"}-${look.colorScheme}`;

  onSizes(
    `welcome, conversation and care look right: ${name("")}`,
    async (site) => {
      const { page } = site;
      await site.checkAccess();
      await site.shot(name("1-welcome"), { fullPage: true });
      await page.click("#acknowledge");
      await site.checkAccess();
      await site.shot(name("2-examples"));
      await site.ask(zh ? "要怎麼照顧心理健康?" : "How to take care of mental health?");
      await site.ask("markdown");
      await site.checkAccess();
      await site.shot(name("3-conversation"));
      await site.ask(zh ? "我想結束生命" : "I want to end my life");
      await site.checkAccess();
      await site.shot(name("4-care"), { fullPage: true });
      await page.click("#help");
      await page.waitForSelector("dialog .lines li");
      await site.checkAccess();
      await site.shot(name("5-help"));
      await page.keyboard.press("Escape");
      await site.side();
      await site.checkAccess();
      await site.shot(name("6-side"));
      await page.click("#settings");
      await page.waitForSelector("dialog .settings");
      await site.checkAccess();
      await site.shot(name("7-settings"));
      await page.keyboard.press("Escape");
      await page.click("#data");
      await page.waitForSelector("dialog .restore");
      await site.checkAccess();
      await site.shot(name("7-data"));
      await page.click("#clear");
      await site.shot(name("7-clear"));
    },
    { ...look, begun: false },
  );

  onSizes(
    `waiting, trouble and editing look right: ${name("")}`,
    async (site) => {
      const { page } = site;
      await site.ask("busy", false);
      await page.waitForSelector(".trouble button");
      await site.ask("silent", false);
      await page.waitForSelector(".waiting");
      await site.checkAccess();
      await site.shot(name("12-waiting"));
      await page.click("#view-talk [data-say-aria-label='composer.stop']");
      await page.locator(".question button").last().click();
      await site.checkAccess();
      await site.shot(name("13-editing"));
    },
    { ...look, errors: /Failed to load resource/ },
  );

  onSizes(
    `comparison and check-in look right: ${name("")}`,
    async (site) => {
      const { page } = site;
      await site.view("compare");
      await page.check("#blind");
      await site.ask(zh ? "要怎麼照顧心理健康?" : "How to take care of mental health?");
      await page.click(".vote button >> nth=0");
      await site.ask("markdown");
      await page.waitForSelector(".vote button");
      await site.checkAccess();
      await site.shot(name("8-compare"), { fullPage: true });
      await site.view("check-in");
      await page.click("label[for=mood-4]");
      await page.click(".mood button[type=submit]");
      await page.click("label[for=mood-2]");
      await page.click(".mood button[type=submit]");
      await page.waitForSelector(".chart svg");
      await page.click("summary");
      await site.checkAccess();
      await site.shot(name("9-check-in"), { fullPage: true });
      await page.click(".cards button >> nth=0");
      for (let item = 0; item < 9; item++) await page.check(`input[name=item-${item}][value="1"]`);
      await page.waitForSelector(".item .care .lines li");
      await site.checkAccess();
      await site.shot(name("10-questionnaire"), { fullPage: true });
      await page.click(".items button[type=submit]");
      await page.waitForSelector(".result");
      await site.checkAccess();
      await site.shot(name("11-result"), { fullPage: true });
    },
    look,
  );
}
