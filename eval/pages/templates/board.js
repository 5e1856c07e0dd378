"use strict";

// The board's document is one JSON text in the page, and a served page replaces it by newer ones.
// Names, labels and paths in it are other people's texts: they reach the page as text nodes and attributes only.

const MOST_PICKED = 9;
const MISSING = "–";
const OPTIONS = ["text", "metric", "x", "against", "index", "log", "sort"];
const TOLD_OTHERWISE = ["model", "sigma"]; // by the run or the grid's key, and by eta: shown if they are chosen
const SVG = "http://www.w3.org/2000/svg";

const noOptions = Object.fromEntries(OPTIONS.map((name) => [name, ""]));
const emptyView = () => ({ ...noOptions, where: new Map(), columns: null, picked: [] });
const view = emptyView();
let board = null;

const byId = (id) => document.getElementById(id);
const element = (name, attributes, ...children) => filled(document.createElement(name), attributes, children);
const drawn = (name, attributes, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (![null, undefined, false].includes(value)) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Only links to files and web pages are made, so no run's `javascript:` is ever followed.
function linkTo(href, ...children) {
  const link = element("a", { href, rel: "noreferrer" });
  const made = href && ["http:", "https:", "file:"].includes(link.protocol) ? link : element("span");
  return filled(made, {}, children);
}

// Numbers are rounded as eval/tables/entries.py does.
function decimals(number, digits) {
  const exponent = number ? Number(number.toExponential(digits - 1).split("e")[1]) : 0;
  return Math.min(Math.max(0, digits - 1 - exponent), 6);
}

const fixed = (value, places) => value.toFixed(places).replace(/^-(0(\.0*)?)$/, "$1");

function entry(value, error = null) {
  if (typeof value !== "number") return String(value ?? "") || MISSING;
  const size = Math.abs(value) < 5e-7 ? 0 : value;
  if (typeof error !== "number" || !(error > 1e-9 * Math.abs(value))) return fixed(size, Math.max(2, decimals(size, 3)));
  const places = decimals(error, 2);
  return `${fixed(value, places)} ± ${fixed(error, places)}`;
}

const thousands = (count) => count.toLocaleString("en-US");
const plural = (count, noun) => `${thousands(count)} ${noun}${count === 1 ? "" : "s"}`;
const shownTime = (time) => (time ? time.slice(0, 16).replace("T", " ") : MISSING);

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return `${Math.max(1, Math.round(seconds))} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// Key -> the things that have it, in their order.
function groupedBy(things, keyOfThing) {
  const groups = new Map();
  for (const thing of things) {
    const key = keyOfThing(thing);
    groups.has(key) ? groups.get(key).push(thing) : groups.set(key, [thing]);
  }
  return groups;
}

// The document with what is often looked up: rows as objects, columns with functions.
function indexed(source) {
  const place = new Map(source.columns.map((column, i) => [column.name, i + 1]));
  const rows = source.rows.map((values, number) => {
    const [run, label] = [source.runs[values[0]], source.cells[number]];
    const cell = String(values[place.get("cell")] ?? label);
    const text = `${run.title} ${label} ${cell}`.toLowerCase();
    const [id, group] = [wellFormed(`${run.title}/${cell}`), source.groups[number]];
    const settings = run.settings?.[values[place.get("protocol")]] ?? {};
    return { number, values, run, cell, label, id, text, group, settings };
  });
  const columns = [...columnsOf(source, place)];
  for (const column of columns) column.isText = !rows.some((row) => typeof column.value(row) === "number");
  const metrics = columns.filter((column) => column.kind === "metric" && !column.isText);
  const hasErrors = (metric) => rows.some((row) => typeof metric.seOf(row) === "number");
  return {
    ...source, rows, columns, lines: null,
    ids: new Map(rows.map((row) => [row.id, row])),
    named: new Map(columns.map((column) => [column.name, column])),
    metrics,
    judge: metrics.find((metric) => metric.better === "lower" && hasErrors(metric)) ?? metrics[0] ?? null,
    recorded: new Map(source.differences.map(([a, b, metric, ...rest]) => [`${a} ${b} ${metric}`, rest])),
  };
}

function* columnsOf(source, place) {
  const ofRun = (name, heading, value, shown = null) => ({ name, heading, kind: "text", value, shown });
  yield ofRun("run", "Run", (row) => row.run.title);
  yield ofRun("label", "Cell", (row) => row.label);
  const kinds = ["setting", "metric", "number", "text"];
  for (const given of kinds.flatMap((each) => source.columns.filter(({ kind }) => kind === each))) {
    const [value, errorOf, seOf] = [given.name, given.error, given.se].map((name) => (row) => row.values[place.get(name)] ?? null);
    yield { ...given, value, errorOf, seOf };
  }
  yield ofRun("began", "Began", (row) => row.run.began, shownTime);
  yield ofRun("state", "State", (row) => row.run.state);
  yield ofRun("devices", "Devices", (row) => row.run.devices.join(", "));
  yield ofRun("version", "taugrid", (row) => row.run.taugrid);
}

function shownIn(column, row) {
  const value = column.value(row);
  if (column.shown) return column.shown(value);
  if (column.kind === "metric") return entry(value, column.errorOf(row));
  if (Number.isInteger(value) && column.name !== "seed") return thousands(value);
  return column.kind === "setting" ? entry(typeof value === "number" ? String(value) : value) : entry(value);
}

// Half a character, from a file's name that is no UTF-8, can't stand in an address.
const wellFormed = (text) => text.replace(/[\ud800-\udfff]/gu, "\ufffd");
const keyOf = (column, row) => wellFormed(String(column.value(row) ?? ""));
// Value as text -> the rows that have it.
const rowsByValue = (column) => (column.byValue ??= groupedBy(board.rows, (row) => keyOf(column, row)));
const chosenMetric = () => board.metrics.find((metric) => metric.name === view.metric) ?? board.judge;
const pickedRows = () => view.picked.map((id) => board.ids.get(id)).filter(Boolean);
const numberOf = (row) => pickedRows().indexOf(row);

// Such as "N: 1,000, here 5,000", for each field of the protocols that differs; null if the groups may be compared.
function differingFields(reference, group) {
  if (reference === null || group === null) return ["protocol not recorded"];
  if (reference === group) return null;
  const [mine, other] = [board.protocols[reference], board.protocols[group]];
  const names = [...new Set([...Object.keys(mine), ...Object.keys(other)])].filter((name) => mine[name] !== other[name]);
  return names.map((name) => `${fieldName(name)}: ${fieldValue(mine[name])}, here ${fieldValue(other[name])}`);
}

// As `differingFields`, of the settings of metrics that change this one; null if the rows may be compared by it.
function differingSettings(reference, row, metric) {
  const names = (metric.settings ?? []).filter((name) => reference.settings[name] !== row.settings[name]);
  const words = names.map((name) => `${name}: ${fieldValue(reference.settings[name])}, here ${fieldValue(row.settings[name])}`);
  return words.length ? words : null;
}

const fieldName = (name) => (name === "num_samples" ? "N" : name);
const inShort = (fields, few = 3) =>
  fields.slice(0, few).join("; ") + (fields.length > few ? `; and ${fields.length - few} more` : "");

function fieldValue(value) {
  const text = String(value ?? "not set");
  return /^\d+$/.test(text) ? thousands(Number(text)) : text.length > 40 ? `${text.slice(0, 40)}…` : text;
}

// The fragment of the address holds the whole view. Cells are named by run and id, which survive a rebuilt index.
function writtenView() {
  const link = new URLSearchParams();
  for (const name of OPTIONS) if (view[name]) link.set(name, view[name]);
  for (const [name, values] of view.where) for (const value of values) link.append(`where.${name}`, value);
  for (const name of view.columns ?? []) link.append("column", name);
  for (const id of view.picked) link.append("pick", id);
  return `#${link}`;
}

function readView() {
  Object.assign(view, emptyView());
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const column = name.startsWith("where.") ? name.slice("where.".length) : null;
    if (OPTIONS.includes(name)) view[name] = value;
    if (column) view.where.set(column, (view.where.get(column) ?? new Set()).add(value));
    if (name === "column") view.columns = [...(view.columns ?? []), value];
    if (name === "pick") view.picked = [...new Set([...view.picked, value])].slice(0, MOST_PICKED);
  }
}

// A step of the browser's history for what was chosen; what is typed or dragged replaces the newest step.
function changed(isStep = true) {
  const link = writtenView();
  if (link !== (location.hash || "#")) history[isStep ? "pushState" : "replaceState"](null, "", link);
  draw();
}

function change(changes) {
  Object.assign(view, changes);
  changed();
}

function togglePick(row) {
  const others = view.picked.filter((id) => id !== row.id && board.ids.has(id));
  const isRefused = !view.picked.includes(row.id) && others.length === MOST_PICKED;
  byId("said").textContent = isRefused ? `At most ${MOST_PICKED} cells can be compared: unpick one first.` : "";
  change({ picked: isRefused || view.picked.includes(row.id) ? others : [...others, row.id] });
}

function draw() {
  for (const drawPart of [drawFilters, drawTable, drawPanel]) drawPart();
}

function show(source) {
  board = indexed(source);
  drawRuns();
  draw();
}
