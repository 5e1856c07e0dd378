"""A file that vanishes while a command is at work is named in one line, whoever reads it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import PoolHere
from nights import CONFIG, checkpoint, taugrid, write_config
from snapshots import raises, recorded

from taugrid.errors import RunFailed, user_errors
from taugrid.images import encode_png
from taugrid.orchestrator import external
from taugrid.workers.data import load

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "user_cache")

SMALL = {"sample": {**CONFIG["sample"], "num_samples": 40, "batch_size": 20}, "grid": {"steps": [2], "eta": [0.0]}}


def pictures(folder):
    folder.mkdir()
    for number, image in enumerate(np.random.default_rng(len(folder.name)).integers(0, 256, (20, 1, 4, 4), np.uint8)):
        (folder / f"{number:02d}.png").write_bytes(encode_png(image))
    return folder


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("side", ["samples", "reference"])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_images_that_are_scored(side, kind, tmp_path, monkeypatch):
    """They have been opened, and are read a second time."""
    sides = {name: pictures(tmp_path / name) for name in ("samples", "reference")}
    if kind == "npz":
        sides[side] = tmp_path / f"{side}.npz"
        np.savez(sides[side], np.zeros((20, 4, 4, 1), np.uint8))
    resolve = external.resolve

    def resolved(*arguments, **named):
        remove(sides[side])
        return resolve(*arguments, **named)

    monkeypatch.setattr(external, "resolve", resolved)
    given = [word for name, place in sides.items() for word in (f"--{name}", place)]
    told = taugrid("evaluate", *given, "--extractor", "pixels", "--metrics", "fid", code=2)[1].splitlines()[-1]
    assert str(sides[side]) in told
    recorded(told)


@pytest.mark.parametrize("victim", ["reference", "checkpoint", "one image"])
def test_what_a_run_reads(victim, tmp_path, monkeypatch):
    """The reference in its workers, the checkpoint in the driver."""
    places = {"reference": pictures(tmp_path / "reference"), "checkpoint": checkpoint(tmp_path / "old")}
    places["one image"] = places["reference"] / "07.png"
    evaluate = {"metrics": ["fid"], "extractor": "pixels", "reference": str(places["reference"])}
    config = write_config(tmp_path / "night.yaml", places["checkpoint"], **SMALL, evaluate=evaluate)
    start = PoolHere.start

    def starts(self, *arguments):
        if places[victim].exists():
            remove(places[victim])
        return start(self, *arguments)

    monkeypatch.setattr(PoolHere, "start", starts)
    told = taugrid("run", config, "--out", tmp_path / "run", code=2)[1]
    assert "Traceback" not in told
    named = places["reference"] if victim == "one image" else places[victim]
    assert str(named) in told.splitlines()[-1]


def test_a_data_set_that_is_trained_on_or_reconstructed(tmp_path, monkeypatch):
    root = pictures(tmp_path / "data")
    data = {"name": "folder", "root": str(root), "shape": [1, 4, 4]}
    config = write_config(tmp_path / "night.yaml", checkpoint(tmp_path / "old"), **SMALL, data=data)
    submit = PoolHere.submit

    def given(self, worker, job, key):
        remove(root) if root.exists() else None
        load.decoded.cache_clear()  # as a worker that has not read it yet
        submit(self, worker, job, key)

    monkeypatch.setattr(PoolHere, "submit", given)
    told = taugrid("reconstruct", config, "--out", tmp_path / "run", code=2)[1].splitlines()[-1]
    recorded(told, "folder")


def test_whatever_else_a_command_opens():
    """Wherever it is not told better; a file without a name may be a bug, whose traceback is kept."""
    with raises(RunFailed), user_errors():
        Path("/absent/data.bin").read_bytes()
    with pytest.raises(FileNotFoundError), user_errors():
        raise FileNotFoundError("libcuda")
