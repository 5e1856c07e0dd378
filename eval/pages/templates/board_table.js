"use strict";

// The table: filters, sorting, groups, and the rows that are in sight. Rows outside the window have no elements.

const ROW = 30; // pixels, as in board.css
const BEYOND = 12; // rows kept above and below the window
const MOST_CHOICES = 200;
const MOST_METRICS = 4; // columns, unless others are chosen
const COLLATOR = new Intl.Collator("en", { numeric: true });

const table = { key: "", items: [], rows: [], first: -1, constants: [], active: null };

function isShown(row, words) {
  if (!words.every((word) => row.text.includes(word))) return false;
  for (const [name, values] of view.where) {
    const column = board.named.get(name);
    if (column && !values.has(keyOf(column, row))) return false;
  }
  return true;
}

function shownRows() {
  const words = view.text.toLowerCase().split(/\s+/);
  return board.rows.filter((row) => isShown(row, words));
}

// Numbers before words, and missing values last, whichever way a column is sorted.
function compared(one, other, sign = 1) {
  const [a, b] = [one ?? "", other ?? ""];
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a !== typeof b) return sign * (typeof a === "number" ? -1 : 1);
  return sign * (typeof a === "number" ? a - b : COLLATOR.compare(a, b));
}

function bySort(one, other) {
  const [column, sign] = [board.named.get(view.sort.replace(/^-/, "")), view.sort.startsWith("-") ? -1 : 1];
  return (column && compared(column.value(one), column.value(other), sign)) || one.number - other.number;
}

// The rows to show, and before each group a heading. Picking changes no order: rows must not jump under the pointer.
function arrange() {
  const where = [...view.where].map(([name, values]) => [name, ...values]);
  const key = JSON.stringify([view.text, where, view.sort]);
  if (table.key === key && table.board === board) return;
  const rows = shownRows().sort(bySort);
  const groups = groupedBy(rows, (row) => row.group);
  const bySize = [...groups].sort(([a, one], [b, other]) => other.length - one.length || (a < b ? -1 : 1));
  const withHeadings = bySize.flatMap(([group, members]) => [{ group, size: members.length }, ...members]);
  const items = groups.size < 2 ? rows : withHeadings;
  const isConstant = (column) => rows.every((row) => column.value(row) === column.value(rows[0]));
  const constants = board.columns.filter((column) => column.kind === "setting" && isConstant(column));
  Object.assign(table, { key, board, rows, items, constants, largest: bySize[0]?.[0] ?? null });
}

// Settings that differ between the shown rows, and metrics; what is the same everywhere is told above the table.
function defaultColumns() {
  const settings = board.columns.filter(({ kind, name }) => kind === "setting" && !TOLD_OTHERWISE.includes(name));
  const varying = settings.filter((column) => !table.constants.includes(column));
  const metrics = board.metrics.filter((metric, i) => i < MOST_METRICS || metric === chosenMetric());
  return [...(varying.length ? varying : [board.named.get("label")]), ...metrics].map(({ name }) => name);
}

function saidOfAll() {
  const isTold = (column) => !table.columns.includes(column) && keyOf(column, table.rows[0]);
  const told = table.constants.filter(isTold);
  const words = told.map((column) => `${column.heading} = ${shownIn(column, table.rows[0])}`).join(", ");
  return words && `Everywhere: ${words}`;
}

function drawTable() {
  arrange();
  table.reference = pickedRows().length ? pickedRows()[0].group : table.largest;
  table.beside = pickedRows().length ? [pickedRows()[0]] : table.rows.filter((row) => row.group === table.largest);
  const names = new Set(["run", ...(view.columns ?? defaultColumns())]);
  table.columns = board.columns.filter(({ name }) => names.has(name));
  table.active = table.rows.find((row) => row.id === table.active?.id) ?? null;
  table.first = -1;
  drawHead();
  drawWindow();
  drawCounts();
}

function drawHead() {
  const step = Math.ceil(table.rows.length / 200); // a sample, so that it costs the same for any number of rows
  const sample = table.rows.filter((_, number) => number % step === 0);
  const widths = table.columns.map((column, i) => widthOf(column, sample) + (i ? 2.6 : pickedRows().length ? 11 : 7));
  const columns = widths.map(() => element("col"));
  columns.forEach((column, i) => (column.style.width = i ? `${widths[i]}ch` : `min(${widths[i]}ch, 45vw)`));
  byId("widths").replaceChildren(...columns);
  const focused = document.activeElement.dataset.sort;
  byId("head").replaceChildren(element("tr", { "aria-rowindex": 1 }, ...table.columns.map(headOf)));
  byId("head").querySelector(`[data-sort="${CSS.escape(focused ?? "")}"]`)?.focus();
}

function widthOf(column, rows) {
  const widest = Math.max(column.heading.length + 2, ...rows.map((row) => shownIn(column, row).length));
  return Math.min(column.isText ? 0.85 * widest : widest, 22); // letters are narrower than digits
}

function headOf(column) {
  const order = { [column.name]: "ascending", [`-${column.name}`]: "descending" }[view.sort] ?? "none";
  const arrow = { ascending: " ▲", descending: " ▼" }[order] ?? "";
  const meaning = column.error_means ? `; ± is ${column.error_means}` : "";
  const title = column.better ? `${column.heading}: ${column.better} is better${meaning}` : column.heading;
  const button = element("button", { type: "button", "data-sort": column.name, title }, column.heading + arrow);
  return element("th", { scope: "col", class: classOf(column), "aria-sort": order }, button);
}

// The metric of the panel is in sight however many columns there are.
function classOf(column) {
  const classes = { words: column.isText, key: column === chosenMetric() };
  return Object.keys(classes).filter((name) => classes[name]).join(" ") || null;
}

// The first click puts the best first, the second the worst, the third undoes it.
function sortBy(name) {
  const [best, worst] = board.named.get(name)?.better === "higher" ? [`-${name}`, name] : [name, `-${name}`];
  change({ sort: { [best]: worst, [worst]: "" }[view.sort] ?? best });
}

function drawWindow() {
  const scroller = byId("scroller");
  const isMore = scroller.scrollWidth - scroller.clientWidth - scroller.scrollLeft > 1;
  scroller.parentElement.classList.toggle("more", isMore);
  const count = Math.ceil(window.innerHeight / ROW) + 2 * BEYOND;
  const top = Math.floor(scroller.scrollTop / ROW) - BEYOND;
  const first = Math.max(0, Math.min(top, table.items.length - count));
  if (first === table.first) return;
  table.first = first;
  const shown = table.items.slice(first, first + count);
  const below = table.items.length - first - shown.length;
  const lines = shown.map((item, i) => (item.id === undefined ? headingLine(item) : rowLine(item, first + i)));
  byId("rows").replaceChildren(spaceOf(first), ...lines, spaceOf(below));
  byId("grid").setAttribute("aria-rowcount", table.items.length + 1);
  markActive();
}

function spaceOf(rows) {
  const cell = element("td", { colspan: table.columns.length });
  cell.style.height = `${rows * ROW}px`;
  return element("tr", { class: "space", "aria-hidden": "true", hidden: rows === 0 }, cell);
}

function headingLine({ group, size }) {
  const fields = differingFields(table.reference, group);
  const others = `not with the ${pickedRows().length ? "first picked cell" : "largest group"}: ${inShort(fields ?? [])}`;
  const words = group === null ? "Not comparable: protocol not recorded"
    : fields ? `Comparable with each other, ${others}` : "Comparable with each other";
  const text = element("span", { title: fields?.join("\n") }, words, element("small", {}, plural(size, "cell")));
  const cell = element("td", { colspan: table.columns.length }, text);
  return element("tr", { class: fields ? "heading other" : "heading" }, cell);
}

function rowLine(row, at) {
  const [number, fields] = [numberOf(row), differingFields(table.reference, row.group)];
  return element("tr", {
    id: `row-${row.number}`, "data-row": row.number, "aria-rowindex": at + 2, "aria-selected": String(number >= 0),
    class: [fields && "other", number >= 0 && "picked"].filter(Boolean).join(" ") || null,
    title: fields && `Not comparable: ${fields.join("; ")}`,
  }, runCell(row, number), ...table.columns.slice(1).map((column) => cellOf(column, row)));
}

function runCell(row, number) {
  const { title, state, progress } = row.run;
  const label = `Compare ${title}, ${row.label}`;
  const box = element("input", { type: "checkbox", tabindex: -1, "aria-label": label, checked: number >= 0 });
  const name = element("span", { class: "run", title }, title || MISSING);
  const share = state === "running" && progress?.total ? Math.floor((100 * progress.done) / progress.total) : null;
  const about = state === "finished" ? null : element("small", {}, share === null ? state : `${share} %`);
  return element("th", { scope: "row" }, box, number >= 0 ? mark(number) : null, name, about);
}

function cellOf(column, row) {
  const text = shownIn(column, row);
  const fields = differingFromReference(column, row);
  const title = fields ? `Not comparable: ${fields.join("; ")}` : text.length > 20 ? text : null;
  return element("td", { class: [classOf(column), fields && "other"].filter(Boolean).join(" ") || null, title }, text);
}

// The settings of a metric in which a row differs from the first one beside it that has a value; null: in none.
function differingFromReference(column, row) {
  if (!column.settings?.length || typeof column.value(row) !== "number") return null;
  const reference = table.beside.find((other) => typeof column.value(other) === "number");
  return reference ? differingSettings(reference, row, column) : null;
}

function drawCounts() {
  const isAll = table.rows.length === board.rows.length;
  const runs = isAll ? board.runs.length : new Set(table.rows.map((row) => row.run)).size;
  const cells = `${isAll ? "" : `${thousands(table.rows.length)} of `}${plural(board.rows.length, "cell")}`;
  const picked = pickedRows().length ? `${pickedRows().length} picked` : "tick two to nine cells to compare them";
  byId("count").textContent = `${cells}, ${plural(runs, "run")}; ${picked}`;
  byId("constants").textContent = table.rows.length ? saidOfAll() : "";
  byId("clear-filters").hidden = !view.text && !view.where.size;
  byId("empty").hidden = table.rows.length > 0;
  byId("scroller").hidden = table.rows.length === 0;
  byId("why-empty").textContent = board.rows.length ? "No cell passes the filters."
    : board.runs.length ? `No cell is scored yet in ${plural(board.runs.length, "run")}.`
    : `No run was found in ${board.places.join(", ")}: a run is a folder with the file run.json.`;
}

// The keyboard moves an active row, which need not exist as an element: the table keeps the focus.
function markActive() {
  byId("rows").querySelector(".active")?.classList.remove("active");
  const line = table.active && byId(`row-${table.active.number}`);
  line?.classList.add("active");
  byId("grid").setAttribute("aria-activedescendant", line?.id ?? "");
}

function moveActive(steps) {
  const rows = table.items.filter((item) => item.id !== undefined);
  const at = rows.indexOf(table.active);
  table.active = rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + steps))] ?? null;
  const [scroller, top] = [byId("scroller"), table.items.indexOf(table.active) * ROW];
  const room = scroller.clientHeight - byId("head").offsetHeight - ROW;
  scroller.scrollTop = Math.min(top, Math.max(scroller.scrollTop, top - room + 1));
  drawWindow();
  markActive();
}

function gridKey(event) {
  const page = Math.max(1, Math.floor(byId("scroller").clientHeight / ROW) - 2);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  const isOfRow = table.active && [" ", "Enter"].includes(event.key);
  if (event.target !== byId("grid") || !(event.key in moves || isOfRow)) return;
  event.preventDefault();
  if (event.key in moves) moveActive(moves[event.key]);
  else if (event.key === " ") togglePick(table.active);
  else showDetails(table.active);
}

function gridClick(event) {
  const sort = event.target.closest("[data-sort]")?.dataset.sort;
  const row = board.rows[event.target.closest("[data-row]")?.dataset.row];
  if (sort) sortBy(sort);
  if (!row) return;
  byId("grid").focus({ preventScroll: true }); // the row's own elements are about to be replaced
  table.active = row;
  markActive();
  if (event.target.matches("input")) togglePick(row);
  if (event.target.matches(".run")) showDetails(row);
}

// What can be filtered by: settings and facts of runs with more than one value.
function choices() {
  const isChoice = ({ kind, name }) => kind === "setting" || ["state", "devices"].includes(name);
  return board.columns.filter((column) => isChoice(column) && rowsByValue(column).size > 1);
}

// A menu of boxes for each; its list is made when it is opened.
function drawFilters() {
  const columns = choices();
  const menus = byId("filters");
  if ([...menus.children].map((menu) => menu.dataset.filter).join("\n") !== columns.map(({ name }) => name).join("\n"))
    menus.replaceChildren(...columns.map(({ name }) => filterMenu(name)));
  columns.forEach((column, i) => {
    const textOf = (key) => (rowsByValue(column).has(key) ? shownIn(column, rowsByValue(column).get(key)[0]) : key);
    const chosen = [...(view.where.get(column.name) ?? [])].map(textOf);
    const words = chosen.length > 2 ? `${chosen.length} values` : chosen.join(", ");
    menus.children[i].classList.toggle("chosen", chosen.length > 0);
    menus.children[i].firstChild.textContent = column.heading + (words && `: ${words}`);
  });
  if (document.activeElement !== byId("text")) byId("text").value = view.text;
}

function filterMenu(name) {
  const list = element("div", { class: "choices", role: "group", "aria-label": board.named.get(name).heading });
  const toggle = (event) => event.target.open && list.replaceChildren(...filterChoices(board.named.get(name)));
  return element("details", { class: "menu", "data-filter": name, toggle }, element("summary"), list);
}

function filterChoices(column) {
  const values = [...rowsByValue(column)].sort(([, [a]], [, [b]]) => compared(column.value(a), column.value(b)));
  const boxes = values.slice(0, MOST_CHOICES).map(([key, [row]]) => {
    const isChosen = view.where.get(column.name)?.has(key);
    return choice(shownIn(column, row), isChosen, (yes) => chooseValue(column.name, key, yes));
  });
  const left = values.length - MOST_CHOICES;
  return left > 0 ? [...boxes, element("p", {}, `${plural(left, "more value")}: use the text filter`)] : boxes;
}

function choice(text, checked, choose) {
  const box = element("input", { type: "checkbox", checked, change: (event) => choose(event.target.checked) });
  return element("label", {}, box, element("bdi", {}, text));
}

function chooseValue(name, value, isChosen) {
  const where = new Map(view.where).set(name, new Set(view.where.get(name)));
  where.get(name)[isChosen ? "add" : "delete"](value);
  if (!where.get(name).size) where.delete(name);
  change({ where });
}

function drawColumnChoices() {
  const shown = new Set(view.columns ?? defaultColumns());
  const boxes = board.columns.slice(1).map(({ name, heading }) => choice(heading, shown.has(name), (isChosen) => {
    shown[isChosen ? "add" : "delete"](name);
    change({ columns: [...shown] });
  }));
  byId("column-choices").replaceChildren(...boxes);
}
