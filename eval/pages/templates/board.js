"use strict";

// The board's document is one JSON text in the page, and a served page replaces it by newer ones.
// Names, labels and paths in it are other people's texts: they reach the page as text nodes and attributes only.

const MOST_PICKED = 9;
const MISSING = "–";
const OPTIONS = ["text", "metric", "x", "against", "index", "curves", "log", "flat"];

const view = emptyView();
let board = null;

function emptyView() {
  const options = Object.fromEntries(OPTIONS.map((name) => [name, ""]));
  return { ...options, where: new Map(), sort: [], columns: null, picked: [] };
}

function byId(id) {
  return document.getElementById(id);
}

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      made.addEventListener(name, value);
    } else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A link if it leads to a file or a web page; else its text alone, so that no `javascript:` of a run's is ever followed.
function linkTo(href, ...children) {
  let leadsSomewhere = false;
  try {
    leadsSomewhere = Boolean(href) && ["http:", "https:", "file:"].includes(new URL(href, document.baseURI).protocol);
  } catch {
    // not an address
  }
  return leadsSomewhere ? element("a", { href, rel: "noreferrer" }, ...children) : element("span", {}, ...children);
}

// Numbers are rounded as eval/tables/entries.py does.
function decimals(number, digits) {
  const exponent = number ? Number(number.toExponential(digits - 1).split("e")[1]) : 0;
  return Math.min(Math.max(0, digits - 1 - exponent), 6);
}

function fixed(value, places) {
  return value.toFixed(places).replace(/^-(0(\.0*)?)$/, "$1");
}

function entry(value, error = null) {
  if (typeof value !== "number") {
    return value === null || value === undefined || value === "" ? MISSING : String(value);
  }
  if (typeof error !== "number" || !(error > 1e-9 * Math.abs(value))) {
    return fixed(Math.abs(value) < 5e-7 ? 0 : value, Math.max(2, decimals(value, 3)));
  }
  const places = decimals(error, 2);
  return `${fixed(value, places)} ± ${fixed(error, places)}`;
}

function plural(count, noun) {
  return `${count.toLocaleString("en-US")} ${noun}${count === 1 ? "" : "s"}`;
}

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) {
    return `${Math.max(1, Math.round(seconds))} s`;
  }
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function shownTime(time) {
  return time ? time.slice(0, 16).replace("T", " ") : MISSING;
}

// Everything that is looked up often: rows as objects, columns with functions, the groups.
function indexed(source) {
  const place = new Map(source.columns.map((column, i) => [column.name, i + 1]));
  const rows = source.rows.map((values, number) => {
    const run = source.runs[values[0]];
    const cell = String(values[place.get("cell")] ?? source.cells[number]);
    const label = source.cells[number];
    const [id, text] = [`${run.title}/${cell}`, `${run.title} ${label} ${cell}`.toLowerCase()];
    return { number, values, run, cell, label, id, text, group: source.groups[number] };
  });
  const groups = new Map();
  for (const row of rows) {
    const group = groups.get(row.group) ?? { protocol: source.protocols[row.values[place.get("protocol")]], size: 0 };
    groups.set(row.group, { ...group, size: group.size + 1 });
  }
  const differences = new Map(source.differences.map(([a, b, ...rest]) => [`${a} ${b} ${rest[0]}`, rest.slice(1)]));
  const ids = new Map(rows.map((row) => [row.id, row]));
  const columns = [...columnsOf(source, place)];
  const named = new Map(columns.map((column) => [column.name, column]));
  for (const column of columns) {
    column.isText = !rows.some((row) => typeof column.value(row) === "number");
  }
  const metrics = columns.filter((column) => column.kind === "metric" && !column.isText);
  return { source, rows, groups, differences, ids, columns, named, metrics, distinct: new Map(), lines: null };
}

function* columnsOf(source, place) {
  yield { name: "run", heading: "Run", kind: "text", value: (row) => row.run.title };
  yield { name: "label", heading: "Cell", kind: "text", value: (row) => row.label };
  for (const given of source.columns) {
    if (given.kind !== "error") {
      const [at, error] = [place.get(given.name), place.get(given.error)];
      const errorOf = (row) => (error === undefined ? null : row.values[error]);
      yield { ...given, value: (row) => row.values[at], errorOf };
    }
  }
  yield { name: "began", heading: "Began", kind: "text", value: (row) => row.run.began, shown: shownTime };
  yield { name: "state", heading: "State", kind: "text", value: (row) => row.run.state };
  yield { name: "devices", heading: "Devices", kind: "text", value: (row) => row.run.devices.join(", ") };
  yield { name: "version", heading: "taugrid", kind: "text", value: (row) => row.run.taugrid };
}

function shownIn(column, row) {
  const value = column.value(row);
  if (column.shown) {
    return column.shown(value);
  }
  if (column.kind === "metric") {
    return entry(value, column.errorOf(row));
  }
  return Number.isInteger(value) || column.kind === "setting" ? plainValue(value, column) : entry(value);
}

// A seed of 2,020 would look like a number of things.
function plainValue(value, column) {
  const isCount = Number.isInteger(value) && column.name !== "seed";
  return isCount ? value.toLocaleString("en-US") : entry(typeof value === "number" ? String(value) : value);
}

// Value as text -> the value and the number of its rows.
function distinctValues(column) {
  if (!board.distinct.has(column.name)) {
    const found = new Map();
    for (const row of board.rows) {
      const [value, key] = [column.value(row), keyOf(column, row)];
      found.set(key, { value, row, count: (found.get(key)?.count ?? 0) + 1 });
    }
    board.distinct.set(column.name, found);
  }
  return board.distinct.get(column.name);
}

function keyOf(column, row) {
  return String(column.value(row) ?? "");
}

function chosenMetric() {
  return board.metrics.find((metric) => metric.name === view.metric) ?? board.metrics[0] ?? null;
}

function pickedRows() {
  return view.picked.map((id) => board.ids.get(id)).filter(Boolean);
}

function numberOf(row) {
  return pickedRows().indexOf(row);
}

// The group that others are compared with: of the first picked cell, or the largest of the rows.
function referenceGroup(rows) {
  const [first] = pickedRows();
  if (first) {
    return first.group;
  }
  const sizes = new Map();
  rows.forEach((row) => sizes.set(row.group, (sizes.get(row.group) ?? 0) + 1));
  return [...sizes].reduce((best, size) => (size[1] > best[1] ? size : best), [null, 0])[0];
}

// Such as "N: 1,000, here 5,000", for each field of the protocols that differs.
function differingFields(reference, group) {
  const [mine, other] = [reference, group].map((name) => board.groups.get(name)?.protocol);
  if (!mine || !other) {
    return ["protocol not recorded"];
  }
  const fields = [...new Set([...Object.keys(mine), ...Object.keys(other)])].filter((name) => mine[name] !== other[name]);
  return fields.map((name) => `${fieldName(name)}: ${fieldValue(mine[name])}, here ${fieldValue(other[name])}`);
}

function fieldName(name) {
  return name === "num_samples" ? "N" : name;
}

function fieldValue(value) {
  const text = String(value ?? "not set");
  return /^\d+$/.test(text) ? Number(text).toLocaleString("en-US") : text.length > 40 ? `${text.slice(0, 40)}…` : text;
}

function inShort(fields) {
  return fields.slice(0, 3).join("; ") + (fields.length > 3 ? `; and ${fields.length - 3} more` : "");
}

// The fragment of the address holds the whole view. Cells are named by run and id, which survive a rebuilt index.
function writtenView() {
  const link = new URLSearchParams();
  OPTIONS.filter((name) => view[name] !== "").forEach((name) => link.set(name, view[name]));
  view.where.forEach((values, name) => values.forEach((value) => link.append(`where.${name}`, value)));
  view.sort.forEach(({ name, down }) => link.append("sort", (down ? "-" : "") + name));
  (view.columns ?? []).forEach((name) => link.append("column", name));
  view.picked.forEach((id) => link.append("pick", id));
  return `#${link}`;
}

function readView() {
  Object.assign(view, emptyView());
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (OPTIONS.includes(name)) {
      view[name] = value;
    } else if (name.startsWith("where.")) {
      const column = name.slice("where.".length);
      view.where.set(column, (view.where.get(column) ?? new Set()).add(value));
    } else if (name === "sort") {
      view.sort.push({ name: value.replace(/^-/, ""), down: value.startsWith("-") });
    } else if (name === "column") {
      view.columns = [...(view.columns ?? []), value];
    } else if (name === "pick" && view.picked.length < MOST_PICKED && !view.picked.includes(value)) {
      view.picked.push(value);
    }
  }
}

// A step of the browser's history for what was chosen; what is typed or dragged replaces the newest step.
function changed(isStep = true) {
  const link = writtenView();
  if (link !== (location.hash || "#")) {
    history[isStep ? "pushState" : "replaceState"](null, "", link);
  }
  draw();
}

function clearFilters() {
  view.text = "";
  view.where.clear();
  changed();
}

function togglePick(row) {
  if (view.picked.includes(row.id)) {
    view.picked = view.picked.filter((id) => id !== row.id);
  } else if (pickedRows().length < MOST_PICKED) {
    view.picked = [...view.picked.filter((id) => board.ids.has(id)), row.id];
  } else {
    say(`At most ${MOST_PICKED} cells can be compared: unpick one first.`);
    draw();
    return;
  }
  say("");
  changed();
}

function say(text) {
  byId("said").textContent = text;
}

function draw() {
  drawFilters();
  drawTable();
  drawPanel();
}

function show(source) {
  board = indexed(source);
  drawRuns();
  draw();
}
