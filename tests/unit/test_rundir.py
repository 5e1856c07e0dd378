"""The events, the set-aside files and the names of a run directory."""

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from snapshots import raises, recorded

from taugrid.config import Config, validate
from taugrid.config.load import load
from taugrid.errors import UserError
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.report.write import write_cells
from taugrid.orchestrator.rundir import provenance
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.rundir.extension import check_extends, check_is_run_directory, orphans_in_words
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.registry.extractors import ExtractorSpec
from taugrid.run_id import FORMAT, claim
from taugrid.storage import LocalStorage

ROOT = Path(__file__).parents[2]


def test_each_session_has_its_own_events(tmp_path):
    rundir = RunDir(tmp_path)
    first = Events(rundir)
    first.add("session", stages=["train"])
    assert [event["event"] for event in read_events(rundir)] == ["session"], "readers see an event at once"
    second = Events(rundir)
    second.add("session", stages=["sample"], name="é")
    first.add("end")
    assert [path.name for path in sorted(rundir.events.iterdir())] == ["0001.jsonl", "0002.jsonl"]
    events = list(read_events(rundir))
    assert [event["event"] for event in events] == ["session", "end", "session"]
    assert events[2]["name"] == "é"
    assert all(event["time"].endswith("+00:00") for event in events)


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path):
    rundir = RunDir(tmp_path)
    rundir.events.mkdir()
    whole = json.dumps({"time": "t", "event": "session", "stages": []})
    (rundir.events / "0007.jsonl").write_text(f'{whole}\n{{"time": "t", "ev')
    assert [event["event"] for event in read_events(rundir)] == ["session"]
    assert Events(rundir).path.name == "0008.jsonl"


def test_damaged_files_are_set_aside_without_a_clash(tmp_path):
    rundir = RunDir(tmp_path)
    for content in ("one", "two"):
        path = rundir.samples / "cell" / "part-000000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        rundir.set_aside(Damage(path, "bad"))
        assert not path.exists()
    assert {path.name: path.read_text() for path in rundir.damaged.iterdir()} == {
        "0000-samples__cell__part-000000.parquet": "one",
        "0001-samples__cell__part-000000.parquet": "two",
    }
    folder = rundir.models / "abc"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    assert (rundir.set_aside(Damage(folder, "no weights")) / "unet" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(("removed", "done"), [(3, 0), (4, 1), (9, 2), (24, 6), (25, 7)])
def test_whole_shards_of_removed_images_are_done(tmp_path, removed, done):
    """25 images in shards of four, of which the last has one."""
    values = {"name": "x", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}}
    values["sample"] = {"num_samples": 25, "batch_size": 4, "shard_evaluations": 1, "steps": 2}
    [cell] = plan(validate(Config, values, "test")).cells
    rundir = RunDir(tmp_path)
    rundir.remove_images(cell, {}, np.zeros(removed, np.int64))
    assert rundir.sampled(cell, None, True, pytest.fail, Listing(rundir)) == set(range(done))


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    rundir = RunDir(tmp_path)
    left = [rundir.root / ".probe.0.tmp", rundir.samples / "cell" / ".part.1.tmp", rundir.features / "e/c/.part.2.tmp"]
    kept = [rundir.samples / "cell" / "part-000000.parquet", rundir.models / "m" / ".state.tmp", rundir.root / "x.tmp"]
    now = time.time()
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (now - 1, now - 1))  # a few milliseconds are one moment to a file system
    with rundir.lock() as lease:
        new = [rundir.root / ".ledger.jsonl.1.tmp", rundir.samples / "cell" / ".part.3.tmp"]
        for path in new:
            path.touch()
            os.utime(path, (lease.began + 60, lease.began + 60))
        left.append(rundir.samples / "cell" / ".part.4.tmp")
        left[-1].touch()  # of this driver's workers
        time.sleep(0.01)
        rundir.remove_temporaries(["samples/*", "features/*/*"], lease)
    kept += new
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_provenance_names_the_commit_of_the_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("taugrid runs from no checkout here")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert provenance.software()["git_commit"] == head.stdout.strip()


def test_the_names_in_peoples_run_directories_stay(tmp_path):
    rundir = RunDir(tmp_path)
    ours = ExtractorSpec("inception", None, "0123456789abcdef", "pool", None, 2048, None)
    theirs = dataclasses.replace(ours, name="package:make", source_sha256="fedcba9876543210")
    part = rundir.reference_part("pixels", "0123456789abcdef", 0)
    names = {
        "features/inception-01234567": rundir.features / rundir.extractor_folder(ours),
        "features/package_make-01234567-fedcba98": rundir.features / rundir.extractor_folder(theirs),
        "models/m/model.json": rundir.model_record("m"),
        "features/pixels/reference-0123456789/part-000000.parquet": part,
        "logs/0003-sample-c-0.txt": rundir.task_log("0003", "sample/c/0"),
    }
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in names.items()} == {
        name: name for name in names
    }


def test_a_run_that_another_driver_begins_while_its_folder_is_looked_at_is_one(tmp_path, monkeypatch):
    rundir, list_folder = RunDir(tmp_path), LocalStorage.list

    def list_late(storage, folder, pattern):
        claim(folder, storage)
        return list_folder(storage, folder, pattern)

    monkeypatch.setattr(LocalStorage, "list", list_late)
    check_is_run_directory(rundir)


def test_a_folder_that_is_no_run_directory_is_not_written_to(tmp_path):
    rundir = RunDir(tmp_path / "run")
    check_is_run_directory(rundir)  # not there yet
    rundir.root.mkdir()
    for name in ("lease.json", ".conditions-0123456789ab.tmp"):
        (rundir.root / name).touch()
    check_is_run_directory(rundir)  # a driver that was killed as it began, or that begins now
    (rundir.root / "thesis.tex").touch()
    with raises(UserError):
        check_is_run_directory(rundir)
    claim(rundir.root, rundir.storage)  # a session that was killed before it wrote the config
    check_is_run_directory(rundir)


NETWORK = {"_class_name": "UNet2DModel", "sample_size": 8}


CONFIGS = [{"name": "mine"} | NETWORK, {"sample": {}}, {}, ["name", "sample"], "name sample",
           {"name": "x", "sample": "y"}, {"name": "x", "sample": {}, "evaluate": {}}]  # fmt: skip
RUNS = [{"mine": 1}, {"run": "abc"}, {"run": 1}, "run", {"run": "0" * 32, "mine": 1}]


@pytest.mark.parametrize(
    "files",
    [
        *({"config.json": config} for config in CONFIGS),
        *({"config.json": NETWORK, "run.json": run} for run in RUNS),
        {"config.json": NETWORK, "lease.json": {}},
        {"run.json": {"mine": 1}},
        {".git/config": 1},
        {"models/mine.json": 1},
    ],
    ids=json.dumps,
)
def test_the_files_of_something_else_are_neither_overwritten_nor_removed(tmp_path, files):
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    if "config.json" in files:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "mine").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for command in ("report gaussian --out", "clean --logs --yes"):
        assert isinstance(CliRunner().invoke(cli, [*command.split(), str(tmp_path)]).exception, UserError)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", [{"run": "0" * 32}, {"run": "0" * 32, "format": FORMAT + 1}, None])
def test_a_run_directory_of_another_version_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(load("gaussian").model_dump_json())
    if content is not None:
        (tmp_path / "run.json").write_text(json.dumps(content))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    told = set()
    for command in ("run", "status", "verify", "clean", "plan gaussian --out", "run gaussian --out"):
        error = CliRunner().invoke(cli, [*command.split(), str(tmp_path)]).exception
        assert isinstance(error, UserError)
        told.add(str(error))
    recorded("\n".join(told))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_config_that_can_not_be_read_is_not_replaced(tmp_path, content):
    rundir = RunDir(tmp_path)
    claim(rundir.root, rundir.storage)
    rundir.config.write_bytes(content)
    with raises(UserError):
        check_is_run_directory(rundir)
    rundir.config.write_text("{}")
    check_is_run_directory(rundir)


def configured(sample, **more):
    values = {"name": "x", "model": {"unet": {}}, "train": {"seed": 0}, "sample": sample}
    return validate(Config, values | more, "test")


def sampled(config, root):
    """The directory of a run of this config, with a shard of each cell."""
    rundir = RunDir(root)
    for cell in plan(config).cells:
        part = rundir.sample_part(cell, cell.shards[0])
        part.parent.mkdir(parents=True)
        part.touch()
    rundir.config.write_text(config.model_dump_json())
    return rundir


def test_the_keys_that_differ_are_named(tmp_path):
    compiled, plain = configured({"compile": "default", "seed": 0}), configured({"seed": 0})
    rundir = sampled(compiled, tmp_path)
    assert orphans_in_words(compiled, plan(compiled), rundir) is None
    recorded(orphans_in_words(plain, plan(plain), rundir), "changed")


def test_a_smaller_grid_is_refused_with_the_way_to_do_a_part(tmp_path):
    def of(steps):
        return configured({"seed": 0}, grid={"steps": steps})

    def refusal(config):
        with pytest.raises(UserError) as refused:
            check_extends(config, plan(config), rundir)
        return str(refused.value)

    whole = of([5, 10])
    rundir = sampled(whole, tmp_path)
    write_cells(plan(whole), rundir)
    check_extends(whole, plan(whole), rundir)
    assert "--only" in refusal(of([5]))
