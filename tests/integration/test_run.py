"""What `taugrid run` makes, in one go, in stages, grown, and from models of all sources."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from command import TINY, events, sample_files, scores, write_config
from shared import taugrid

from taugrid.config.load import load
from taugrid.orchestrator.plan.grid import plan
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


@pytest.mark.long
def test_every_image_is_there_exactly_once(finished):
    for folder in (finished / "samples").iterdir():
        table = pd.read_parquet(folder)
        assert sorted(table["index"]) == list(range(100))
        assert table["cell"].nunique() == 1


@pytest.mark.long
def test_cells_are_paired_by_the_same_noise(finished):
    """At eta = 0 and 1 the same x_T is used: with one network images of one index resemble each other across cells."""
    import numpy as np

    from taugrid.parquet import read_images

    def cell(pattern):
        parts = sorted((finished / "samples").glob(f"{pattern}/*.parquet"))
        return np.concatenate([batch for part in parts for _, batch in read_images(part)]).reshape(100, -1) / 255.0

    a, b = cell("S0002-eta0-*"), cell("S0004-eta0-*")
    same = np.abs(a - b).mean()
    others = np.abs(a - np.roll(b, 1, axis=0)).mean()
    assert same < 0.9 * others


def test_growing_the_grid_and_n_computes_only_what_is_new(config, finished, copy, tmp_path):
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
    import numpy as np

    from taugrid.orchestrator.run import Run
    from taugrid.orchestrator.rundir.directory import RunDir
    from taugrid.orchestrator.work.sample import SampleWork
    from taugrid.orchestrator.work.survey import Survey
    from taugrid.parquet import read_images
    from taugrid.workers.device import Device
    from taugrid.workers.network.load import load_network
    from taugrid.workers.sample import sample_shard

    def pictures(batch_size):
        config = load(str(finished), [f"sample.batch_size={batch_size}", "sample.shard_evaluations=10000"])
        rundir = RunDir(tmp_path / str(batch_size))
        shutil.copytree(finished / "models", rundir.models)
        found = {}
        survey = Survey(Run(config, plan(config), rundir), None, frozenset({"sample"}), lambda damage: None)
        for task in SampleWork(survey).tasks():
            sample_shard(task.job, load_network(task.job.network, task.job.diffusion, "cpu"), Device("cpu"))
            place = (task.job.settings.steps, str(task.job.settings.eta))
            found[place] = np.concatenate([batch for _, batch in read_images(Path(task.job.path))])
        return np.concatenate([found[place] for place in sorted(found)]).astype(int)

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
    import pyarrow.parquet as pq

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


@pytest.mark.long
def test_the_checkpoint_of_another_maker_is_sampled(tmp_path):
    folder = Path(__file__).parents[3] / "shared/checkpoints/fashion-ddpm-28"
    if not folder.is_dir():
        pytest.skip("needs the checkpoint made with other software that lies beside the project")
    path = write_config(tmp_path, model={"checkpoint": str(folder)}, sample={"num_samples": 4}, grid={"steps": [5]})
    done = taugrid("sample", path, "--out", tmp_path / "run")
    assert "clip x0" in done.stderr, "its scheduler clips, so its samples are clipped"
    assert set(pd.read_parquet(tmp_path / "run/samples")["clip"]) == {"x0"}
    assert "(1, 8, 8)" in taugrid("evaluate", path, "--out", tmp_path / "run", code=2).stderr


@pytest.mark.long
def test_a_single_sample_has_no_scores_but_is_no_failure(config, copy):
    done = taugrid("run", config, "--out", copy, "--set", "sample.num_samples=1", "--json")
    assert not [event for event in events(copy) if event["event"] == "shard"], "what is there is used"
    rows = json.loads(done.stdout)["cells"]
    assert {row["num_samples"] for row in rows} == {1}
    assert {row["fid"] for row in rows} == {row["isc_mean"] for row in rows} == {None}
    assert "2 images" in (copy / "tables/quality.md").read_text()


@pytest.mark.long
def test_work_that_always_fails_is_given_up_and_the_rest_is_done(config, finished, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(finished / "models", root / "models")
    victim = next((finished / "samples").glob("S0002-eta0-*")).name
    shutil.copy(finished / "run.json", root)
    (root / "samples").mkdir()
    (root / "samples" / victim).write_text("a file where a folder must be")
    done = taugrid("run", config, "--out", root, "--json", code=4)
    document = json.loads(done.stdout)
    assert document["status"] == "incomplete"
    assert [missing["cell"] for missing in document["missing"]] == [victim]
    assert len(document["cells"]) == CELLS - 1
    assert "given up" in done.stderr
    traces = [path.read_text() for path in (root / "logs").iterdir()]
    assert all("workers/sample.py" in trace and "FileExistsError" in trace for trace in traces)
    assert not any("\x1b" in trace for trace in traces)


@pytest.mark.long
def test_the_pipeline_that_a_run_leaves_is_diffusers_own(finished):
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline.from_pretrained(next((finished / "models").iterdir()))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)
