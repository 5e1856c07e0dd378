"use strict";

// What is around the table: runs at work, histories, details, keys; and what starts all of it.

const POLLED = 5000; // milliseconds
const MOST_SHOWN = 6;
const QUIET = 600; // seconds without an event after which it is said

const live = { etag: "", asking: false };

function isLive() {
  return byId("board").dataset.live === "true";
}

function drawRuns() {
  const { runs, places, histories, version, made } = board.source;
  byId("places").replaceChildren(...places.map((place) => element("bdi", {}, place)));
  byId("made").textContent = `taugrid ${version}, ${shownTime(made)} UTC`;
  const working = runs.filter(({ state }) => state === "running");
  const left = working.length - MOST_SHOWN;
  const more = left > 0 ? [element("p", { class: "tg-note" }, `and ${plural(left, "more run")} at work`)] : [];
  byId("work").replaceChildren(...working.slice(0, MOST_SHOWN).map(workOf), ...more);
  const scored = new Set(board.rows.map((row) => row.run));
  const others = runs.filter((run) => run.note || (!scored.has(run) && run.state !== "running"));
  byId("others").hidden = !others.length;
  byId("others-title").textContent = `${plural(others.length, "run")} without scores or with a remark`;
  byId("others-list").replaceChildren(...others.slice(0, MOST_CHOICES).map((run) =>
    element("li", {}, element("bdi", {}, linkTo(run.report, run.title || MISSING)), `: ${run.state}`, run.note ? `, ${run.note}` : "")));
  byId("histories").replaceChildren(...histories.map(historyOf));
}

function workOf(run) {
  const { done = 0, total = 0, unit = "", left_seconds: left = null, updated = null } = run.progress ?? {};
  const count = total ? `${done.toLocaleString("en-US")} of ${total.toLocaleString("en-US")} ${unit}` : "starting";
  const quiet = updated ? (Date.now() - Date.parse(updated)) / 1000 : 0;
  const rest = quiet > QUIET ? `, nothing heard for ${duration(quiet)}` : left === null ? "" : `, ${duration(left)} left`;
  const bar = element("progress", { max: total || null, value: total ? done : null, "aria-label": `Progress of ${run.title}` });
  return element("div", { class: "work" }, element("bdi", { title: run.directory }, run.title), bar, element("small", {}, count + rest));
}

function historyOf(history) {
  const nights = history.nights.slice(-30).map((night) => {
    const shape = verdictMark(night.light, nightHref(night), nightTitle(night), 0, 0);
    return drawn("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14" }, shape);
  });
  const last = history.nights.at(-1);
  const newest = last ? element("small", {}, nightTitle(last)) : null;
  return element("div", { class: "history" }, element("bdi", {}, linkTo(history.page, history.title)), element("span", {}, ...nights), newest);
}

function showDetails(row) {
  const { run } = row;
  const protocol = board.groups.get(row.group)?.protocol ?? {};
  const facts = {
    Run: run.name, Directory: run.directory, State: run.note ? `${run.state}: ${run.note}` : run.state,
    Time: `${shownTime(run.began)} to ${shownTime(run.ended)}`, Devices: run.devices.join(", "), Models: run.models.join(", "),
    taugrid: run.taugrid, Cell: row.cell,
  };
  const columns = board.columns.filter(({ kind, name }) => kind !== "text" && name !== "run");
  const parts = { facts, values: Object.fromEntries(columns.map((column) => [column.heading, shownIn(column, row)])) };
  const fields = Object.fromEntries(Object.entries(protocol).map(([name, value]) => [fieldName(name), value]));
  byId("details-title").textContent = `${run.title}: ${row.label}`;
  byId("details-report").replaceChildren(run.report ? linkTo(run.report, "Report of this run") : "");
  byId("details-list").replaceChildren(...factList(parts.facts), ...factList(parts.values), ...factList(fields));
  byId("details").showModal();
}

function factList(facts) {
  const known = Object.entries(facts).filter(([, value]) => value !== null && value !== "" && value !== MISSING);
  return [element("dl", {}, ...known.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]))];
}

// The window stays at the row that was at its top, though rows above it may be new.
function replaceDocument(source) {
  const scroller = byId("scroller");
  const at = Math.floor(scroller.scrollTop / ROW);
  const top = table.items[at]?.id;
  show(source);
  const now = table.items.findIndex((item) => item.id !== undefined && item.id === top);
  if (now >= 0 && now !== at) {
    scroller.scrollTop += (now - at) * ROW;
    drawWindow();
  }
}

async function poll() {
  if (document.hidden || live.asking) {
    return;
  }
  live.asking = true;
  try {
    const headers = live.etag ? { "If-None-Match": live.etag } : {};
    const answer = await fetch("board.json", { headers, cache: "no-store" });
    if (answer.ok) {
      live.etag = answer.headers.get("ETag") ?? "";
      replaceDocument(await answer.json());
    }
    byId("live").textContent = answer.ok || answer.status === 304 ? "live" : `the server answers ${answer.status}`;
  } catch {
    byId("live").textContent = `the server does not answer; as of ${shownTime(board.source.made)} UTC`;
  }
  live.asking = false;
}

function pageKey(event) {
  const isTyping = event.target.matches?.("input[type=search], select, textarea");
  if (event.key === "Escape") {
    document.querySelectorAll("details.menu[open]").forEach((menu) => {
      menu.open = false;
      menu.firstChild.focus();
    });
  } else if (!isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    if (event.key === "/") {
      event.preventDefault();
      byId("text").focus();
    } else if (event.key === "?") {
      byId("keys").showModal();
    }
  }
}

function closeMenus(event) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    menu.open = menu.contains(event.target);
  }
}

function printing(isPrinting) {
  table.printing = isPrinting;
  table.first = -1;
  drawWindow();
}

function bind(id, name, value) {
  byId(id).addEventListener("input", (event) => {
    view[name] = value(event.target);
    changed(name !== "text" && name !== "index");
    showIndex();
  });
}

function start() {
  readView();
  ["text", "metric", "x", "against", "index"].forEach((name) => bind(name, name, ({ value }) => value));
  bind("log", "log", ({ checked }) => (checked ? "1" : ""));
  bind("curves", "curves", ({ checked }) => (checked ? "1" : "0"));
  bind("flat", "flat", ({ checked }) => (checked ? "" : "1"));
  byId("clear-filters").addEventListener("click", clearFilters);
  byId("columns").addEventListener("toggle", () => byId("column-choices").replaceChildren(...columnChoices()));
  byId("clear-picks").addEventListener("click", () => {
    view.picked = [];
    changed();
    byId("grid").focus({ preventScroll: true });
  });
  byId("copy").addEventListener("click", () => navigator.clipboard?.writeText(location.href).then(() => say("The link is copied.")));
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("strips").addEventListener("click", chooseIndex);
  byId("grid").addEventListener("keydown", gridKey);
  byId("grid").addEventListener("click", gridClick);
  byId("scroller").addEventListener("scroll", () => requestAnimationFrame(drawWindow), { passive: true });
  document.addEventListener("keydown", pageKey);
  document.addEventListener("click", closeMenus);
  window.addEventListener("popstate", () => {
    readView();
    draw();
  });
  window.addEventListener("resize", draw);
  window.addEventListener("beforeprint", () => printing(true));
  window.addEventListener("afterprint", () => printing(false));
  show(JSON.parse(byId("board-data").textContent));
  live.etag = board.source.etag ?? "";
  if (isLive()) {
    setInterval(poll, POLLED);
    document.addEventListener("visibilitychange", poll);
    byId("live").textContent = "live";
  }
}

start();
