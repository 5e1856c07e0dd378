"""`taugrid clean` frees space, and everything that a table needs stays."""

import json
import os
import shutil
from unittest import mock

import pytest
from nights import checkpoint, taugrid, write_config
from snapshots import recorded

from taugrid.orchestrator.cli import machine
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.storage import open_place

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

TEMPORARY = ".part-000000.parquet.0123456789ab.tmp"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A finished run, its tables, and what killed processes and others may have left beside its files."""
    folder = tmp_path_factory.mktemp("scored")
    config = write_config(folder / "night.yaml", checkpoint(folder / "network"), grid={"steps": [2], "eta": [0.0, 1.0]})
    taugrid("run", config, "--out", folder / "run")
    return folder / "run"


@pytest.fixture
def copy(scored, tmp_path):
    return shutil.copytree(scored, tmp_path / "run")


def write(path, text="left"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1e9, 1e9))  # long before the lock is taken
    return path


def everything(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def tables(root):
    return {name: content for name, content in everything(root).items() if name.startswith("tables/")}


def cleaned(root, *flags):
    found = json.loads(taugrid("clean", root, *flags, "--yes", "--json")[0])
    return {each["name"]: (each["files"], each["freed"]) for each in found["categories"]}


def require_sound(root, before):
    """`verify` finds nothing, `run` has nothing to do, and the tables made anew are what they were, to the byte."""
    assert "intact" in taugrid("verify", root)[0]
    assert "to do" not in taugrid("run", root)[1]
    taugrid("report", root)
    assert tables(root) == before


@pytest.mark.long
def test_features_go_and_no_table_changes(copy):
    before, features = tables(copy), everything(copy / "features")
    floors = {name: content for name, content in features.items() if "-floor-" in name}
    assert len(features) - len(floors) == 8, "two of each cell, those of the reference, and its moments"
    freed = sum(map(len, features.values())) - sum(map(len, floors.values()))
    assert cleaned(copy, "--features") == {"features": (8, freed)}
    assert everything(copy / "features") == floors, "floors are in tables"
    require_sound(copy, before)
    assert "is none" in taugrid("clean", copy, "--keep-nights", "1", code=2)[1]
    recorded(taugrid("clean", copy / "samples", code=2)[1], "directory")
    _, told = taugrid("run", copy, "--set", "evaluate.metrics=[fid,kid]")
    recorded(told, "feature")


def test_what_killed_processes_left_goes_and_nothing_else(copy):
    model, before = "models/0123456789", everything(copy)
    gone = [
        write(copy / "samples/x" / TEMPORARY),
        write(copy / ".probe.0123456789ab.tmp"),
        write(copy / "models/.0123456789.0123456789ab.tmp/unet/config.json"),
        write(copy / "models/.training-0123456789/checkpoint_0/state.pt"),
        write(copy / "damaged/0000-samples__a__b/unet/x"),
        write(copy / "logs/0001-worker-0.txt"),
    ]
    kept = [
        write(copy / model / "unet/diffusion_pytorch_model.safetensors"),
        write(copy / "models/.training-abcdefabcd/checkpoint_0/state.pt"),
        write(copy / "models/.training-abcdefabcd/.x.0123456789ab.tmp"),
        write(copy / "features/e/S0001-eta0-abcdefabcd/part-000000.parquet"),  # of a cell without a score
        write(copy / "notes/.mine.tmp"),
    ]
    kept.append(write(copy / "samples/y" / TEMPORARY))
    os.utime(kept[-1], (2e9, 2e9))  # written since the lock was taken
    found = cleaned(copy, "--leftovers", "--damaged", "--logs")
    assert {name: files for name, (files, _) in found.items()} == {"damaged": 1, "leftovers": 5, "logs": 1}
    assert not any(path.exists() for path in gone)
    assert not (copy / "damaged").exists(), "empty folders go as well"
    assert everything(copy) == before | {path.relative_to(copy).as_posix(): b"left" for path in kept}
    assert cleaned(copy, "--features")["features"][0] == 4, "those of the scored cells"
    assert kept[3].exists()
    assert list(copy.glob("features/*/reference-*/part-*.parquet")), "the cell without a score needs it"


@pytest.mark.parametrize(
    ("answers", "left"), [("y\nn\n", {"logs"}), ("n\ny\n", {"features"}), ("\n\n", {"features", "logs"})]
)
def test_nothing_goes_before_the_answer(copy, monkeypatch, answers, left):
    write(copy / "logs/a.txt")
    before = everything(copy)
    taugrid("clean", copy)
    _, told = taugrid("clean", copy)
    recorded(told, "nothing")
    taugrid("clean", copy, "--features", "--json")
    recorded(taugrid("clean", copy, "--yes", code=2)[1], "deletes")
    assert everything(copy) == before
    asked = iter(answers.split("\n"))
    monkeypatch.setattr("taugrid.orchestrator.cli.machine.is_asked", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: next(asked))
    taugrid("clean", copy)
    found = json.loads(taugrid("clean", copy, "--json")[0])["categories"]
    assert {each["name"] for each in found} == left


def test_links_are_not_followed(copy, tmp_path):
    shutil.move(copy / "features", tmp_path / "away")
    (copy / "features").symlink_to(tmp_path / "away")
    (copy / "logs").mkdir()
    (copy / "logs/link.txt").symlink_to(write(tmp_path / "precious.txt"))
    (copy / "logs/folder").symlink_to(tmp_path)
    before = everything(tmp_path)
    assert cleaned(copy, "--features", "--logs") == {}
    assert everything(tmp_path) == before


def test_a_driver_at_work_keeps_its_files_and_features_stay_without_a_score_that_can_be_read(copy):
    before = everything(copy)
    with RunDir(copy).lock():
        taugrid("clean", copy, "--features", "--yes", code=2)
    assert everything(copy) == before
    for score in (copy / "scores").glob("*.json"):
        score.write_bytes(b"")
    assert cleaned(copy, "--features") == {}


def test_a_lease_of_another_clock_is_watched_and_then_taken(copy, monkeypatch):
    """It was refused for ever, with exit code 0."""
    monkeypatch.setattr("taugrid.orchestrator.rundir.lease.EXPIRY_SECONDS", 0.3)
    holder = {"host": "elsewhere", "process": 5, "boot": "b", "run": None, "session": "s"}
    (copy / "lease.json").write_text(json.dumps({**holder, "heartbeat": "9999-12-31T23:59:59+00:00"}))
    taugrid("clean", copy, "--features", "--yes")
    assert not list(copy.glob("features/*/*/part-*"))


def test_in_a_bucket(scored, s3):
    """The same files go from a bucket as from a folder."""
    url = f"s3://{s3.bucket()}/some/run"
    root, storage = open_place(url, "DIR")
    with storage.local_folder(root) as folder:
        shutil.copytree(scored, folder, dirs_exist_ok=True)
    before = {path.relative_to(root).as_posix() for path in storage.walk(root)}
    assert before == set(everything(scored))
    assert cleaned(url, "--features")["features"][0] == 8
    gone = before - {path.relative_to(root).as_posix() for path in storage.walk(root)}
    assert len(gone) == 8
    assert all(name.startswith("features/") for name in gone)


@pytest.mark.long
def test_old_nights_lose_their_images_and_keep_their_features(tmp_path):
    """Features of cells whose images go can't be made again."""
    config = write_config(tmp_path / "n.yaml", checkpoint(tmp_path / "network"), grid={"steps": [2], "eta": [0.0]})
    history = tmp_path / "history"
    for night in ("1", "2"):
        taugrid("nightly", config, "--history", history, "--id", night)
    first, second = (history / "nights" / night / "run" for night in ("1", "2"))
    before = tables(first)
    size = sum(path.stat().st_size for path in (first / "samples").rglob("*.parquet"))
    yes = {"side_effect": lambda text, **_: "features" in text}
    with mock.patch.object(machine, "is_asked", return_value=True), mock.patch.object(machine.click, "confirm", **yes):
        taugrid("clean", history, "--features", "--keep-nights", "1")
    assert list((first / "features").rglob("part-*.parquet")), "they were not in the list"
    assert not list((second / "features").rglob("part-*.parquet"))
    taugrid("run", second, "--set", "evaluate.metrics=[fid,kid]")
    found = cleaned(history, "--features", "--keep-nights", "1")
    assert found["images"] == (2, size)
    assert not list((first / "samples").rglob("*.parquet"))
    assert list((second / "samples").rglob("*.parquet"))
    assert list((first / "features").rglob("part-*.parquet"))
    assert not list((second / "features").rglob("part-*.parquet"))
    assert cleaned(history, "--features") == {}, "nothing is left that may go"
    recorded(taugrid("verify", first)[0], "removed")
    assert "to do" not in taugrid("run", first)[1]
    assert tables(first) == before
