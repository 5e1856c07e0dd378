"""`plan` says what a run would lack and what it would replace; it refuses none of it, and fetches nothing."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hub import serving
from nights import CELLS, CONFIG, UNET, checkpoint, taugrid, write_config
from snapshots import raises, recorded

import taugrid as api
from taugrid.config import Unet
from taugrid.errors import UserError
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.rundir import history
from taugrid.orchestrator.view import dry_run
from taugrid.orchestrator.view.figures import DRAWN
from taugrid.run_id import claim
from taugrid.storage import LOCAL
from taugrid.workers.accelerator.hardware import has_gpus
from taugrid.workers.data import published
from taugrid.workers.network.unet import build_unet

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and a finished run of it."""
    root = tmp_path_factory.mktemp("made")
    config = write_config(root / "c.yaml", checkpoint(root / "network"))
    taugrid("run", config, "--out", root / "run")
    return root


@pytest.fixture
def copy(made, tmp_path):
    """The same in a place of its own; the path of its checkpoint stays."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path


def planned(config, out, *assignments):
    found = api.plan(config, out, assignments)
    return found, " ".join(found["remarks"])


ORACLE = CONFIG | {"model": {"oracle": "gaussian"}, "diffusion": {}}


def of_checkpoint(place, **changes):
    return CONFIG | {"model": {"checkpoint": str(place)}} | changes


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"checkpoint": "no/such/folder"}, "no/such/folder"),
        ({"checkpoint": "empty"}, "config.json"),
        ({"callable": "mine:load", "weights": "no/such/file"}, "no/such/file"),
    ],
)
def test_a_model_that_is_not_here_is_priced_and_has_no_id_yet(model, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    config = CONFIG | {"model": model, "grid": {"steps": [2, 1500], "eta": [0.0]}}
    found, said = planned(config | {"diffusion": {"timesteps": 2000}}, tmp_path / "run")
    assert [cell["network_evaluations"] for cell in found["cells"]] == [400, 300_000]
    assert [cell["cell"] for cell in found["cells"]] == ["pending"] * 2
    assert [(model["id"], model["ready"]) for model in found["models"]] == [("pending", False)]
    recorded(said, "pending")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=word):
        api.run(config, tmp_path / "run", progress=False)


def test_models_that_are_not_here_are_told_apart_and_a_pattern_is_one(made, tmp_path):
    newest = {"newest": 3, "of": str(tmp_path / "step-*")}
    grid = {"model.checkpoint": ["a", "b", str(made / "network"), newest], "steps": [2]}
    found, said = planned(CONFIG | {"model": {}, "grid": grid}, tmp_path / "run")
    assert [model["id"] == "pending" for model in found["models"]] == [True, True, False, True]
    assert [model["cells"] for model in found["models"]] == [1, 1, 1, 1]
    assert "step-*" in said


def test_nothing_is_asked_of_the_hub(made, tmp_path, monkeypatch):
    with serving({"models/org/name": made / "network"}, tmp_path / "cache", monkeypatch) as requests:
        found, said = planned(of_checkpoint("org/name"), tmp_path / "run")
        assert requests == []
    assert {cell["cell"] for cell in found["cells"]} == {"pending"}
    assert "org/name" in said


@pytest.mark.parametrize(
    "assignments",
    [
        ["evaluate.extractor=inception-v3-compat"],  # which is not downloaded
        ["evaluate.reference={name: fashion-mnist}"],  # asked for by its own key
        ["evaluate.reference=absent"],
        ["evaluate.reference={name: celeba, root: .}"],
        ["evaluate.reference={name: celeba, root: ., download: true}"],
        ["data={name: celeba, root: .}", "model={unet: {}}", "evaluate.extractor=pixels"],
        ["sample.num_samples=159"],  # one too few for error bars
        ["sample.num_samples=160"],
        ["evaluate.metrics=[fid, agreement]"],
        ["evaluate.metrics=[fid, agreement]", "report.by=label"],
    ],
)
def test_what_a_run_would_lack_is_said(assignments, tmp_path, user_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(published, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    recorded("\n".join(planned(ORACLE, tmp_path / "run", *assignments)[0]["remarks"]))


def test_training_images_that_are_missing_leave_the_price_of_training(tmp_path):
    data = {"name": "folder", "root": str(tmp_path / "absent"), "shape": [1, 4, 4]}
    config = CONFIG | {"data": data, "model": {"unet": {}}, "train": {"steps": 70}}
    found, said = planned(config | {"evaluate": {"extractor": "pixels"}}, tmp_path / "run")
    assert (found["models"][0]["id"], found["train_steps_remaining"]) == ("pending", 70)
    assert said.count(str(tmp_path / "absent")) == 1


def test_labels_that_are_missing_are_said_where_a_network_would_learn_them(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "read_fashion_mnist", lambda data: None)  # the images are there
    config = CONFIG | {"data": {"name": "fashion-mnist", "root": str(tmp_path)}, "model": {"unet": {"num_classes": 10}}}
    config |= {"evaluate": {"extractor": "pixels"}, "sample": CONFIG["sample"] | {"labels": "balanced"}}
    _, said = planned(config, tmp_path / "run")
    recorded(said, "labels")
    _, said = planned(config | {"model": {"unet": {}}, "sample": CONFIG["sample"]}, tmp_path / "other")
    assert "labels" not in said


def test_the_bytes_of_images_of_several_shapes_are_those_of_each(tmp_path):
    shapes = [[1, 4, 4], [3, 32, 32]]
    values = {"data": {"name": "gaussian"}, "grid": {"data.shape": shapes, "steps": [2]}}
    found, _ = planned(ORACLE | values, tmp_path / "run")
    assert found["bytes_at_most"] >= CONFIG["sample"]["num_samples"] * (16 + 3072)


def test_a_checkpoint_that_is_gone_is_found_by_its_recorded_path_and_asked_for_by_verify(made, copy):
    config = json.loads((copy / "run/config.json").read_text())
    there, _ = planned(config, copy / "run")
    shutil.move(made / "network", made / "away")
    try:
        found, said = planned(config, copy / "run")
        _, missed = planned(config, copy / "run", "sample.num_samples=300")
        verified = json.loads(taugrid("verify", copy / "run", "--json", code=1)[0])
    finally:
        shutil.move(made / "away", made / "network")
    assert found["cells"] == there["cells"]
    assert [cell["images_done"] for cell in found["cells"]] == [200] * CELLS
    assert "pending" not in said
    line = f"there is no {made / 'network'}"
    assert (line in said, missed.count(line)) == (False, 1), "only where something is left to sample, and once"
    [damage] = verified["damaged"]
    assert damage["path"].startswith(str(made / "network"))
    recorded(damage["next"], "back")
    assert verified["images"] == 200 * CELLS


def test_images_of_a_directory_may_be_those_of_a_checkpoint_that_is_not_here(copy):
    _, said = planned(of_checkpoint("absent"), copy / "run")
    assert "S0002-eta1-" in said, "one of the folders that it holds"
    recorded(said, "pending")
    claim(copy, LOCAL)
    (copy / "config.json").write_text(json.dumps(of_checkpoint("/absent")))  # it never came
    out, _ = taugrid("status", copy, "--json")
    assert {cell["cell"] for cell in json.loads(out)["cells"]} == {"pending"}


@pytest.mark.parametrize(("num_samples", "is_singular"), [(16, True), (17, False)])
def test_no_more_samples_than_features_is_said_by_plan_run_and_table(made, tmp_path, num_samples, is_singular):
    fact, assignment = f"{num_samples} samples for 16 features", f"sample.num_samples={num_samples}"
    arguments = (made / "c.yaml", "--out", tmp_path / "run", "--set", assignment)
    _, printed = taugrid("run", *arguments)
    quality = (tmp_path / "run/tables/quality.md").read_text()
    texts = [planned(made / "c.yaml", tmp_path / "run", assignment)[1], printed, quality]
    assert [fact in text for text in texts] == [is_singular] * 3


def test_commands_that_get_a_config_find_its_directory(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = made / "c.yaml"
    for command, code in ((("status",), 2), (("export", "--to", "images"), 2), (("report", "--out", "run"), 4)):
        recorded(taugrid(*command[:1], config, *command[1:], code=code)[1])
    printed, _ = taugrid("plan", config, "--out", "run", "--workers", 300)
    assert "for 300 workers" in printed
    shutil.copytree(made / "run", tmp_path / "runs/night")
    for given in (config, tmp_path / "runs/night/config.json"):
        found = json.loads(taugrid("status", given, "--json")[0])
        assert [cell["scored"] for cell in found["cells"]] == [True] * CELLS


@pytest.mark.parametrize(
    ("assignment", "is_scored_again"),
    [
        ("data.limit=1000", True),
        ("data.split=test", True),
        ("evaluate.reference={name: gaussian, shape: [1, 4, 4], limit: 7}", True),
        ("evaluate.extractor=inception-v3-compat", True),
        ("evaluate.metrics=[fid, kid]", True),
        ("evaluate.seed=3", True),
        ("sample.num_samples=300", True),
        ("evaluate.metrics=[fid]", False),
        ("cluster.workers=1", False),
        ("evaluate.batch_size=7", False),
    ],
)
def test_what_a_change_does_to_scores_and_tables_is_said(copy, assignment, is_scored_again, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(copy / "torch"))
    found, _ = planned(copy / "run", copy / "run", assignment)
    assert [cell["scored"] for cell in found["cells"]] == [not is_scored_again] * CELLS
    assert found["cells_to_score"] == CELLS * is_scored_again
    recorded("\n".join(found["remarks"]))


def test_another_t_than_the_checkpoints_is_a_warning(made, tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(made / "network", pipeline / "unet")
    (pipeline / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 40, "prediction_type": "sample"}
    (pipeline / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    config = write_config(tmp_path / "c.yaml", pipeline)
    assert "trained with" not in planned(config, tmp_path / "run")[1]
    _, said = planned(config, tmp_path / "run", "diffusion.timesteps=50")
    recorded(said, "trained")


@pytest.mark.parametrize(
    ("kept", "precision", "is_refused"),
    [
        ({"taugrid_precision": "bf16"}, "float32", True),
        ({"taugrid_precision": "bf16"}, "bf16", False),
        ({}, "bf16", True),
        ({}, "float32", False),
        ({"mu": np.zeros(9), "sigma": np.eye(9)}, "float32", True),
        ({"sigma": -np.eye(64)}, "float32", True),
    ],
)
def test_a_reference_of_moments_that_a_run_refuses_is_said_in_its_words(kept, precision, is_refused, tmp_path):
    path, config = tmp_path / "moments.npz", ORACLE | {"data": {"name": "gaussian", "shape": [1, 8, 8]}}
    np.savez(path, **({"mu": np.zeros(64), "sigma": np.eye(64)} | kept))
    asked = (f"evaluate.reference={path}", "evaluate.extractor=digits-convnet", f"evaluate.precision={precision}")
    told = [line for line in planned(config, tmp_path / "run", *asked)[0]["remarks"] if str(path) in line]
    if not is_refused:
        assert told == []
        return
    with raises(UserError) as caught:
        api.run(config, tmp_path / "run", asked, progress=False)
    assert told == [str(caught.value)]


@pytest.mark.parametrize("driver", ["/proc/driver/nvidia", "/dev/kfd"])
def test_cpus_do_not_count_as_workers_where_there_is_a_driver_of_gpus(copy, monkeypatch, driver):
    """The patch: `/dev/kfd`, which AMD's driver makes, is not looked for."""
    for is_there in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.exists", lambda path: is_there and str(path) == driver)  # noqa: B023
            assert has_gpus() == is_there
        monkeypatch.setattr(dry_run, "has_gpus", lambda: is_there)  # noqa: B023
        found, _ = planned(copy / "run", copy / "run", "sample.num_samples=300")
        assert (found["workers_at_a_time"] is None) == is_there


def test_the_weights_on_a_worker_are_estimated_from_the_files(made, tmp_path):
    config = of_checkpoint(made / "network", grid={"steps": [2]})
    count = UNet2DModel.from_pretrained(made / "network").num_parameters()
    for asked, weights in (
        ((), {"network": 4 * count}),
        (("sample.precision=bf16-weights",), {"network": 2 * count}),
        ((f"model.guide={made}/network", "sample.guidance=2"), {"network": 4 * count, "guide": 4 * count}),
    ):
        assert planned(config, tmp_path / "run", *asked)[0]["worker_weights_bytes"] == weights


@pytest.mark.long
def test_a_run_that_is_refused_leaves_the_directory_as_it_was(tmp_path):
    """Put back by checking after `write_json`: the directory has the larger N, and its tables are those of nothing."""
    place, out = checkpoint(tmp_path / "network"), tmp_path / "run"
    config = write_config(tmp_path / "c.yaml", place, grid={"steps": [2], "eta": [0.0]}, evaluate={"metrics": ["kid"]})
    taugrid("run", config, "--out", out)
    assert DRAWN["quality"](open_existing(str(out))).axes[0].get_ylabel().startswith("KID"), "there is no FID"
    assert "cell has" not in (out / "figures/quality.svg").read_text() + (out / "report.html").read_text()
    place.rename(tmp_path / "gone")

    def contents():
        files = [*out.glob("*.json"), *(out / "tables").iterdir()]
        return {file.name: file.read_bytes() for file in files}

    before = contents()
    assert {"config.json", "plan.json", "quality.csv"} <= before.keys()
    said = taugrid("run", config, "--out", out, "--set", "sample.num_samples=300", code=2)[1]
    recorded(said, "there")
    assert contents() == before
    taugrid("run", config, "--out", out)


def test_a_network_to_be_trained_has_its_size_its_data_and_its_reference():
    labelled = {"num_classes": 10, "block_out_channels": [32, 64, 32], "layers_per_block": 1}
    levels = ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"]
    ups = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    for unet in ({}, labelled | {"down_block_types": levels, "up_block_types": ups}, {"add_attention": False}):
        config = {"name": "x", "model": {"unet": unet}}
        if len(unet) > 1:
            config |= {"train": {"label_dropout": 0.1}, "sample": {"labels": "balanced"}}
        found = api.plan(config)
        [model] = found["models"]
        with torch.device("meta"):
            built = build_unet(Unet(**unet), (1, 8, 8), has_null_label=len(unet) > 1)
        assert model["parameters"] == sum(parameter.numel() for parameter in built.parameters())
        assert (model["data"], found["reference"]) == ("digits/all", "digits/all"), "as if the config said so"


def test_status_reads_the_events_once(made, monkeypatch):
    """In a bucket each reading is requests. The patch: `describe_status` reads them too."""
    read, whole = [], history.read_events
    monkeypatch.setattr(history, "read_events", lambda rundir: read.append(rundir) or whole(rundir))
    taugrid("status", made / "run")
    assert len(read) == 1


def test_a_session_says_which_data_set_it_takes_if_the_config_names_none(tmp_path):
    UNet2DModel(**UNET | {"sample_size": 8}).save_pretrained(tmp_path / "network")
    config = {"name": "x", "model": {"checkpoint": str(tmp_path / "network")}, "sample": {"num_samples": 2, "steps": 1}}
    elsewhere = {"reference": {"name": "gaussian", "shape": [1, 8, 8]}, "extractor": "pixels"}
    digits = {"name": "digits"}
    for name, more, is_said in (("a", {}, True), ("b", {"data": digits}, False), ("c", {"evaluate": elsewhere}, False)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config | more))
        _, printed = taugrid("evaluate", tmp_path / f"{name}.yaml", "--out", tmp_path / name, code=None)
        assert ("digits/all" in printed) == is_said, name
