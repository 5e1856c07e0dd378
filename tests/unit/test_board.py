"""The board: finds runs, reads what they recorded whatever state they are in, and keeps an index of it."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

import taugrid
from taugrid.errors import UserError
from taugrid.orchestrator.board.document import document_of
from taugrid.orchestrator.board.find import Place
from taugrid.orchestrator.board.index import Index
from taugrid.storage import LocalStorage

DATA = Path(__file__).parents[1] / "data"
RUN = DATA / "run-011be7a" / "run"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "taugrid" / "board"


@pytest.fixture
def runs(tmp_path):
    """A folder with a run of an earlier version in it."""
    shutil.copytree(RUN, tmp_path / "runs" / "old" / "seed-1")
    return tmp_path / "runs"


def look(*places):
    return Index([Place.of(str(place)) for place in places]).look()


def by_title(board):
    return {run.found.title: run.entry for run in board.runs}


def change(path, **values):
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_frame_has_all_columns_and_the_numbers_of_each_table(runs):
    shutil.copytree(DATA / "first_version", runs / "first")
    frame = taugrid.board(runs)
    assert frame.columns[0] == "run"
    titles = ["first/custom", "first/oracle", "old/seed-1"]
    assert list(frame["run"].unique()) == titles
    for title, folder in zip(titles, (DATA / "first_version/custom", DATA / "first_version/oracle", RUN), strict=True):
        expected = pd.read_csv(folder / "tables" / "quality.csv", dtype={"cell": str})
        own = frame[frame["run"] == title].reset_index(drop=True)
        assert set(expected) <= set(own)
        for column in expected:
            pd.testing.assert_series_equal(own[column], expected[column], check_dtype=False, rtol=1e-12)


def test_a_run_is_never_entered_and_a_night_brings_its_run_alone(tmp_path, runs, monkeypatch):
    history = tmp_path / "runs" / "history"
    night = history / "nights" / "2026-11-26"
    for name in ("run", "fresh", "canary-x"):
        shutil.copytree(RUN, night / name)
    (history / "nights" / "2026-11-27").mkdir()
    (history / "nights" / "2026-11-27" / "verdict.json").write_text("{}")
    listed = []
    level = LocalStorage.level

    def noted(self, folder):
        listed.append(folder)
        return level(self, folder)

    monkeypatch.setattr(LocalStorage, "level", noted)
    board = look(runs)
    assert list(by_title(board)) == ["history/nights/2026-11-26/run", "old/seed-1"]
    assert not [path for path in listed if path.parent.name == "samples"], "it may hold a million files"
    [history] = document_of(board, []).value["histories"]
    assert [(night["id"], night["verdict"], night["run"] is None) for night in history["nights"]] == [
        ("2026-11-26", "unfinished", False), ("2026-11-27", "damaged verdict.json", True),
    ]  # fmt: skip


def test_half_written_damaged_and_newer_runs_are_listed_with_a_note(runs):
    def made(name, **texts):
        for file, text in texts.items():
            path = runs / name / file.replace("__", "/").replace("_json", ".json").replace("_csv", ".csv")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    made("begun", run_json='{"run": "x"}')
    made("config-only", run_json='{"run": "x"}', config_json='{"name": "early"}')
    made("torn", run_json='{"run": "x"}', config_json='{"name": "to')
    made("deep", run_json="{}", config_json='{"name": "deep"}', tables__quality_json="[" * 100_000)
    made("odd", run_json="{}", config_json='{"name": 7, "sample": 3}', plan_json='{"cells": [1, {"id": []}]}',
         provenance_json='{"machines": {"a": 1}, "versions": {"taugrid": "9.0.0"}}',
         tables__quality_json='{"rows": [1, {"cell": "a", "fid": NaN, "new": [1]}], "protocols": {"p": 3}}',
    )  # fmt: skip
    table = runs / "old" / "seed-1" / "tables" / "quality.json"
    table.write_text(table.read_text()[:-50])
    entries = by_title(look(runs))
    assert {title: entry["state"] for title, entry in entries.items()} == {
        "begun": "unreadable", "config-only": "empty", "deep": "empty", "odd": "finished", "old/seed-1": "finished",
        "torn": "unreadable",
    }  # fmt: skip
    assert "config.json is damaged" in entries["torn"]["note"]
    assert "tables/quality.json is damaged" in entries["deep"]["note"]
    assert "taugrid 9.0.0 wrote it" in entries["odd"]["note"]
    assert entries["odd"]["rows"] == [["a", None, "[1]"]]
    assert "tables/quality.json is damaged" in entries["old/seed-1"]["note"]
    assert len(entries["old/seed-1"]["rows"]) == 5, "quality.csv has the rows, too"


def test_what_cannot_be_listed_is_said_and_the_rest_is_shown(runs, tmp_path, monkeypatch):
    (runs / "broken").symlink_to(tmp_path / "nowhere")
    (runs / "loop").symlink_to(runs)
    (runs / "locked").mkdir()
    (runs / "gone").mkdir()
    scandir = os.scandir

    def refusing(path):
        if Path(path).name in ("locked", "gone"):
            raise PermissionError(13, "Permission denied") if Path(path).name == "locked" else FileNotFoundError(2, "")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    board = look(runs, tmp_path / "typo")
    assert list(by_title(board)) == ["old/seed-1"]
    assert sorted(note.removeprefix(str(tmp_path)) for note in board.notes) == [
        "/runs/broken: a broken link, or no permission to follow it", "/runs/gone: it is not there",
        "/runs/locked: Permission denied", "/typo: it is not there",
    ]  # fmt: skip
    with pytest.raises(UserError, match="typo: it is not there"):
        taugrid.board(tmp_path / "typo")


def test_an_entry_is_read_again_once_its_files_change(runs, cache, monkeypatch):
    first = by_title(look(runs))["old/seed-1"]
    [index] = cache.iterdir()
    kept = index.read_bytes()
    assert by_title(look(runs))["old/seed-1"] == first
    assert index.read_bytes() == kept
    table = runs / "old" / "seed-1" / "tables" / "quality.json"
    rows = json.loads(table.read_text())["rows"]
    change(table, rows=[rows[0] | {"fid": 1.5}])
    changed = by_title(look(runs))["old/seed-1"]
    assert changed["rows"][0][changed["columns"].index("fid")] == 1.5
    index.write_text("{")
    assert by_title(look(runs))["old/seed-1"] == changed, "a damaged index is made again"
    shutil.rmtree(cache)
    assert by_title(look(runs))["old/seed-1"] == changed
    shutil.rmtree(runs / "old")
    assert look(runs).runs == []


def test_titles_are_unique_and_can_be_encoded(runs, tmp_path):
    other = shutil.copytree(runs, tmp_path / "other")
    shutil.copytree(RUN, runs / "a<script>&\"'")
    shutil.copytree(RUN, os.fsdecode(os.fsencode(runs) + b"/\xff"))
    change(runs / "old" / "seed-1" / "config.json", name="\ud800</script>")
    board = look(runs, other, runs / "old")
    assert list(by_title(board)) == ["\\udcff", "a<script>&\"'", "other/old/seed-1", "runs/old/seed-1"]
    json.dumps(document_of(board, []).value, ensure_ascii=False).encode()


def test_what_may_be_compared_has_equal_keys(runs):
    shutil.copytree(RUN, runs / "same")
    other = shutil.copytree(RUN, runs / "other")
    table = other / "tables" / "quality.json"
    protocols = json.loads(table.read_text())["protocols"]
    change(table, protocols={name: {**p, "num_samples": 61} for name, p in protocols.items()})
    entries = by_title(look(runs))
    assert entries["same"]["groups"] == entries["old/seed-1"]["groups"] != entries["other"]["groups"]
    assert len(set(entries["same"]["groups"])) == 1, "S and eta differ on purpose"
    assert {fields["num_samples"] for fields in entries["other"]["protocols"].values()} == {"61"}
    assert len(set(entries["same"]["noise"])) == 1
    change(other / "config.json", sample={"seed": 1})
    cells = other / "tables" / "cells.csv"
    cells.unlink()
    assert set(by_title(look(runs))["other"]["noise"]).isdisjoint(entries["same"]["noise"]), "another seed"
