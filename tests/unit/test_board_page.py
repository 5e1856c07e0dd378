"""The page of the board in a browser: filters, groups, comparisons, links; and nobody's text becomes code."""

import json
import math
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from boards import board, run
from PIL import Image
from snapshots import recorded

from taugrid.eval.pages.environment import board_html
from taugrid.eval.tables.table import shown_number
from tools import browser

pytestmark = [pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium"), pytest.mark.long]

HOSTILE = (
    "</script><script>window.bad = 1</script>", '"><img src=x onerror="window.bad = 1">', "' onclick='window.bad = 1",
    "\u202egnp.exe\u200f", "<!--<script>", "x" * 300, "", "\udcff", "__proto__", "a&b#c%20/d",
)  # fmt: skip
A, B, OTHER = "ablation/seed-0/0000000000", "ablation/seed-0/0000000004", "ablation/seed-2/0000020000"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.page(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def opened(tab, tmp_path):
    """Opens a board's page as a file, with what its link picks; afterwards nothing may have gone wrong in it."""

    def open_page(document, fragment="", **how):
        path = tmp_path / "index.html"
        path.write_text(board_html(document, live=False))
        open_page.count += 1
        tab.open(f"{path.as_uri()}?{open_page.count}#{fragment}", **how)
        return tab

    open_page.count = 0
    tab.events.clear()
    yield open_page
    tab.run("1")
    assert not tab.named("Runtime.exceptionThrown")
    assert not tab.named("Log.entryAdded")
    requests = {sent["request"]["url"] for sent in tab.named("Network.requestWillBeSent")}
    assert all(url.startswith(tmp_path.as_uri()) for url in requests), requests


def picks(*ids):
    return "&".join(f"pick={quote(each, safe='')}" for each in ids)


def texts(tab, selector):
    return tab.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def settled(tab):
    """Wait for what the page does a moment later: menus are filled, the window is drawn, a server has answered."""
    tab.run("new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 20))")


def count(tab):
    return texts(tab, "#count")[0]


def number_of(tab, selector):
    return tab.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def column(tab, name):
    place = tab.run(f"table.columns.findIndex(({{ name }}) => name === {json.dumps(name)}) + 1")
    return texts(tab, f"#rows tr[data-row] > :nth-child({place})")


def tick(tab, number):
    """Click the box of a row, which is scrolled into sight."""
    selector = f"#rows tr[data-row='{number}'] input"
    tab.run(f"table.active = board.rows[{number}]; moveActive(0)")
    tab.run(f'document.querySelector("{selector}").scrollIntoView({{ block: "center" }})')
    settled(tab)
    tab.click(selector)
    settled(tab)  # the panel that opens moves the rows


def choose(tab, column, text):
    tab.click(f'[data-filter="{column}"] summary')
    settled(tab)
    labels = texts(tab, f'[data-filter="{column}"] label bdi')
    tab.click(f'[data-filter="{column}"] label:nth-child({labels.index(text) + 1}) input')


def test_filters_leave_what_they_name(opened):
    tab = opened(board(3))
    recorded(count(tab))
    choose(tab, "steps", "1,000")
    choose(tab, "eta", "σ̂")
    recorded(count(tab), "cells")
    recorded("\n".join(texts(tab, "#constants")))
    assert tab.run("table.columns.map(({ name }) => name)") == ["run", "num_samples", "fid", "isc_mean"]
    assert set(column(tab, "num_samples")) == {"5,000", "1,000"}
    assert texts(tab, '[data-filter="eta"] summary') == ["η: σ̂"]
    tab.press("Escape")
    tab.press("/")
    tab.call("Input.insertText", text="SEED-2 eta=")
    recorded(count(tab), "cells")
    assert "where.steps=1000" in tab.run("location.hash")
    tab.call("Input.insertText", text=" no such cell")
    assert tab.run("byId('empty').hidden") is False
    tab.click("#clear-filters")
    assert count(tab).startswith("60 cells, 3 runs")
    assert number_of(tab, "#rows tr[data-row]") > 20


def test_a_heading_sorts_its_best_first_and_missing_values_last(opened):
    document = board(2)
    at = [each["name"] for each in document["columns"]].index("isc_mean") + 1
    document["rows"][7][at] = None
    tab = opened(document)
    tab.click('[data-sort="isc_mean"]')
    shown = [float(text.split()[0]) for text in column(tab, "isc_mean")[:20]]
    assert shown == sorted(shown, reverse=True)
    assert tab.run("table.rows.at(-1).number") == 7
    tab.press("Enter")
    assert tab.run("table.rows.at(-1).number") == 7
    tab.press("Enter")
    assert tab.run("table.rows.map((row) => row.number)") == list(range(40))


def test_rows_of_other_protocols_are_grey_with_the_field_that_differs(opened):
    tab = opened(board(3), height=2600)
    headings = texts(tab, "#rows tr.heading")
    recorded("\n".join(headings))
    grey = tab.run("[...document.querySelectorAll('#rows tr.other[data-row]')].map((line) => Number(line.dataset.row))")
    assert grey == list(range(40, 60))
    tick(tab, 45)
    assert number_of(tab, "#rows tr.other[data-row]") == 40
    recorded("\n".join(texts(tab, "#rows tr.heading")))
    unknown = board(3)
    unknown["groups"][20:] = [None] * 40
    tab = opened(unknown, picks(A, OTHER, "ablation/seed-1/0000010000"), height=2600)
    recorded("\n".join(texts(tab, "#rows tr.heading")), "comparable")
    tab.run("change({ against: pickedRows()[1].id })")
    compared = texts(tab, "#picked td:nth-child(4)")
    recorded(compared[0])
    assert compared == [compared[0], "–", compared[0]]
    unknown["groups"] = [None] * 60
    tab = opened(unknown)
    assert number_of(tab, "#rows tr.other[data-row]") > 20, "with each other neither"
    assert texts(opened(unknown, picks(A, B)), "#picked td:nth-child(4)") == ["–", compared[0]]


def test_settings_of_a_metric_make_its_own_numbers_grey(opened):
    document = board(2)
    for column in document["columns"]:
        column["settings"] = ["isc_splits"] if column["name"] == "isc_mean" else []
    for each, splits in zip(document["runs"], ("10", "5"), strict=True):
        each["settings"] = {"aaaa0001": {"isc_splits": splits}}
    tab = opened(document, height=2600)
    assert number_of(tab, "#rows td.other") == 20
    assert number_of(tab, "#rows tr.other[data-row]") == 0
    tab = opened(document, picks(A, "ablation/seed-1/0000010000"))
    assert "not comparable" not in texts(tab, "#picked td:nth-child(4)")[1]
    tab.run("change({ metric: 'isc_mean' })")
    assert texts(tab, "#picked td:nth-child(4)")[1] == "not comparable: isc_splits: 10, here 5"


def test_a_link_holds_the_whole_selection(opened):
    tab = opened(board(3))
    choose(tab, "num_samples", "5,000")
    tab.press("Escape")
    tab.click('[data-sort="fid"]')
    for number in (16, 17):
        tick(tab, number)
    columns = "['steps', 'isc_mean', 'began']"
    tab.run(f"change({{ metric: 'isc_mean', columns: {columns}, x: 'network_evaluations', log: '1' }})")
    seen = "[count, head, byId('panel-body')].map((part) => part.textContent).concat(table.rows.map((row) => row.id))"
    before, link = tab.run(seen), tab.run("location.hash")
    opened(board(3), link[1:])
    assert tab.run(seen) == before
    assert tab.run("document.querySelector('#rows .active').dataset.row") == "16", "the window is where its cells are"
    moved = board(4)
    moved["rows"] = [[3 - number, *rest] for number, *rest in moved["rows"]][::-1]
    moved["runs"] = moved["runs"][::-1]
    for name in ("cells", "groups", "noise"):
        moved[name] = moved[name][::-1]
    opened(moved, link[1:])
    named = [f"ablation/seed-0/{place:010x}" for place in (16, 17)]
    assert tab.run("pickedRows().map((row) => row.id)") == named, "cells are named, not numbered"


def test_back_and_forward_go_through_the_choices(opened):
    tab = opened(board(2))
    tick(tab, 0)
    tick(tab, 1)
    back = "new Promise((done) => { addEventListener('popstate', () => setTimeout(done)); history.back(); })"
    tab.run(back)
    assert count(tab).endswith("1 picked")
    tab.run(back)
    assert tab.run("byId('panel').hidden") is True
    tab.run(back.replace("back()", "forward()"))
    assert count(tab).endswith("1 picked")


def test_a_link_to_what_is_not_there_says_so(opened):
    lost = "where.lost=1&sort=lost&column=lost&metric=lost&x=lost&index=999"
    tab = opened(board(2), f"{picks(A, 'gone/123', '__proto__')}&{lost}")
    recorded("\n".join(texts(tab, "#notes")))
    recorded(count(tab), "picked")
    tick(tab, 1)
    assert texts(tab, "#notes") == [""]


def test_differences_are_paired_where_recorded_and_say_so_where_not(opened):
    document = board(3, differences=[[4, 0, "fid", 10.25, 0.3]])
    c = "ablation/seed-1/0000010000"
    tab = opened(document, picks(A, B, c, OTHER))
    assert texts(tab, "#picked td:nth-child(4)")[:2] == ["–", "-10.25 ± 0.30paired, z = -34.2, better"]
    (fid_a, se_a), (fid_c, se_c) = (document["rows"][place][7:9] for place in (0, 20))
    z = (fid_c - fid_a) / math.hypot(se_a, se_c)
    shown = shown_number(fid_c - fid_a, math.hypot(se_a, se_c))
    sign = "+" if fid_c > fid_a else ""
    assert texts(tab, "#picked td:nth-child(4)")[2] == f"{sign}{shown}unpaired, z = {z:.1f}, ≈"
    recorded(texts(tab, "#picked td:nth-child(4)")[3])
    tab.run("change({ against: pickedRows()[1].id })")
    assert texts(tab, "#picked td:nth-child(4)")[0] == "+10.25 ± 0.30paired, z = 34.2, worse"
    tab.run("change({ metric: 'isc_mean' })")
    (is_a, is_b), error = (document["rows"][place][9] for place in (0, 4)), math.hypot(0.08, 0.08)
    unpaired = f"{shown_number(is_a - is_b, error)}unpaired, z = {(is_a - is_b) / error:.1f}"
    assert texts(tab, "#picked td:nth-child(4)")[0].startswith(unpaired), "a spread is no standard error"
    assert texts(tab, "#picked td:nth-child(3)")[0] == shown_number(is_a, 0.3), "as the report shows it"
    recorded(texts(tab, "#chart-note")[0], "deviation")
    document["columns"] = [each | {"se": None} for each in document["columns"]]
    tab = opened(document, picks(A, c) + "&metric=isc_mean")
    recorded(texts(tab, "#picked td:nth-child(4)")[1], "standard")
    assert "z =" not in texts(tab, "#picked")[0]


def test_numbers_are_rounded_as_in_the_report(opened):
    random = np.random.default_rng(1)
    values = 10.0 ** random.uniform(-8, 5, 400) * random.choice([-1, 1], 400)
    errors = [None if random.random() < 0.2 else float(abs(value)) * 10 ** random.uniform(-11, 1) for value in values]
    pairs = [*zip(values.tolist(), errors, strict=True), (0.0999, 0.00999), (-1e-9, None), (367.2, 12.3), (None, None)]
    shown = opened(board(1)).run(f"{json.dumps(pairs)}.map(([value, error]) => entry(value, error))")
    assert shown == [shown_number(value, error) for value, error in pairs]


def test_a_chart_has_a_point_for_each_cell_and_can_show_whole_curves(opened):
    tab = opened(board(3), picks(A, OTHER))
    assert number_of(tab, "#chart .dot") == 10, "the other steps of both lines"
    assert sorted(texts(tab, "#chart .number")) == ["1", "2"]
    tops = "[...document.querySelectorAll('#chart g.pick-0 .dot')].map((dot) => dot.getBoundingClientRect().y)"
    assert tab.run(tops) == sorted(tab.run(tops)), "FID falls with S, so points go down"
    assert "not comparable" in texts(tab, "#chart-note")[0]
    tab.run("change({ picked: [] })")
    for number in (0, 4, 8):
        tick(tab, number)
    assert number_of(tab, "#chart .dot") == 5, "one line of several picked cells"
    recorded("\n".join(texts(tab, "#chart-note")))


def test_images_of_one_index_stand_side_by_side(opened, tmp_path):
    document = board(2)
    document["images"]["rows"] = [True] * 4 + [False] * 36
    for place in (0, 1):
        pixels = np.repeat(np.arange(16, dtype=np.uint8), 8)[None].repeat(8, 0) * 10 + place
        (tmp_path / "images/r0").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"images/r0/{place:010x}.png")
    tab = opened(document, picks(A, "ablation/seed-0/0000000001", B))
    assert number_of(tab, ".tile img.small") == 2, "row 4 has no images"
    recorded("\n".join(texts(tab, "#images-note")))
    left = "['.tile img', '.tile'].map((part) => document.querySelector(part).getBoundingClientRect().x)"
    width = tab.run("document.querySelector('.tile').getBoundingClientRect().width")
    tab.run("byId('index').value = 5; byId('index').dispatchEvent(new Event('input', { bubbles: true }))")
    assert np.diff(tab.run(left)) == pytest.approx(5 * width, abs=1)
    assert "index=5" in tab.run("location.hash")
    tab.click(".images-of")
    assert tab.run("byId('index').value") in ("7", "8"), "the middle of the strip"


def test_nights_are_a_trend_with_their_verdicts(opened):
    document = board(4)
    lights = ("green", "red", "grey")
    for number in range(3):
        document["runs"][number] |= {"history": "h0", "night": f"2026-11-0{number + 1}"}
    nights = [
        {"id": f"2026-11-0{i + 1}", "time": "", "verdict": f"verdict {i}", "light": light, "run": f"r{i}"}
        for i, light in enumerate(lights)
    ]
    nights.append({"id": "2026-11-04", "time": "", "verdict": "unfinished", "light": "grey", "run": None})
    document["histories"] = [{"key": "h0", "title": "nightly", "directory": "/n", "nights": nights}]
    tab = opened(document, picks("ablation/seed-1/0000010000"))
    assert texts(tab, "#trends h3") == ["nightly: nights"]
    assert number_of(tab, "#trends .dot") == 3
    shown = "[...document.querySelectorAll('{} .verdict')].map((mark) => mark.getAttribute('class').split(' ')[1])"
    assert tab.run(shown.format("#trends")) == tab.run(shown.format("#histories")) == [*lights, "grey"]
    links = tab.run("[...document.querySelectorAll('#trends svg a')].map((link) => link.getAttribute('href'))")
    assert links == [f"runs/r{i}/report.html" for i in range(3)]
    assert texts(tab, "#trends .number") == ["1"]


def test_the_keyboard_does_all_of_it(opened):
    tab = opened(board(3), height=600)
    tick(tab, 5)
    assert tab.run("document.activeElement.id") == "grid", "the keyboard goes on from where the mouse was"
    tab.press(" ")
    tab.run("table.active = null")
    for key in ("ArrowDown", "ArrowDown", " ", "End", " ", "Home", "ArrowDown", "Enter"):
        tab.press(key)
    assert tab.run("view.picked.length") == 2
    assert tab.run("pickedRows().map((row) => row.number)") == [1, 59]
    assert tab.run("byId('details').open") is True
    assert "seed-0" in texts(tab, "#details-title")[0]
    assert tab.run("document.querySelector('#details-report a').getAttribute('href')") == "runs/r0/report.html"
    tab.run("byId('details').close()")
    assert tab.run("document.activeElement.id") == "grid"


def test_two_clicks_in_a_row_leave_no_other_words_on_the_button_that_copies(opened):
    """ "Copied" stayed: the second click took it for the button's own words."""
    tab = opened(board(1), picks(A))
    tab.run("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true }); 0")
    tab.run("document.execCommand = () => true; 0")
    for _ in range(2):
        tab.click("#copy")
        settled(tab)
        assert texts(tab, "#copy") == ["Copied"]
    tab.run("new Promise((done) => setTimeout(done, 1600))")
    assert texts(tab, "#copy") == ["Copy link"]


def test_nine_cells_are_enough(opened):
    tab = opened(board(1))
    for number in range(10):
        tick(tab, number)
    assert count(tab).endswith("9 picked")
    recorded("\n".join(texts(tab, "#said")))
    assert number_of(tab, "#rows input:checked") == 9
    marks = "[...document.querySelectorAll('#picked .mark path')].map((mark) => mark.getAttribute('d'))"
    assert len(set(tab.run(marks))) == 9


def test_a_thousand_runs_are_a_window_of_rows(opened):
    tab = opened(board(1000))
    assert count(tab).startswith("20,000 cells, 1,000 runs")
    assert number_of(tab, "#rows tr") < 100
    tab.run("scroller.scrollTop = scroller.scrollHeight")
    settled(tab)
    assert number_of(tab, "#rows tr") < 100
    last = tab.run("String(table.rows.filter((row) => row.group === '0002beef').at(-1).number)")
    assert tab.run("[...document.querySelectorAll('#rows tr[data-row]')].at(-1).dataset.row") == last
    tab.run("change({ text: 'seed-99 s=50' })")
    recorded(count(tab), "cells")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_only_shown(opened, name):
    bad = {"title": name, "name": name, "directory": name, "note": name, "devices": [name], "models": [name]}
    document = board(2, places=[name])
    other = bad | {"title": f"{name}2"}
    document["runs"] = [
        run(0, **bad, report="java\nscript:window.bad = 1"),
        run(1, **other, state="running", report=None),
    ]
    document["cells"] = [f"{name} {label}" for label in document["cells"]]
    document["protocols"] = {key: fields | {name: name + key} for key, fields in document["protocols"].items()}
    document["columns"][2]["heading"] = name
    for row in document["rows"]:
        row[2] = name if row[0] else f"{name}!"
    night = {"id": name, "time": name, "verdict": name, "light": name, "run": "r0"}
    document["histories"] = [{"key": "h0", "title": name, "directory": name, "nights": [night]}]
    document["runs"][0]["history"] = "h0"
    tab = opened(document)
    elements = "script, img, iframe, object"
    assert number_of(tab, elements) == 2, "the document, and the script"
    tick(tab, 0)
    tick(tab, 21)
    tab.run("showDetails(board.rows[0])")
    assert texts(tab, "#rows tr[data-row='0'] .run") == [json.loads(json.dumps(name)) or "–"]
    tab.run("byId('details').close()")
    choose(tab, "sampler", f"{name}!")
    assert count(tab).startswith("20 of 40 cells")
    assert number_of(tab, elements) == 2
    assert tab.run("window.bad") is None
    assert number_of(tab, "a") == 0, "no link leads to code"
    link = tab.run("location.hash")
    opened(document, link[1:])
    assert tab.run("view.picked.length") == 2
    assert tab.run("view.picked.length === pickedRows().length") is True


@contextmanager
def served(answers):
    """A server of loopback that answers from `answers`: path -> function of the query and the request's headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            place = urlsplit(self.path)
            code, kind, text, headers = answers(place.path, parse_qs(place.query), self.headers)
            self.send_response(code)
            for name, value in {"Content-Type": kind, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def answered(state, path, query, headers):
    state["asked"].append((path, query))
    document = state["document"]
    tag = f'"{len(document["rows"])}"'
    if path == "/board.json":
        is_known = headers["If-None-Match"] == tag
        return 304 if is_known else 200, "application/json", "" if is_known else json.dumps(document), {"ETag": tag}
    if path == "/favicon.ico":
        return 404, "text/plain", "", {}
    if path == "/pair.json" and [path for path, _ in state["asked"]].count(path) == 1:
        return 503, "text/plain", "", {}
    if path == "/pair.json":
        return 200, "application/json", json.dumps({"fid": [1.5, 0.25], "isc_mean": [0.5, 0.1]}), {}
    return 200, "text/html; charset=utf-8", board_html(document, live=True), {}


def test_a_served_page_follows_the_runs_and_keeps_its_place(tab):
    state = {"document": board(20), "asked": []}
    progress = {"done": 25, "total": 100, "left_seconds": 240.0}
    state["document"]["runs"][1] |= {"state": "running", "progress": progress}
    with served(partial(answered, state)) as address:
        tab.events.clear()
        tab.open(f"{address}#{picks(A, B, 'ablation/seed-1/0000010000')}")
        recorded("\n".join(texts(tab, "#work .strip-of")))
        tab.until("byId('picked').textContent.includes('be asked now')")
        tab.until("byId('picked').textContent.includes('paired, z = 6')")
        tab.until("live.etag && !live.isAsking")
        tab.run("for (let timer = 1; timer < 100; timer++) clearInterval(timer)")  # it now polls when told to
        assert texts(tab, "#picked td:nth-child(4)")[1] == "+1.50 ± 0.25paired, z = 6.0, worse"
        assert "unpaired" in texts(tab, "#picked td:nth-child(4)")[2], "its noise is another: nobody was asked"
        tab.run("change({ metric: 'isc_mean' })")
        assert texts(tab, "#picked td:nth-child(4)")[1] == "+0.50 ± 0.10paired, z = 5.0, better"
        tab.run("grid.focus(); scroller.scrollTop = 3000; moveActive(0); scroller.scrollTop = 3000")
        tab.run("poll()")
        settled(tab)
        assert tab.run("poll().then(() => live.etag)") == '"400"'
        known = len(state["asked"])
        tab.run("grid.marker = byId('chart').firstChild; 0")
        grown = board(21)
        grown["runs"].insert(0, run(99, title="ablation/new"))
        grown["rows"] = [[0, "feed000000", *grown["rows"][0][2:]], *([row[0] + 1, *row[1:]] for row in grown["rows"])]
        for name in ("cells", "groups", "noise"):
            grown[name] = [grown[name][0], *grown[name]]
        state["document"] = grown
        top = tab.run("table.items[Math.floor(scroller.scrollTop / ROW)].id")
        tab.run("Object.defineProperty(document, 'hidden', { value: true, configurable: true }); poll()")
        assert len(state["asked"]) == known, "a page that nobody sees asks nothing"
        tab.run("delete document.hidden; poll()")
        recorded(count(tab))
        assert tab.run("table.items[Math.floor(scroller.scrollTop / ROW)].id") == top
        assert tab.run("document.activeElement.id") == "grid"
        assert texts(tab, "#live") == ["live"]
        asked = [(query["a"], query["b"]) for path, query in state["asked"] if path == "/pair.json"]
        cells = (["r0/0000000000"], ["r0/0000000004"])
        assert asked == [cells, cells], "again as the server failed, and not because rows have other numbers now"
        assert tab.run("grid.marker === byId('chart').firstChild") is True, "what is looked at is not drawn again"
    assert all("503" in logged["entry"]["text"] for logged in tab.named("Log.entryAdded"))
    tab.run("poll()")
    recorded(texts(tab, "#live")[0])
    assert not tab.named("Runtime.exceptionThrown")
