/**
 * The column at the side: conversations, and what concerns the whole page. On a phone it slides in.
 */
import { confirm, missingPart } from "./dialogs.js";
import { titleOf } from "./conversations.js";
import { drawing, h, iconButton } from "./dom.js";
import { LANGUAGES, date, label, loadLanguage } from "./i18n.js";

/** Short enough for the column. @type {Intl.DateTimeFormatOptions} */
const WHEN = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
const THEMES = ["system", "light", "dark"];

export class Side {
  /**
   * @param {import("./app.js").App} app
   * @param {HTMLElement} root
   * @param {{open: (id: string | null) => void}} does
   */
  constructor(app, root, does) {
    this.app = app;
    this.root = root;
    this.does = does;
    this.past = h("ul.past", { tabindex: -1 });
    this.none = h("p.small.soft", { say: "side.none" });
    const choose = (id) => {
      this.close();
      does.open(id);
    };
    this.choose = choose;
    root.append(
      h("button.icon.close", { label: "menu.close", on: { click: () => this.close() } }, drawing("close")),
      iconButton("button", "plus", "side.new", { id: "new", on: { click: () => choose(null) } }),
      h("h2", { say: "side.past" }),
      this.none,
      this.past,
      h(
        "div.tools",
        {},
        iconButton("button.quiet", "settings", "settings", {
          id: "settings",
          on: { click: () => import("./settings_dialog.js").then((part) => part.openSettings(app), missingPart) },
        }),
        iconButton("button.quiet", "save", "data", {
          id: "data",
          on: { click: () => import("./data_dialog.js").then((part) => part.openData(app), missingPart) },
        }),
        h("label", {}, drawing("globe"), h("span.unseen", { say: "language" }), this.languageChoice()),
        h("label", {}, drawing("moon"), h("span.unseen", { say: "theme" }), this.themeChoice()),
      ),
    );
    document.addEventListener("eyas:conversations", (event) =>
      this.list(/** @type {CustomEvent} */ (event).detail.open),
    );
    // Another tab of this browser.
    addEventListener("storage", () => app.settle());
    document.addEventListener("eyas:stored", () => this.list(this.current));
    document.addEventListener("eyas:language", () => this.list(this.current));
    this.prepareDrawer();
  }

  /** @param {string} open the conversation that is shown */
  list(open) {
    this.current = open;
    const all = this.app.conversations.list();
    this.none.hidden = all.length > 0;
    this.past.replaceChildren(
      ...all.map((conversation) => {
        const title = titleOf(conversation);
        return h(
          "li",
          {},
          h(
            "button.open",
            {
              "aria-current": conversation.id === open ? "true" : undefined,
              on: { click: () => this.choose(conversation.id) },
            },
            h("span", {}, title),
            h("span.small.soft", {}, date(conversation.updated, WHEN)),
          ),
          h(
            "button.icon",
            { label: ["side.delete", { title }], on: { click: () => this.remove(conversation.id) } },
            drawing("trash"),
          ),
        );
      }),
    );
  }

  /** @param {string} id */
  async remove(id) {
    if (!(await confirm("side.delete_heading", "side.delete_text", "delete"))) return;
    this.app.conversations.remove(id);
    if (id === this.current) this.does.open(null);
    else this.list(/** @type {string} */ (this.current));
    this.past.focus();
  }

  languageChoice() {
    const select = h(
      "select",
      {
        id: "language",
        on: {
          change: async () => {
            this.app.keep(() => this.app.store.set("language", select.value));
            await loadLanguage(select.value);
          },
        },
      },
      // Each language is called by its own name.
      ...Object.entries(LANGUAGES).map(([tag, name]) => h("option", { value: tag, lang: tag }, name)),
    );
    select.value = document.documentElement.lang;
    return select;
  }

  themeChoice() {
    const select = h(
      "select",
      {
        id: "theme",
        on: {
          change: () => {
            this.app.keep(() => this.app.store.set("theme", select.value));
            setTheme(select.value);
          },
        },
      },
      ...THEMES.map((theme) => h("option", { value: theme, say: `theme.${theme}` })),
    );
    select.value = this.app.store.get("theme", "system");
    return select;
  }

  prepareDrawer() {
    this.button = /** @type {HTMLButtonElement} */ (document.getElementById("menu"));
    this.button.append(drawing("menu"));
    this.button.addEventListener("click", () => this.openDrawer());
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.veil && !document.querySelector("dialog[open]")) this.close();
    });
    // Where the window grows, the column is simply there.
    matchMedia("(min-width: 60rem)").addEventListener("change", () => this.close());
  }

  openDrawer() {
    this.veil = h("div.veil", { on: { click: () => this.close() } });
    document.body.append(this.veil);
    this.root.classList.add("open");
    this.button.setAttribute("aria-expanded", "true");
    label(this.button, "aria-label", "menu.close");
    for (const part of this.behind()) part.inert = true;
    /** @type {HTMLElement} */ (this.root.querySelector(".close")).focus();
  }

  close() {
    if (!this.veil) return;
    this.veil.remove();
    this.veil = null;
    this.root.classList.remove("open");
    this.button.setAttribute("aria-expanded", "false");
    label(this.button, "aria-label", "menu.open");
    for (const part of this.behind()) part.inert = false;
    this.button.focus();
  }

  /** What a drawer covers. @returns {any[]} */
  behind() {
    return Array.from(document.querySelectorAll("main, .top, .skip"));
  }
}

/** @param {string} theme */
function setTheme(theme) {
  const root = document.documentElement;
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
}
