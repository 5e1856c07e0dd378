"""Looking at a run plans nothing: it reads what the run recorded, also when checkpoint and data are gone."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner
from in_process import small_run
from nights import checkpoint
from PIL import Image

import taugrid
from taugrid.config.load import load
from taugrid.orchestrator import opened as opening
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.plan import grid
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.record import from_json, to_json
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.storage import read_json, write_json

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


MANY_KEYS = {
    "name": "x",
    "data": {"name": "gaussian"},
    "model": {"oracle": "gaussian"},
    "grid": [
        {"steps": [5], "eta": [0.0, "sigma_hat"], "diffusion.schedule": ["linear", "cosine"], "seed": [1, 2]},
        {"steps": [2], "spacing": [[10, 1000], "quadratic"], "precision": ["bf16"], "clip": ["x0"]},
    ],
}


@pytest.mark.parametrize("config", ["digits", "selfcheck", MANY_KEYS])
def test_a_plan_comes_back_from_its_record(config):
    planned = plan(load(config))
    again = from_json(json.loads(json.dumps(to_json(planned))))
    assert again == planned
    for part in ("labels", "num_shards", "remarks"):
        assert getattr(again, part) == getattr(planned, part)
    assert [model.label for model in again.models] == [model.label for model in planned.models]
    assert [cell.values for cell in again.cells] == [cell.values for cell in planned.cells]


NO_IDS = ["../../x", "/tmp/x", "..", "", "012345678", "0123456789a", "ABCDEF0123", "0123456789\n", 1234567890, None, {}]


def test_an_id_that_is_none_is_refused():
    """Ids are parts of paths, and whoever made a directory may have written anything into its plan.json."""
    record = to_json(plan(load("gaussian")))
    (model,) = record["models"]
    for bad in NO_IDS:
        of_model = {"models": [{**model, "id": bad}], "cells": [{**cell, "model": bad} for cell in record["cells"]]}
        of_cell = {**record, "cells": [{**record["cells"][0], "id": bad}, *record["cells"][1:]]}
        of_guide = {**record, "guides": [{**model, "id": bad}]}
        for hostile in (of_model, of_cell, of_guide):
            with pytest.raises((ValueError, TypeError)):
                from_json(hostile)


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """A run of a loaded checkpoint on images in a folder, whose checkpoint and images are gone."""
    root = tmp_path_factory.mktemp("looking")
    images = taugrid.sample({"oracle": "gaussian"}, 60, steps=2, shape=(1, 4, 4))
    pictures = root / "pictures"
    pictures.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(pictures / f"{index:03d}.png")
    config = {
        "name": "looked-at",
        "data": {"name": "folder", "root": str(pictures), "shape": [1, 4, 4]},
        "model": {"checkpoint": str(checkpoint(root / "net"))},
        "sample": {"seed": 0, "num_samples": 60, "batch_size": 20},
        "grid": {"steps": [2, 3]},
        "evaluate": {"metrics": ["fid"], "extractor": "pixels"},
        "cluster": {"workers": 1},
    }
    with small_run(root, yaml.safe_dump(config)) as opened:
        run = Run(opened.config, opened.plan, RunDir(root / "run"))
        Session(run, "local", Progress.silent()).do(("sample", "evaluate", "report"))
    shutil.rmtree(root / "net")
    shutil.rmtree(pictures)
    return root / "run"


@pytest.fixture
def planned(monkeypatch):
    """The names of configs that were planned."""
    found = []

    def counted(config, *arguments, **options):
        found.append(config.name)
        return grid.plan(config, *arguments, **options)

    monkeypatch.setattr(opening, "plan", counted)
    return found


def seen(*command, code=0):
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def test_looking_needs_neither_checkpoint_nor_images_and_plans_nothing(looked_at, planned):
    status = json.loads(seen("status", looked_at, "--json"))
    assert [(cell["steps"], cell["scored"]) for cell in status["cells"]] == [(2, True), (3, True)]
    assert status["remarks"] == []
    compared = json.loads(seen("compare", looked_at, "steps=2", "steps=3", "--json"))
    assert compared["difference"] == pytest.approx(compared["fid_b"] - compared["fid_a"])
    before = (looked_at / "tables/quality.csv").read_bytes()
    seen("report", looked_at)
    assert (looked_at / "tables/quality.csv").read_bytes() == before
    run = taugrid.open(looked_at)
    assert run.cell("steps=3").images([0]).shape == (1, 4, 4)
    assert len(run.quality) == 2
    seen("report", looked_at, "--set", "report.images_per_cell=2")
    assert planned == []
    seen("report", looked_at, "--set", "sample.num_samples=20", code=4)
    assert planned == ["looked-at"], "other cells are planned from the records of the checkpoint"


def test_what_no_record_fits_is_planned_again(looked_at, tmp_path, planned):
    copy = tmp_path / "run"
    shutil.copytree(looked_at, copy)
    changed = read_json(copy / "config.json")
    write_json(copy / "config.json", changed | {"name": "renamed"})
    assert json.loads(seen("status", copy, "--json"))["name"] == "renamed"
    assert planned == ["renamed"]
    write_json(copy / "config.json", changed)
    recorded = read_json(copy / "plan.json")
    for other in ({"models": [{"id": "of a later version"}]}, {"cells": []}, {"cells": [{"values": None}]}):
        planned.clear()
        write_json(copy / "plan.json", recorded | other)
        assert len(json.loads(seen("status", copy, "--json"))["cells"]) == 2
        assert planned == ["looked-at"]
