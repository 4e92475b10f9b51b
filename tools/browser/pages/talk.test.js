/** The conversation: asking, streaming, stopping, trying again, changing, copying, and the memory that is sent. */
import assert from "node:assert/strict";
import { onSizes, useBrowser } from "../harness.mjs";

useBrowser();

onSizes(
  "nothing can be asked before the acknowledgement, which is remembered",
  async (site) => {
    const { page } = site;
    assert.equal(await page.title(), "Mental Health Conversational AI");
    const box = page.locator("#view-talk textarea");
    assert.ok(await box.isDisabled());
    for (const words of ["A computer program", "Not a therapist", "Get help now", "not stored"]) {
      assert.match(await page.textContent(".before"), new RegExp(words));
    }
    await page.click("#acknowledge");
    assert.ok(await box.isEnabled());
    assert.ok(await box.evaluate((node) => node === document.activeElement), "the text box has the focus");
    await page.reload();
    await page.waitForSelector("html[data-ready]");
    assert.equal(await page.locator("#acknowledge").count(), 0);
    assert.ok(await box.isEnabled());
  },
  { begun: false },
);

onSizes("an example is asked with a press, and the answer is markdown", async (site) => {
  const { page } = site;
  await page.click(".examples button >> nth=0");
  await site.answered();
  assert.equal(site.server.questions()[0].messages.at(-1).content, "How can I prevent anxiety and depression?");
  assert.equal(await site.answer().locator("ol li").count(), 3);
  assert.equal(await site.answer().locator("strong").first().textContent(), "Sleep");
  assert.match(await page.textContent(".reminder"), /a program, not a person/);
});

onSizes("Enter sends, Shift and Enter begin a line, and Enter of an input method does neither", async (site) => {
  const { page } = site;
  const box = page.locator("#view-talk textarea");
  await box.pressSequentially("one");
  await box.press("Shift+Enter");
  await box.pressSequentially("two");
  assert.equal(await box.inputValue(), "one\ntwo");
  const composing = (init) =>
    box.evaluate(
      (node, init) =>
        node.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...init })),
      init,
    );
  assert.ok(await composing({ isComposing: true }), "the key is left to the input method");
  assert.ok(await composing({ keyCode: 229 }));
  assert.equal(site.server.questions().length, 0);
  await box.press("Enter");
  await site.answered();
  assert.equal(site.server.questions()[0].messages.at(-1).content, "one\ntwo");
  assert.equal(await box.inputValue(), "");
});

onSizes("a composition by a real input method is not sent by the Enter that ends it", async (site) => {
  const { page, context } = site;
  const box = page.locator("#view-talk textarea");
  await box.focus();
  const devtools = await context.newCDPSession(page);
  await devtools.send("Input.imeSetComposition", { text: "ㄋㄧˇ", selectionStart: 3, selectionEnd: 3 });
  await devtools.send("Input.dispatchKeyEvent", { type: "rawKeyDown", key: "Process", windowsVirtualKeyCode: 229 });
  await devtools.send("Input.insertText", { text: "你好" });
  assert.equal(site.server.questions().length, 0);
  assert.equal(await box.inputValue(), "你好");
  await page.waitForTimeout(100);
  await box.press("Enter");
  await site.answered();
  assert.equal(site.server.questions()[0].messages.at(-1).content, "你好");
});

onSizes("an answer streams, can be stopped, and asked for again", async (site) => {
  const { page, server } = site;
  await site.ask("slow", false);
  await page.waitForFunction(() => /word3/.test(document.querySelector(".prose")?.textContent ?? ""));
  const early = await site.answer().locator(".prose").textContent();
  assert.doesNotMatch(early, /word60/);
  await page.click("#view-talk [data-say-aria-label='composer.stop']");
  await site.answered();
  assert.match(await site.answer().textContent(), /You stopped this answer/);
  const kept = await site.answer().locator(".prose").textContent();
  await page.waitForTimeout(300);
  assert.equal(await site.answer().locator(".prose").textContent(), kept, "nothing comes after the stop");
  assert.ok(server.requests.find((r) => r.body).aborted, "the server was told");
  await site.answer().locator("button", { hasText: "Try again" }).click();
  await page.waitForSelector("[data-say-aria-label='composer.stop']");
  await page.waitForFunction(() => /word60/.test(document.querySelector(".prose")?.textContent ?? ""));
  await site.answered();
  assert.equal(server.questions().length, 2);
  assert.equal(await page.locator(".turn").count(), 1);
});

onSizes("a second try that is stopped before its first word leaves the answer that was there", async (site) => {
  const { page } = site;
  await site.ask("once");
  const before = await site.answer().locator(".prose").textContent();
  await site.answer().locator("button", { hasText: "Try again" }).click();
  const stop = page.locator("#view-talk [data-say-aria-label='composer.stop']");
  await stop.waitFor();
  assert.ok(await stop.evaluate((node) => node === document.activeElement), "the keyboard can stop it");
  await page.keyboard.press("Enter");
  await site.answered();
  assert.equal(await site.answer().locator(".prose").textContent(), before);
});

onSizes("while an answer grows, what is there already stays, so that it can be selected", async (site) => {
  const { page } = site;
  await page.evaluate(() => {
    window.replaced = 0;
    new MutationObserver((changes) => {
      const first = document.querySelector(".prose p");
      for (const change of changes) if ([...change.removedNodes].includes(window.first)) window.replaced++;
      if (document.querySelectorAll(".prose > *").length > 1) window.first ??= first;
    }).observe(document.body, { childList: true, subtree: true });
  });
  await site.ask("How to take care of mental health?");
  assert.ok(await page.evaluate(() => window.first?.isConnected), "the first paragraph was never drawn again");
  assert.equal(await page.evaluate(() => window.replaced), 0);
});

onSizes("a reader who went up is not pulled down by a growing answer", async (site) => {
  const { page } = site;
  for (const question of ["markdown", "markdown again"]) await site.ask(question);
  await site.ask("slow", false);
  await page.waitForFunction(() => /word3/.test([...document.querySelectorAll(".prose")].at(-1).textContent));
  await page.evaluate(() => scrollTo(0, 100));
  await page.waitForFunction(() => /word20/.test([...document.querySelectorAll(".prose")].at(-1).textContent));
  assert.ok((await page.evaluate(() => scrollY)) < 200);
  await page.click(".jump");
  await site.answered();
  const below = await page.evaluate(() => document.documentElement.scrollHeight - innerHeight - scrollY);
  assert.ok(below < 5, `${below} px below`);
});

onSizes("a long answer is read from its start, and who goes to its end is taken along", async (site) => {
  const { page } = site;
  await site.ask("first");
  await site.ask("slow long", false);
  const place = () =>
    page.evaluate(() => {
      const question = [...document.querySelectorAll(".question")].at(-1);
      const bar = document.querySelector(".top").getBoundingClientRect().bottom;
      const below = document.documentElement.scrollHeight - innerHeight - scrollY;
      return { top: question.getBoundingClientRect().top - bar, below };
    });
  await page.locator(".jump").waitFor();
  assert.ok(Math.abs((await place()).top - 16) < 3, "its question is at the top");
  await page.click(".jump");
  const lines = await site.answer().locator("p").count();
  await site.answer()
    .locator("p")
    .nth(lines + 2)
    .waitFor();
  assert.ok((await place()).below < 60, "its end is in sight");
  await page.click("#view-talk [data-say-aria-label='composer.stop']");
});

onSizes("an answer that was under way when the page was loaded anew is there as far as it came", async (site) => {
  const { page, server } = site;
  await site.ask("slow", false);
  await page.waitForFunction(() => /word3/.test(document.querySelector(".prose")?.textContent ?? ""));
  await page.fill("#view-talk textarea", "not sent yet");
  await page.reload();
  await page.waitForFunction(() => /word3.*broke off/s.test(document.querySelector(".answer")?.textContent ?? ""));
  assert.equal(await page.inputValue("#view-talk textarea"), "not sent yet");
  await site.answer().locator("button", { hasText: "Try again" }).click();
  await page.waitForFunction(() => /word60/.test(document.querySelector(".prose")?.textContent ?? ""));
  await site.answered();
  assert.equal(server.questions().length, 2);
  await site.ask("silent", false);
  await page.waitForSelector(".waiting");
  await page.reload();
  await page.waitForFunction(() => /broke off/.test([...document.querySelectorAll(".answer")][1]?.textContent ?? ""));
  assert.ok(await site.answer().locator("button", { hasText: "Try again" }).isVisible(), "nothing had come of it");
});

onSizes("changing a question cuts what followed, and that can be undone", async (site) => {
  const { page, server } = site;
  await site.ask("first");
  await site.ask("second");
  await page.locator(".question button", { hasText: "Edit" }).first().click();
  const editor = page.locator(".question textarea");
  assert.equal(await editor.inputValue(), "first");
  assert.ok(await editor.evaluate((node) => node === document.activeElement));
  await editor.press("Escape");
  assert.equal(await page.locator(".turn").count(), 2, "Escape changes nothing");
  await page.locator(".question button", { hasText: "Edit" }).first().click();
  await editor.fill("first, changed");
  await page.click(".question button[type=submit]");
  await site.answered();
  assert.equal(await page.locator(".turn").count(), 1);
  assert.deepEqual(
    server
      .questions()
      .at(-1)
      .messages.map((m) => m.content),
    ["first, changed"],
  );
  await page.click(".toast button");
  await page.waitForFunction(() => document.querySelectorAll(".turn").length === 2);
  assert.match(await page.textContent(".turn .words"), /^first$/);
});

onSizes("copying gives the answer as it was written", async (site) => {
  await site.ask("markdown");
  await site.answer().locator("button", { hasText: "Copy" }).click();
  await site.page.waitForSelector(".toast");
  assert.match(await site.page.evaluate(() => navigator.clipboard.readText()), /^### A small plan\n/);
});

onSizes("what came before is sent along with the recipe's settings", async (site) => {
  await site.ask("first");
  await site.ask("second");
  const body = site.server.questions()[1];
  assert.equal(body.messages[0].content, "first");
  assert.equal(body.messages[1].role, "assistant");
  assert.equal(body.messages[2].content, "second");
  const { model, temperature, top_p, repetition_penalty, max_tokens, stream, eyas } = body;
  assert.deepEqual(
    { model, temperature, top_p, repetition_penalty, max_tokens, stream, eyas },
    {
      model: "mental-health",
      temperature: 0.4,
      top_p: 0.6,
      repetition_penalty: 1.3,
      max_tokens: 256,
      stream: true,
      eyas: { language: "en", tidy: true, remember: 2, region: "GB" },
    },
  );
});

onSizes("conversations are kept, opened again and deleted", async (site) => {
  const { page } = site;
  await site.ask("about sleep");
  await site.side();
  await page.click("#new");
  await site.ask("about work");
  await page.reload();
  await page.waitForSelector("html[data-ready]");
  assert.equal(await page.locator(".past li").count(), 2);
  await site.side();
  await page.locator(".past .open", { hasText: "about sleep" }).click();
  await page.waitForSelector(".turn");
  assert.equal(await page.textContent(".words"), "about sleep");
  await site.side();
  await page.locator(".past li", { hasText: "about sleep" }).locator("button.icon").click();
  await page.click("dialog button.danger");
  await page.waitForFunction(() => document.querySelectorAll(".past li").length === 1);
  assert.equal(await page.locator(".turn").count(), 0, "the deleted one is not shown any more");
});

onSizes("leaving a conversation keeps what had come of its answer", async (site) => {
  const { page } = site;
  await site.ask("slow", false);
  await page.waitForFunction(() => /word3/.test(document.querySelector(".prose")?.textContent ?? ""));
  await site.side();
  await page.click("#new");
  await site.ask("another");
  await site.side();
  await page.locator(".past .open", { hasText: "slow" }).click();
  await page.waitForSelector(".turn .prose");
  assert.match(await site.answer().textContent(), /word3.*You stopped/s);
});

onSizes("a long session brings a reminder", async (site) => {
  for (const question of ["one", "two"]) await site.ask(question);
  assert.equal(await site.page.locator(".reminder", { hasText: "here for a while" }).count(), 0);
  await site.ask("three");
  assert.equal(await site.page.locator(".reminder", { hasText: "here for a while" }).count(), 1);
});

onSizes("ends of an answer are explained", async (site) => {
  await site.ask("cut");
  assert.match(await site.answer().textContent(), /reached the length/);
  await site.ask("checked");
  assert.match(await site.answer().textContent(), /safety check replaced a part/);
  await site.ask("are you human");
  assert.match(await site.answer().textContent(), /I am a program/);
});

onSizes("what is wider than the window is broken or scrolls by itself", async (site) => {
  const { page } = site;
  await site.ask(`wide ${"W".repeat(300)} https://example.org/${"q".repeat(200)}`);
  await site.checkAccess();
  const code = page.locator("#view-talk .prose pre");
  assert.ok(await code.evaluate((pre) => pre.scrollWidth > pre.clientWidth), "code keeps its lines");
  await page.locator("#view-talk .question button").click();
  await site.checkAccess();
  await page.keyboard.press("Escape");
  await site.shot("wide");
  await site.view("compare");
  await site.ask(`wide ${"W".repeat(300)}`);
  await site.checkAccess();
  await site.shot("wide-compared");
});

onSizes("a table is a table while it is written, and scrolls sideways where it is wide", async (site) => {
  const { page } = site;
  await page.evaluate(() => {
    window.bars = [];
    new MutationObserver(() => {
      for (const p of document.querySelectorAll(".prose p, .prose th")) {
        if (p.textContent.includes("|")) window.bars.push(p.textContent);
      }
    }).observe(document.body, { childList: true, subtree: true });
  });
  await site.ask("slow table", false);
  const box = site.answer().locator(".table");
  await box.locator("td").nth(4).waitFor();
  // In one step: between two the growing table may have been drawn again.
  await page.evaluate(() => {
    const box = document.querySelector(".prose .table");
    box.scrollLeft = 40;
    box.focus();
  });
  await site.answered();
  assert.deepEqual(await page.evaluate(() => window.bars), [], "its signs are never seen");
  assert.ok(await box.evaluate((node) => node === document.activeElement), "the keyboard stays where it was");
  const [over, aside] = await box.evaluate((node) => [node.scrollWidth - node.clientWidth, node.scrollLeft]);
  if (site.size === "phone") assert.ok(over > 50 && aside === 40, `${over} px wider, ${aside} px aside`);
  assert.deepEqual(await box.locator("th[scope=col]").allTextContents(), [
    "When",
    "What to do",
    "Why it helps",
    "How long",
  ]);
  assert.match(await box.locator("tr").nth(3).textContent(), /is practised \| learned <img src=x/);
  assert.equal(await box.locator("td").nth(3).evaluate((node) => getComputedStyle(node).textAlign), "end");
  assert.equal(await box.locator("img").count(), 0);
  await site.checkAccess();
  await site.shot("table");
});

onSizes("Arabic runs from the right, and English beside it from the left", async (site) => {
  const { page } = site;
  await site.ask("مرحبا، أشعر بالحزن اليوم");
  const directions = await page
    .locator("#view-talk .prose > *")
    .evaluateAll((all) => all.map((node) => `${node.localName} ${getComputedStyle(node).direction}`));
  assert.deepEqual(directions, ["p rtl", "ul rtl", "blockquote rtl", "p ltr"]);
  await site.checkAccess();
  await site.shot("from-the-right");
});

onSizes("a question that is changed is not covered by the way to the newest", async (site) => {
  const { page } = site;
  for (const question of ["markdown", "markdown", "markdown"]) await site.ask(question);
  await page.locator("#view-talk .question button").first().click();
  await page.waitForSelector("#view-talk .question form");
  assert.ok(await page.locator("#view-talk .jump").isHidden());
  await page.locator("#view-talk .question form button", { hasText: "Cancel" }).click();
  await page.locator("#view-talk .jump").waitFor();
});

onSizes("hostile output stays text and reaches nothing", async (site) => {
  const { page } = site;
  await site.ask("hostile <img src=x onerror='window.hacked=9'>");
  await site.side();
  await page.waitForTimeout(200);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  const answer = page.locator(".prose").first();
  assert.equal(await answer.locator("script, img, svg, iframe, style, form, input, meta").count(), 0);
  assert.equal(await page.locator(".words img, .past img").count(), 0);
  assert.match(await answer.textContent(), /<script>window\.hacked = 1<\/script>/);
  const links = await answer.locator("a").evaluateAll((all) => all.map((a) => [a.protocol, a.rel, a.target]));
  for (const link of links) assert.deepEqual(link, ["https:", "noopener noreferrer", "_blank"]);
});

onSizes(
  "with storing switched on, its text is shown, and agreeing is a choice of its own",
  async (site) => {
    const { page, server } = site;
    assert.match(await page.textContent(".consent"), /kept for 30 days/);
    await page.click("#acknowledge");
    await site.ask("first");
    assert.equal(server.questions()[0].eyas.consent, undefined, "not agreed, not sent");
    await page.evaluate(() => localStorage.clear());
    await page.reload();
    await page.waitForSelector("#acknowledge");
    await page.check(".before input[type=checkbox]");
    await page.click("#acknowledge");
    await site.ask("second");
    assert.equal(server.questions()[1].eyas.consent, "v1");
  },
  {
    begun: false,
    server: {
      page: (p) => ({
        ...p,
        storage: { enabled: true, consent_text: "Conversations are kept for 30 days.", consent_id: "v1" },
      }),
    },
  },
);
