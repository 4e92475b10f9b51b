/**
 * Style that only some views need.
 */
/** @type {Map<string, Promise<void>>} */
const loading = new Map();

/** Resolves when the style is there, so that nothing is seen without it. @param {string} name */
export function loadCss(name) {
  const known = loading.get(name);
  if (known) return known;
  const promise = new Promise((resolve, reject) => {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = `/assets/css/${name}.css`;
    link.onload = () => resolve();
    link.onerror = () => {
      link.remove();
      loading.delete(name);
      reject(new Error(`${link.href} did not load`));
    };
    document.head.append(link);
  });
  loading.set(name, promise);
  return promise;
}
