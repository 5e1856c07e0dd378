"""report.html: what it says, that it says nothing else, and that it loads nothing; read by a parser and a browser."""

import base64
import hashlib
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
import yaml
from in_process import CONFIG, small_run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from snapshots import recorded
from test_tables import cell

import taugrid
from taugrid.config.load import load
from taugrid.eval.figures.pictures import KEY, reconstructions
from taugrid.eval.pages.answer import answer, measured
from taugrid.eval.pages.charts import quality_chart
from taugrid.eval.pages.pictures import PagePicture, grids, uri_bytes
from taugrid.eval.pages.report import LARGEST, PageFacts, report_html
from taugrid.eval.tables.by_label import LabelTable
from taugrid.eval.tables.quality import QualityTable
from taugrid.grids.axes import Layout
from taugrid.orchestrator.cli.text.runs import print_result
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.session import SessionResult
from taugrid.orchestrator.view.page import reproducing, write_page
from taugrid.registry.extractors import INCEPTION

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
    levels = [element["tag"] for element in page.elements if re.fullmatch(r"h\d", element["tag"])]
    assert levels[0] == "h1"
    assert set(levels[1:]) <= {"h2", "h3"}
    assert levels[1] == "h2"


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


def test_a_warning_that_was_told_before_is_not_printed_again(finished, capsys):
    warnings = ["every cell: a has no B", "S=10 has no score: set aside", "N is small"]
    said = {"missing": {"x": "set aside"}, "warnings": warnings, "warned": ["a has no B"]}
    print_result(open_existing(str(finished)).rundir, SessionResult(rows=[], **said))
    lines = capsys.readouterr().err.splitlines()
    recorded("\n".join([line for line in lines if line.startswith("warning")]))


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


def test_a_picture_of_tiles_is_a_table_in_the_page_so_that_its_words_are_not_black_in_the_dark(tmp_path):
    originals = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    png = tmp_path / "reconstructions.png"
    reconstructions(originals, {10: 255 - originals}, png)
    shown = (PagePicture(png.name, "Reconstructions", "", "held-out images"), png.read_bytes())
    page = Parsed(report_html(findings(samples={}, pictures=[shown])))
    [table] = page.all("table", **{"class": "images rows"})
    recorded("".join(table["text"].split()))
    images = {e["alt"]: e["src"] for e in page.all("img")}
    assert list(images)[::5] == ["original, image 0", "S = 10, image 2"]
    assert (pixels(images["S = 10, image 2"]) == (255 - originals[2]).repeat(6, 0).repeat(6, 1)).all()


def test_a_picture_whose_tiles_are_not_known_is_shown_whole():
    for text in ("{", '{"width": 8, "a later version": 1}', "[]"):
        said, file = PngInfo(), io.BytesIO()
        said.add_text(KEY, text)
        Image.new("L", (8, 8)).save(file, format="PNG", pnginfo=said)
        shown = (PagePicture("reconstructions.png", "Reconstructions", "", "as a whole"), file.getvalue())
        page = Parsed(report_html(findings(samples={}, pictures=[shown])))
        assert "as a whole" in [e["alt"] for e in page.all("img")]


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
            {"steps": 10, "sigma": "eta", "eta": 0.0, "published": 1.0, "ours": 1.0, "differs": SCRIPT, "cell": ""}
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


def test_a_page_of_many_large_images_stays_small():
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    samples = {"": {(f"{eta:g}", steps): noise for eta in np.linspace(0, 1, 10) for steps in range(10, 20)}}
    text = report_html(findings(samples=samples, pictures=[(PagePicture("p.png", "p", "", "p"), bytes(4_000_000))]))
    assert 0.5 * LARGEST < len(text.encode()) <= LARGEST < 5_000_000
    page = Parsed(text)
    assert len(page.all("img")) >= 100, "some of each cell"
    assert ": figures/p.png" in page.all("main")[0]["text"]


def test_images_are_reduced_before_cells_lose_them():
    images = {("0", 10): np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)}
    [whole] = grids({"": images}, 10**6)
    [uri] = whole.rows[0][1][0][:1]
    [fewer] = grids({"": images}, 2 * len(uri) + 400)
    assert (whole.per_cell, fewer.per_cell) == (4, 2)
    [smaller] = grids({"": images}, len(uri) // 2)
    assert smaller.per_cell >= 1
    assert len(smaller.rows[0][1][0][0]) < len(uri) // 2
    assert grids({"": images}, 100) == []
    assert uri_bytes(b"x" * 3) >= len("data:image/png;base64,eHh4")


def test_the_answer_claims_nothing_without_errors_or_across_protocols():
    plain = [one | {"fid_se": None} for one in ROWS]
    recorded(answer(cells_of(plain), 4)[0], "without")
    mixed = [one | {"protocol": "q" if one["eta"] else "p"} for one in ROWS]
    sentences = answer(cells_of(mixed), 4)
    recorded(sentences[0], "protocols")
    assert "9.0 ± 1.0 at S = 50, η = 0.0" in sentences[1]
    assert "8.0 ± 1.0 at S = 50, η = 1.0" in sentences[1]
    recorded("\n".join(answer([], 4)))
    assert len(answer(cells_of(ROWS[:1]), 4)) == 1


def test_marks_of_another_layout_are_not_taken_for_those_of_a_column_of_steps():
    document = {"rows": ROWS, "protocols": PROTOCOLS, "notes": [], "indistinguishable": ["50-0.0"]}
    text = report_html(findings(quality=QualityTable.read(document, Layout(("steps",), "eta"))))
    said = [line["text"] for line in Parsed(text).all("p", **{"class": "answer"})]
    recorded(said[0].replace("\u00a0", " "))
    [table] = Parsed(text).all("table", **{"class": "tg-pivot"})
    assert "S \\ η" in table["text"]


def seen(text):
    """The charts of a page: the SVGs, and the tables of their numbers, row by row."""
    page = Parsed(text)
    tables = [e for e in page.all("table") if "figure" in e["within"]]
    assert len(page.all("svg", role="img")) == len(tables)
    return page, [table["text"] for table in tables]


def test_published_numbers_are_drawn_and_listed_only_where_nothing_differs():
    published = [
        {"cell": "10-0.0", "published": 19.0, "differs": ""},
        {"cell": "50-0.0", "published": 7.0, "differs": "N"},
    ]
    drawn = quality_chart(written(ROWS), cells_of(ROWS), published)
    assert [row for row in drawn.rows if "published" in row[0]] == [("η = 0.0, published", "10", "19")]
    without = quality_chart(written(ROWS), cells_of(ROWS), [])
    more = drawn.svg.count("<use") - without.svg.count("<use")
    assert more == 1, "an empty marker"


def test_a_figure_in_the_page_has_the_pages_colours_and_ids_of_its_own():
    schedules = ("linear", "cosine")
    rows = [one | {"cell": f"{s}-{one['cell']}", "diffusion.schedule": s} for one in ROWS for s in schedules]
    page, _ = seen(report_html(findings(quality=written(rows))))
    svg = [element for element in page.elements if "svg" in element["within"]]
    named = {element["id"] for element in svg if "id" in element}
    used = [element[key] for element in svg for key in ("href", "clip-path") if key in element]
    assert {name.removeprefix("url(").rstrip(")").removeprefix("#") for name in used} == named
    assert {name.partition("-")[0] for name in named} == {"steps", "loss"}
    colours = {element[key] for element in svg for key in ("fill", "stroke") if key in element}
    assert colours == {"none", *(f"var(--{name})" for name in ("back", "colour", "rule", "soft"))}
    steps = [e for e in svg if e.get("data-line") and e["within"].count("figure") and e["tag"] == "g"]
    assert {e["data-line"]: e["class"] for e in steps} == {"line-0": "line-0", "line-1": "line-7"}
    text = " ".join(e["text"] for e in svg if e["tag"] == "text")
    assert "schedule = linear" in text
    assert "sampling steps S" in text
    assert "$" not in text
    assert [e["text"].strip() for e in page.all("button") if e.get("data-toggle")] == ["η = 0.0", "η = 1.0", "m"]


def test_names_of_lines_are_shown_as_they_are():
    long = f"{'long-name-' * 8}of a model"
    logs = dict.fromkeys(("a$_$", "<b>&", long), findings().losses["m"])
    page = Parsed(report_html(findings(losses=logs)))
    assert [e["text"].strip() for e in page.all("button") if e.get("data-toggle")][-3:] == list(logs)


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


def test_the_head_says_when_with_what_and_on_what_the_run_was_made(finished):
    text = Parsed((finished / "report.html").read_text()).all("header")[0]["text"]
    line = next(line for line in text.splitlines() if " · " in line)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d · taugrid \S+ · cpu .+", line)
    assert line.endswith(": gaussian oracle")


def test_what_says_nothing_is_left_out():
    def sections(**changes):
        page = Parsed(report_html(findings(**changes)))
        found = {section["id"] for section in page.all("section")}
        assert {link["href"].removeprefix("#") for link in page.all("a")} == found
        return found

    assert sections() == {"quality", "steps", "samples", "pictures", "loss", "protocol", "warnings"}
    one = {"m": pd.DataFrame({"step": [1], "loss": [1.0]})}
    assert sections(quality=written(ROWS[:2]), losses=one, samples={}) == {"quality", "protocol", "warnings"}
    assert sections(quality=written([]), losses={}, samples={}) == {"protocol"}


def test_eta_is_a_letter_everywhere_but_in_the_config():
    found = {"metric": "fid", "scope": "S", "key": "eta", "base": "0.0", "value": "1.0", "settings": "S=10 eta=0.5",
             "mean_base": 9.0, "mean_value": 4.0, "effect": -5.0, "se_sampling": 0.5, "replicates": 3,
             "over": "training", "low": -6.0, "high": -4.0, "p": 0.001, "p_holm": 0.002, "pairs": 4,
             "note": None}  # fmt: skip
    config = "grid: {eta: [0.0]}\n"
    text = report_html(findings(name="eta", effects=[found], warnings=["S=10 eta=0.5 has no score"], config=config))
    page = Parsed(text)
    assert page.all("h1")[0]["text"] == "eta", "a name is shown as it is"
    assert config in page.all("pre")[-1]["text"]
    main = page.all("main")[0]["text"].replace(config, "")
    assert not re.search(r"(?<!\\)\beta\b", main), "but LaTeX for the clipboard"
    assert "S=10 η=0.5 has" in main


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
        "Object.fromEntries([...document.querySelectorAll('#steps [data-line]')].map("
        "e => [e.dataset.line, getComputedStyle(e).display != 'none']))"
    )
    assert tab.run(shown) == {"line-0": True, "line-1": True}
    tab.click("#steps [data-toggle='line-1']")
    assert tab.run(shown) == {"line-0": True, "line-1": False}
    assert tab.run("document.querySelector(\"#steps [data-toggle='line-1']\").ariaPressed") == "false"
    tab.press(" ")
    assert tab.run(shown) == {"line-0": True, "line-1": True}, "the button has the focus"
    stroke = "getComputedStyle(document.querySelector('#steps g.line-0 path[stroke]')).stroke"
    assert tab.run(stroke) == "rgb(68, 1, 84)", "the variable of the page"

    samples = "document.querySelector('#samples .scroll')"
    state = f"[{samples}.classList.contains('more'), getComputedStyle({samples}, '::before').content]"
    is_wide, hint = tab.run(state)
    assert is_wide
    recorded(hint)
    tab.run(f"{samples}.scrollLeft = 10000; showMore({samples})")
    assert not tab.run(state)[0]
    tab.run(f"Object.assign({samples}.style, {{width: '900px', maxWidth: 'none'}}); updateScrolling()")
    assert tab.run(state) == [False, "none"]


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
    clipboard = "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: %s})"
    tab.run(clipboard % "{writeText: async text => { window.copied = text }}")
    for place, name in ((1, "quality.md"), (2, "quality.tex")):
        tab.click(f"#quality .tools [data-copy]:nth-of-type({place})")
        text = tab.run("copied")
        assert text in (finished / "tables" / name).read_text()
        recorded(text, "better")
        tab.run(clipboard % "undefined")
        tab.run("document.addEventListener('copy', () => { window.copied = document.activeElement.value })")
        tab.run("window.copied = ''")
        tab.click(f"#quality .tools [data-copy]:nth-of-type({place})")
        assert tab.run("copied") == text, "without a clipboard"
        assert tab.run("[...document.querySelectorAll('textarea')].every(e => e.hidden)")
        tab.run(clipboard % "{writeText: async text => { window.copied = text }}")


def test_in_a_browser_a_chart_is_saved_on_white_in_the_colours_of_a_light_page(finished, tab, tmp_path):
    tab.open(finished / "report.html", scheme="dark")
    tab.save_downloads_to(tmp_path)
    tab.click("#steps [data-save]")
    picture = np.asarray(Image.open(tab.saved(tmp_path / "FID-against-sampling-steps-S.png")).convert("RGB"))
    width, height = tab.run("document.querySelector('#steps svg[viewBox][role]').getAttribute('viewBox')").split()[2:]
    assert picture.shape == (int(3 * (float(height) + 34)), int(3 * float(width)), 3), "with a legend of two lines"
    assert (picture[0, 0] == 255).all()
    of_chart, of_legend = picture[:-102], picture[-102:]
    for part in (of_chart, of_legend):
        assert (part == (68, 1, 84)).all(axis=2).sum() > 50, "the first line's colour"


def test_in_a_browser_explanations_open_and_dark_numbers_are_light(finished, tab):
    tab.open(finished / "report.html", scheme="dark")
    state = "document.querySelector('#steps .about').open"
    tab.click("#steps .about summary")
    assert tab.run(state)
    tab.press("Escape")
    assert not tab.run(state)
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run("[...document.querySelectorAll('.about')].every(e => e.open)"), "on paper"
    entry = (
        "(e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor])(document.querySelector('.tg-shade-0'))"
    )
    assert tab.run(entry) == ["rgb(230, 233, 237)", "rgb(11, 85, 96)"]


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
