// Before the first paint, so that a page chosen to be dark is never light for a moment.
try {
  const theme = JSON.parse(localStorage.getItem("eyas.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the system's choice holds.
}
