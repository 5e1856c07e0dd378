"use strict";

// The panel of the picked cells: their differences, a chart, their images, the nights they belong to.

const SHAPES = [
  "M0,-5A5,5 0 1,1 0,5A5,5 0 1,1 0,-5Z", "M-4.5,-4.5H4.5V4.5H-4.5Z", "M0,-5.5L5.2,4H-5.2Z", "M0,-6L5,0L0,6L-5,0Z",
  "M0,5.5L5.2,-4H-5.2Z", "M-1.7,-5.5H1.7V-1.7H5.5V1.7H1.7V5.5H-1.7V1.7H-5.5V-1.7H-1.7Z",
  "M0,-5.5L5.2,-1.7L3.2,4.5H-3.2L-5.2,-1.7Z", "M-5.5,0L5,-5V5Z", "M5.5,0L-5,-5V5Z",
];
// As in index.html of a history: a red cross is a regression, a green dot nothing worse, a grey square open.
const VERDICTS = { red: "M-4,-4L4,4M4,-4L-4,4", green: SHAPES[0], grey: "M-4,-4h8v8h-8Z" };
const MOST_NIGHTS = 60;
const SMALL = 64; // pixels: larger images are smoothed

const panel = { key: "", asked: new Map() };

function mark(number) {
  const path = drawn("path", { d: SHAPES[number], class: `pick-${number}` });
  const shape = drawn("svg", { width: 12, height: 12, viewBox: "-6.5 -6.5 13 13", "aria-hidden": "true" }, path);
  return element("span", { class: "mark" }, shape, String(number + 1));
}

function drawPanel() {
  const picks = pickedRows();
  drawNote();
  byId("panel").hidden = !picks.length;
  document.body.classList.toggle("comparing", picks.length > 0);
  const shown = [picks.map((row) => [row.id, row.values, row.group]), view.metric, view.x, view.against, view.curves, view.log];
  const key = JSON.stringify([shown, panel.asked.size, byId("panel").clientWidth, picks.length && board.source.histories]);
  if (!picks.length || panel.key === key) {
    return; // what people look at is not drawn again because another run went on
  }
  panel.key = key;
  byId("panel-title").textContent = picks.length > 1 ? `${picks.length} cells compared` : "1 cell picked";
  byId("panel-hint").hidden = picks.length > 1;
  drawChoices(picks);
  drawPicked(picks);
  drawChart(picks);
  drawImages(picks);
  drawTrends(picks);
}

function drawNote() {
  const missing = view.picked.filter((id) => !board.ids.has(id));
  byId("missing").textContent = missing.length
    ? `This link names ${plural(missing.length, "cell")} that this board does not have: ${missing.join(", ")}.` : "";
}

function drawChoices(picks) {
  fillSelect("metric", board.metrics.map(({ name, heading }) => [name, heading]), chosenMetric()?.name);
  fillSelect("x", axes().map(({ name, heading }) => [name, heading]), chosenAxis()?.name);
  fillSelect("against", picks.map((row, i) => [row.id, `${i + 1} · ${row.run.title} ${row.label}`]), base(picks).id);
  byId("log").checked = view.log === "1";
}

function fillSelect(id, choices, chosen) {
  const options = choices.map(([value, text]) => element("option", { value, selected: value === chosen }, text));
  byId(id).replaceChildren(...options);
  byId(id).closest("label").hidden = choices.length < 2;
}

function axes() {
  const possible = ["steps", "network_evaluations", "seconds"].map((name) => board.named.get(name));
  return possible.filter((column) => column && !column.isText);
}

function chosenAxis() {
  return axes().find(({ name }) => name === view.x) ?? axes()[0] ?? null;
}

function base(picks) {
  return picks.find(({ id }) => id === view.against) ?? picks[0];
}

function drawPicked(picks) {
  const metric = chosenMetric();
  const heads = ["", "Cell", metric?.heading ?? "", ...(picks.length > 1 ? [`Difference to ${numberOf(base(picks)) + 1}`] : []), ""];
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const lines = picks.map((row, i) => {
    const name = element("td", { class: "name" }, element("bdi", {}, row.run.title), element("small", {}, row.label));
    const value = element("td", {}, metric ? shownIn(metric, row) : MISSING);
    const away = element("button", { type: "button", "aria-label": `Unpick ${i + 1}`, click: () => unpick(row) }, "×");
    const difference = picks.length > 1 ? [differenceCell(base(picks), row, metric)] : [];
    return element("tr", {}, element("td", {}, mark(i)), name, value, ...difference, element("td", {}, away));
  });
  byId("picked").replaceChildren(element("thead", {}, head), element("tbody", {}, ...lines));
}

function unpick(row) {
  togglePick(row);
  byId(pickedRows().length ? "panel-title" : "grid").focus({ preventScroll: true });
}

function differenceCell(from, to, metric) {
  if (from === to || !metric) {
    return element("td", {}, MISSING);
  }
  const { value, error, how } = difference(from, to, metric);
  if (value === null) {
    return element("td", { class: "why" }, how);
  }
  const z = error > 0 ? value / error : null;
  const isClear = z !== null && Math.abs(z) >= 1.96;
  const better = !metric.better || !isClear ? "" : (value < 0) === (metric.better === "lower") ? ", better" : ", worse";
  const size = z === null ? "" : `, z = ${z.toFixed(1)}${isClear ? better : ", ≈"}`;
  return element("td", {}, (value > 0 ? "+" : "") + entry(value, error), element("small", {}, how + size));
}

// Between cells of the same noise from their influences; otherwise as between independent cells, and it says so.
function difference(from, to, metric) {
  const [a, b] = [metric.value(from), metric.value(to)];
  if (from.group !== to.group) {
    return { value: null, how: `not comparable: ${inShort(differingFields(from.group, to.group))}` };
  }
  if (typeof a !== "number" || typeof b !== "number") {
    return { value: null, how: "not scored" };
  }
  const paired = pairedDifference(from, to, metric);
  if (paired) {
    return { value: paired[0], error: paired[1], how: "paired" };
  }
  const errors = [metric.errorOf(from), metric.errorOf(to)];
  const isKnown = errors.every((error) => typeof error === "number");
  const how = paired === undefined ? "asking for the paired difference…" : isKnown ? "unpaired" : "no error";
  return { value: b - a, error: isKnown ? Math.hypot(...errors) : null, how };
}

// [difference, standard error]; null if there is none, undefined while the server is asked.
function pairedDifference(from, to, metric) {
  const noise = board.source.noise;
  if (noise[from.number] === null || noise[from.number] !== noise[to.number]) {
    return null;
  }
  const recorded = board.differences.get(`${from.number} ${to.number} ${metric.name}`);
  const backwards = board.differences.get(`${to.number} ${from.number} ${metric.name}`);
  if (recorded || backwards) {
    return recorded ?? [-backwards[0], backwards[1]];
  }
  if (!isLive()) {
    return null;
  }
  const key = JSON.stringify([from.id, from.values, to.id, to.values]);
  if (!panel.asked.has(key)) {
    panel.asked.set(key, undefined);
    askPair(from, to).then((answer) => {
      panel.asked.set(key, answer);
      panel.key = "";
      drawPanel();
    });
  }
  const answer = panel.asked.get(key);
  return answer && (answer[metric.name] ?? null);
}

async function askPair(from, to) {
  const query = new URLSearchParams({ a: from.number, b: to.number, version: live.etag });
  try {
    const answer = await fetch(`pair.json?${query}`, { cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

// Cells of one run that differ in nothing but the number of steps are on one line.
function lineOf(row) {
  const settings = board.columns.filter(({ kind, name }) => kind === "setting" && name !== "steps");
  return JSON.stringify([row.run.key, ...settings.map((column) => column.value(row))]);
}

function linesOf(picks) {
  board.lines ??= grouped(board.rows.map((row) => ({ row, group: lineOf(row) })));
  const keys = [...new Set(picks.map(lineOf))];
  const whole = keys.map((key) => board.lines.get(key).map(({ row }) => row));
  const single = keys.map((key) => picks.filter((row) => lineOf(row) === key));
  const isWhole = view.curves ? view.curves === "1" : single.some((rows) => rows.length === 1);
  byId("curves").checked = isWhole;
  byId("curves").closest("label").hidden = whole.every((rows, i) => rows.length === single[i].length);
  return isWhole ? whole : single;
}

function drawChart(picks) {
  const [x, y] = [chosenAxis(), chosenMetric()];
  const isPoint = (row) => typeof x.value(row) === "number" && typeof y.value(row) === "number";
  const lines = !x || !y ? [] : linesOf(picks).map((rows) => rows.filter(isPoint).map((row) => pointOf(row, x, y)));
  byId("chart-part").hidden = !lines.flat().length;
  if (lines.flat().length) {
    const groups = new Set(picks.map((row) => row.group)).size;
    byId("chart-note").textContent =
      "Bars are ± one standard error." + (groups > 1 ? " Cells of other protocols are drawn too, but not comparable." : "");
    const title = `${y.heading} over ${x.heading}`;
    const log = { x: true, y: view.log === "1" };
    byId("chart").replaceChildren(plot({ lines, title, xLabel: x.heading, yLabel: y.heading, log }));
  }
}

function pointOf(row, x, y, at = x.value(row)) {
  const title = `${row.run.title}\n${row.label}\n${y.heading} ${shownIn(y, row)}`;
  return { x: at, y: y.value(row), error: y.errorOf(row) ?? 0, number: numberOf(row), title };
}

// An SVG of lines of points {x, y, error, number, title}; points that are picked have their mark and number.
function plot({ lines, title, xLabel, yLabel, log, xTicks = null, below = [] }) {
  const [width, height] = [Math.max(280, byId("panel-body").clientWidth), 280];
  const points = lines.flat();
  const ends = points.flatMap(({ y, error }) => [y - error, y + error]).filter((y) => !log.y || y > 0);
  const xs = below.length ? below.map((point) => point.x) : points.map((point) => point.x);
  const across = scale(xs, log.x && Math.min(...xs) > 0, 56, width - 24);
  const up = scale(ends, log.y && points.every(({ y }) => y > 0), height - 44, 14);
  const shown = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const [value, text] of xTicks ?? across.ticks(xs)) {
    shown.append(drawn("text", { x: across(value), y: height - 26, "text-anchor": "middle" }, text));
  }
  for (const [value, text] of up.ticks()) {
    shown.append(drawn("path", { d: `M56,${up(value)}H${width - 10}`, class: "rule" }));
    shown.append(drawn("text", { x: 48, y: up(value) + 4, "text-anchor": "end" }, text));
  }
  shown.append(drawn("text", { x: (width + 46) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  shown.append(drawn("text", { transform: `translate(12,${height / 2 - 15}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  const apart = Math.min(7, 56 / lines.length); // lines of the same x must not hide each other's bars
  const shift = (i) => apart * (i - (lines.length - 1) / 2);
  shown.append(...lines.map((line, i) => lineGroup(line, (x) => across(x) + shift(i), up)));
  shown.append(...below.map(({ x, light, href, title: text }) => verdictMark(light, href, text, across(x), height - 48)));
  return shown;
}

function lineGroup(line, across, up) {
  const ordered = [...line].sort((a, b) => a.x - b.x);
  const first = Math.min(...ordered.map(({ number }) => number).filter((number) => number >= 0));
  const group = drawn("g", { class: `line pick-${Number.isFinite(first) ? first : 0}` });
  group.append(drawn("path", { d: `M${ordered.map(({ x, y }) => `${across(x)},${up(y)}`).join("L")}`, class: "stroke" }));
  for (const { x, y, error, number, title } of ordered) {
    const [left, top] = [across(x), up(y)];
    const own = drawn("g", { class: number >= 0 ? `pick-${number}` : null }, drawn("title", {}, title));
    if (error > 0) {
      own.append(drawn("path", { d: `M${left},${up(y - error)}V${up(y + error)}`, class: "stroke" }));
    }
    own.append(drawn("path", { d: SHAPES[Math.max(number, 0)], class: number >= 0 ? "dot" : "small dot",
      transform: `translate(${left},${top})${number >= 0 ? "" : " scale(0.6)"}` }));
    own.append(number >= 0 ? drawn("text", { x: left + 8, y: top - 6, class: "number" }, String(number + 1)) : "");
    group.append(own);
  }
  return group;
}

function scale(values, isLog, from, to) {
  const on = isLog ? Math.log10 : (value) => value;
  let [low, high] = [Math.min(...values.map(on)), Math.max(...values.map(on))];
  const room = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - room, high + room];
  const place = (value) => {
    const at = isLog && value <= 0 ? low : on(value); // a bar that reaches 0 goes to the edge
    return Math.round(10 * (from + ((at - low) / (high - low)) * (to - from))) / 10;
  };
  place.ticks = (wanted = null) => {
    const distinct = [...new Set(wanted ?? [])];
    const round = isLog ? logTicks(10 ** low, 10 ** high) : evenTicks(low, high);
    const isFew = distinct.length > 0 && distinct.length <= 7 && areApart(distinct.map(place));
    return (isFew ? distinct : round).map((value) => [value, String(Number(value.toPrecision(6)))]);
  };
  return place;
}

function areApart(places) {
  const sorted = [...places].sort((a, b) => a - b);
  return sorted.every((place, i) => i === 0 || place - sorted[i - 1] > 28);
}

function evenTicks(low, high) {
  const rough = (high - low) / 5;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * ten).find((each) => each >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

function logTicks(low, high) {
  const decades = Array.from({ length: 40 }, (_, i) => 10 ** (i - 20));
  const found = decades.flatMap((ten) => [ten, 2 * ten, 5 * ten]).filter((tick) => tick >= low && tick <= high);
  return found.length > 2 ? found : evenTicks(low, high);
}

// Images of the same indices: one of each cell, enlarged, and the strips that the slider chooses from.
function drawImages(picks) {
  const { per_cell: count, rows } = board.source.images;
  const shown = picks.filter((row) => rows[row.number]);
  byId("images-part").hidden = !shown.length;
  byId("index").max = count - 1;
  const noises = new Set(shown.map((row) => board.source.noise[row.number]));
  const isSame = shown.length > 1 && noises.size === 1 && !noises.has(null);
  byId("images-note").textContent = isSame ? "An index has the same noise in all of these cells." : "";
  byId("tiles").replaceChildren(...shown.map((row) => element("figure", {},
    element("div", { class: "tile" }, imageOf(row, count)),
    element("figcaption", {}, mark(numberOf(row)), element("small", { title: row.run.title }, row.label)))));
  byId("strips").replaceChildren(...shown.map((row) => element("div", { class: "strip" },
    mark(numberOf(row)), element("div", { class: "images-of" }, imageOf(row, count), element("i")))));
  byId("tiles").dataset.count = shown.length > 4 ? "many" : "few";
  showIndex();
}

function imageOf(row, count) {
  const src = `images/${encodeURIComponent(row.run.key)}/${encodeURIComponent(row.cell)}.png`;
  const alt = `Images 0 to ${count - 1} of ${row.run.title}, ${row.label}`;
  const image = element("img", { src, alt, draggable: "false" });
  image.addEventListener("load", () => {
    const width = image.naturalWidth / count;
    image.classList.toggle("small", width <= SMALL);
    image.parentElement.style.aspectRatio = image.closest(".tile") ? `${width} / ${image.naturalHeight}` : "auto";
  });
  image.addEventListener("error", () => image.parentElement.replaceChildren("no images"));
  return image;
}

function showIndex() {
  const count = board.source.images.per_cell;
  const index = Math.min(count - 1, Math.max(0, Number(view.index) || 0));
  byId("index").value = index;
  byId("index-text").textContent = String(index);
  for (const image of document.querySelectorAll(".tile img")) {
    image.style.transform = `translateX(${(-100 * index) / count}%)`;
  }
  for (const frame of document.querySelectorAll(".images-of i")) {
    frame.style.left = `${(100 * index) / count}%`;
    frame.style.width = `${100 / count}%`;
  }
}

function chooseIndex(event) {
  const strip = event.target.closest(".images-of");
  if (strip) {
    const box = strip.getBoundingClientRect();
    view.index = String(Math.floor(((event.clientX - box.left) / box.width) * board.source.images.per_cell));
    changed();
    showIndex();
  }
}

// A metric over the nights of a history, for the picked cells of its runs, above the verdicts.
function drawTrends(picks) {
  const keys = new Set(picks.map((row) => row.run.history).filter(Boolean));
  const trends = board.source.histories.filter(({ key }) => keys.has(key)).map((history) => trendOf(history, picks));
  byId("trends").replaceChildren(...trends.filter(Boolean));
}

function trendOf(history, picks) {
  const nights = history.nights.slice(-MOST_NIGHTS);
  const y = chosenMetric();
  const here = picks.filter((row) => row.run.history === history.key);
  const labels = [...new Set(here.map((row) => row.label))];
  const lines = y ? labels.map((label) => nightPoints(nights, label, here, y)).filter((line) => line.length) : [];
  if (!lines.length) {
    return null;
  }
  const step = Math.ceil(nights.length / 5);
  const xTicks = nights.map(({ id }, i) => [i, id.length > 10 ? `${id.slice(0, 10)}…` : id]).filter((_, i) => i % step === 0);
  const below = nights.map((night, i) => ({ x: i, light: night.light, href: nightHref(night), title: nightTitle(night) }));
  const title = `${y.heading} over the nights of ${history.title}`;
  const chart = plot({ lines, title, xLabel: "night", yLabel: y.heading, log: { x: false, y: view.log === "1" }, xTicks, below });
  return element("section", {}, element("h3", {}, linkTo(history.page, history.title), ": nights"), chart);
}

function nightPoints(nights, label, picks, y) {
  const points = nights.map((night, i) => {
    const row = board.rows.find((other) => other.run.key === night.run && other.label === label);
    return row && typeof y.value(row) === "number" ? pointOf(row, null, y, i) : null;
  });
  const number = Math.min(...picks.filter((row) => row.label === label).map(numberOf));
  const known = points.filter(Boolean);
  return known.some((point) => point.number >= 0) ? known : known.map((point) => ({ ...point, number }));
}

function nightTitle(night) {
  return `${night.id}: ${night.verdict}`;
}

function nightHref(night) {
  return board.source.runs.find(({ key }) => key === night.run)?.report ?? null;
}

function verdictMark(light, href, title, x, y) {
  const shape = drawn("path", { d: VERDICTS[light] ?? VERDICTS.grey, class: `verdict ${light}` });
  const own = drawn("g", { transform: `translate(${x},${y})` }, drawn("title", {}, title), shape);
  const leads = linkTo(href).getAttribute("href");
  return leads ? drawn("a", { href: leads, "aria-label": title }, own) : own;
}
