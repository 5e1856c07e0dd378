"use strict";

// What the pages share: a button that copies a text.

function say(button, text) {
  button.words ??= button.textContent;
  button.textContent = text;
  clearTimeout(button.timer);
  button.timer = setTimeout(() => { button.textContent = button.words; }, 1500);
}

// A page from a file may have no clipboard: then its text is selected, and copied as people do it.
async function copy(button, text) {
  const area = button.nextElementSibling;
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    Object.assign(area, { value: text, hidden: false });
    area.select();
    copied = document.execCommand("copy");
    area.hidden = copied;
    if (copied) button.focus();
  }
  say(button, copied ? "Copied" : "Press Ctrl+C");
}
