/**
 * What the page keeps, in this browser only. Every key begins with `eyas.`, so that everything can be found, exported
 * and cleared. Where the browser keeps nothing (private windows, storage switched off) it lasts as long as the page.
 */
const PREFIX = "eyas.";

/** The browser has no room left. */
export class StorageFull extends Error {}

export class Store {
  /** @param {Storage | null} storage */
  constructor(storage) {
    /** Whether what is kept outlasts the page. */
    this.lasting = storage !== null && works(storage);
    this.storage = this.lasting ? /** @type {Storage} */ (storage) : memory();
  }

  /**
   * A value, or the fallback where there is none or none that can be read.
   * @template T @param {string} key @param {T} fallback @returns {T}
   */
  get(key, fallback) {
    const text = this.storage.getItem(PREFIX + key);
    if (text === null) return fallback;
    try {
      return JSON.parse(text);
    } catch {
      return fallback;
    }
  }

  /** @param {string} key @param {unknown} value */
  set(key, value) {
    try {
      this.storage.setItem(PREFIX + key, JSON.stringify(value));
    } catch (error) {
      throw new StorageFull("the browser's storage is full", { cause: error });
    }
  }

  /** @param {string} key */
  remove(key) {
    this.storage.removeItem(PREFIX + key);
  }

  /** The page's keys that begin so, without the common prefix. @param {string} [start] */
  keys(start = "") {
    const keys = [];
    for (let i = 0; i < this.storage.length; i++) {
      const key = this.storage.key(i);
      if (key?.startsWith(PREFIX + start)) keys.push(key.slice(PREFIX.length));
    }
    return keys.sort();
  }

  /** Everything of this page, gone. */
  clear() {
    for (const key of this.keys()) this.remove(key);
  }
}

/**
 * The browser's storage, or what it keeps for one tab; reading the property alone throws where it is switched off.
 * @param {"localStorage" | "sessionStorage"} [which]
 */
export function openStore(which = "localStorage") {
  try {
    return new Store(globalThis[which] ?? null);
  } catch {
    return new Store(null);
  }
}

function works(storage) {
  try {
    storage.setItem(`${PREFIX}probe`, "1");
    storage.removeItem(`${PREFIX}probe`);
    return true;
  } catch (error) {
    // A full storage still holds what was kept before.
    return storage.length > 0 && /quota/i.test(`${error}`);
  }
}

/** @returns {Storage} */
function memory() {
  const map = new Map();
  return {
    get length() {
      return map.size;
    },
    key: (i) => [...map.keys()][i] ?? null,
    getItem: (key) => map.get(key) ?? null,
    setItem: (key, value) => void map.set(key, String(value)),
    removeItem: (key) => void map.delete(key),
    clear: () => map.clear(),
  };
}

/** An identifier that needs no secure context. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return Array.from(bytes, (b) => b.toString(36).padStart(2, "0")).join("");
}
