"""A history of nights as people see it: index.html, `report`, `status`, `taugrid.open`, on nights that really ran."""

import json
import re
import shutil
from pathlib import Path

import click
import pandas as pd
import pytest
from nights import CELLS, begin, interrupted, night, taugrid
from snapshots import raises, recorded
from test_report_page import Parsed

import taugrid as taugrid_api
from taugrid.errors import UserError
from taugrid.eval.nights import NightLine
from taugrid.eval.pages.history import history_html
from taugrid.orchestrator.baseline.compared import NightVerdict
from taugrid.orchestrator.nightly.history import SCHEMA, night_line, write_history
from taugrid.orchestrator.nightly.places import open_history
from taugrid.storage import read_sealed, write_sealed

CLEAN = {"result": "clean", "reason": ""}
PAGE = Path(__file__).parents[2] / "docs/nightly-history.md"
pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six nights: without a baseline, identical, not worse, with two cells only, worse, and one that was killed.

    A history has what happened: each night samples and scores, 9 s for all tests of this file.
    """
    folder = begin(tmp_path_factory.mktemp("made"), name="tonight")
    history = folder / "history"
    night(history, folder / "same.yaml", "2")
    night(history, folder / "nearby.yaml", "3")
    night(history, folder / "nearby.yaml", "4", "--set", "grid={steps: [2, 3], eta: [0.0]}", code=None)
    night(history, folder / "worse.yaml", "5", code=3)
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, history, folder / "same.yaml", "6")
    write_history(open_history(str(history)))
    return folder


def every_file(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lease.json"}


@pytest.fixture
def history(made, tmp_path):
    return shutil.copytree(made / "history", tmp_path / "history")


def rewritten(history, name, change):
    """Give a night another verdict, as another version would have written it, and write the history's files again."""
    path = history / f"nights/{name}/verdict.json"
    verdict = read_sealed(path)
    change(verdict)
    write_sealed(path, verdict)
    taugrid("report", history)


def page(history):
    return Parsed((history / "index.html").read_text())


def rows(parsed):
    found, is_of_nights = [], False
    for element in parsed.elements:
        if element["tag"] == "table":
            is_of_nights = element.get("class") == "nights"
        elif is_of_nights and element["tag"] == "tr":
            found.append([])
        elif is_of_nights and element["tag"] in ("td", "th"):
            found[-1].append(" ".join(element["text"].split()))
    return found


def lights(parsed):
    return re.findall(r"trend-light-(\w+)\.", " ".join(found.get("id", "") for found in parsed.all("g")))


@pytest.mark.long
def test_the_page_has_the_nights_with_their_verdicts_newest_first(history):
    found = page(history)
    head, *nights = rows(found)
    assert head == ["night", "time (UTC)", "verdict", "cells", "checkpoint", "weights", "commit", "files"]
    assert [(row[0], row[2], row[3]) for row in nights] == [
        ("6", "unfinished", "–"),
        ("5", "worse", "4 worse"),
        ("4", "not worse", nights[2][3]),
        ("3", "not worse", "4 not worse"),
        ("2", "identical", "4 identical"),
        ("1", "no baseline", "–"),
    ]
    recorded(nights[2][3], "baseline")
    hashes = {score["weights_sha256"] for score in read_sealed(history / "nights/5/verdict.json")["scores"]}
    assert {nights[1][5]} == {each[:10] for each in hashes}
    assert "nan" not in (history / "index.html").read_text().lower().replace("canary", "")
    assert lights(found) == ["grey", "green", "green", "grey", "red"] * 2, "night 4 lacks two cells of the baseline"
    assert "default-src 'none'" in found.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert not [each for each in found.elements if each["tag"] in ("link", "iframe", "img") or "src" in each]
    links = {found["href"] for found in found.all("a")}
    assert all((history / link).is_file() for link in links)
    for name in "12345":
        assert {f"nights/{name}/summary.md", f"nights/{name}/run/report.html"} <= links
    assert found.all("a")[0]["href"] == "nights/5/run/report.html", "the newest verdict, in the first sentence"


def test_the_figure_has_lines_that_break_and_marks_that_lead_to_the_nights(history, rendered):
    """Night 4 has the cells of eta = 0 alone."""
    taugrid("report", history)
    found = page(history)
    strokes = [path["d"] for path in found.all("path", **{"stroke-width": "1.3"}) if "clip-path" in path]
    assert [(stroke.count("M"), stroke.count("L")) for stroke in strokes] == [(1, 4), (2, 2)] * 2
    marks = [link["href"] for link in found.all("a", tabindex="-1")]
    assert marks == [f"nights/{name}/run/report.html" for name in "12345"] * 2
    lines = [part["id"].partition(".")[0] for part in found.all("g") if "-line-" in part.get("id", "")]
    assert {*lines} == {"trend-line-0", "trend-line-1"}


def test_texts_are_escaped_and_fields_of_newer_verdicts_are_shown(history):
    planted = "<script>alert(1)<b>&amp;"

    def change(verdict):
        verdict["name"] = f"{planted} name"
        verdict["model"] = [{"checkpoint": f"runs/{planted}/step-900", "weights_sha256": "c0ffee" * 10}]
        verdict["not_judged"] = [f"{planted} is too blunt"]
        for score in verdict["scores"]:
            score["label"] += planted
        verdict["comparison"]["only_baseline"] = [f"S{number:04d}-eta0-x" for number in range(8)]
        unknown = {"result": "unknown", "reason": f"{planted} is another device"}
        verdict["comparison"]["checks"] = {"sampler": unknown, "scorer": {"result": "clean", "reason": "equal"}}
        verdict["software"]["git_commit"] = f"{planted}"

    rewritten(history, "5", change)
    text, (_, _, row, *_) = (history / "index.html").read_text(), rows(page(history))
    assert text.count("<script>") == 1
    assert row[4] == f"runs/{planted}/step-900"
    assert row[5] == "c0ffeec0ff"
    recorded(row[3])


@pytest.mark.parametrize(
    ("change", "light"),
    [
        ({}, "green"),
        ({"checks": {"sampler": CLEAN, "scorer": {"result": "unknown", "reason": "another device"}}}, "grey"),
        ({"only_baseline": ["S0009-eta0-x"]}, "grey"),
        ({"only_baseline": ["S0009-eta0-x"], "gate": {"allow_missing": True}}, "green"),
        ({"result": "undecided"}, "grey"),
        ({"result": "not judged"}, "grey"),
        ({"result": "changed scorer"}, "red"),
    ],
)
def test_the_colour_of_a_verdict(made, change, light):
    """Fewer cells are fine where the night was told to allow that."""
    verdict = read_sealed(made / "history/nights/3/verdict.json")
    verdict["comparison"] |= {"result": "not worse", "checks": {"sampler": CLEAN, "scorer": CLEAN}} | change
    verdict |= {"result": verdict["comparison"]["result"], "not_judged": []}
    assert night_line(NightVerdict.read(verdict, made)).light == light


def test_report_writes_the_files_of_a_history_again(history):
    before = every_file(history)
    for name in ("history.parquet", "index.html", "trend.png", "trend.svg"):
        (history / name).unlink()
    out, _ = taugrid("report", history)
    assert out == f"page: {history / 'index.html'}\n"
    assert every_file(history) == before
    found = json.loads(taugrid("report", history, "--json")[0])
    assert (found["page"], len(found["nights"])) == (str(history / "index.html"), 6)


@pytest.mark.parametrize("words", [("report", "--set", "name=x"), ("report", "--rows", "eta"), ("status", "--watch")])
def test_a_history_refuses_options_for_runs(history, words):
    before = every_file(history)
    with raises(click.UsageError):
        taugrid(words[0], history, *words[1:])
    assert every_file(history) == before


def test_status_has_a_line_for_each_night_and_changes_nothing(history):
    before = every_file(history)
    out, _ = taugrid("status", history)
    lines = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert [(line[0], line[2], line[3], line[-1].rpartition("/")[2]) for line in lines[1:5]] == [
        ("2", "identical", "4 identical", "same"),
        ("3", "not worse", "4 not worse", "nearby"),
        ("4", "not worse", lines[3][3], lines[3][-1].rpartition("/")[2]),
        ("5", "worse", "4 worse", "worse"),
    ]
    assert [lines[0][0], lines[0][2]] == ["1", "no baseline"]
    assert lines[5] == ["6", "unfinished"]
    found = json.loads(taugrid("status", history, "--json")[0])
    assert (found["dir"], [each["night"] for each in found["nights"]]) == (str(history), list("123456"))
    assert (found["nights"][4]["cells"], found["nights"][3]["compared"]) == ({"worse": 4}, [2, 4])
    assert (found["nights"][5]["verdict"], found["nights"][5]["time"]) == ("unfinished", None)
    assert every_file(history) == before


def test_open_gives_the_nights_their_table_and_their_runs(history):
    before = every_file(history)
    found = taugrid_api.open(history)
    assert [(night.id, night.verdict) for night in found.nights[3:]] == [
        ("4", "not worse"), ("5", "worse"), ("6", "unfinished"),
    ]  # fmt: skip
    recorded(repr(found))
    assert found.table.groupby("night").cell.nunique().to_dict() == {"1": 4, "2": 4, "3": 4, "4": 2, "5": 4}
    run = found.open("5")
    assert run.directory == str(history / "nights/5/run")
    pd.testing.assert_series_equal(
        run.quality.set_index("cell").fid.sort_index(),
        found.table.query("night == '5' and metric == 'fid'").set_index("cell").value.rename("fid").sort_index(),
    )
    assert len(found.open("6").cells) == CELLS, "of an unfinished night too"
    with raises(UserError):
        found.open("7")
    assert every_file(history) == before
    (history / "history.parquet").unlink()
    with raises(UserError):
        _ = taugrid_api.open(history).table


def test_a_run_stays_a_run_and_a_folder_of_something_else_an_error(history, tmp_path):
    run = history / "nights/1/run"
    recorded(repr(taugrid_api.open(run)), "tonight")
    assert json.loads(taugrid("status", run, "--json")[0])["cells"]
    (tmp_path / "other/nights/1").mkdir(parents=True)
    for place in (tmp_path / "other", tmp_path / "none"):
        recorded(taugrid("status", place, code=2)[1], "directory")
        with raises(UserError):
            taugrid_api.open(place)
    assert not (tmp_path / "none").exists()


def test_a_history_whose_first_night_is_unfinished_has_a_page(history):
    for name in "12345":
        shutil.rmtree(history / "nights" / name)
    taugrid("report", history)
    assert [row[0] for row in rows(page(history))[1:]] == ["6"]
    assert taugrid("status", history)[0] == "6    unfinished\n"
    recorded(repr(taugrid_api.open(history)))


def test_the_python_in_the_documentation_runs(history, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(history.parent)
    found = {}
    exec(block, found)
    assert "5 worse 4 worse" in capsys.readouterr().out.splitlines()
    assert found["worst"]["night"] == "5"
    assert found["cell"].id == found["worst"]["cell"]


def test_a_long_history_shows_its_newest_nights(rendered):
    nights = [NightLine(f"night-{n:04d}-of-many", "2026-11-26", "not worse", "green") for n in range(1_200)]
    told = dict.fromkeys(SCHEMA.names) | {"metric": "fid", "se": 0.1, "margin": 0.1, "baseline_value": 5.0}
    scores = [
        told | {"night": night.id, "steps": 10, "label": f"S0010-eta{eta}", "value": 5.0 + eta}
        for night in nights
        for eta in range(20)
    ]
    text = history_html("long", nights, scores, {})
    found = Parsed(text)
    assert len(text) < 2_000_000
    assert lights(found) == ["green"] * 60
    assert [row[0] for row in rows(found)[1:3]] == ["night-1199-of-many", "night-1198-of-many"]
    assert "200 older" in text
