/**
 * Starts the page: language, what the server says of itself, then the view that the address names.
 */
import { App } from "./app.js";
import { ApiError } from "./api.js";
import { openDialog } from "./dialogs.js";
import { drawing, h } from "./dom.js";
import { chooseLanguage, loadLanguage } from "./i18n.js";
import { Side } from "./side.js";
import { Talk } from "./talk.js";

const VIEWS = ["talk", "compare", "check-in"];
const app = new App();

/** @type {Talk} */
let talk;
/** Views besides the conversation are loaded when they are first seen. @type {Record<string, Promise<unknown>>} */
const loaded = {};

/** @param {string} name */
const section = (name) => /** @type {HTMLElement} */ (document.getElementById(`view-${name}`));

async function start() {
  await loadLanguage(chooseLanguage(app.store.get("language", null), navigator.languages ?? [navigator.language]));
  const help = /** @type {HTMLElement} */ (document.getElementById("help"));
  if (!help.childElementCount) {
    help.append(drawing("phone"), h("span", { say: "help" }));
    help.addEventListener("click", showHelp);
  }
  const main = /** @type {HTMLElement} */ (document.getElementById("main"));
  try {
    await app.load();
  } catch (error) {
    await showTrouble(main, error, start);
    return;
  }
  document.title = app.page.title;
  /** @type {HTMLElement} */ (document.getElementById("brand")).textContent = app.page.title;
  talk = new Talk(app, section("talk"));
  const side = new Side(app, /** @type {HTMLElement} */ (document.getElementById("side")), {
    open: (id) => {
      location.hash = "talk";
      talk.open(id);
      // A phone's keyboard would cover a conversation that is to be read.
      if (app.acknowledged && !id) talk.composer.focus();
    },
  });
  side.list(talk.conversation.id);
  addEventListener("hashchange", () => route(true));
  document.getElementById("skip")?.addEventListener("click", skip);
  if (!app.store.lasting) main.prepend(h("p.notice", { say: "storage.none" }));
  await route(false);
  document.documentElement.dataset.ready = "";
  performance.mark("eyas:ready");
  whenIdle(prepare);
}

/** Even where the dialog's own parts cannot be loaded any more, the words that name a number are there. */
async function showHelp() {
  try {
    (await import("./help_dialog.js")).openHelp(app);
  } catch {
    openDialog("help.heading", [h("p", { say: "help.text" }), h("p", { say: "care.emergency" })]);
  }
}

/** Once the page stands: what the first question needs, and help, which must be there even when the server is not. */
function prepare() {
  for (const part of [talk.load(), import("./help_dialog.js"), app.care.regions(), app.care.help()]) {
    // It is asked for again when it is needed, and trouble is shown then.
    part.catch(() => {});
  }
}

/** @param {() => void} work */
function whenIdle(work) {
  if (globalThis.requestIdleCallback) requestIdleCallback(work, { timeout: 1000 });
  else setTimeout(work, 200);
}

/** @param {HTMLElement} place @param {unknown} error @param {() => void} again */
async function showTrouble(place, error, again) {
  const { troubleBox } = await import("./trouble.js");
  const known = error instanceof ApiError ? error : new ApiError("gone", `${error}`);
  const box = troubleBox(known, () => {
    box.remove();
    again();
  });
  place.append(box);
}

/** The link's own jump would change the address that names the view. @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

/** Shows the view that the address names. @param {boolean} moved whether the person came from another view */
async function route(moved) {
  const wanted = location.hash.slice(1);
  const name = VIEWS.includes(wanted) ? wanted : "talk";
  for (const view of VIEWS) section(view).hidden = view !== name;
  for (const link of document.querySelectorAll(".views a")) {
    if (link.getAttribute("href") === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const held = document.activeElement;
  if (name !== "talk") await lazily(name);
  if (!moved) return;
  if (name === "talk" && talk.conversation.turns.length) talk.thread?.toLast();
  else scrollTo({ top: 0, behavior: "instant" });
  // Who has gone on meanwhile, to help for instance, is not fetched back.
  if (document.activeElement === held) document.getElementById("main")?.focus({ preventScroll: true });
}

/** @param {string} name */
function lazily(name) {
  loaded[name] ??= load(name).catch((error) => showTrouble(section(name), error, () => location.reload()));
  return loaded[name];
}

/** @param {string} name */
async function load(name) {
  if (name === "compare") new (await import("./compare.js")).Compare(app, section(name));
  else new (await import("./check_in.js")).CheckIn(app, section(name));
}

start();
