"use strict";

// The panel of the picked cells: their differences, a chart, their images, the nights they belong to.

const SHAPES = [
  "M0,-5A5,5 0 1,1 0,5A5,5 0 1,1 0,-5Z", "M-4.5,-4.5H4.5V4.5H-4.5Z", "M0,-5.5L5.2,4H-5.2Z", "M0,-6L5,0L0,6L-5,0Z",
  "M0,5.5L5.2,-4H-5.2Z", "M-1.7,-5.5H1.7V-1.7H5.5V1.7H1.7V5.5H-1.7V1.7H-5.5V-1.7H-1.7Z",
  "M0,-5.5L5.2,-1.7L3.2,4.5H-3.2L-5.2,-1.7Z", "M-5.5,0L5,-5V5Z", "M5.5,0L-5,-5V5Z",
];
// As in index.html of a history: a red cross is a regression, a green dot nothing worse, a grey square open.
const VERDICTS = new Map([["red", "M-4,-4L4,4M4,-4L-4,4"], ["green", SHAPES[0]], ["grey", "M-4,-4h8v8h-8Z"]]);
const MOST_NIGHTS = 60;
const SMALL = 64; // pixels: larger images are smoothed
const CLEAR = 1.96; // |z| that chance alone reaches 1 time in 20: about one pair, as the marks of differences.md
const CHART = { left: 56, right: 24, top: 14, bottom: 44, height: 280 };

const panel = { key: "", pairs: new Map() };

function mark(number) {
  const path = drawn("path", { d: SHAPES[number], class: `pick-${number}` });
  const shape = drawn("svg", { width: 12, height: 12, viewBox: "-6.5 -6.5 13 13", "aria-hidden": "true" }, path);
  return element("span", { class: "mark" }, shape, String(number + 1));
}

function drawPanel() {
  const picks = pickedRows();
  const missing = view.picked.filter((id) => !board.ids.has(id));
  const lost = `This link names ${plural(missing.length, "cell")} that this board does not have: ${missing.join(", ")}.`;
  byId("notes").textContent = [...(board.notes ?? []), ...(missing.length ? [lost] : [])].join("\n");
  byId("panel").hidden = !picks.length;
  document.body.classList.toggle("comparing", picks.length > 0);
  const options = [view.metric, view.x, view.against, view.log, byId("panel-body").clientWidth];
  const key = JSON.stringify([picks.map(contentsOf), options, board.histories]);
  if (picks.length && panel.key !== key) {
    panel.key = key; // what people look at is not drawn again because another run went on
    byId("panel-title").textContent = picks.length > 1 ? `${picks.length} cells compared` : "1 cell picked";
    byId("panel-hint").hidden = picks.length > 1;
    fillSelect("metric", board.metrics.map(({ name, heading }) => [name, heading]), chosenMetric()?.name);
    fillSelect("x", axes().map(({ name, heading }) => [name, heading]), chosenAxis()?.name);
    fillSelect("against", picks.map(({ id, run, label }, i) => [id, `${i + 1} · ${run.title} ${label}`]), base(picks).id);
    byId("log").checked = view.log === "1";
    for (const drawPart of [drawPicked, drawChart, drawImages, drawTrends]) drawPart(picks);
  }
}

const contentsOf = ({ id, group, settings, values: [, ...values] }) => [id, group, settings, values]; // numbers of rows and runs may change

function fillSelect(id, choices, chosen) {
  const options = choices.map(([value, text]) => element("option", { value, selected: value === chosen }, text));
  byId(id).replaceChildren(...options);
  byId(id).closest("label").hidden = choices.length < 2;
}

function axes() {
  const possible = ["steps", "network_evaluations"].map((name) => board.named.get(name));
  return possible.filter((column) => column && !column.isText);
}

const chosenAxis = () => axes().find(({ name }) => name === view.x) ?? axes()[0] ?? null;
const base = (picks) => picks.find(({ id }) => id === view.against) ?? picks[0];

function drawPicked(picks) {
  const [metric, from] = [chosenMetric(), base(picks)];
  const isSeveral = picks.length > 1;
  const heads = ["", "Cell", metric?.heading ?? "", ...(isSeveral ? [`Difference to ${numberOf(from) + 1}`] : []), ""];
  const lines = picks.map((row, i) => {
    const name = [element("bdi", {}, row.run.title || MISSING), element("small", {}, row.label)];
    const away = element("button", { type: "button", "aria-label": `Unpick ${i + 1}`, click: () => unpick(row) }, "×");
    return element("tr", {}, element("td", {}, mark(i)), element("td", {}, ...name),
      element("td", {}, metric ? shownIn(metric, row) : MISSING),
      ...(isSeveral ? [differenceCell(from, row, metric)] : []), element("td", {}, away));
  });
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  byId("picked").replaceChildren(element("thead", {}, head), element("tbody", {}, ...lines));
}

function unpick(row) {
  togglePick(row);
  byId(pickedRows().length ? "panel-title" : "grid").focus({ preventScroll: true });
}

function differenceCell(from, to, metric) {
  if (from === to || !metric) return element("td", {}, MISSING);
  const { value, error, how, why } = difference(from, to, metric);
  if (value === null) return element("td", { class: "why", title: why?.join("\n") }, how);
  const isBetter = (value < 0) === (metric.better === "lower");
  const z = error > 0 ? value / error : NaN;
  const verdict = Math.abs(z) < CLEAR ? ", ≈" : metric.better && z ? `, ${isBetter ? "better" : "worse"}` : "";
  const words = how + (Number.isNaN(z) ? "" : `, z = ${z.toFixed(1)}`) + verdict;
  const figure = element("span", { class: "figure" }, (value > 0 ? "+" : "") + entry(value, error));
  return element("td", {}, figure, element("small", {}, words));
}

// Between cells of the same noise from their influences; otherwise as between independent cells, and it says so.
function difference(from, to, metric) {
  const none = (how, why = null) => ({ value: null, how, why });
  const why = differingFields(from.group, to.group);
  if (why) return none(`not comparable: ${inShort(why, 1)}`, why);
  const [a, b] = [metric.value(from), metric.value(to)];
  if (typeof a !== "number" || typeof b !== "number") return none("not scored");
  const settings = differingSettings(from, to, metric);
  if (settings) return none(`not comparable: ${inShort(settings, 1)}`, settings);
  const paired = pairedDifference(from, to, metric);
  if (typeof paired === "string") return none(paired);
  if (paired) return { value: paired[0], error: paired[1], how: "paired" };
  const errors = [metric.seOf(from), metric.seOf(to)];
  if (errors.includes(null)) return { value: b - a, error: null, how: "no standard error" };
  return { value: b - a, error: Math.hypot(...errors), how: "unpaired" };
}

// [difference, standard error]; null if there is none; a text while the server has not answered.
function pairedDifference(from, to, metric) {
  const noise = board.noise[from.number];
  if (noise === null || noise !== board.noise[to.number]) return null;
  const recorded = board.recorded.get(`${from.number} ${to.number} ${metric.name}`);
  const backwards = board.recorded.get(`${to.number} ${from.number} ${metric.name}`);
  if (recorded || backwards) return recorded ?? [-backwards[0], backwards[1]];
  if (!isLive()) return null;
  const key = JSON.stringify([contentsOf(from), contentsOf(to)]);
  if (!panel.pairs.has(key)) askPair(from, to, key);
  const answer = panel.pairs.get(key);
  return typeof answer === "string" ? answer : answer[metric.name] ?? null;
}

async function askPair(from, to, key) {
  panel.pairs.set(key, "asking…");
  const [a, b] = [from, to].map((row) => `${row.run.key}/${row.cell}`);
  const asked = fetch(`pair.json?${new URLSearchParams({ a, b })}`, { cache: "no-store" });
  const found = await asked.then((answer) => (answer.ok ? answer.json() : null)).catch(() => null);
  panel.pairs.set(key, found ?? "can't be asked now");
  drawPicked(pickedRows());
  if (!found) setTimeout(() => panel.pairs.delete(key) && drawPicked(pickedRows()), POLLED);
}

// Cells of one run that differ in nothing but the number of steps are on one line.
function lineOf(row) {
  const settings = board.columns.filter(({ kind, name }) => kind === "setting" && name !== "steps");
  return JSON.stringify([row.run.key, ...settings.map((column) => column.value(row))]);
}

function linesOf(picks) {
  board.lines ??= groupedBy(board.rows, lineOf);
  return [...groupedBy(picks, lineOf).keys()].map((key) => board.lines.get(key));
}

function drawChart(picks) {
  const [x, y] = [chosenAxis(), chosenMetric()];
  const isPoint = (row) => typeof x.value(row) === "number" && typeof y.value(row) === "number";
  const points = (rows) => rows.filter(isPoint).map((row) => pointOf(row, x.value(row), y));
  const lines = x && y ? linesOf(picks).map(points) : [];
  const isEmpty = !lines.flat().length;
  byId("chart-part").hidden = isEmpty;
  const isOther = (row) => row.group !== picks[0].group || (y && differingSettings(picks[0], row, y));
  const isMixed = picks.some(isOther);
  const note = isMixed ? " Cells of other protocols are drawn too, but are not comparable." : "";
  const bars = y?.error_means ? `Bars are ± ${y.error_means}.` : "";
  byId("chart-note").textContent = bars + note;
  byId("chart").replaceChildren(isEmpty ? "" : plot({ lines, xLabel: x.heading, yLabel: y.heading, isLogX: true }));
}

function pointOf(row, x, y) {
  const title = `${row.run.title}\n${row.label}\n${y.heading} ${shownIn(y, row)}`;
  return { x, y: y.value(row), error: y.errorOf(row) ?? 0, number: numberOf(row), title };
}

// An SVG of lines of points {x, y, error, number, title}; points that are picked have their mark and number.
function plot({ lines, xLabel, yLabel, isLogX, nights = [] }) {
  const width = Math.max(280, byId("panel-body").clientWidth);
  const { left, right, top, bottom, height } = CHART;
  const points = lines.flat();
  const xs = nights.length ? nights.map((_, i) => i) : points.map(({ x }) => x);
  const ys = points.flatMap(({ y, error }) => [y, y - error, y + error]);
  const across = scale(xs, isLogX, left + 10, width - right);
  const isLogY = view.log === "1" && points.every(({ y }) => y > 0);
  const up = scale(isLogY ? ys.filter((y) => y > 0) : ys, isLogY, height - bottom, top);
  const text = (words, x, y, anchor = "middle") => drawn("text", { x, y, "text-anchor": anchor }, words);
  const ticks = nights.length ? nights.map(({ id }, i) => [i, id]) : across.ticks([...new Set(xs)]);
  const turned = drawn("g", { transform: `translate(12,${height / 2 - 15}) rotate(-90)` }, text(yLabel, 0, 0));
  const title = `${yLabel} over ${xLabel}`;
  return drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
    ...up.ticks().map(([y]) => drawn("path", { d: `M${left},${up(y)}H${width - 10}`, class: "rule" })),
    ...up.ticks().map(([y, words]) => text(words, left - 8, up(y) + 4, "end")),
    ...thinned(ticks, across).map(([x, words]) => text(words, across(x), height - 26)),
    text(xLabel, (left + width) / 2, height - 6), turned,
    ...lines.map((line, i) => lineGroup(line, i, lines.length, across, up)),
    ...nights.map((night, i) => verdictMark(night, across(i), height - bottom + 2)));
}

// Ticks whose texts do not overlap.
function thinned(ticks, across) {
  let end = -Infinity;
  return ticks.filter(([x, words]) => {
    const isFree = across(x) - 3.5 * words.length > end + 6;
    if (isFree) end = across(x) + 3.5 * words.length;
    return isFree;
  });
}

function lineGroup(line, i, count, across, up) {
  const shift = Math.min(7, 56 / count) * (i - (count - 1) / 2); // lines of the same x must not hide each other's bars
  const ordered = line.map((point) => ({ ...point, left: across(point.x) + shift, top: up(point.y) }));
  ordered.sort((a, b) => a.x - b.x);
  const first = Math.min(...line.map(({ number }) => (number < 0 ? Infinity : number)));
  const path = `M${ordered.map(({ left, top }) => `${left},${top}`).join("L")}`;
  const marks = ordered.map(({ left, top, y, error, number, title }) => {
    const [isPicked, bar] = [number >= 0, `M${left},${up(y - error)}V${up(y + error)}`];
    const transform = `translate(${left},${top})${isPicked ? "" : " scale(0.6)"}`;
    return drawn("g", { class: isPicked ? `pick-${number}` : null }, drawn("title", {}, title),
      error > 0 ? drawn("path", { d: bar, class: "stroke" }) : null,
      drawn("path", { d: SHAPES[isPicked ? number : 0], class: "dot", transform }),
      isPicked ? drawn("text", { x: left + 8, y: top - 6, class: "number" }, String(number + 1)) : null);
  });
  const stroke = drawn("path", { d: path, class: "stroke" });
  return drawn("g", { class: `pick-${Number.isFinite(first) ? first : 0}` }, stroke, ...marks);
}

function scale(values, isWanted, from, to) {
  const isLog = isWanted && Math.min(...values) > 0;
  const on = isLog ? Math.log10 : (value) => value;
  const [least, most] = [on(Math.min(...values)), on(Math.max(...values))];
  const room = 0.04 * (most - least) || 0.1 * Math.abs(most) || 1;
  const [low, high] = [least - room, most + room];
  const place = (value) => {
    const share = isLog && value <= 0 ? 0 : (on(value) - low) / (high - low); // a bar that reaches 0 goes to the edge
    return Math.round(10 * (from + share * (to - from))) / 10;
  };
  place.ticks = (few = []) => {
    const sorted = few.length && few.length < 9 ? [...few].sort((a, b) => a - b) : null;
    const round = isLog ? roundNumbers(10 ** low, 10 ** high, true) : roundNumbers(low, high);
    return (sorted ?? round).map((value) => [value, String(Number(value.toPrecision(6)))]);
  };
  return place;
}

// Such as 10, 20, 50, 100 on a logarithmic scale, or about five at equal distances.
function roundNumbers(low, high, isLog = false) {
  const decades = Array.from({ length: 40 }, (_, i) => 10 ** (i - 20)).flatMap((ten) => [ten, 2 * ten, 5 * ten]);
  const found = decades.filter((number) => number >= low && number <= high);
  if (isLog && found.length > 2) return found;
  const step = decades.find((number) => number >= (high - low) / 5);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

// Images of the same indices: one of each cell, enlarged, and the strips to choose from.
function drawImages(picks) {
  const shown = picks.filter((row) => board.images.rows[row.number]);
  const noises = new Set(shown.map((row) => board.noise[row.number]));
  const isSame = shown.length > 1 && noises.size === 1 && !noises.has(null);
  byId("images-part").hidden = !shown.length;
  byId("images-note").hidden = !isSame;
  byId("index").max = board.images.per_cell - 1;
  byId("tiles").replaceChildren(...shown.map((row) => element("figure", { title: row.run.title },
    element("div", { class: "tile" }, imageOf(row)),
    element("figcaption", {}, mark(numberOf(row)), element("small", {}, row.label)))));
  byId("strips").replaceChildren(...shown.map((row) => element("div", { class: "strip" }, mark(numberOf(row)),
    element("div", { class: "images-of" }, imageOf(row), element("i")))));
  byId("tiles").classList.toggle("many", shown.length > 4);
  showIndex();
}

function imageOf(row) {
  const src = `images/${encodeURIComponent(row.run.key)}/${encodeURIComponent(row.cell)}.png`;
  const image = element("img", { src, alt: `Images of ${row.run.title}, ${row.label}`, draggable: "false" });
  image.addEventListener("load", () => {
    const width = image.naturalWidth / board.images.per_cell;
    image.classList.toggle("small", width <= SMALL);
    if (image.closest(".tile")) image.parentElement.style.aspectRatio = `${width} / ${image.naturalHeight}`;
  });
  image.addEventListener("error", () => image.parentElement.replaceChildren("no images"));
  return image;
}

function showIndex() {
  const count = board.images.per_cell;
  const index = Math.min(count - 1, Math.max(0, Math.floor(Number(view.index)) || 0));
  byId("index").value = index;
  byId("index-text").textContent = String(index);
  const shift = `translateX(${(-100 * index) / count}%)`;
  for (const image of document.querySelectorAll(".tile img")) image.style.transform = shift;
  const frame = { left: `${(100 * index) / count}%`, width: `${100 / count}%` };
  for (const chosen of document.querySelectorAll(".images-of i")) Object.assign(chosen.style, frame);
}

function chooseImage(event) {
  const box = event.target.closest(".images-of")?.getBoundingClientRect();
  if (!box) return;
  change({ index: String(Math.floor(((event.clientX - box.left) / box.width) * board.images.per_cell)) });
  showIndex();
}

// A metric over the nights of a history, for the picked cells of its runs, above the verdicts.
function drawTrends(picks) {
  byId("trends").replaceChildren(...board.histories.flatMap((history) => {
    const nights = history.nights.slice(-MOST_NIGHTS);
    const here = groupedBy(picks.filter((row) => row.run.history === history.key), (row) => row.label);
    const lines = [...here.keys()].map((label) => nightPoints(nights, label)).filter((line) => line.length);
    if (!lines.length) return [];
    const chart = plot({ lines, xLabel: "night", yLabel: chosenMetric().heading, nights });
    return [element("h3", {}, element("bdi", {}, history.title), ": nights"), chart];
  }));
}

function nightPoints(nights, label) {
  const y = chosenMetric();
  const ofRun = groupedBy(board.rows.filter((row) => row.label === label), (row) => row.run.key);
  const rows = nights.map((night) => ofRun.get(night.run)?.[0]);
  return rows.flatMap((row, i) => (row && typeof y?.value(row) === "number" ? [pointOf(row, i, y)] : []));
}

function verdictMark({ light, id, verdict, run }, x = 0, y = 0) {
  const href = board.runs.find(({ key }) => key === run)?.report;
  const title = `${id}: ${verdict}`;
  const shape = drawn("path", { d: VERDICTS.get(light) ?? VERDICTS.get("grey"), class: `verdict ${light}` });
  const own = drawn("g", { transform: `translate(${x},${y})` }, drawn("title", {}, title), shape);
  return linkTo(href).matches("a") ? drawn("a", { href, "aria-label": title }, own) : own;
}
