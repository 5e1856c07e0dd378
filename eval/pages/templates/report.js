"use strict";

// Lines are switched on and off by the buttons above their charts, in every chart of the section.
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

// What a point stands for is shown beside it, for the mouse and, with the arrow keys, for the keyboard.
function showTip(svg, mark) {
  hideTip(svg);
  const canvas = svg.parentElement;
  const tip = canvas.querySelector(".tip");
  mark.classList.add("current");
  tip.textContent = mark.dataset.said;
  tip.hidden = false;
  const frame = canvas.getBoundingClientRect();
  const place = mark.querySelector(".dot").getBoundingClientRect();
  const left = place.left + place.width / 2 - frame.left - tip.offsetWidth / 2;
  const above = place.top - frame.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(0, Math.min(left, frame.width - tip.offsetWidth))}px`;
  tip.style.top = `${above < 0 ? place.bottom - frame.top + 8 : above}px`;
}

function hideTip(svg) {
  for (const mark of svg.querySelectorAll(".mark.current")) {
    mark.classList.remove("current");
  }
  svg.parentElement.querySelector(".tip").hidden = true;
}

function visibleMarks(svg) {
  return [...svg.querySelectorAll("[data-line]:not(.hidden-line) .mark")];
}

function stepThroughMarks(svg, event) {
  const marks = visibleMarks(svg);
  const at = marks.findIndex((mark) => mark.classList.contains("current"));
  const last = marks.length - 1;
  const targets = {
    ArrowRight: at < last ? at + 1 : 0,
    ArrowDown: at < last ? at + 1 : 0,
    ArrowLeft: at > 0 ? at - 1 : last,
    ArrowUp: at > 0 ? at - 1 : last,
    Home: 0,
    End: last,
  };
  if (event.key === "Escape") {
    hideTip(svg);
  } else if (event.key in targets && marks.length) {
    event.preventDefault();
    showTip(svg, marks[targets[event.key]]);
  }
}

function prepareChart(svg) {
  svg.addEventListener("keydown", (event) => stepThroughMarks(svg, event));
  svg.addEventListener("blur", () => hideTip(svg));
  svg.addEventListener("pointerleave", () => hideTip(svg));
  svg.addEventListener("pointerover", (event) => {
    const mark = event.target.closest(".mark");
    if (mark) {
      showTip(svg, mark);
    } else if (document.activeElement !== svg) {
      hideTip(svg);
    }
  });
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
document.querySelectorAll(".chart svg[tabindex]").forEach(prepareChart);
document.querySelectorAll(".samples").forEach(prepareSamples);
document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", updateScrolling));
document.querySelectorAll(".scroll").forEach((region) => {
  region.addEventListener("scroll", () => showMore(region), { passive: true });
});
window.addEventListener("beforeprint", openAllParts);
window.addEventListener("afterprint", closePartsAgain);
window.addEventListener("resize", updateScrolling);
updateScrolling();
