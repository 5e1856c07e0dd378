"""What `taugrid run` makes, in one go, in stages, grown, and from models of all sources."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command import TINY, events, sample_files, sample_here, scores, write_config
from shared import taugrid

from taugrid.config.load import load
from taugrid.orchestrator.plan.grid import plan
from taugrid.parquet import read_images
from taugrid.run_id import claim
from taugrid.storage import LOCAL

pytestmark = pytest.mark.usefixtures("sketched")

CELLS = 6
SHARDS = 3 * 2 + 3 * 4


@pytest.mark.long
def test_the_json_of_a_run(finished):
    document = json.loads((finished.parent / "stdout").read_text())
    assert document["status"] == "done"
    assert document["missing"] == []
    assert document["dir"] == str(finished)
    assert len(document["cells"]) == CELLS
    row = next(row for row in document["cells"] if row["sigma"] == "sigma_hat" and row["steps"] == 4)
    assert (row["eta"], row["clip"], row["num_samples"], row["network_evaluations"]) == (1.0, "x0_and_eps", 100, 4)
    assert row["fid"] > 1
    assert row["isc_mean"] > 1
    assert row["seconds"] > 0


def test_growing_the_grid_and_n_computes_only_what_is_new(config, finished, copy, tmp_path):
    """9 s: the run that grows, and one that is made at once to compare it with."""
    grid = [dict(TINY["grid"][0], steps=[2, 4, 8]), TINY["grid"][1]]
    grow = ("--set", f"grid={json.dumps(grid)}", "--set", "sample.num_samples=150")
    before = sample_files(copy)
    taugrid("run", config, "--out", copy, *grow)
    after = sample_files(copy)
    shards = {(event["cell"], event["path"]) for event in events(copy) if event["event"] == "shard"}
    # S = 2 goes from 64 + 36 to 64 + 64 + 22 images, S = 4 from 3 x 32 + 4 to 4 x 32 + 22, S = 8 is 9 x 16 + 6.
    assert len(shards) == 3 * 2 + 3 * 2 + 2 * 10
    last = {path.rsplit("/", 1)[0]: path for path in sorted(before)}
    unchanged = [path for path in before if path not in last.values()]
    assert all(after[path] == before[path] for path in unchanged)

    fresh = tmp_path / "fresh"
    shutil.copytree(finished / "models", fresh / "models")
    claim(fresh, LOCAL)
    taugrid("run", config, "--out", fresh, *grow)
    assert sample_files(fresh) == after, "a run that grew has the files of one that was made at once"
    assert {name: scores(copy)[name] for name in scores(fresh)} == scores(fresh)


def test_one_worker_and_two_make_the_same_files(config, finished, tmp_path):
    shutil.copytree(finished / "models", tmp_path / "one/models")
    claim(tmp_path / "one", LOCAL)
    taugrid("run", config, "--out", tmp_path / "one", "--workers", 1)
    assert sample_files(tmp_path / "one") == sample_files(finished)
    assert scores(tmp_path / "one") == scores(finished)


@pytest.mark.long
def test_another_batch_size_is_the_same_images(finished, tmp_path):
    """Noise does not depend on batches; rounding may, so a grey level is allowed here and there."""

    def pictures(batch_size):
        folder, model = tmp_path / str(batch_size), {"checkpoint": str(next((finished / "models").iterdir()))}
        folder.mkdir()
        sample = {"num_samples": 100, "batch_size": batch_size, "shard_evaluations": 10_000}
        sample_here(write_config(folder, model=model, sample=sample), folder / "run")
        parts = sorted(folder.glob("run/samples/*/*.parquet"))
        return np.concatenate([batch for part in parts for _, batch in read_images(part)]).astype(int)

    a, b = pictures(16), pictures(7)
    assert a.shape == b.shape == (CELLS * 100, 1, 8, 8)
    assert np.abs(a - b).max() <= 1
    assert (a != b).mean() < 0.001


@pytest.mark.long
def test_stages_one_by_one_end_as_run_does_and_two_schedules_are_two_models_in_one_table(config, finished, copy):
    """One of the models is there. The other has lost its weights: it is moved aside and trained again, to the same."""
    for name in ("samples", "features", "scores", "tables", "figures"):
        shutil.rmtree(copy / name)
    cosine = {"diffusion.schedule": ["cosine"], "steps": [2], "eta": [0.0, 1.0]}
    two = ("--out", copy, "--set", f"grid={json.dumps([*TINY['grid'], cosine])}")
    [linear] = (copy / "models").iterdir()
    planned = {model.id: model for model in plan(load(str(config), [two[-1]])).models}
    [other] = planned.keys() - {linear.name}
    shutil.copytree(linear, copy / "models" / other)  # its weights are no matter here
    next(linear.glob("unet/*.safetensors")).unlink()
    assert "not trained" in taugrid("sample", config, *two, code=2).stderr
    said = taugrid("train", config, *two, "--set", "train.workers=[1, 1]").stderr  # elastic, with as many as before
    assert "weights are" in said
    assert f"trained model {planned[linear.name].called}" in said
    assert f"trained model {planned[other].called}" not in said
    assert not (copy / "samples").exists()
    taugrid("sample", config, *two)
    assert not (copy / "scores").exists()
    assert sample_files(finished).items() <= sample_files(copy).items(), "training is deterministic too"
    rows = json.loads(taugrid("evaluate", config, *two, "--json").stdout)["cells"]
    assert len(rows) == CELLS + 2
    assert scores(finished).items() <= scores(copy).items()
    assert not (copy / "tables" / "quality.csv").exists()
    rows = json.loads(taugrid("report", config, *two, "--json").stdout)["cells"]
    assert {(row["diffusion.schedule"], row["model"]) for row in rows} == {("linear", linear.name), ("cosine", other)}
    text = (copy / "tables/quality.md").read_text()
    assert "cosine" in text
    assert "linear" in text
    files = (root / "tables/quality.csv" for root in (copy, finished))
    found, expected = (pd.read_csv(file, index_col="cell", dtype={"cell": str}) for file in files)
    columns = expected.columns.difference(["seconds"])
    pd.testing.assert_frame_equal(found.loc[expected.index, columns], expected[columns], check_exact=True)


@pytest.mark.long
def test_a_diffusers_folder_is_sampled_in_place_of_training(config, finished, tmp_path):
    """The trained model, loaded as one made elsewhere, gives the images of the run that trained it."""
    folder = next((finished / "models").iterdir())
    model = {"checkpoint": str(folder)}
    path = write_config(tmp_path, model=model)
    done = taugrid("run", path, "--out", tmp_path / "run")
    assert f"{folder.parent.name}/{folder.name} (" in done.stderr, "by its short name"
    ours, theirs = (sorted(root.glob("samples/*/*.parquet")) for root in (tmp_path / "run", finished))
    assert len(ours) == SHARDS
    for a, b in zip(ours, theirs, strict=True):
        assert pq.read_table(a)["image"].equals(pq.read_table(b)["image"])
    assert [path.name for path in (tmp_path / "run/models").rglob("*") if path.is_file()] == ["model.json"]
    shutil.copytree(folder, tmp_path / "moved")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert "6 cells" in taugrid("status", tmp_path / "elsewhere").stdout
