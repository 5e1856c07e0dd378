"""report.html: what it says, that it says nothing else, and that it loads nothing; read by a parser and a browser."""

import base64
import hashlib
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from in_process import CONFIG, small_run
from PIL import Image
from snapshots import recorded
from test_tables import cell

import taugrid
from taugrid.config.load import load
from taugrid.eval.pages.answer import answer, measured
from taugrid.eval.pages.charts import quality_chart
from taugrid.eval.pages.pictures import PagePicture, grids
from taugrid.eval.pages.report import LARGEST, PageFacts, report_html
from taugrid.eval.tables.by_label import LabelTable
from taugrid.eval.tables.quality import QualityTable
from taugrid.grids import Layout
from taugrid.orchestrator.cli.text import print_result
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.session import SessionResult
from taugrid.orchestrator.view.page import reproducing, write_page
from taugrid.registry.extractors import INCEPTION
from tools import browser

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.long]

SCRIPT = "<script>alert(1)</script>"
VOID = frozenset({"meta", "img", "path", "circle", "br", "input"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with small_run(folder, CONFIG.replace("steps: [2]", "steps: [2, 3]")):
        return Path(taugrid.run(folder / "small.yaml", out=folder / "run", progress=False).directory)


ROWS = [
    cell(steps, eta, fid, 1.0, cell=f"{steps}-{eta}", model="m", num_samples=100, protocol="p")
    for steps, eta, fid in ((10, 0.0, 20.0), (10, 1.0, 30.0), (50, 0.0, 9.0), (50, 1.0, 8.0))
]
PROTOCOLS = {
    "p": {"num_samples": 100, "versions": {"torch": "1"}},
    "q": {"num_samples": 100, "versions": {"torch": "2"}},
}


def written(rows, protocols=PROTOCOLS, **more):
    return QualityTable.read({"rows": rows, "protocols": protocols}, **more)


def scored_by(extractor, dataset="digits"):
    reference = {"dataset": dataset, "split": "train", "num_images": 1437, "sha256": "0" * 64}
    return {"num_samples": 100, "reference": reference, "extractor": {"name": extractor}}


def cells_of(rows, alike=frozenset()):
    return measured(QualityTable.read({"rows": rows, "protocols": PROTOCOLS, "indistinguishable": alike}))


def findings(**changes):
    steps = np.arange(1, 500)
    found = PageFacts(
        name="a run", planned=4, quality=written(ROWS), differences=[], effects=[], published=[], costs=[],
        reconstruction={}, by_label=LabelTable((), ()), first_images=lambda cell: None, made=["2026-11-29"],
        losses={"m": pd.DataFrame({"step": steps, "loss": 1 / steps})}, pictures=[], provenance={"devices": "cpu"},
        samples={"": {("0", 10): np.zeros((8, 4, 4), np.uint8), ("0", 50): np.zeros((8, 4, 4), np.uint8)}},
        config="name: a run\n", warnings=[],
    )  # fmt: skip
    return replace(found, **changes)


class Parsed(HTMLParser):
    """The elements of a page, in order, each with its attributes, its ancestors' names and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "within": [outer["tag"] for outer in self._open], "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and attributes.items() <= e.items()]


@pytest.fixture
def page(finished):
    return Parsed((finished / "report.html").read_text())


def test_nothing_runs_or_loads_but_what_is_in_the_page(page):
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    [script], [style] = page.all("script"), page.all("style")
    for kind, element in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(element["text"].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for element in page.elements:
        assert not [name for name in element if name.startswith("on") or name == "style"], element
        for name in ("src", "href", "action", "data"):
            assert element.get(name, "#").startswith(("#", "data:image/png;base64,")), element
    assert not re.search(r"\burl\(|@import|https?:", style["text"])


def test_a_screen_reader_finds_its_way(page):
    charts = page.all("figure", **{"class": "chart"})
    assert len(charts) == 2, "FID against S, and against costs"
    beside = [table for table in page.all("table") if "figure" in table["within"]]
    assert len(beside) == len(charts)
    for svg in page.all("svg", role="img"):
        assert svg["aria-label"]
    assert all(image["alt"] for image in page.all("img"))
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(set(ids)) == len(ids)
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= set(ids)


def test_it_holds_the_run_and_a_config_that_makes_it_again(page, finished, tmp_path):
    text = page.all("main")[0]["text"]
    assert all(f"{value:.4f}"[:4] in text for value in taugrid.open(finished).quality["fid"])
    assert len(page.all("img")) == 16 + 4 * 8 + 2 * 8, "of the best cell, of each cell, and of η = 0 by S"
    assert page.all("h1")[0]["text"] == "small"
    config = open_existing(str(finished)).config
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(reproducing(config)))
    assert load(str(tmp_path / "again.yaml")) == config


def test_cells_without_a_score_are_told_with_their_reasons(finished, tmp_path):
    opened = open_existing(str(shutil.copytree(finished, tmp_path / "run")))
    table = tmp_path / "run/tables/quality.json"
    table.write_text(table.read_text().replace(opened.plan.cells[0].id, "0000000000"))
    write_page(opened, {opened.plan.cells[0].name: "set aside: killed its workers"})
    warnings = Parsed((tmp_path / "run/report.html").read_text()).all("section", id="warnings")[0]["text"]
    assert "killed its" in warnings


def test_pictures_are_shown_whatever_their_groups_are_called(finished, tmp_path):
    opened = open_existing(str(shutil.copytree(finished, tmp_path / "run")))
    names = [f"{kind}-square" for kind in ("classes", "interpolations", "interpolation-square")]
    for name in names:
        Image.new("L", (4, 4)).save(tmp_path / f"run/figures/{name}.png")
    write_page(opened)
    page = Parsed((tmp_path / "run/report.html").read_text())
    assert len([one for one in page.all("figure") if one.get("class") == "picture"]) == len(names)


def test_what_a_session_returns_and_prints_of_the_page_is_on_it(finished, capsys):
    opened = open_existing(str(finished))
    warnings = write_page(opened)
    page = Parsed((finished / "report.html").read_text())
    assert [item["text"] for item in page.all("li") if "nav" not in item["within"]] == warnings != []
    print_result(opened.rundir, SessionResult({}, [], warnings=warnings))
    lines = capsys.readouterr().err.splitlines()
    assert lines[: len(warnings)] == [f"warning: {text}" for text in warnings]
    assert [line.partition(":")[0] for line in lines[len(warnings) :]] == ["report", "samples", "tables", "figures"]
    assert lines[len(warnings)].split()[1:3] == [f"{finished}/report.html", f"({len(warnings)}"]


def test_the_head_says_what_was_measured_and_whether_published_numbers_are_apart():
    def head(protocols, rows=ROWS):
        page = Parsed(report_html(findings(quality=written(rows, protocols))))
        return page.all("header")[0]["text"].replace("\u00a0", " ")

    for extractor in ("digits-convnet", INCEPTION):
        text = head({"p": scored_by(extractor)})
        for part in ("N = 100 ", "digits/train", "1,437 images", f"features: {extractor}"):
            assert part in text
        assert ("not comparable" in text) == (extractor != INCEPTION)
    unknown = head(PROTOCOLS)
    assert [word in unknown for word in ("N = 100 ", "features", "published")] == [True, False, False]
    assert "N =" not in head(PROTOCOLS, [])


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_small_images_are_enlarged_pixel_by_pixel_so_that_paper_shows_them_sharp():
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    [grid] = grids({"": {("0", 10): image[None]}}, 10**6)
    assert (pixels(grid.rows[0][1][0][0]) == image.repeat(12, 0).repeat(12, 1)).all()


def test_texts_of_a_config_are_escaped():
    difference = {
        "cell_a": "a", "cell_b": "b", "along": SCRIPT, "settings": SCRIPT, "steps_a": 1, "steps_b": 2, "eta_a": 0.0,
        "eta_b": 0.0, "sigma_a": "eta", "sigma_b": "eta", "others": SCRIPT, "difference": 1.0, "se": 0.5, "z": 2.0,
        "joined": False, "note": SCRIPT,
    }  # fmt: skip
    rows = [one | {"diffusion.schedule": f'"{SCRIPT}' if one["eta"] else "linear"} for one in ROWS]
    found = findings(
        name=SCRIPT,
        quality=written(rows, {"p": scored_by(SCRIPT, SCRIPT)}),
        differences=[difference],
        published=[
            {
                "steps": 10,
                "sigma": "eta",
                "eta": 0.0,
                "published": 1.0,
                "ours": 1.0,
                "differs": SCRIPT,
                "cell": "",
                "standard_error": None,
            }
        ],
        losses={SCRIPT: pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5]})},
        samples={SCRIPT: {("0", 10): np.zeros((1, 4, 4), np.uint8)}},
        pictures=[(PagePicture("x.png", SCRIPT, SCRIPT, SCRIPT), b"png")],
        provenance={SCRIPT: SCRIPT},
        config=f"name: {SCRIPT}</pre>",
        warnings=[SCRIPT],
    )
    page = Parsed(report_html(found))
    assert len(page.all("script")) == 1, "our own"
    assert page.all("h1")[0]["text"] == SCRIPT
    assert SCRIPT in [item["text"] for item in page.all("li")], "a warning"


def test_names_that_people_chose_stay_as_they_are():
    """They can be pasted into a config or a command."""
    named = [one | {"sampler": f"mine:{'eta' if one['eta'] else 'beta'}", "eta": None} for one in ROWS]
    options = [one | {"sampler_options": f'{{"eta": {0.3 if one["sampler"] == "mine:eta" else 0.5}}}'} for one in named]
    warning = "the sampler mine:eta ignores clip: S=10 eta=0 (see runs/eta)"
    page = Parsed(report_html(findings(quality=written(options), warnings=[warning])))
    assert warning in [item["text"] for item in page.all("li")]
    heads = [head["text"] for head in page.all("th", scope="row")]
    assert {"mine:eta", "eta=0.3"} <= {*heads}


def test_a_page_of_many_large_images_stays_small():
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    samples = {"": {(f"{eta:g}", steps): noise for eta in np.linspace(0, 1, 10) for steps in range(10, 20)}}
    text = report_html(findings(samples=samples, pictures=[(PagePicture("p.png", "p", "", "p"), bytes(4_000_000))]))
    assert 0.5 * LARGEST < len(text.encode()) <= LARGEST < 5_000_000
    page = Parsed(text)
    assert len(page.all("img")) >= 100, "some of each cell"
    assert ": figures/p.png" in page.all("main")[0]["text"]


def test_the_answer_claims_nothing_without_errors_or_across_protocols():
    plain = [one | {"fid_se": None} for one in ROWS]
    recorded(answer(cells_of(plain), 4)[0], "without")
    mixed = [one | {"protocol": "q" if one["eta"] else "p"} for one in ROWS]
    sentences = answer(cells_of(mixed), 4)
    assert len(sentences) == 1
    recorded(sentences[0], "protocols")
    recorded("\n".join(answer([], 4)))
    assert len(answer(cells_of(ROWS[:1]), 4)) == 1


def test_marks_of_another_layout_are_not_taken_for_those_of_a_column_of_steps():
    document = {"rows": ROWS, "protocols": PROTOCOLS, "notes": [], "indistinguishable": ["50-0.0"]}
    text = report_html(findings(quality=QualityTable.read(document, Layout(("steps",), "eta"))))
    said = [line["text"] for line in Parsed(text).all("p", **{"class": "answer"})]
    recorded(said[0].replace("\u00a0", " "))
    [table] = Parsed(text).all("table", **{"class": "tg-pivot"})
    assert "S \\ η" in table["text"]


def test_published_numbers_are_drawn_only_where_nothing_differs():
    published = [{"cell": f"{steps}-0.0", "published": 19.0, "differs": word} for steps, word in ((10, ""), (50, "N"))]
    drawn = quality_chart(written(ROWS), cells_of(ROWS), published)
    assert [row for row in drawn.rows if "published" in row[0]] == [("η = 0.0, published", "10", "19")]


def test_published_numbers_and_ours_have_the_digits_of_the_tables():
    published = {"steps": 10, "sigma": "eta", "eta": 0.0, "published": 13.4, "differs": "", "cell": ""}
    ours = [published | {"ours": 9.04, "standard_error": 1.0}, published | {"ours": 0.0123, "standard_error": None}]
    [table] = Parsed(report_html(findings(published=ours))).all("table", **{"class": "published"})
    assert "13.40" in table["text"]
    assert "9.0 ± 1.0" in table["text"].replace("\u00a0", " ")
    assert "0.0123" in table["text"]


def test_the_number_at_the_top_is_of_cells_that_can_be_compared_and_follows_the_metrics_direction():
    def number(rows):
        page = Parsed(report_html(findings(quality=written(rows), samples={})))
        return [found["text"].replace("\u00a0", " ") for found in page.all("p", **{"class": "hero"})]

    assert number([one | {"protocol": "q" if one["eta"] else "p"} for one in ROWS]) == number([]) == []
    [shown] = number([ROWS[0] | {"fid": None, "isc_mean": 7.0}, ROWS[2] | {"fid": None, "isc_mean": 9.0}])
    recorded(shown)
    assert shown.endswith(" 9.00"), "higher is better"


def test_the_top_shows_the_number_of_the_table_and_images_of_that_cell():
    asked = []

    def images(cell):
        asked.append(cell)
        return np.full((16, 4, 4), 77, np.uint8)

    page = Parsed(report_html(findings(first_images=images)))
    assert asked == ["50-1.0"]
    [number] = page.all("p", **{"class": "hero"})
    assert number["text"].replace("\u00a0", " ") == "50 steps: FID 8.0 ± 1.0"
    [best] = [td["text"] for td in page.all("td", **{"class": "tg-shade-0 tg-best"})]
    assert best.replace("\u00a0", " ") == "8.0 ± 1.0"
    shown = [image for image in page.all("img") if image["alt"].startswith("S = 50, η = 1.0, image")]
    assert len(shown) == 16
    assert pixels(shown[0]["src"]).max() == 77


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if browser.CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with browser.page(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def test_in_a_browser_lines_are_chosen_by_mouse_and_keyboard(finished, tab):
    tab.open(finished / "report.html", width=390)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways"
    shown = (
        "Object.fromEntries([...document.querySelectorAll('#steps [id*=\"-line-\"]')].map("
        "e => [e.id.match(/line-\\d/)[0], getComputedStyle(e).display != 'none']))"
    )
    assert tab.run(shown) == {"line-0": True, "line-1": True}
    tab.click("#steps [data-toggle='line-1']")
    assert tab.run(shown) == {"line-0": True, "line-1": False}
    assert tab.run("document.querySelector(\"#steps [data-toggle='line-1']\").ariaPressed") == "false"
    tab.press(" ")
    assert tab.run(shown) == {"line-0": True, "line-1": True}, "the button has the focus"
    stroke = "getComputedStyle(document.querySelector('#steps [id*=\"-line-0.\"] path')).stroke"
    assert tab.run(stroke) == "rgb(68, 1, 84)", "matplotlib's own, though the page's policy allows no styles"


def test_in_a_browser_the_slider_leads_one_image_over_the_steps(finished, tab):
    tab.open(finished / "report.html")
    images = {image["alt"]: image["src"] for image in Parsed((finished / "report.html").read_text()).all("img")}
    slid = "Object.fromEntries([...document.querySelectorAll('.slid img')].map(e => [e.alt, e.src]))"

    def expected(steps, index):
        return {alt: images[alt] for eta in ("0.0", "1.0") for alt in [f"η = {eta}, S = {steps}, image {index}"]}

    assert len({*expected(2, 0).values(), *expected(3, 0).values(), *expected(3, 3).values()}) == 6
    assert tab.run(slid) == expected(2, 0)
    tab.run("document.querySelector('.slide input').focus()")
    tab.press("ArrowRight")
    assert tab.run(slid) == expected(3, 0)
    tab.click("[data-index='3']")
    assert tab.run(slid) == expected(3, 3)
    assert tab.run("document.querySelector('.slide output').textContent") == "3"


def test_in_a_browser_images_grow_and_keys_lead_on_and_back(finished, tab):
    tab.open(finished / "report.html")
    large = "(d => d && d.open && d.querySelector('img').alt)(document.querySelector('dialog'))"
    assert not tab.run(large)
    tab.click("#samples .tiles img")
    assert tab.run(large) == "η = 0.0, S = 2, image 0"
    tab.press("ArrowRight")
    tab.press("ArrowDown")
    assert tab.run(large) == "η = 0.0, S = 3, image 1"
    tab.press("Escape")
    tab.run("new Promise(then => setTimeout(then, 50))")
    assert not tab.run(large)
    assert tab.run("document.activeElement.alt") == "η = 0.0, S = 3, image 1"
    tab.press("Enter")
    assert tab.run(large) == "η = 0.0, S = 3, image 1"
    stops = "document.querySelectorAll('#samples table img[tabindex=\"0\"]').length"
    assert tab.run(stops) == 1, "one stop of the tab key for all"


def test_in_a_browser_tables_are_copied_as_their_files_have_them(finished, tab):
    tab.open(finished / "report.html")
    clipboard = "{ writeText: async text => { window.copied = text } }"
    tab.run(f"Object.defineProperty(navigator, 'clipboard', {{ configurable: true, value: {clipboard} }})")
    for place, name in ((1, "quality.md"), (2, "quality.tex")):
        tab.click(f"#quality .tools [data-copy]:nth-of-type({place})")
        text = tab.run("copied")
        assert text in (finished / "tables" / name).read_text()
        recorded(text, "better")


def test_in_a_browser_nothing_fails_or_loads_and_a_page_without_scripts_has_no_dead_buttons(finished, tab):
    assert tab.named("Runtime.exceptionThrown") == []
    assert tab.named("Runtime.consoleAPICalled") == []
    assert tab.named("Log.entryAdded") == [], "such as a breach of the policy"
    asked = {sent["request"]["url"].partition(":")[0] for sent in tab.named("Network.requestWillBeSent")}
    assert asked == {"file", "data"}
    files = [s for s in tab.named("Network.requestWillBeSent") if s["request"]["url"].startswith("file:")]
    assert {s["request"]["url"].rpartition("/")[2] for s in files} == {"report.html"}
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.open(finished / "report.html")
    hidden = "[...document.querySelectorAll('.scripted')].map(e => e.offsetWidth)"
    assert set(tab.run(hidden)) == {0}
