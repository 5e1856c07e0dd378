"use strict";

document.documentElement.classList.add("scripted-page");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Lines are switched on and off by the buttons above their chart, in every panel of it.
function toggleLines(button, lines) {
  const shown = button.getAttribute("aria-pressed") !== "true";
  for (const each of [button, ...lines]) {
    each.setAttribute("aria-pressed", String(shown));
    all(`[id*="-${each.dataset.toggle}."]`, each.closest("section"))
      .forEach((line) => line.setAttribute("display", shown ? "inline" : "none"));
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

// One index of every row of every table, side by side: the slider leads over S.
function prepareSlide(slide) {
  const [range, shown, row] = ["input", "output", ".slid"].map((part) => slide.querySelector(part));
  const figures = all("table.samples tbody tr").map((cells) => {
    const figure = row.appendChild(document.createElement("figure"));
    const image = figure.appendChild(new Image());
    const title = cells.closest("table").caption;
    const names = [title.className ? "" : title.textContent, cells.cells[0].textContent];
    figure.appendChild(document.createElement("figcaption")).textContent = names.filter(Boolean).join(", ");
    return { figure, image, cells };
  });
  const update = () => {
    const index = Number(slide.querySelector("[data-index][aria-pressed='true']").dataset.index);
    const steps = slide.dataset.steps.split(" ")[range.value];
    shown.textContent = steps;
    range.setAttribute("aria-valuetext", `S = ${steps}`);
    for (const { figure, image, cells } of figures) {
      const head = cells.closest("table").querySelector(`[data-steps="${steps}"]`);
      const from = head && all("img", cells.cells[head.cellIndex])[index];
      figure.hidden = !from;
      [image.src, image.alt] = from ? [from.src, from.alt] : ["", ""];
    }
  };
  range.addEventListener("input", update);
  for (const button of all("[data-index]", slide)) {
    button.addEventListener("click", () => {
      all("[data-index]", slide).forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
      update();
    });
  }
  update();
  prepareImages(row);
}

async function save(button) {
  const svg = new XMLSerializer().serializeToString(button.closest("figure").querySelector("svg"));
  const picture = new Image();
  picture.src = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [3 * picture.width, 3 * picture.height];
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
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
const opened = [];

function openAllParts() {
  opened.push(...all("details:not([open]):not(.numbers)"));
  opened.forEach((part) => { part.open = true; });
}

function closePartsAgain() {
  opened.splice(0).forEach((part) => { part.open = false; });
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
onClick("[data-toggle]", (button) => toggleLines(button, []));
onClick("[data-toggle-all]", (button) => toggleLines(button, all("[data-toggle]", button.parentElement)));
onClick("[data-copy]", (button) => copy(button, button.nextElementSibling.value));
onClick("[data-save]", save);
all("table.images, .mosaic").forEach(prepareImages);
all(".slide").forEach(prepareSlide);
all("details").forEach((part) => part.addEventListener("toggle", updateScrolling));
all(".scroll").forEach((region) => region.addEventListener("scroll", () => showMore(region), { passive: true }));
document.addEventListener("click", (event) => closeAbout(event.target.closest("details.about")));
document.addEventListener("keydown", (event) => event.key === "Escape" && closeAbout());
window.addEventListener("beforeprint", openAllParts);
window.addEventListener("afterprint", closePartsAgain);
window.addEventListener("resize", updateScrolling);
updateScrolling();
