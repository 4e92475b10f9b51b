/** The page as a whole: size, policy, languages, colours, settings, data, keyboard. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { Site, onSizes, useBrowser } from "../harness.mjs";
import { startFakeServer } from "../fake_server.mjs";

useBrowser();

/** The page's promise, in bytes as they are stored, not as they are compressed on the way. */
const FIRST_PAINT_BYTES = 100_000;

test("the first paint takes less than 100 kB", { timeout: 60_000 }, async (t) => {
  const fake = await startFakeServer();
  const site = await Site.open(fake, "phone");
  await site.page.waitForLoadState("networkidle");
  const sizes = await site.page.evaluate(() => {
    const own = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
    return own.map((e) => ({ path: new URL(e.name).pathname, start: e.startTime, bytes: e.decodedBodySize }));
  });
  const ready = await site.page.evaluate(() => performance.getEntriesByName("eyas:ready")[0].startTime);
  const files = sizes.filter((s) => !s.path.startsWith("/api/"));
  const first = files.filter((s) => s.start < ready).reduce((sum, s) => sum + s.bytes, 0);
  const all = files.reduce((sum, s) => sum + s.bytes, 0);
  t.diagnostic(
    `first paint: ${first} bytes in ${files.filter((s) => s.start < ready).length} files; with what follows: ${all}`,
  );
  assert.ok(first > 30_000, "the sizes are known");
  assert.ok(first < FIRST_PAINT_BYTES, `${first} bytes`);
  site.check();
  await site.context.close();
  await fake.stop();
});

onSizes(
  "the policy forbids what the page does not need",
  async (site) => {
    const { page } = site;
    const blocked = await page.evaluate(async () => {
      const seen = [];
      document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
      const script = document.createElement("script");
      script.append("window.hacked = 1");
      document.body.append(script);
      const styled = document.createElement("p");
      styled.setAttribute("style", "color: red");
      styled.id = "styled";
      const image = document.createElement("img");
      image.src = "https://evil.example/x.png";
      document.body.append(styled, image);
      // No text becomes markup or code, and nobody can make a policy that lets it.
      const refused = [
        () => (document.body.innerHTML = "<p>x</p>"),
        () => document.body.insertAdjacentHTML("beforeend", "<p>x</p>"),
        () => (document.createElement("iframe").srcdoc = "<p>x</p>"),
        () => new DOMParser().parseFromString("<p>x</p>", "text/html"),
        () => document.createRange().createContextualFragment("<p>x</p>"),
        () => document.write("<p>x</p>"),
        () => (document.createElement("script").textContent = "1"),
        () => (document.createElement("script").src = "/assets/js/main.js"),
        () => window.trustedTypes.createPolicy("own", { createHTML: (text) => text }),
      ].map((sink) => {
        try {
          sink();
          return "";
        } catch (error) {
          return error.name;
        }
      });
      await fetch("https://evil.example/").catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, 200));
      return { seen, refused, hacked: window.hacked, colour: getComputedStyle(styled).color };
    });
    assert.deepEqual(blocked.refused, Array(9).fill("TypeError"));
    assert.equal(blocked.hacked, undefined);
    assert.notEqual(blocked.colour, "rgb(255, 0, 0)");
    for (const directive of ["require-trusted-types-for", "style-src-attr", "img-src", "connect-src", "trusted-types"])
      assert.ok(blocked.seen.includes(directive), directive);
    site.complaints = [];
    site.requests = [];
  },
  { sizes: ["desktop"] },
);

onSizes("all words change with the language, which is remembered; the server is asked in it", async (site) => {
  const { page, server } = site;
  await site.ask("hello");
  await site.side();
  await page.selectOption("#language", "zh-Hant");
  await page.waitForFunction(() => document.documentElement.lang === "zh-Hant");
  await page.waitForFunction(() => document.querySelector("#help span").textContent === "立即求助");
  await page.waitForFunction(() => /不是真人/.test(document.querySelector(".reminder")?.textContent ?? ""));
  assert.equal(await page.getAttribute("#view-talk textarea", "placeholder"), "寫下你心裡想的事");
  const left = await page.evaluate(() => {
    const english = /\b(the|you|and|Try|Copy|Edit|Save)\b/;
    return [...document.querySelectorAll("[data-say]")].map((n) => n.textContent).filter((t) => english.test(t));
  });
  assert.deepEqual(left, []);
  await page.reload();
  await page.waitForSelector("html[data-ready]");
  assert.equal(await page.evaluate(() => document.documentElement.lang), "zh-Hant");
  await site.ask("你好");
  assert.equal(server.questions().at(-1).eyas.language, "zh-Hant");
});

onSizes(
  "a browser that prefers Chinese sees Chinese",
  async (site) => {
    assert.equal(await site.page.evaluate(() => document.documentElement.lang), "zh-Hant");
    assert.match(await site.page.textContent(".before"), /開始之前/);
  },
  { locale: "zh-TW", begun: false },
);

onSizes(
  "colours follow the system until chosen, and the choice holds from the first paint",
  async (site) => {
    const { page } = site;
    const light = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor === "rgb(243, 245, 241)");
    assert.ok(!(await light()), "dark as the system");
    await site.side();
    await page.selectOption("#theme", "light");
    assert.ok(await light());
    await page.goto("about:blank");
    await page.goto(site.server.url, { waitUntil: "commit" });
    await page.waitForSelector("body");
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "light");
    await page.waitForSelector("html[data-ready]");
    await site.side();
    await page.selectOption("#theme", "system");
    assert.ok(!(await light()));
    await page.emulateMedia({ colorScheme: "light" });
    assert.ok(await light(), "light with the system");
    await page.selectOption("#theme", "dark");
    await page.emulateMedia({ colorScheme: "dark" });
    await page.emulateMedia({ colorScheme: "light" });
    assert.ok(!(await light()), "what was chosen holds");
  },
  { colorScheme: "dark" },
);

onSizes("settings are used, remembered, and go back to the recipe's", async (site) => {
  const { page, server } = site;
  const open = async () => {
    await site.side();
    await page.click("#settings");
    await page.waitForSelector("dialog .settings");
  };
  const leave = async () => {
    await page.click("dialog button[type=submit]");
    await page.waitForSelector("dialog", { state: "detached" });
    if (site.size === "phone") await page.click(".side .close");
  };
  await open();
  assert.equal(await page.inputValue("#set-temperature"), "0.4");
  await page.selectOption("#set-model", "falcon-small");
  for (const [id, value] of Object.entries({
    temperature: 1.2,
    top_p: 0.9,
    repetition_penalty: 1.1,
    max_tokens: 512,
    remember: 6,
  })) {
    await page.locator(`#set-${id}`).fill(String(value));
  }
  await page.fill("#set-seed", "7");
  await page.fill("#set-system", "Be brief.");
  await page.uncheck("#set-tidy");
  await leave();
  await page.reload();
  await page.waitForSelector("html[data-ready]");
  await site.ask("hello");
  const body = server.questions().at(-1);
  assert.deepEqual(
    [
      body.model,
      body.temperature,
      body.top_p,
      body.repetition_penalty,
      body.max_tokens,
      body.seed,
      body.eyas.remember,
      body.eyas.tidy,
      body.messages[0],
    ],
    ["falcon-small", 1.2, 0.9, 1.1, 512, 7, 6, false, { role: "system", content: "Be brief." }],
  );
  await open();
  await page.click("text=Back to the usual values");
  await leave();
  await site.ask("again");
  const usual = server.questions().at(-1);
  assert.deepEqual(
    [usual.model, usual.temperature, usual.seed, usual.messages[0].role],
    ["mental-health", 0.4, undefined, "user"],
  );
});

onSizes("everything is exported, and one button clears it", async (site) => {
  const { page } = site;
  await site.ask("about <b>sleep</b>");
  await site.view("check-in");
  await page.click("label[for=mood-3]");
  await page.click(".mood button[type=submit]");
  await site.side();
  await page.click("#data");
  assert.match(await page.textContent("dialog"), /Conversations: 1\. Moods: 1\./);
  const saved = async (words) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click(`dialog >> text=${words}`)]);
    return readFile(await download.path(), "utf8");
  };
  const json = JSON.parse(await saved("Everything as JSON"));
  assert.equal(json.conversations[0].turns[0].question, "about <b>sleep</b>");
  assert.equal(json.mood.length, 1);
  assert.match(await saved("Conversations as Markdown"), /^> about <b>sleep<\/b>$/m);
  await page.click("#clear");
  await page.locator("dialog").last().getByText("Cancel").click();
  assert.ok(await page.evaluate(() => localStorage.length > 0), "cancelled");
  await page.click("#clear");
  await page.locator("dialog").last().locator("button.danger").click();
  await page.waitForSelector("#acknowledge");
  await page.waitForLoadState("networkidle");
  const left = await page.evaluate(() => Object.keys(localStorage).filter((key) => !key.startsWith("eyas.help.")));
  assert.deepEqual(left, []);
});

onSizes("what was exported is brought back after clearing", async (site) => {
  const { page } = site;
  await site.ask("about sleep");
  await site.side();
  await page.click("#data");
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.click("dialog >> text=Everything as JSON"),
  ]);
  const path = await download.path();
  await page.click("#clear");
  await page.locator("dialog").last().locator("button.danger").click();
  await page.click("#acknowledge");
  await site.side();
  await page.click("#data");
  await page.setInputFiles("#restore", { name: "x.json", mimeType: "application/json", buffer: Buffer.from("{}") });
  await page.waitForSelector("text=This file is not an export");
  await page.setInputFiles("#restore", path);
  await page.waitForSelector("text=Brought back: 1");
  await site.checkAccess();
  await page.keyboard.press("Escape");
  await page.click(".past .open");
  await page.waitForSelector(".turn .prose ol");
});

onSizes(
  "nothing is cut off in a narrow window",
  async (site) => {
    const { page } = site;
    await site.ask("I want to end my life");
    await page.setViewportSize({ width: 320, height: 640 });
    for (const view of ["talk", "compare", "check-in"]) {
      await site.view(view);
      await page.waitForSelector(`#view-${view} h1, #view-${view} .turn`);
      await site.checkAccess();
    }
  },
  { sizes: ["phone"] },
);

onSizes(
  "the keyboard reaches everything, in order, and the focus is seen",
  async (site) => {
    const { page } = site;
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "skip");
    const box = await page.locator("#skip").boundingBox();
    assert.ok(box.y >= 0, "the skip link is seen when it has the focus");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "acknowledge");
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline, "solid");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.tagName), "TEXTAREA");
    await page.keyboard.type("hello");
    await page.keyboard.press("Enter");
    await site.answered();
    await page.waitForFunction(() => /Sleep/.test(document.getElementById("polite").textContent));
  },
  { begun: false },
);

onSizes(
  "the drawer keeps the focus inside, and Escape gives it back",
  async (site) => {
    const { page } = site;
    await page.click("#menu");
    assert.ok(await page.evaluate(() => document.activeElement.matches(".side .close")));
    for (let i = 0; i < 12; i++) {
      await page.keyboard.press("Tab");
      assert.ok(
        await page.evaluate(() => document.activeElement === document.body || document.activeElement.closest(".side")),
        `after ${i + 1}`,
      );
    }
    await page.keyboard.press("Escape");
    assert.equal(await page.evaluate(() => document.activeElement.id), "menu");
    assert.ok(!(await page.locator("#side").isVisible()));
  },
  { sizes: ["phone"] },
);

onSizes("the browser's back goes through the views", async (site) => {
  const { page } = site;
  await site.view("compare");
  await site.view("check-in");
  await page.goBack();
  await page.waitForSelector("#view-compare:not([hidden])");
  assert.equal(await page.textContent(".views [aria-current]"), "Compare");
});

onSizes("text twice as large still fits", async (site) => {
  const { page } = site;
  await page.evaluate(() => document.documentElement.style.setProperty("font-size", "200%"));
  const welcome = (await page.evaluate(() => document.documentElement.scrollWidth)) - page.viewportSize().width;
  assert.ok(welcome <= 0, `the welcome is ${welcome} px too wide`);
  await site.ask("markdown");
  for (const view of ["talk", "compare", "check-in"]) {
    await site.view(view);
    await page.waitForSelector(`#view-${view} h1, #view-${view} .turn`);
    const wide = (await page.evaluate(() => document.documentElement.scrollWidth)) - page.viewportSize().width;
    assert.ok(wide <= 0, `${view} is ${wide} px too wide`);
  }
});
