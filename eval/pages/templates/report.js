"use strict";

// Lines are switched on and off by the buttons above their chart, in every panel of it.
function toggleLine(button) {
  showLine(button, button.getAttribute("aria-pressed") !== "true");
}

function toggleAll(button) {
  const shown = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(shown));
  for (const each of button.parentElement.querySelectorAll("[data-toggle]")) {
    showLine(each, shown);
  }
}

function showLine(button, shown) {
  button.setAttribute("aria-pressed", String(shown));
  const key = button.dataset.toggle;
  for (const line of button.closest("section").querySelectorAll("[data-line]")) {
    if (line.dataset.line === key) {
      line.classList.toggle("hidden-line", !shown);
    }
  }
}

// One index is shown in every cell of every grid, larger; an empty index shows all.
function chooseIndex(index) {
  for (const samples of document.querySelectorAll(".samples")) {
    for (const button of samples.querySelectorAll("[data-index]")) {
      button.setAttribute("aria-pressed", String(button.dataset.index === index));
    }
    samples.querySelector("table").classList.toggle("one", index !== "");
    for (const image of samples.querySelectorAll("[data-image]")) {
      image.classList.toggle("chosen", image.dataset.image === index);
    }
  }
}

function prepareSamples(samples) {
  samples.addEventListener("click", (event) => {
    const button = event.target.closest("[data-index]");
    const image = event.target.closest("[data-image]");
    if (button) {
      chooseIndex(button.dataset.index);
    } else if (image) {
      chooseIndex(image.classList.contains("chosen") ? "" : image.dataset.image);
    }
  });
}

// A closed part would be missing on paper. The numbers of charts stay closed: the tables have them.
const closedParts = new Set();

function openAllParts() {
  for (const part of document.querySelectorAll("details:not([open]):not(.numbers)")) {
    closedParts.add(part);
    part.open = true;
  }
}

function closePartsAgain() {
  for (const part of closedParts) {
    part.open = false;
  }
  closedParts.clear();
}

// A region that has nothing to scroll is no stop of the tab key; one with more to its right fades there.
function updateScrolling() {
  for (const region of document.querySelectorAll(".scroll")) {
    region.tabIndex = region.scrollWidth > region.clientWidth ? 0 : -1;
    showMore(region);
  }
}

function showMore(region) {
  const hidden = region.scrollWidth - region.clientWidth - region.scrollLeft;
  region.classList.toggle("more", hidden > 1);
}

document.querySelectorAll("[data-toggle]").forEach((button) => {
  button.addEventListener("click", () => toggleLine(button));
});
document.querySelectorAll("[data-toggle-all]").forEach((button) => {
  button.addEventListener("click", () => toggleAll(button));
});
document.querySelectorAll(".samples").forEach(prepareSamples);
document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", updateScrolling));
document.querySelectorAll(".scroll").forEach((region) => {
  region.addEventListener("scroll", () => showMore(region), { passive: true });
});
window.addEventListener("beforeprint", openAllParts);
window.addEventListener("afterprint", closePartsAgain);
window.addEventListener("resize", updateScrolling);
updateScrolling();
