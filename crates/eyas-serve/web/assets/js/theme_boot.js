// Before the first paint, so that a dark page is never light for a moment.
{
  let theme;
  try {
    theme = JSON.parse(localStorage.getItem("eyas.theme"));
  } catch {
    // Without storage the system's choice holds.
  }
  const isDark = theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
}
