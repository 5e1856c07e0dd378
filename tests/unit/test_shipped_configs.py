"""Every experiment in configs/ loads, and costs what its own comment says."""

import importlib.resources
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml

from taugrid.config import Diffusion, ModelSection
from taugrid.config.load import load
from taugrid.errors import MissingInput
from taugrid.eval.tables.published.counterparts import FOLDER
from taugrid.jobs import CustomNetwork, SavedNetwork
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.plan.sources import Loaded
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.view.inspection import describe
from taugrid.workers.data.load import decoded_folder
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.network.checkpoint import DIT, Checkpoint

NAMES = sorted(p.name for p in importlib.resources.files("taugrid.configs").iterdir() if p.name.endswith(".yaml"))
OF_THE_PAPER = {
    "cifar10-table1.yaml": ("cifar10", "quadratic", 25),
    "celeba-table1.yaml": ("celeba", "linear", 25),
    "bedroom-table3.yaml": ("lsun/bedroom", "linear", 9),
    "church-table3.yaml": ("lsun/church_outdoor", "linear", 9),
}
"""The data set, the spacing, and how many cells the table has."""


def text(name):
    return (importlib.resources.files("taugrid.configs") / name).read_text(encoding="utf-8")


def latents(path, kind, network, scaling_factor, **config):
    """What a latent pipeline on the hub says of itself, as far as a plan needs it."""
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    saved = SavedNetwork(f"{path}/vae", "1" * 64, "2" * 64, kind=kind)
    diffusion = Diffusion(timesteps=1000, schedule="linear", prediction="epsilon")
    return Checkpoint(
        path, f"{path}/network", config, "0" * 64, diffusion, {"clip": "none"}, network=network,
        vae=Vae(path, saved, scaling_factor, 0.0, shape, (3, 256, 256)),
    )  # fmt: skip


def hub_checkpoint(path):
    """What google/ddpm-ema-church-256 says of itself; bedroom's is built alike. And what the latent pipelines say."""
    dit = {"sample_size": 32, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}
    if path.endswith("sit-xl-2-256"):
        flow = Diffusion(process="flow", prediction="velocity", timesteps=1000)
        return replace(latents(path, "AutoencoderKL", DIT, 0.18215, **dit), diffusion=flow)
    if path == "facebook/DiT-XL-2-256":
        return latents(path, "AutoencoderKL", DIT, 0.18215, **dit)
    if path == "CompVis/ldm-celebahq-256":
        return latents(path, "VQModel", "UNet2DModel", 1.0, sample_size=64, in_channels=3, out_channels=3)
    down = [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4]
    unet = {"sample_size": 256, "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "down_block_types": down}
    unet |= {"up_block_types": up, "block_out_channels": [128, 128, 256, 256, 512, 512]}
    diffusion = Diffusion(timesteps=1000, schedule="linear", beta_start=1e-4, beta_end=2e-2, prediction="epsilon")
    return Checkpoint(path, f"{path}/unet", unet, "0" * 64, diffusion, {"clip": "x0"})


def planned(name, *assignments):
    config = load(name, assignments)
    return config, plan(config, Lookups(hub_checkpoint, custom_network))


def custom_network(name, weights, shape, *_):
    return CustomNetwork(name, weights, "a" * 64, "b" * 64, "c" * 64, shape, "EDMPrecond")


@pytest.mark.parametrize("name", NAMES)
def test_a_config_costs_what_its_comment_says(name, tmp_path):
    config, found = planned(name)
    assert config.name.removesuffix("-v2") == name.removesuffix(".yaml")
    cost = text(name).partition("Cost:")[2]
    said = re.search(r"([\d,]+) (?:network )?evaluations", cost)
    assert describe(Run(config, found, RunDir(tmp_path)))["network_evaluations"] == int(said[1].replace(",", ""))
    steps = re.search(r"([\d,]+) training steps", cost)
    trained = {f"{source.train.steps:,}" for _, source in found.trained_here}
    assert trained == ({steps[1]} if steps else set())


@pytest.mark.parametrize("name", NAMES)
def test_a_config_has_shards_of_a_few_batches(name):
    """So that a small cell has work for several workers, and a lost one little to do again."""
    assert {cell.settings.shard_evaluations for cell in planned(name)[1].cells} <= {2_000, 5_000, 10_000}


@pytest.mark.parametrize("name", ["dit-xl-2-256.yaml", "ldm-celebahq.yaml", "sit.yaml"])
def test_latent_pipelines_are_priced_without_their_files(name, tmp_path):
    def missing(path):
        raise MissingInput(f"{path} is not in the cache yet")

    config, with_files = planned(name)
    without = plan(config, Lookups(missing), dry=True)
    assert without.pending
    prices = [describe(Run(config, each, RunDir(tmp_path)))["network_evaluations"] for each in (with_files, without)]
    assert prices[0] == prices[1]
    assert {cell.model.image_shape for cell in with_files.cells} == {config.data.image_shape} == {(3, 256, 256)}
    assert {cell.settings.clip for cell in with_files.cells} == {"none"}


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_a_config_of_the_paper_has_its_protocol_and_the_cells_of_its_table(name):
    """The clipping too: it must not be left to the loaded pipeline, whose own is x0."""
    dataset, spacing, cells = OF_THE_PAPER[name]
    config, found = planned(name)
    reference = config.evaluate.reference
    assert (reference.full_name, reference.split) == (dataset, "train"), "the reference is named"
    assert config.evaluate.extractor == "inception-v3-compat"
    settings = [cell.settings for cell in found.cells]
    assert {(of.spacing, of.num_samples) for of in settings} == {(spacing, 50_000)}
    assert found.models[0].image_shape == config.data.image_shape == reference.image_shape
    lines = [line.split(",") for line in (FOLDER / "fid.csv").read_text().splitlines()]
    published = {(sigma, float(eta), int(s), clip) for _, d, sigma, eta, s, _, _, clip, *_ in lines[1:] if d == dataset}
    assert {(of.sigma, of.eta_number, of.steps, of.clip) for of in settings} == published
    assert len(published) == len(settings) == cells
    alternative = re.search(r"^ +# spacing: (ermongroup-[a-z]+)$", text(name), re.MULTILINE)
    of_the_code = planned(name, f"sample.spacing={alternative[1]}")[1]
    assert {cell.tau[0] for cell in of_the_code.cells} == {1}, "both kinds begin at index 0"
    assert not {cell.id for cell in found.cells} & {cell.id for cell in of_the_code.cells}


@pytest.mark.parametrize("name", ["cifar10-table1.yaml", "celeba-table1.yaml"])
def test_attention_is_where_images_are_16_pixels_wide(name):
    config, found = planned(name)
    unet = found.models[0].source.unet
    levels = [config.data.image_shape[1] >> level for level in range(len(unet.block_out_channels))]
    assert [side for side, kind in zip(levels, unet.down_block_types, strict=True) if "Attn" in kind] == [16]
    assert [side for side, kind in zip(levels[::-1], unet.up_block_types, strict=True) if "Attn" in kind] == [16]
    assert (unet.dropout, found.models[0].source.train.most_workers) == (0.1, 1)


def test_the_hubs_network_for_cifar10_takes_the_place_of_training(tmp_path):
    """Edited as the comment says: the block above goes, the line comes."""
    without, blocks = re.subn(r"^model:\n(  .*\n)+", "", text("cifar10-table1.yaml"), flags=re.MULTILINE)
    edited, lines = re.subn(r"^# (model: .*  # in place of the block above)$", r"\1", without, flags=re.MULTILINE)
    assert (blocks, lines) == (1, 1)
    (tmp_path / "edited.yaml").write_text(edited)
    config = load(str(tmp_path / "edited.yaml"), [])
    assert config.model == ModelSection(checkpoint="google/ddpm-cifar10-32")
    [model] = plan(config, Lookups(hub_checkpoint)).models
    assert isinstance(model.source, Loaded)


@pytest.mark.parametrize("name", ["bedroom-table3.yaml", "church-table3.yaml"])
def test_the_disk_that_decoded_images_need_is_said(name):
    said = re.search(r"([\d.]+) GB[^~]* ~/.cache/(\S+)\. ", text(name))
    images = load(name, []).evaluate.reference
    assert float(said[1]) == round(images.limit * math.prod(images.image_shape) / 1e9, 1)
    assert decoded_folder().parts[-2:] == Path(said[2]).parts


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_an_editor_finds_the_schema_of_a_config_and_the_config_valid(name):
    line = re.search(r"^# yaml-language-server: \$schema=(\S+)$", text(name), re.MULTILINE)
    described, config = json.loads(text(line[1])), yaml.safe_load(text(name))
    jsonschema.validate(config, described)
    with pytest.raises(jsonschema.ValidationError, match="batch_sizes"):
        jsonschema.validate({**config, "sample": {**config["sample"], "batch_sizes": 1}}, described)
