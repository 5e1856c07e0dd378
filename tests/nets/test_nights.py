"""Nights of runs: each fault that can be planted from outside of taugrid is red, and healthy nights are green.

A fault is in the weights, or in a user's code that computes something else tonight though its source, and so its hash,
is the same: the canaries have to see that, under new weights too.
"""

import json

import pytest
import torch
from diffusers import UNet2DModel
from outside import UNET, Place, taugrid

import taugrid as api

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.long]

CONFIG = {
    "name": "night",
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "diffusion": {"prediction": "sample"},
    "sample": {"num_samples": 200, "batch_size": 50, "steps": 3},
    "grid": [{"eta": [0.0, 1.0]}, {"sampler": ["nets_own:ddim"], "sampler_options": [{"eta": 1.0}]}],
    "evaluate": {"extractor": "nets_extractor:Extractor", "metrics": ["fid"]},
}


def save(folder, change):
    """A network that predicts x_0, and that `change` has changed."""
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=4, in_channels=1, out_channels=1, **UNET)
    with torch.no_grad():
        network.conv_out.weight *= 2
        change(network.conv_out)
    network.save_pretrained(folder)
    return str(folder)


WEIGHTS = {
    "same": lambda last: None,
    "nearby": lambda last: last.bias.add_(1e-4),
    "darker": lambda last: last.bias.sub_(0.5),
    "white": lambda last: (last.weight.zero_(), last.bias.fill_(100.0)),
    "nan": lambda last: last.bias.fill_(float("nan")),
}

GREEN = {"not worse", "better", "undecided"}
NIGHTS = {
    "same weights": ("same", None, {}, 0, {"identical"}),
    "nearby weights": ("nearby", None, {}, 0, GREEN),
    "worse weights": ("darker", None, {}, 3, {"worse"}),
    "white images": ("white", None, {}, 3, {"collapsed"}),
    "no numbers": ("nan", None, {}, 3, {"collapsed"}),
    "wrong sign": ("same", "wrong-sign", {}, 3, {"changed pixels", "changed sampler"}),
    "wrong sign under new weights": ("nearby", "wrong-sign", {}, 3, {"changed sampler"}),
    "other scores": ("same", "other-scores", {}, 3, {"changed scorer"}),
    "other scores under new weights": ("nearby", "other-scores", {}, 3, {"changed scorer"}),
    "a cell less": ("nearby", None, {"grid": [{"eta": [0.0]}, CONFIG["grid"][1]]}, 5, GREEN),
    "another reference": ("same", None, {"data": CONFIG["data"] | {"split": "test"}}, 2, set()),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, head):
    place = Place(tmp_path_factory.mktemp("nights"), head, CONFIG)
    for name, change in WEIGHTS.items():
        save(place.folder / name, change)
    run = place.run("accepted", 1, model={"checkpoint": str(place.folder / "same")})
    taugrid("baseline", "accept", run, "--to", place.folder / "history/baseline.json", "--reason", "the net")
    return place


@pytest.mark.parametrize("name", NIGHTS)
def test_a_fault_is_red_and_a_healthy_night_green(place, name):
    weights, fault, changes, code, results = NIGHTS[name]
    config = changes | {"model": {"checkpoint": str(place.folder / weights)}}
    id, history = name.replace(" ", "-"), place.folder / "history"
    if fault:
        (place.folder / fault).touch()
    try:
        place.start("night", 1, "--history", history, "--id", id, command="nightly", **config).end(code)
    finally:
        if fault:
            (place.folder / fault).unlink()
    if code == 2:
        return
    verdict = json.loads((history / "nights" / id / "verdict.json").read_text())
    assert verdict["result"] in results
    if not code:
        assert {cell["result"] for cell in verdict["comparison"]["cells"]} <= results
    run = api.open(history).open(id)
    assert len(run.cells) == (3 if "grid" not in changes else 2)
