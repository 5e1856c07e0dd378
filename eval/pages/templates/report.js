"use strict";

document.documentElement.classList.add("scripted-page");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Lines are switched on and off by the buttons above their chart, in every panel of it.
function toggleLine(button) {
  showLine(button, button.getAttribute("aria-pressed") !== "true");
}

function toggleAll(button) {
  const shown = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(shown));
  for (const each of all("[data-toggle]", button.parentElement)) {
    showLine(each, shown);
  }
}

function showLine(button, shown) {
  button.setAttribute("aria-pressed", String(shown));
  const key = button.dataset.toggle;
  for (const line of all("[data-line]", button.closest("section"))) {
    if (line.dataset.line === key) {
      line.classList.toggle("hidden-line", !shown);
    }
  }
}

// Images grow in a dialog. Arrow keys lead to the neighbours, up and down to those in the next cell or row.
const zoom = document.createElement("dialog");
zoom.className = "zoom";
zoom.append(new Image(), document.createElement("p"));
zoom.addEventListener("click", () => zoom.close());

function openZoom(image) {
  const [large, caption] = zoom.children;
  large.src = image.src;
  large.alt = caption.textContent = image.alt;
  large.classList.toggle("small", Boolean(image.closest(".small")));
  if (!zoom.open) {
    document.body.append(zoom);
    zoom.showModal();
  }
}

function neighbour(images, image, key) {
  const across = all("img", image.closest(".tiles, tr, .slid")).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[key];
  return step && images[images.indexOf(image) + step];
}

function prepareImages(group) {
  const images = all("img", group);
  let chosen = images[0];
  const choose = (image) => {
    chosen.tabIndex = -1;
    chosen = image;
    chosen.tabIndex = 0;
  };
  const move = (event, then) => {
    const next = neighbour(images, chosen, event.key);
    if (next) {
      event.preventDefault();
      choose(next);
      then(next);
    }
  };
  for (const image of images) {
    image.tabIndex = image === chosen ? 0 : -1;
    image.setAttribute("role", "button");
    image.addEventListener("click", () => {
      choose(image);
      zoom.onkeydown = (event) => move(event, openZoom);
      zoom.onclose = () => chosen.focus();
      openZoom(image);
    });
    image.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        image.click();
      }
      move(event, (next) => next.focus());
    });
  }
}

// One index of every row, side by side: the slider leads over S.
function prepareSlide(samples) {
  const [range, shown, row] = ["input", "output", ".slid"].map((part) => samples.querySelector(part));
  if (!range) {
    return;
  }
  const heads = all("[data-steps]", samples);
  const rows = all("tbody tr", samples).map((cells) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = cells.cells[0].textContent;
    figure.append(new Image(), caption);
    row.append(figure);
    return { cells, image: figure.firstChild };
  });
  const update = () => {
    const index = Number(samples.querySelector("[data-index][aria-pressed='true']").dataset.index);
    shown.textContent = heads[range.value].dataset.steps;
    range.setAttribute("aria-valuetext", `S = ${shown.textContent}`);
    for (const { cells, image } of rows) {
      const from = all("img", cells.cells[1 + Number(range.value)])[index];
      image.parentElement.hidden = !from;
      image.src = from ? from.src : "";
      image.alt = from ? from.alt : "";
    }
  };
  range.addEventListener("input", update);
  for (const button of all("[data-index]", samples)) {
    button.addEventListener("click", () => {
      all("[data-index]", samples).forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
      update();
    });
  }
  update();
  prepareImages(row);
}

function say(button, text) {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1500);
}

// A page from a file may have no clipboard: then its text is selected, and copied as people do it.
async function copy(button) {
  const area = button.nextElementSibling;
  let copied = true;
  try {
    await navigator.clipboard.writeText(area.value);
  } catch {
    area.hidden = false;
    area.select();
    copied = document.execCommand("copy");
    area.hidden = copied;
    button.focus();
  }
  say(button, copied ? "Copied" : "Press Ctrl+C");
}

// A picture of a chart is white with the colours of a light page, whatever the page has now.
function lightColours() {
  const found = {};
  for (const rule of document.styleSheets[0].cssRules) {
    const name = (rule.selectorText || "").slice(1);
    for (const key of rule.style || []) {
      if (key.startsWith("--")) {
        found[name === "root" ? key : name] ??= rule.style.getPropertyValue(key).trim();
      }
    }
  }
  const value = (text) => (text || "").replace(/var\((--[\w-]+)\)/, (_, key) => value(found[key]));
  return (text, colour) => (text === "var(--colour)" ? colour : value(found[text] || text));
}

function paint(element, light, colour = light("var(--soft)")) {
  if (element.classList.contains("hidden-line")) {
    element.remove();
    return;
  }
  const own = [...element.classList].map((name) => light(name)).find((text) => text.startsWith("#")) || colour;
  for (const key of ["fill", "stroke"]) {
    if (element.hasAttribute(key)) {
      element.setAttribute(key, light(element.getAttribute(key), own));
    }
  }
  if (element.tagName === "text") {
    element.setAttribute("fill", own);
    element.setAttribute("font-family", "DejaVu Sans, Verdana, sans-serif");
  }
  [...element.children].forEach((child) => paint(child, light, own));
}

async function chartCanvas(figure) {
  const light = lightColours();
  const svg = figure.querySelector("svg");
  const copied = svg.cloneNode(true);
  const [width, height] = ["width", "height"].map((key) => Number(svg.getAttribute(key)));
  copied.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  paint(copied, light);
  const picture = new Image();
  picture.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copied))}`;
  await picture.decode();
  const shown = all("[data-toggle][aria-pressed='true']", figure.previousElementSibling);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * width, 2 * (height + 22 * shown.length + 8)];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.scale(2, 2);
  context.drawImage(picture, 0, 0, width, height);
  context.font = "13px DejaVu Sans, Verdana, sans-serif";
  shown.forEach((button, place) => {
    context.save();
    context.translate(30, height + 22 * place + 11);
    context.fillStyle = context.strokeStyle = light(button.className);
    context.fill(new Path2D(button.querySelector(".dot").getAttribute("d")));
    context.stroke(new Path2D("M-12,0H12"));
    context.fillStyle = light("var(--text)");
    context.fillText(button.textContent.trim(), 20, 5);
    context.restore();
  });
  return canvas;
}

async function save(button) {
  const canvas = await chartCanvas(button.closest("figure"));
  const link = document.createElement("a");
  link.download = `${button.dataset.save.replace(/[^\w.-]+/g, "-")}.png`;
  link.href = canvas.toDataURL("image/png");
  link.click();
}

// A text behind a mark closes by Esc, and by a click beside it.
function closeAbout(except) {
  all("details.about[open]").filter((part) => part !== except).forEach((part) => { part.open = false; });
}

// A closed part would be missing on paper. The numbers of charts stay closed: the tables have them.
const closedParts = new Set();

function openAllParts() {
  for (const part of all("details:not([open]):not(.numbers)")) {
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

// A region that has nothing to scroll is no stop of the tab key; one with more to its right says so and fades there.
function updateScrolling() {
  for (const region of all(".scroll")) {
    const scrolls = region.scrollWidth > region.clientWidth;
    region.tabIndex = scrolls ? 0 : -1;
    region.classList.toggle("wide", scrolls);
    showMore(region);
  }
}

function showMore(region) {
  const hidden = region.scrollWidth - region.clientWidth - region.scrollLeft;
  region.classList.toggle("more", hidden > 1);
}

const onClick = (selector, act) => all(selector).forEach((each) => each.addEventListener("click", () => act(each)));
onClick("[data-toggle]", toggleLine);
onClick("[data-toggle-all]", toggleAll);
onClick("[data-copy]", copy);
onClick("[data-save]", save);
all("table.images, .mosaic").forEach(prepareImages);
all(".samples").forEach(prepareSlide);
all("details").forEach((part) => part.addEventListener("toggle", updateScrolling));
all(".scroll").forEach((region) => region.addEventListener("scroll", () => showMore(region), { passive: true }));
document.addEventListener("click", (event) => closeAbout(event.target.closest("details.about")));
document.addEventListener("keydown", (event) => event.key === "Escape" && closeAbout());
window.addEventListener("beforeprint", openAllParts);
window.addEventListener("afterprint", closePartsAgain);
window.addEventListener("resize", updateScrolling);
updateScrolling();
