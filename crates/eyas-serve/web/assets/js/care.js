/**
 * Helplines and their regions: from the server's table, kept for the time when the server cannot be reached.
 *
 * @typedef {{name: string, kind: string, phone: string | null, sms: string | null, url: string | null, hours: string,
 *   languages: string[], source: string, checked: string}} Helpline
 * @typedef {{helplines: Helpline[], grounding: string[]}} Help
 */
import { getJson } from "./api.js";
import { currentLanguage } from "./i18n.js";

export class Care {
  /** @param {import("./store.js").Store} store */
  constructor(store) {
    this.store = store;
    /** @type {string | null} */
    this.fallbackRegion = null;
  }

  /** The region chosen, or the operator's, or the one that the browser's languages name; "" for none. */
  get region() {
    return (
      this.store.get("region", null) ?? this.fallbackRegion ?? regionOf(navigator.languages ?? [navigator.language])
    );
  }

  set region(code) {
    this.store.set("region", code);
  }

  /** @returns {Promise<{code: string, name: string}[]>} */
  async regions() {
    const language = currentLanguage();
    const found = await this.kept(`help.regions.${language}`, () => getJson("/api/care/regions", { language }));
    return found.regions;
  }

  /** @param {string} [region] @returns {Promise<Help>} */
  async help(region = this.region) {
    const query = { language: currentLanguage(), ...(region ? { region } : {}) };
    const found = await this.kept(`help.lines.${currentLanguage()}.${region}`, () =>
      getJson("/api/care/helplines", query),
    );
    return asHelp(found);
  }

  /** Fresh where it can be had, else what was kept. @template T @param {string} key @param {() => Promise<T>} load */
  async kept(key, load) {
    try {
      const fresh = await load();
      try {
        this.store.set(key, fresh);
      } catch {
        // No room: it is shown now and asked for again next time.
      }
      return fresh;
    } catch (error) {
      const old = this.store.get(key, null);
      if (old === null) throw error;
      return old;
    }
  }
}

/**
 * What is shown, of an answer in a crisis or of a region's table, which has no steps of its own.
 * @param {any} found
 * @returns {Help}
 */
export function asHelp({ helplines = [], grounding = [] }) {
  return { helplines, grounding };
}

/** The region in the first language tag that has one. @param {readonly string[]} tags */
export function regionOf(tags) {
  for (const tag of tags) {
    try {
      const region = new Intl.Locale(tag).region;
      if (region && /^[A-Z]{2}$/.test(region)) return region;
    } catch {
      // Not a language tag.
    }
  }
  return "";
}

/**
 * The address that calls a number, from the way it is printed; null where it is not one number. Of a number in letters,
 * the digits in brackets behind it are taken; an extension is dialled after a pause.
 * @param {string} phone
 */
export function telUrl(phone) {
  const [number, extension] = phone.split(/ ext\. (?=\d{1,6}$)/);
  const printed = /^[\dA-Z\s-]*[A-Z][\dA-Z\s-]*\(([\d\s-]+)\)$/.exec(number)?.[1] ?? number;
  const digits = printed.replace(/\(0\)/g, "").replace(/[\s().\-\u2010-\u2013]/g, "");
  return /^(\+?\d{2,15}|\*\d{2,6})$/.test(digits) ? `tel:${digits}${extension ? `,${extension}` : ""}` : null;
}

/**
 * The address that writes a message: the number, and the text to send if the table names one, as in "Text HOME to
 * 741741". Null where no single number is named.
 * @param {string} sms
 */
export function smsUrl(sms) {
  const numbers = sms.match(/\+?\d[\d\s-]{1,17}\d/g) ?? [];
  if (numbers.length !== 1) return null;
  const number = numbers[0].replace(/[\s-]/g, "");
  const word = /(?:^|[\s\u300c“"'])([A-Z]{3,12})(?=$|[\s\u300d”"'])/.exec(sms.replace(numbers[0], " "))?.[1];
  return `sms:${number}${word ? `?body=${word}` : ""}`;
}
