"""The board: finds runs, reads what they recorded whatever state they are in, and keeps an index of it."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nights
import numpy as np
import pandas as pd
import pytest
import yaml
from snapshots import raises, recorded

import taugrid
from taugrid import parquet
from taugrid.errors import UserError
from taugrid.images import decode_png, to_pictures
from taugrid.orchestrator.board.cells import paired, strip
from taugrid.orchestrator.board.document import document_of
from taugrid.orchestrator.board.find import Place
from taugrid.orchestrator.board.index import Index
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.lease import sole_driver
from taugrid.orchestrator.view import inspection
from taugrid.parquet import PartWriter, picture_schema
from taugrid.parquet import pictures as pictures_of
from taugrid.run_id import FORMAT
from taugrid.storage import LocalStorage, write_sealed

DATA = Path(__file__).parents[1] / "data"
RUN = DATA / "kept-run" / "run"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "taugrid" / "board"


@pytest.fixture
def runs(tmp_path):
    """A folder with a run in it."""
    shutil.copytree(RUN, tmp_path / "runs" / "old" / "seed-1")
    return tmp_path / "runs"


def look(*places):
    return Index([Place.of(str(place)) for place in places]).look()


def by_title(board):
    return {run.found.title: run.entry for run in board.runs}


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_frame_has_all_columns_and_the_numbers_of_each_table(runs):
    shutil.copytree(RUN, runs / "first" / "copy")
    frame = taugrid.board(runs)
    assert frame.columns[0] == "run"
    titles = ["first/copy", "old/seed-1"]
    assert list(frame["run"].unique()) == titles
    expected = pd.read_csv(RUN / "tables" / "quality.csv", dtype={"cell": str})
    for title in titles:
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
    listed, level = [], LocalStorage.level
    monkeypatch.setattr(LocalStorage, "level", lambda self, folder: (listed.append(folder), level(self, folder))[1])
    board = look(runs)
    assert list(by_title(board)) == ["history/nights/2026-11-26/run", "old/seed-1"]
    assert not [path for path in listed if path.parent.name == "samples"], "it may hold a million files"
    [history] = document_of(board, []).value["histories"]
    assert [(night["id"], night["verdict"], night["run"] is None) for night in history["nights"]] == [
        ("2026-11-26", "unfinished", False), ("2026-11-27", "damaged verdict.json", True),
    ]  # fmt: skip


def test_a_run_of_another_version_is_a_note(runs):
    change(runs / "old" / "seed-1" / "run.json", format=FORMAT + 1)
    board = look(runs)
    assert (board.runs, board.readable) == ([], True)
    recorded("\n".join(board.notes))


def test_half_written_damaged_and_newer_runs_are_listed_with_a_note(runs):
    def made(name, **texts):
        for file, text in texts.items():
            path = runs / name / file.replace("__", "/").replace("_json", ".json").replace("_csv", ".csv")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    run_id = json.dumps({"run": "0" * 32, "format": FORMAT})
    made("begun", run_json=run_id)
    made("config-only", run_json=run_id, config_json='{"name": "early"}')
    made("torn", run_json=run_id, config_json='{"name": "to')
    made("deep", run_json=run_id, config_json='{"name": "deep"}', tables__quality_json="[" * 100_000)
    made("odd", run_json=run_id, config_json='{"name": 7, "sample": 3}', plan_json='{"cells": [1, {"id": []}]}',
         provenance_json='{"machines": {"a": 1}, "versions": {"taugrid": "9.0.0"}}',
         tables__quality_json='{"rows": [1, {"cell": "a", "fid": NaN, "new": [1]}], "protocols": {"p": 3}}',
    )  # fmt: skip
    table = runs / "old" / "seed-1" / "tables" / "quality.json"
    table.write_text(table.read_text()[:-50])
    entries = by_title(look(runs))
    assert {title: entry["state"] for title, entry in entries.items()} == {
        "begun": "unreadable", "config-only": "empty", "deep": "empty", "odd": "finished", "old/seed-1": "sampled",
        "torn": "unreadable",
    }  # fmt: skip
    recorded(entries["torn"]["note"], "damaged")
    recorded(entries["deep"]["note"], "damaged")
    assert "9.0.0" in entries["odd"]["note"]
    assert entries["odd"]["rows"] == [["a", None, "[1]"]]
    recorded(entries["old/seed-1"]["note"], "damaged")


@pytest.mark.parametrize("config", [{"a": 1}, {"nam<": "x"}])
def test_a_run_whose_config_is_not_valid_is_unreadable_and_its_rows_stay(config, runs):
    """Once it was finished, without a note: `status` and `verify` refuse it."""
    path = runs / "old" / "seed-1" / "config.json"
    path.write_text(json.dumps(config))
    entry = by_title(look(runs))["old/seed-1"]
    assert entry["state"] == "unreadable"
    recorded(entry["note"], "config.json")
    assert entry["rows"]


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
    recorded("\n".join(sorted(note.removeprefix(str(tmp_path)) for note in board.notes)))  # fmt: skip
    with raises(UserError):
        taugrid.board(tmp_path / "typo")


def test_a_search_that_ends_early_says_so(runs, monkeypatch):
    for n in range(4):
        shutil.copytree(RUN, runs / f"run-{n}")
    shutil.rmtree(runs / "old")
    monkeypatch.setattr("taugrid.orchestrator.board.find.MAX_FOLDERS", 4)
    board = look(runs)
    assert len(board.runs) == 3
    recorded("\n".join(board.notes))
    monkeypatch.setattr("taugrid.orchestrator.board.find.MAX_FOLDERS", 5)
    assert look(runs).notes == [], "just enough for four runs and their folder"


def test_a_second_look_lists_folders_and_reads_no_file_of_a_run(runs, monkeypatch):
    shutil.copytree(RUN, runs / "b")
    first = look(runs)
    asked = {"read": [], "level": []}
    for name, paths in asked.items():
        whole = getattr(LocalStorage, name)
        noted = lambda self, path, *rest, whole=whole, paths=paths: (paths.append(path), whole(self, path, *rest))[1]  # noqa: E731
        monkeypatch.setattr(LocalStorage, name, noted)
    second = look(runs)
    assert [run.entry for run in second.runs] == [run.entry for run in first.runs]
    assert not [path for path in asked["read"] if path.is_relative_to(runs)]
    assert len(asked["level"]) <= 2 + 3 * len(second.runs)


def test_an_entry_is_read_again_once_its_files_change(runs, cache, monkeypatch):
    first = by_title(look(runs))["old/seed-1"]
    [index] = cache.iterdir()
    kept = index.stat().st_ino
    assert by_title(look(runs))["old/seed-1"] == first
    assert index.stat().st_ino == kept, "it is not written again"
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
    assert board.notes == []
    assert list(by_title(board)) == ["\\udcff", "a<script>&\"'", "other/old/seed-1", "runs/old/seed-1"]
    json.dumps(document_of(board, []).value, ensure_ascii=False).encode()


def test_runs_with_other_settings_of_kid_may_be_compared_by_fid(runs):
    table = shutil.copytree(RUN, runs / "other") / "tables" / "quality.json"
    protocols = json.loads(table.read_text())["protocols"]
    changed = {"metrics": ["fid", "kid"], "kid_subsets": 50}
    change(table, protocols={name: {**p, **changed} for name, p in protocols.items()})
    entries = by_title(look(runs))
    assert entries["other"]["groups"] == entries["old/seed-1"]["groups"]
    document = document_of(look(runs), []).value
    settings = {column["name"]: column["settings"] for column in document["columns"]}
    assert settings["fid"] == settings["steps"] == []
    by_run = {run["title"]: run["settings"] for run in document["runs"]}
    assert {fields["kid_subsets"] for fields in by_run["other"].values()} == {"50"}
    assert by_run["other"].keys() == protocols.keys()


def test_what_may_be_compared_has_equal_keys(runs):
    shutil.copytree(RUN, runs / "same")
    other = shutil.copytree(RUN, runs / "other")
    table = other / "tables" / "quality.json"
    protocols = json.loads(table.read_text())["protocols"]
    change(table, protocols={name: {**p, "num_samples": 61} for name, p in protocols.items()})
    entries = by_title(look(runs))
    assert entries["same"]["groups"] == entries["old/seed-1"]["groups"] != entries["other"]["groups"]
    assert len(set(entries["same"]["groups"])) == 1, "S and eta differ on purpose"
    [group] = set(entries["other"]["groups"])
    document = document_of(look(runs), []).value
    assert document["protocols"][group]["num_samples"] == "61"
    fields = document["protocols"][entries["same"]["groups"][0]]
    assert fields["num_samples"] == "60"
    assert next(iter(fields.items())) == ("data", "digits/train (16b824c6b1)"), "by name: hashes tell nobody anything"
    (other / "tables" / "quality.json").unlink()
    assert by_title(look(runs))["other"]["rows"] == []
    change(runs / "same" / "tables" / "quality.json", protocols={})
    assert by_title(look(runs))["same"]["groups"] == [None] * 5, "what is not recorded is no group"
    for copy in (runs / "same" / "tables" / "quality.json", table):
        shutil.copy(RUN / "tables" / "quality.json", copy)
    assert len(set(entries["same"]["noise"])) == 1
    change(other / "config.json", sample={"seed": 1})
    cells = other / "tables" / "cells.csv"
    cells.unlink()
    assert set(by_title(look(runs))["other"]["noise"]).isdisjoint(entries["same"]["noise"]), "another seed"


CONFIG = {
    "name": "small",
    "model": {"oracle": "gaussian"},
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "sample": {"num_samples": 200, "batch_size": 100, "shard_evaluations": 300},
    "grid": {"steps": [2, 3], "eta": [0.0]},
    "evaluate": {"metrics": ["fid"]},
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, one_thread, sketched):
    """A folder with a run of today, with influences, a copy of it, and one with another seed."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    nights.taugrid("run", folder / "small.yaml", "--out", folder / "runs" / "small")
    nights.taugrid("run", folder / "small.yaml", "--out", folder / "runs" / "seed-1", "--set", "sample.seed=1")
    shutil.copytree(folder / "runs" / "small", folder / "runs" / "copy")
    return folder / "runs"


def rows_of(*places):
    """(title, steps) -> row."""
    rows = document_of(look(*places), []).rows
    return {(row.run.found.title, row.values["steps"]): row for row in rows}


@pytest.mark.long
def test_a_pair_is_what_compare_says_within_a_run_and_across_two(scored):
    rows = rows_of(scored)
    expected = inspection.compare(open_existing(str(scored / "small")), "steps=2", "steps=3", False)["metrics"]["fid"]
    assert expected["se"] > 0
    within = paired(rows["small", 2], rows["small", 3])
    assert within == {"fid": (expected["difference"], expected["se"])}
    assert paired(rows["small", 2], rows["copy", 3]) == within
    assert paired(rows["small", 3], rows["copy", 3]) == {"fid": (0.0, 0.0)}
    value = document_of(look(scored), []).value
    cells = [value["cells"][a] + " -> " + value["cells"][b] for a, b, *_ in value["differences"]]
    assert set(cells) == {"S=2 eta=0 -> S=3 eta=0"}
    assert ["fid", *within["fid"]] in [rest for _, _, *rest in value["differences"]]


def test_rows_without_common_noise_or_protocol_or_with_other_scores_are_no_pair(scored, tmp_path):
    shutil.copytree(scored, tmp_path / "runs")
    names = ("rescored", "unrecorded", "forged", "mixed", "odd", "huge")
    rescored, unrecorded, forged, mixed, odd, huge = (tmp_path / "runs" / name for name in names)
    for run in (rescored, unrecorded, forged, mixed, odd, huge):
        shutil.copytree(scored / "small", run)
    table = json.loads((rescored / "tables" / "quality.json").read_text())
    change(rescored / "tables" / "quality.json", rows=[row | {"fid": row["fid"] + 1} for row in table["rows"]])
    for run, bad in ((odd, {"num_samples": "abc"}), (huge, {"fid": 10**400})):
        change(run / "tables" / "quality.json", rows=[row | bad for row in table["rows"]])
    change(unrecorded / "tables" / "quality.json", protocols={})
    change(forged / "tables" / "quality.json", rows=[row | {"cell": "../../small/scores/x"} for row in table["rows"]])
    one, other = sorted((mixed / "scores").glob("*.parquet"))
    for path, target in ((one, mixed / "x"), (other, one), (mixed / "x", other)):
        path.rename(target)
    rows = rows_of(tmp_path / "runs")
    for title, reason in (
        ("seed-1", "share no noise"), ("rescored", "no influences"), ("forged", "no influences"),
        ("mixed", "no influences"),
        ("unrecorded", "does not record the protocol"), ("odd", "can't be compared"),
        ("huge", "can't be compared|no influences"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            paired(rows["small", 2], rows[title, 3])


def test_a_strip_shows_the_first_images_and_blank_tiles_for_missing_ones(runs):
    [row, *_] = document_of(look(runs), []).rows
    pictures = to_pictures([decode_png(strip(row))])[0]
    assert pictures.shape == (8, 16 * 8)
    expected = taugrid.open(RUN).cell(row.values["cell"]).images(range(16))
    assert (pictures == np.concatenate(list(expected), axis=1)).all()
    folder = runs / "old" / "seed-1" / "samples" / row.of("folders")
    first = parquet.read_png(folder / "part-000000.parquet", range(3))
    shutil.rmtree(folder)
    with PartWriter(folder / "part-000000.parquet", picture_schema({})) as part:
        part.write(pictures_of(np.stack([decode_png(png) for png in first.values()]), 0))
        part.commit(replace=True)
    pictures = to_pictures([decode_png(strip(row))])[0]
    assert (pictures[:, : 3 * 8] == np.concatenate(list(expected[:3]), axis=1)).all()
    assert not pictures[:, 3 * 8 :].any()
    shutil.rmtree(folder)
    with raises(UserError):
        strip(row)
    shutil.copytree(RUN, os.fsdecode(os.fsencode(runs) + b"/\xff"))
    with pytest.raises(UserError) as refused:
        strip(document_of(look(runs), []).rows[0])
    assert str(refused.value).encode() == b"the images of this cell can't be read"


def test_kid_over_subsets_is_no_metric_beside_kid(runs):
    quality = runs / "old" / "seed-1" / "tables" / "quality.json"
    rows = json.loads(quality.read_text())["rows"]
    for values, kind in ({}, "metric"), ({"kid": 0.1, "kid_se": 0.01}, "number"):
        change(quality, rows=[row | values for row in rows])
        kinds = {column["name"]: column["kind"] for column in document_of(look(runs), []).value["columns"]}
        assert kinds["kid_mean"] == kind


def test_the_document_says_what_each_column_and_each_row_is(runs):
    removed = runs / "old" / "seed-1" / "removed"
    removed.mkdir()
    (removed / "S0008-sigma_hat-ad2c66b357.parquet").write_text("x")
    value = document_of(look(runs), []).value
    assert {column["name"]: column.pop("settings") for column in value["columns"]}["isc_mean"] == ["seed", "isc_splits"]
    columns = {column.pop("name"): tuple(column.values()) for column in value["columns"]}
    assert columns["steps"] == ("S", "setting", None, None, None, None)
    assert (*columns["fid"][2:4], columns["fid"][5]) == ("lower", "fid_se", "fid_se")
    recorded("\n".join(columns["isc_mean"]))
    assert columns["kid_mean"][3::2] == ("kid_std", None), "no standard error"
    assert columns["isc_std"][1] == "error"
    assert columns["seconds"][1] == "number"
    assert columns["cell"][1] == columns["protocol"][1] == "text"
    assert "fid_se" not in columns, "no row has one"
    cells = {row[1 + list(columns).index("cell")]: row for row in value["rows"]}
    etas = {cell: row[1 + list(columns).index("eta")] for cell, row in cells.items()}
    assert etas == {cell: "σ̂" if cell == "ad2c66b357" else etas[cell] for cell in etas}
    images = dict(zip(cells, value["images"]["rows"], strict=True))
    assert images == {cell: cell != "ad2c66b357" for cell in cells}
    (removed / "S0004-eta0-06a87da89f.parquet").write_text("x")
    assert sum(document_of(look(runs), []).value["images"]["rows"]) == 3, "it is seen without another change"


def add_event(run, at, **event):
    with (run / "events" / "0009.jsonl").open("a") as file:
        file.write(json.dumps({"time": at.isoformat(), **event}) + "\n")


def test_a_run_at_work_shows_its_progress_from_what_is_new(runs, cache):
    run = runs / "old" / "seed-1"
    for path in run.glob("events/*"):
        path.unlink()
    cells = [{"id": f"c{n}", "settings": {"num_samples": 60}} for n in range(2)]
    (run / "plan.json").write_text(json.dumps({"cells": cells, "models": []}))
    began = datetime.now(UTC) - timedelta(seconds=2000)
    index = Index([Place.of(str(runs))])
    with sole_driver(RunDir(run)):
        add_event(run, began, event="session", stages=[])
        add_event(run, began, event="shard", cell="of-a-grid-before", path="p", images=60, copied=0, committed=True)
        for _ in range(150):  # then it is larger than what a storage reads at once
            add_event(run, began, event="assigned", padding="x" * 2**20)
        for n in range(2):
            shard = {"event": "shard", "cell": "c0", "path": f"part-{n}", "images": 15, "copied": 0}
            shard["committed"] = n == 0
            add_event(run, began, **shard)
        [first] = document_of(index.look(), []).value["runs"]
        assert (first["state"], first["ended"]) == ("running", None)
        assert first["progress"] == {"done": 15, "total": 120, "left_seconds": None}
        add_event(run, began, **shard | {"committed": True})
        add_event(run, began, **shard | {"committed": True})
        line = json.dumps({"time": began.isoformat(), **shard, "cell": "c1", "committed": True})
        (run / "events" / "0009.jsonl").open("a").write(line[:60])
        kept = [path.stat().st_mtime_ns for path in cache.glob("*")]
        [second] = document_of(index.look(), []).value["runs"]
        assert [path.stat().st_mtime_ns for path in cache.glob("*")] == kept, "it would be written at each look"
        assert second["progress"]["done"] == 30, "a shard counts once"
        assert second["progress"]["left_seconds"] == pytest.approx(2000 * 90 / 15, rel=0.2)
        (run / "events" / "0009.jsonl").open("a").write(f"{line[60:]}\n")
        [fourth] = document_of(index.look(), []).value["runs"]
        assert fourth["progress"]["done"] == 45, "half a line is read once whole"
        grown = {"event": "shard", "cell": "c0", "path": "part-0", "images": 45, "copied": 15, "committed": True}
        add_event(run, began, **grown)
        [fifth] = document_of(index.look(), []).value["runs"]
        assert fifth["progress"]["done"] == 90, "a file that grew has the images that it had"
        assert fifth["progress"]["left_seconds"] == pytest.approx(2000 * 30 / (15 + 45), rel=0.2), "copies take no time"
    [third] = document_of(index.look(), []).value["runs"]
    assert (third["state"], third["progress"]) == ("incomplete", None)


def test_two_boards_at_once_do_not_disturb_each_other(runs, cache):
    for n in range(8):
        shutil.copytree(RUN, runs / f"run-{n}")

    def change_and_look(n):
        change(runs / f"run-{n}" / "config.json", name=f"changed {n}")
        return look(runs)

    with ThreadPoolExecutor(4) as pool:
        boards = list(pool.map(change_and_look, range(8)))
    assert {len(board.runs) for board in boards} == {9}
    assert not [note for board in boards for note in board.notes]
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    entries = by_title(look(runs))
    assert [entries[f"run-{n}"]["name"] for n in range(8)] == [f"changed {n}" for n in range(8)]


def test_a_cache_that_cannot_be_written_costs_a_note(runs, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the place of the folder")
    board = look(runs)
    assert len(board.runs) == 1
    assert "be kept" in board.notes[0]


def test_a_verdict_is_read_again_once_it_changes(runs):
    night = runs / "history" / "nights" / "1"
    night.mkdir(parents=True)
    (night / "verdict.json").write_text("{}")
    index = Index([Place.of(str(runs))])
    assert index.look().nights[0][1]["verdict"] == "damaged verdict.json"
    write_sealed(night / "verdict.json", nights.empty_verdict("1", "2026-12-01"))
    assert index.look().nights[0][1]["verdict"] == "no baseline"


def test_a_planned_cell_without_scores_is_lacking_and_labels_are_those_of_the_runs_table(runs):
    run = runs / "old" / "seed-1"
    entry = by_title(look(runs))["old/seed-1"]
    cells = [row[entry["columns"].index("cell")] for row in entry["rows"]]
    (run / "tables" / "cells.csv").write_text(f"cell,name\n{cells[0]},my label\n")
    (run / "plan.json").write_text(json.dumps({"cells": [{"id": cell} for cell in (*cells, "another")]}))
    entry = by_title(look(runs))["old/seed-1"]
    assert (entry["state"], entry["labels"][0]) == ("incomplete", "my label")
