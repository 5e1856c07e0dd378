"use strict";

// The table: filters, sorting, groups, and the rows that are in sight. Rows outside the window have no elements.

const ROW = 30; // pixels, as in board.css
const BEYOND = 12; // rows kept above and below the window
const MOST_PRINTED = 500;
const MOST_CHOICES = 200;

const table = { key: "", items: [], rows: [], first: -1, active: null, printing: false };

function isShown(row, except) {
  if (view.text && !view.text.toLowerCase().split(/\s+/).every((word) => row.text.includes(word))) {
    return false;
  }
  for (const [name, values] of view.where) {
    const column = board.named.get(name);
    if (name !== except && column && !values.has(keyOf(column, row))) {
      return false;
    }
  }
  return true;
}

function compared(one, other) {
  if (typeof one === "number" && typeof other === "number") {
    return one - other;
  }
  return typeof one === typeof other ? COLLATOR.compare(one, other) : typeof one === "number" ? -1 : 1;
}

const COLLATOR = new Intl.Collator("en", { numeric: true });

// Missing values come last, whichever way a column is sorted.
function bySort(one, other) {
  for (const { name, down } of view.sort) {
    const column = board.named.get(name);
    if (column) {
      const [a, b] = [column.value(one) ?? "", column.value(other) ?? ""];
      const order = a === "" || b === "" ? (a === "") - (b === "") : compared(a, b) * (down ? -1 : 1);
      if (order) {
        return order;
      }
    }
  }
  return one.number - other.number;
}

// The rows to show, and before each group a heading. Groups are in an order that does not change when cells are picked.
function arrange() {
  const key = JSON.stringify([view.text, [...view.where].map(([name, values]) => [name, ...values]), view.sort, view.flat]);
  if (table.key === key && table.board === board) {
    return;
  }
  const rows = board.rows.filter((row) => isShown(row));
  rows.sort(bySort);
  const groups = grouped(rows);
  const bySize = [...groups].sort(([a, one], [b, other]) => other.length - one.length || (a < b ? -1 : 1));
  const withHeadings = bySize.flatMap(([group, members]) => [{ group, size: members.length }, ...members]);
  const items = view.flat || groups.size < 2 ? rows : withHeadings;
  Object.assign(table, { key, board, rows, items, groups, first: -1, bests: bestOf(groups) });
}

function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    groups.has(row.group) ? groups.get(row.group).push(row) : groups.set(row.group, [row]);
  }
  return groups;
}

// Group and metric -> the best value that is shown.
function bestOf(groups) {
  const bests = new Map();
  for (const metric of board.metrics.filter(({ better }) => better)) {
    for (const [group, rows] of groups) {
      const values = rows.map(metric.value).filter((value) => typeof value === "number");
      const best = values.reduce((a, b) => (metric.better === "lower" ? a < b : a > b) ? a : b, values[0]);
      bests.set(`${group} ${metric.name}`, values.length > 1 ? best : undefined);
    }
  }
  return bests;
}

function defaultColumns() {
  const settings = board.columns.filter((column) => column.kind === "setting" && distinctValues(column).size > 1);
  const shown = ["run", ...(settings.length ? settings : [board.named.get("label")]).map(({ name }) => name)];
  return [...shown, ...board.metrics.slice(0, 4).map(({ name }) => name)];
}

function shownColumns() {
  const names = new Set(["run", ...(view.columns ?? defaultColumns())]);
  const columns = board.columns.filter(({ name }) => names.has(name));
  const differs = { name: "differs", heading: "Not comparable", kind: "text", isText: true, value: (row) => differing(row) };
  return view.flat && table.groups.size > 1 ? [...columns, differs] : columns;
}

function differing(row) {
  return row.group === table.reference ? "" : inShort(differingFields(table.reference, row.group));
}

function drawTable() {
  arrange();
  table.reference = referenceGroup(table.rows);
  table.columns = shownColumns();
  if (!table.rows.includes(table.active)) {
    table.active = board.ids.get(table.active?.id) ?? null;
  }
  drawHead();
  table.first = -1;
  drawWindow();
  drawCounts();
}

function drawHead() {
  const widths = table.columns.map(widthOf);
  const total = widths.reduce((a, b) => a + b, 0);
  byId("widths").replaceChildren(...widths.map((width, i) => {
    const column = element("col");
    column.style.width = i ? `${width}ch` : `min(${width}ch, 45vw)`;
    return column;
  }));
  byId("grid").style.width = `${total}ch`;
  const focused = document.activeElement?.closest?.("#head button")?.dataset.sort;
  byId("head").replaceChildren(element("tr", { "aria-rowindex": 1 }, ...table.columns.map(headOf)));
  byId("head").querySelector(`[data-sort="${CSS.escape(focused ?? "")}"]`)?.focus();
}

// Of some rows, so that it costs the same for any number of them.
function widthOf(column, i) {
  const step = Math.max(1, Math.floor(table.rows.length / 200));
  const sample = table.rows.filter((_, number) => number % step === 0);
  const widest = Math.max(column.heading.length + 1, ...sample.map((row) => shownIn(column, row).length));
  return Math.min(widest, column.kind === "text" ? 30 : 22) + (i ? 3 : 8);
}

function headOf(column) {
  const [sorted] = view.sort;
  const down = sorted?.name === column.name ? sorted.down : null;
  const order = { true: "descending", false: "ascending", null: "none" }[down];
  const arrow = { true: " ▼", false: " ▲", null: "" }[down];
  const about = column.better ? `${column.heading}: ${column.better} is better` : column.heading;
  const button = element("button", { type: "button", "data-sort": column.name, title: about }, column.heading + arrow);
  return element("th", { scope: "col", class: kindClass(column), "aria-sort": order }, button);
}

function kindClass(column) {
  return column.isText ? "words" : "";
}

// The best of a metric comes first at the first click; a third click undoes. What was sorted before decides ties.
function sortBy(name) {
  const [sorted, ...others] = view.sort;
  const downFirst = board.named.get(name)?.better === "higher";
  if (sorted?.name !== name) {
    view.sort = [{ name, down: downFirst }, ...view.sort.filter((other) => other.name !== name)].slice(0, 3);
  } else {
    view.sort = sorted.down === downFirst ? [{ name, down: !downFirst }, ...others] : others;
  }
  changed();
}

function drawWindow() {
  const scroller = byId("scroller");
  const count = table.printing ? MOST_PRINTED : Math.ceil(scroller.clientHeight / ROW) + 2 * BEYOND;
  const last = Math.max(0, table.items.length - count);
  const first = table.printing ? 0 : Math.min(last, Math.max(0, Math.floor(scroller.scrollTop / ROW) - BEYOND));
  if (first === table.first) {
    return;
  }
  table.first = first;
  const shown = table.items.slice(first, first + count);
  const below = table.items.length - first - shown.length;
  const lines = shown.map((item, i) => (item.id === undefined ? headingLine(item) : rowLine(item, first + i)));
  byId("rows").replaceChildren(spaceOf(first), ...lines, spaceOf(table.printing ? 0 : below));
  byId("grid").setAttribute("aria-rowcount", table.items.length + 1);
  markActive();
}

function spaceOf(rows) {
  const cell = element("td", { colspan: table.columns.length });
  cell.style.height = `${rows * ROW}px`;
  return element("tr", { class: "space", "aria-hidden": "true", hidden: rows === 0 }, cell);
}

function headingLine({ group, size }) {
  const isReference = group === table.reference;
  const fields = isReference ? [] : differingFields(table.reference, group);
  const words = isReference ? "Comparable with each other" : `Not comparable: ${inShort(fields)}`;
  const text = element("span", { title: fields.join("\n") }, words, element("small", {}, plural(size, "cell")));
  const className = isReference ? "heading" : "heading other";
  return element("tr", { class: className }, element("td", { colspan: table.columns.length }, text));
}

function rowLine(row, at) {
  const number = numberOf(row);
  const differs = differing(row);
  const line = element("tr", {
    id: `row-${row.number}`, "data-row": row.number, "aria-rowindex": at + 2, "aria-selected": String(number >= 0),
    class: [differs ? "other" : "", number >= 0 ? "picked" : ""].join(" ").trim() || null,
    title: differs ? `Not comparable: ${differingFields(table.reference, row.group).join("; ")}` : null,
  });
  const [, ...others] = table.columns;
  line.append(runCell(row, number), ...others.map((column) => cellOf(column, row)));
  return line;
}

function runCell(row, number) {
  const label = `Compare ${row.run.title}, ${row.label}`;
  const box = element("input", { type: "checkbox", tabindex: -1, "aria-label": label, checked: number >= 0 });
  const name = element("button", { type: "button", class: "run", tabindex: -1, title: row.run.title }, row.run.title);
  const state = row.run.state === "finished" ? null : element("small", {}, stateOf(row.run));
  return element("th", { scope: "row" }, box, number >= 0 ? mark(number) : null, name, state);
}

function stateOf({ state, progress }) {
  const done = state === "running" && progress?.total ? `${Math.floor((100 * progress.done) / progress.total)} %` : "";
  return done || state;
}

function cellOf(column, row) {
  const text = shownIn(column, row);
  const isBest = column.better && column.value(row) === table.bests.get(`${row.group} ${column.name}`);
  const classes = [kindClass(column), isBest ? "best" : ""].join(" ").trim();
  const title = text.length > 20 ? text : null;
  return element("td", { class: classes || null, title }, text);
}

function drawCounts() {
  const runs = new Set(table.rows.map((row) => row.run)).size;
  const all = `${plural(board.rows.length, "cell")} of ${plural(board.source.runs.length, "run")}`;
  const some = `${table.rows.length.toLocaleString("en-US")} of ${plural(board.rows.length, "cell")}, ${plural(runs, "run")}`;
  const picked = pickedRows().length ? `${pickedRows().length} picked` : "tick two to nine cells to compare them";
  byId("count").textContent = `${table.rows.length === board.rows.length ? all : some}; ${picked}`;
  byId("clear-filters").hidden = !view.text && !view.where.size;
  byId("printed").textContent =
    table.items.length > MOST_PRINTED ? `The first ${MOST_PRINTED} of ${table.items.length} lines are printed.` : "";
  drawEmpty();
}

function drawEmpty() {
  const { runs, places } = board.source;
  const empty = byId("empty");
  empty.hidden = table.rows.length > 0;
  byId("scroller").hidden = !empty.hidden;
  if (!runs.length) {
    empty.textContent = `No run was found in ${places.join(", ")}: a run is a folder with the file run.json.`;
  } else if (!board.rows.length) {
    empty.textContent = `No cell is scored yet in ${plural(runs.length, "run")}.`;
  } else {
    const clear = element("button", { type: "button", click: clearFilters }, "Clear the filters");
    empty.replaceChildren("No cell passes the filters. ", clear);
  }
}

// The keyboard moves an active row, which need not exist as an element: the table keeps the focus.
function markActive() {
  byId("rows").querySelector(".active")?.classList.remove("active");
  const line = table.active && byId(`row-${table.active.number}`);
  line?.classList.add("active");
  byId("grid").setAttribute("aria-activedescendant", line ? line.id : "");
}

function activate(row, isMoved = true) {
  table.active = row;
  if (isMoved && row) {
    const scroller = byId("scroller");
    const top = table.items.indexOf(row) * ROW;
    const room = scroller.clientHeight - byId("head").offsetHeight - ROW;
    scroller.scrollTop = Math.min(top, Math.max(scroller.scrollTop, top - room + 1));
    drawWindow();
  }
  markActive();
}

function moveActive(steps) {
  const at = table.rows.length ? activeOrder().indexOf(table.active) : -1;
  const order = activeOrder();
  const next = at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + steps));
  activate(order[next] ?? null);
}

function activeOrder() {
  return table.items.filter((item) => item.id !== undefined);
}

function gridKey(event) {
  const page = Math.max(1, Math.floor(byId("scroller").clientHeight / ROW) - 2);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.target !== byId("grid")) {
    return;
  }
  if (event.key in moves) {
    moveActive(moves[event.key]);
  } else if (event.key === " " && table.active) {
    togglePick(table.active);
  } else if (event.key === "Enter" && table.active) {
    showDetails(table.active);
  } else {
    return;
  }
  event.preventDefault();
}

function gridClick(event) {
  const sort = event.target.closest("[data-sort]");
  const row = board.rows[event.target.closest("[data-row]")?.dataset.row];
  if (sort) {
    sortBy(sort.dataset.sort);
  } else if (row) {
    byId("grid").focus({ preventScroll: true }); // the row's own elements are about to be replaced
    activate(row, false);
    if (event.target.matches("input")) {
      togglePick(row);
    } else if (event.target.matches("button")) {
      showDetails(row);
    }
  }
}

// A menu of boxes for each setting with more than one value; its list is made when it is opened.
function drawFilters() {
  const isChoice = (column) => column.kind === "setting" || ["state", "devices"].includes(column.name);
  const columns = board.columns.filter((column) => isChoice(column) && distinctValues(column).size > 1);
  const names = columns.map(({ name }) => name).join("\n");
  const menus = byId("filters");
  if (menus.dataset.names !== names) {
    menus.dataset.names = names;
    menus.replaceChildren(...columns.map((column) => filterMenu(column.name)));
  }
  for (const menu of menus.children) {
    const column = board.named.get(menu.dataset.filter);
    const chosen = [...(view.where.get(column.name) ?? [])].map((value) => choiceText(column, value));
    menu.classList.toggle("chosen", chosen.length > 0);
    const words = chosen.length > 2 ? `${chosen.length} values` : chosen.join(", ");
    menu.firstChild.textContent = chosen.length ? `${column.heading}: ${words}` : column.heading;
  }
  if (document.activeElement !== byId("text")) {
    byId("text").value = view.text;
  }
  byId("flat").checked = !view.flat;
}

function choiceText(column, key) {
  const known = distinctValues(column).get(key);
  return known ? shownIn(column, known.row) : key;
}

function filterMenu(name) {
  const menu = element("details", { class: "menu", "data-filter": name });
  const list = element("div", { class: "choices", role: "group", "aria-label": board.named.get(name).heading });
  menu.append(element("summary"), list);
  menu.addEventListener("toggle", () => menu.open && list.replaceChildren(...filterChoices(name)));
  return menu;
}

function filterChoices(name) {
  const column = board.named.get(name);
  const counts = new Map();
  board.rows.filter((row) => isShown(row, name)).forEach((row) => {
    counts.set(keyOf(column, row), (counts.get(keyOf(column, row)) ?? 0) + 1);
  });
  const values = [...distinctValues(column)].sort(([, a], [, b]) => compared(a.value ?? "", b.value ?? ""));
  const boxes = values.slice(0, MOST_CHOICES).map(([key, { row }]) => {
    const choose = (event) => chooseValue(name, key, event.target.checked);
    return choice(shownIn(column, row), view.where.get(name)?.has(key), choose, counts.get(key) ?? 0);
  });
  const left = values.length - MOST_CHOICES;
  return left > 0 ? [...boxes, element("p", {}, `${plural(left, "more value")}: use the text filter`)] : boxes;
}

function choice(text, checked, change, count = null) {
  const box = element("input", { type: "checkbox", checked, change });
  return element("label", {}, box, element("bdi", {}, text), count === null ? null : element("small", {}, String(count)));
}

function chooseValue(name, value, isChosen) {
  const values = new Set(view.where.get(name));
  values[isChosen ? "add" : "delete"](value);
  view.where.delete(name);
  if (values.size) {
    view.where.set(name, values);
  }
  changed();
}

function columnChoices() {
  const shown = new Set(view.columns ?? defaultColumns());
  const boxes = board.columns.filter(({ name }) => name !== "run").map((column) =>
    choice(column.heading, shown.has(column.name), (event) => {
      shown[event.target.checked ? "add" : "delete"](column.name);
      view.columns = board.columns.map(({ name }) => name).filter((name) => shown.has(name));
      changed();
    }));
  const reset = () => {
    view.columns = null;
    changed();
    byId("column-choices").replaceChildren(...columnChoices());
  };
  return [...boxes, element("button", { type: "button", click: reset }, "Default columns")];
}
