// Before the first paint, so that a page that was chosen dark is never light for a moment.
{
  let theme;
  try {
    theme = JSON.parse(localStorage.getItem("eyas.theme"));
  } catch {
    // Without storage the system's choice holds.
  }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
}
