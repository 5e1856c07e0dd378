"""`taugrid init`: what it writes is valid, can be planned, and fits the checkpoint and the images that it was given."""

import json
import shutil
from contextlib import suppress

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from latents import save_dit, save_ldm
from nights import taugrid
from snapshots import raises, recorded
from tiny import UNET

import taugrid as api
from taugrid.config.load import load
from taugrid.errors import RunFailed, user_errors
from taugrid.images import encode_png
from taugrid.orchestrator.cli.new_config import new_config
from taugrid.registry.datasets import DATASETS

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = [name for name, dataset in DATASETS.items() if not dataset.required]


def network(**changes):
    return diffusers.UNet2DModel(**{"sample_size": 8, "in_channels": 1, "out_channels": 1} | UNET | changes)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folder of networks of each kind that taugrid loads, by name."""
    root = tmp_path_factory.mktemp("networks")
    network().save_pretrained(root / "bare")
    v = diffusers.DDPMScheduler(num_train_timesteps=30, beta_end=0.6, prediction_type="v_prediction")
    diffusers.DDIMPipeline(network(sample_size=28), v).save_pretrained(root / "v")
    classes = network(num_class_embeds=4)
    classes.save_pretrained(root / "classes")
    classes.register_to_config(null_label=3)
    diffusers.DDIMPipeline(classes, diffusers.DDIMScheduler()).save_pretrained(root / "guided")
    rgb = network(sample_size=12, in_channels=3, out_channels=3)
    rgb.save_pretrained(root / "consistency")
    diffusers.CMStochasticIterativeScheduler().save_pretrained(root / "consistency")
    flow, edm = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), diffusers.EDMEulerScheduler()
    for name, scheduler in {"flow": flow, "edm": edm, "lcm": diffusers.LCMScheduler()}.items():
        rgb.save_pretrained(root / name / "unet")
        scheduler.save_pretrained(root / name / "scheduler")
    save_ldm(root / "ldm")
    save_dit(root / "dit")
    return root


def made(tmp_path, *words):
    """What init writes, loaded; `plan` and `validate` take it."""
    file = tmp_path / "my.yaml"
    taugrid("init", *words, "--to", file)
    taugrid("config", "validate", file)
    return load(str(file)), api.plan(file, tmp_path / "run"), file.read_text()


def test_without_arguments_it_is_the_demo():
    config, demo = load(yaml.safe_load(new_config(None, None, False, None))), load("digits")
    assert config == demo.model_copy(update={"name": "digits"})


@pytest.mark.parametrize("unet", [(), ("--unet",)], ids=["", "unet"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_for_each_data_set_can_be_planned(name, unet, tmp_path):
    config, plan, _ = made(tmp_path, "--data", name, *unet)
    is_oracle = name in ("gaussian", "two-points", "classes") and not unet
    assert (config.model.oracle, config.model.unet is None) == ((name, True) if is_oracle else (None, False))
    assert (config.data.name, config.data.split) == (name, "train")
    assert config.evaluate.extractor is None or DATASETS[name].extractor is None
    assert len(plan["cells"]) >= 9


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(8, 8, 2), (7, 7, 1), (28, 28, 3), (32, 48, 4), (64, 64, 5), (256, 256, 6)]
)
def test_the_trained_network_takes_the_images(height, width, levels, tmp_path):
    """diffusers builds it, halving the sides at each level but the last; its input and output are of one size."""
    (tmp_path / "a").mkdir()
    pixels = np.zeros((3, height, width), np.uint8)
    (tmp_path / "a" / "0.png").write_bytes(encode_png(pixels))
    config, _, _ = made(tmp_path, "--data", f"folder:{tmp_path}")
    unet = config.model.unet
    assert (config.data.shape, len(unet.block_out_channels)) == ((3, height, width), levels)
    assert len(unet.down_block_types) == len(unet.up_block_types) == levels
    assert [kind for kind in unet.up_block_types if kind.startswith("Attn")] == ["AttnUpBlock2D"]
    assert [side % 2 ** (levels - 1) for side in (height, width)] == [0, 0]
    if levels <= 3:
        x, arguments = torch.zeros(1, 3, height, width), unet.model_dump(exclude={"num_classes"})
        built = diffusers.UNet2DModel(sample_size=[height, width], in_channels=3, out_channels=3, **arguments)
        assert built(x, 1).sample.shape == x.shape


SEEN = {
    "bare": ("digits", (1, 8, 8), {"sampler", "steps", "eta"}, None),
    "v": ("fashion-mnist", (1, 28, 28), {"sampler", "steps", "eta"}, None),
    "classes": ("digits", (1, 8, 8), {"sampler", "steps", "eta"}, "balanced"),
    "guided": ("digits", (1, 8, 8), {"guidance", "steps"}, "balanced"),
    "consistency": ("folder", (3, 12, 12), {"sampler", "steps"}, None),
    "flow": ("folder", (3, 12, 12), {"sampler", "steps", "eta"}, None),
    "edm": ("folder", (3, 12, 12), {"sampler", "steps", "eta"}, None),
    "lcm": ("folder", (3, 12, 12), {"sampler", "steps"}, None),
    "ldm": ("folder", (3, 16, 16), {"sampler", "steps", "eta"}, None),
    "dit": ("folder", (3, 16, 16), {"guidance", "steps"}, "balanced"),
}
"""Checkpoint -> the data set, the shape of its pictures, the grid's keys, and the labels."""


@pytest.mark.parametrize("kind", SEEN)
def test_a_config_fits_the_checkpoint(kind, checkpoints, tmp_path):
    config, plan, text = made(tmp_path, "--checkpoint", checkpoints / kind)
    name, shape, keys, labels = SEEN[kind]
    assert (config.data.name, config.data.image_shape, config.sample.labels) == (name, shape, labels)
    assert config.grid[0].keys() == keys
    assert (config.name, config.model.checkpoint) == (kind, str(checkpoints / kind))
    latent = kind in ("ldm", "dit")
    assert (config.sample.clip, "# vae: FOLDER" in text) == ("none" if latent else None, latent)
    assert ("not say" in text) == (kind in ("bare", "classes"))
    assert ("is flow," in text) == (kind == "flow")
    assert not any("images of" in remark for remark in plan["remarks"]), "the reference has the pictures' shape"
    most = {"v": 20, "consistency": 4, "lcm": 8}.get(kind, 50)
    assert max(steps for row in config.grid for steps in row["steps"]) == most


@pytest.mark.parametrize("name", ["1000", "2024-01-31", "null", "yes"])
def test_a_name_that_yaml_would_not_read_as_text_is_quoted(name, checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints / "bare", tmp_path / name)
    assert made(tmp_path, "--checkpoint", folder)[0].name == name
    assert load(yaml.safe_load(new_config(None, None, False, name))).name == name


def test_data_take_the_shape_of_the_checkpoint_or_are_refused(checkpoints, tmp_path):
    config, *_ = made(tmp_path, "--checkpoint", checkpoints / "ldm", "--data", "celeba")
    assert config.data.image_shape == (3, 16, 16)
    refused = taugrid("init", "--checkpoint", checkpoints / "v", "--data", "digits", code=2)[1]
    recorded(refused, "digits")
    assert "makes 1x28x28" in refused


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [([(1, 9, 12)], (1, 9, 12)), ([(1, 9, 9), (3, 9, 9)], (3, 9, 9)), ([(3, 40, 90), (3, 50, 60)], (3, 32, 32)),
     ([(3, 300, 300)], (3, 64, 64))],
)  # fmt: skip
def test_the_shape_is_that_of_the_first_images(sizes, shape, tmp_path):
    images = [encode_png(np.full(size, 7, np.uint8)) for size in sizes]
    (tmp_path / "pngs" / "train").mkdir(parents=True)
    for number, image in enumerate(images):
        (tmp_path / "pngs" / "train" / f"{number}.png").write_bytes(image)
    config, *_ = made(tmp_path, "--data", tmp_path / "pngs")
    assert (config.data.name, config.data.shape, config.data.split) == ("folder", shape, "train")
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    assert load(yaml.safe_load(new_config(None, f"parquet:{tmp_path}", False, "x"))).data.shape == shape


def test_what_is_on_the_hub_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    text = new_config("org/network", None, False, None)
    config = load(yaml.safe_load(text))
    assert (config.model.checkpoint, config.name, config.data.name) == ("org/network", "network", "folder")
    recorded(text, "here")
    recorded(text, "checkpoint")
    assert api.plan(yaml.safe_load(text), tmp_path / "run")["cells"]
    images = "parquet:hf://datasets/org/images"
    recorded(taugrid("init", "--data", images, code=2)[1], "cache")


@pytest.mark.parametrize(
    "words",
    [
        ["--checkpoint", "absent"], ["--data", "fashion"], ["--data", "folder"], ["--data", "folder:absent"],
        ["--data", "lsun"], ["--data", "digits:somewhere"], ["--name", "a b"], ["--to", "my.json"],
        ["--to", "there.yaml"], ["--to", "there.yaml/my.yaml"], ["--name", "a: b"], ["--name", "a\n["],
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("name: mine\n")
    recorded(taugrid("init", *words, code=2)[1])
    assert (tmp_path / "there.yaml").read_text() == "name: mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def test_a_full_disk_leaves_no_empty_file(small_disk):
    with (small_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**20))
    with raises(RunFailed), user_errors():
        taugrid("init", "--to", small_disk / "my.yaml")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    (small_disk / "ballast").unlink()
    taugrid("init", "--to", small_disk / "my.yaml")


def test_a_checkpoint_that_is_broken_is_one_line(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints / "bare", tmp_path / "bare")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"_class_name": "UNet2DConditionModel"}))
    recorded(taugrid("init", "--checkpoint", folder, code=2)[1], "taugrid")
