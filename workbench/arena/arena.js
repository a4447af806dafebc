// 1 to 4 vote in the tab that is open, unless someone is typing.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, [contenteditable=true]")) return;
  const choice = { 1: "left", 2: "right", 3: "tie", 4: "both_bad" }[event.key];
  if (!choice) return;
  for (const tab of ["compare", "blind"]) {
    const button = document.getElementById(`${tab}-${choice}`);
    if (button && button.offsetParent !== null && !button.disabled) button.click();
  }
});
