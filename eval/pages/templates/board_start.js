"use strict";

// What is around the table: runs at work, histories, details; polling; and what starts all of it.

const POLLED = 5000; // milliseconds

const live = { etag: "", isAsking: false };
const isLive = () => byId("board").dataset.live === "true";

function drawRuns() {
  const working = board.runs.filter(({ state }) => state === "running");
  const scored = new Set(board.rows.map((row) => row.run));
  const others = board.runs.filter((run) => run.note || (!scored.has(run) && run.state !== "running"));
  byId("places").replaceChildren(...board.places.map((place) => element("bdi", {}, place)));
  byId("made").textContent = `taugrid ${board.version}, ${shownTime(board.made)} UTC`;
  byId("work").replaceChildren(...working.map(workOf));
  byId("others").hidden = !others.length;
  byId("others-title").textContent = `${plural(others.length, "run")} without scores or with a remark`;
  byId("others-list").replaceChildren(...others.slice(0, MOST_CHOICES).map(({ title, report, state, note }) =>
    element("li", {}, linkTo(report, element("bdi", {}, title || MISSING)), `: ${state}${note && `, ${note}`}`)));
  byId("histories").replaceChildren(...board.histories.map(historyOf));
}

function workOf({ title, directory, progress }) {
  const { done = 0, total = 0, left_seconds: left = null } = progress ?? {};
  const rest = left === null ? "" : `, ${duration(left)} left`;
  const count = total ? `${thousands(done)} of ${thousands(total)} images` : "starting";
  const bar = { max: total || null, value: total ? done : null, "aria-label": `Progress of ${title}` };
  return element("div", { class: "strip-of", title: directory }, element("bdi", {}, title), element("progress", bar),
    element("small", {}, count + rest));
}

function historyOf({ title, nights }) {
  const size = { width: 14, height: 14, viewBox: "-7 -7 14 14" };
  const marks = nights.slice(-30).map((night) => drawn("svg", size, verdictMark(night)));
  const last = nights.at(-1);
  return element("div", { class: "strip-of" }, element("bdi", {}, title), element("span", {}, ...marks),
    element("small", {}, last ? `${last.id}: ${last.verdict}` : "no nights"));
}

function showDetails(row) {
  const { run, group, settings } = row;
  const columns = board.columns.filter(({ kind }) => kind !== "text");
  byId("details-title").textContent = `${run.title}: ${row.label}`;
  byId("details-report").replaceChildren(linkTo(run.report, run.report ? "Report of this run" : "No report"));
  byId("details-list").replaceChildren(
    factList([["Run", run.name], ["Directory", run.directory], ["State", run.state], ["Remark", run.note],
      ["Time", `${shownTime(run.began)} to ${shownTime(run.ended)}`], ["Devices", run.devices.join(", ")],
      ["Models", run.models.join(", ")], ["taugrid", run.taugrid], ["Cell", row.cell]]),
    factList(columns.map((column) => [column.heading, shownIn(column, row)])),
    factList(Object.entries({ ...board.protocols[group], ...settings }).map(([name, value]) => [fieldName(name), value])));
  byId("details").showModal();
}

function factList(facts) {
  const known = facts.filter(([, value]) => ![null, "", MISSING].includes(value));
  return element("dl", {}, ...known.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
}

// The window stays at the row that was at its top, though rows above it may be new.
function replaceDocument(source) {
  const scroller = byId("scroller");
  const at = Math.floor(scroller.scrollTop / ROW);
  const top = table.items[at]?.id;
  show(source);
  const now = table.items.findIndex((item) => item.id !== undefined && item.id === top);
  if (now >= 0) scroller.scrollTop += (now - at) * ROW;
  drawWindow();
}

async function poll() {
  if (document.hidden || live.isAsking) return;
  live.isAsking = true;
  const headers = live.etag ? { "If-None-Match": live.etag } : {};
  try {
    const answer = await fetch("board.json", { headers, cache: "no-store" });
    const source = answer.ok ? await answer.json() : null;
    if (source) live.etag = answer.headers.get("ETag") ?? "";
    if (source) replaceDocument(source);
    byId("live").textContent = source || answer.status === 304 ? "live" : `the server answers ${answer.status}`;
  } catch {
    byId("live").textContent = `the server does not answer; as of ${shownTime(board.made)} UTC`;
  }
  live.isAsking = false;
}

function pageKey(event) {
  if (event.key === "Escape") closeMenus(event, true);
  if (event.target.matches("input[type=search], select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") byId("keys").showModal();
  if (event.key !== "/") return;
  event.preventDefault();
  byId("text").focus();
}

function closeMenus(event, isAll = false) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (isAll) menu.firstChild.focus();
    menu.open = !isAll && menu.contains(event.target);
  }
}

function bind(name, valueOf, isStep = true) {
  byId(name).addEventListener("input", (event) => {
    view[name] = valueOf(event.target);
    changed(isStep);
    showIndex();
  });
}

function start() {
  for (const name of ["metric", "x", "against"]) bind(name, ({ value }) => value);
  for (const name of ["text", "index"]) bind(name, ({ value }) => value, false);
  bind("log", ({ checked }) => (checked ? "1" : ""));
  const on = (id, name, listener) => byId(id).addEventListener(name, listener);
  on("clear-filters", "click", () => change({ text: "", where: new Map() }));
  on("columns", "toggle", drawColumnChoices);
  on("default-columns", "click", () => change({ columns: null }) ?? drawColumnChoices());
  on("clear-picks", "click", () => change({ picked: [] }));
  on("copy", "click", (event) => copy(event.target, location.href));
  on("help", "click", () => byId("keys").showModal());
  on("strips", "click", chooseImage);
  on("grid", "keydown", gridKey);
  on("grid", "click", gridClick);
  on("scroller", "scroll", () => requestAnimationFrame(drawWindow));
  document.addEventListener("keydown", pageKey);
  document.addEventListener("click", closeMenus);
  window.addEventListener("popstate", () => readView() ?? draw());
  window.addEventListener("resize", draw);
  readView();
  show(JSON.parse(byId("board-data").textContent));
  live.etag = board.etag ?? "";
  table.active = pickedRows()[0] ?? null;
  if (table.active) moveActive(0); // a link opens where its cells are
  if (!isLive()) return;
  byId("live").textContent = "live";
  setInterval(poll, POLLED);
  document.addEventListener("visibilitychange", poll);
}

start();
