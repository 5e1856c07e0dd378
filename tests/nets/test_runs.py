"""Runs of the real program on Ray: training, pixels, scores, and what is left when a driver is killed.

The default tier has one cluster and one run: 40 s, of which Ray's head takes 8 and Ray Train 13, because nothing less
is what users start. The long tests make the run in other ways, which must end with the same files.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from outside import UNET, Place, files, frechet, measured, taugrid

import taugrid as api

pytestmark = pytest.mark.usefixtures("one_thread")

N, BATCH = 180, 30
CONFIG = {
    "name": "net",
    "data": {"name": "classes", "shape": [1, 4, 4]},
    "model": {"unet": UNET | {"num_classes": 3}},
    "train": {"steps": 40, "batch_size": 16, "checkpoint_every": 10, "label_dropout": 0.2, "learning_rate": 2.0e-3},
    "sample": {"num_samples": N, "batch_size": BATCH, "shard_evaluations": 120, "labels": "balanced"},
    "grid": [
        {"steps": [2, 4], "eta": [0.0, 1.0]},
        {"steps": [3], "eta": ["sigma_hat"], "clip": ["x0_and_eps"]},
        {"steps": [3], "sampler": ["unipc", "diffusers:EulerAncestralDiscreteScheduler"]},
        {"steps": [3], "guidance": [2.0]},
    ],
    "evaluate": {"extractor": "pixels", "metrics": ["fid", "kid"]},
    "cluster": {"train": {"cpus_per_worker": 1}},
}
CELLS = 8


def parts(root):
    return files(root, "samples/*/part-*.parquet")


def again(cell, model, **more):
    """The images of a cell, sampled in this process."""
    keys = ("steps", "eta", "sampler", "clip", "guidance", "labels", "batch_size", "spacing", "seed")
    return api.sample(model, N, **{key: cell.settings[key] for key in keys if cell.settings[key] is not None}, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory, head):
    return Place(tmp_path_factory.mktemp("runs"), head, CONFIG)


@pytest.fixture(scope="module")
def root(place):
    return place.run("whole", 2)


@pytest.fixture(scope="module")
def run(root):
    return api.open(root)


def test_a_run_has_each_image_once(root, run):
    assert len(run.cells) == CELLS
    for cell in run.cells:
        rows = cell.dataset().to_table(columns=["index", "cell", "label"]).to_pandas()
        assert sorted(rows["index"]) == list(range(N))
        assert set(rows["cell"]) == {cell.id}
        assert rows["label"].value_counts().to_dict() == {0: N // 3, 1: N // 3, 2: N // 3}
    verified = taugrid("verify", root, "--json").json
    assert (verified["damaged"], verified["images"]) == ([], CELLS * N)
    assert taugrid("status", root, "--json").json["network_evaluations_remaining"] == 0


def test_weights_are_those_that_were_measured(root):
    from safetensors.numpy import load_file

    [folder] = (root / "models").iterdir()
    for kind in ("unet", "unet_raw"):
        tensors = load_file(next((folder / kind).glob("*.safetensors")))
        norms = [np.linalg.norm(tensor) for _, tensor in sorted(tensors.items())]
        measured(f"weights: {kind}", [np.linalg.norm(norms), norms[0], norms[-1]], 2e-3)
    losses = [json.loads(line)["loss"] for line in (folder / "train/log.jsonl").read_text().splitlines()]
    measured("losses", [losses[0], losses[-1]], 5e-3)


def test_pixels_of_a_run_are_those_of_sampling_without_one(root, run):
    for cell in run.cells:
        images = cell.images()
        assert (images == again(cell, str(root / "models" / cell.model))).all(), cell.label
        assert (cell.images([7, 0]) == images[[7, 0]]).all()
        measured(f"run: {cell.label}", [images.mean() / 255, images.std() / 255], 5e-3)


def test_quality_is_that_of_a_second_computation(root, run, tmp_path):
    columns = ["cell", "model", "sampler", "steps", "eta", "sigma", "spacing", "clip", "num_samples"]
    assert list(run.quality.columns[:9]) == columns
    reference = tmp_path / "reference.npz"
    taugrid("export", root, "--reference", "--to", reference)
    moments = np.load(reference)
    assert len(run.quality) == CELLS
    for row in run.quality.to_dict("records"):
        cell = run.cell(row["cell"])
        features = cell.features().astype(float)
        assert features.shape == (N, 16)
        mine = frechet(features.mean(0), np.cov(features.T), moments["mu"], moments["sigma"])
        assert row["fid"] == pytest.approx(mine, rel=1e-9)
        assert row["num_samples"] == N
        assert row["network_evaluations"] == row["steps"] * (1 if cell.settings["guidance"] == 1 else 2)
    outside = api.evaluate(cell.images(), root, progress=False)["metrics"]
    names = ["fid", "fid_se", "kid", "kid_se"]
    assert [outside[name] for name in names] == pytest.approx([row[name] for name in names], rel=1e-9)
    measured("quality", (run.quality[names] / run.quality[names].abs().max()).to_numpy(), 0.03)


def test_differences_are_those_of_the_scores(root, run):
    quality, table = run.quality.set_index("cell"), run.differences
    assert {"along", "difference", "se", "z", "kid_difference", "kid_se", "kid_z"} <= set(table.columns)
    assert len(table) >= 4
    for row in table.to_dict("records"):
        a, b = quality.loc[row["cell_a"]], quality.loc[row["cell_b"]]
        assert row["difference"] == pytest.approx(b["fid"] - a["fid"], rel=1e-9)
        assert row["kid_difference"] == pytest.approx(b["kid"] - a["kid"], rel=1e-9)
        assert row["z"] == pytest.approx(row["difference"] / row["se"], rel=1e-9)
        assert row["se"] < np.hypot(a["fid_se"], b["fid_se"]) * 1.5
    row = table.iloc[0]
    found = taugrid("compare", root, row["cell_a"], row["cell_b"], "--json").json
    assert found["difference"] == pytest.approx(row["difference"], rel=1e-9)
    assert found["se"] == pytest.approx(row["se"], rel=1e-9)


def test_a_run_is_equal_to_its_own_baseline(root, tmp_path):
    taugrid("baseline", "accept", root, "--to", tmp_path / "base.json", "--reason", "the net")
    for baseline in (tmp_path / "base.json", root):
        found = taugrid("compare", root, baseline, "--json").json
        assert {cell["result"] for cell in found["cells"]} == {"identical"}
        assert len(found["cells"]) == CELLS


def test_damage_is_named_and_what_is_left_is_shown(root, tmp_path):
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    part, score = min(copy.glob("samples/*/part-000001.parquet")), min(copy.glob("scores/*.json"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    score.unlink()
    found = taugrid("verify", copy, "--json", code=1).json
    assert str(part.relative_to(copy)) in {entry["path"] for entry in found["damaged"]}
    assert part.read_bytes() == data
    assert len(taugrid("report", copy, "--json", code=4).json["cells"]) == CELLS - 1


def results(root):
    """What a run is for, without what depends on its course."""
    return {
        "samples": parts(root),
        "scores": {path.name: json.loads(path.read_text())["metrics"] for path in root.glob("scores/*.json")},
        "weights": files(root, "models/*/unet*/*.safetensors"),
        "quality": api.open(root).quality.drop(columns="seconds").to_csv(),
        "differences": api.open(root).differences.to_csv(),
    }


def parts_of(made):
    return {path: path.stat().st_mtime_ns for path in made.glob("samples/*/part-*.parquet")}


@pytest.mark.long
@pytest.mark.parametrize("during", ["training", "sampling"])
def test_a_killed_run_of_one_worker_loses_nothing_and_ends_with_the_same_files(place, root, during):
    made = place.folder / f"killed-{during}"
    trained = lambda: {p.read_text() for p in made.glob("models/**/last_checkpoint")} - {"", "0"}  # noqa: E731
    place.start(made.name, 1).kill_once(trained if during == "training" else lambda: len(parts_of(made)) > 2)
    before = parts_of(made)
    steps = min(made.glob("models/**/log.jsonl")).read_text().splitlines()[:10]  # with their seconds
    place.run(made.name, 1)
    assert parts_of(made).items() >= before.items(), "they are not made again"
    assert min(made.glob("models/**/log.jsonl")).read_text().splitlines()[:10] == steps
    assert results(made) == results(root)


@pytest.mark.long
def test_a_run_that_grew_is_one_that_was_made_at_once(place, root):
    """Another N, more cells, and the shards of another size for the same pixels."""
    grid = [*CONFIG["grid"], {"steps": [5], "eta": [0.0]}]
    more = {"sample": CONFIG["sample"] | {"num_samples": 2 * N}, "grid": grid}
    grown = Path(shutil.copytree(root, place.folder / "grown"))
    place.run("grown", 2, **more)
    found, expected = results(grown), results(place.run("at-once", 1, **more))
    assert expected.pop("scores").items() <= found.pop("scores").items(), "those of the smaller N stay"
    assert found == expected
    before, after = parts(root), parts(grown)
    assert sum(after[name] == content for name, content in before.items()) >= CELLS
    place.run("large", 1, sample=CONFIG["sample"] | {"shard_evaluations": 100_000})
    for cell in api.open(place.folder / "large").cells:
        assert (cell.images() == api.open(root).cell(cell.label).images()).all()


ORACLE = {
    "model": {"oracle": "classes"},
    "grid": [
        {"steps": [3], "diffusion.process": [None, "edm", "flow"], "sampler": ["ddim"], "eta": [0.0, 0.5, 1.0]},
        {"steps": [3], "diffusion.process": [None, "edm", "flow"], "sampler": ["euler", "heun", "dpm++2m", "unipc"]},
        {"steps": [3], "labels": ["random", [0, 2]], "guidance": [1.0, 3.0]},
        {"steps": [3], "spacing": ["quadratic"], "seed": [1, 2]},
    ],
}


@pytest.mark.long
def test_every_process_and_sampler_on_two_workers_is_sampling_without_a_run(place):
    made = api.open(place.run("oracle", 2, **ORACLE))
    assert len(made.cells) == 9 + 12 + 4 + 2
    for cell in made.cells:
        diffusion = {"process": cell.settings.get("diffusion.process")}
        found = again(cell, {"oracle": "classes"}, shape=(1, 4, 4), diffusion=diffusion)
        assert (cell.images() == found).all(), cell.label
