"""The shipped classifiers are what their JSON says, and torch-fidelity takes them."""

import json
from dataclasses import replace
from pathlib import Path

import convnet_training as training
import make_digits_convnet as digits_script
import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from snapshots import raises
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from taugrid.eval.features.load import load
from taugrid.eval.features.networks import DigitsConvnet, FashionConvnet, network_input
from taugrid.eval.features.resolve import resolve, shipped_weights
from taugrid.eval.metrics.frechet import frechet_distance
from taugrid.eval.metrics.logits import InceptionSums, inception_splits
from taugrid.eval.metrics.statistics import Moments
from taugrid.hashing import file_sha256
from taugrid.registry.extractors import DIGITS_CONVNET, FASHION_CONVNET

pytestmark = pytest.mark.usefixtures("one_thread")

CLOTHES = Path(__file__).parents[1] / "data" / "fashion-64.png"
"""The first 64 test images of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT licence), in 8 rows."""

LABELS = "9211614657457341248025791460938833807579613767212244582284807785"
CONVNETS = {c.shipped_as: c for c in (DigitsConvnet, FashionConvnet)}
NAMES = list(CONVNETS)
SIDES = {DIGITS_CONVNET: 8, FASHION_CONVNET: 28}


@pytest.fixture(scope="module")
def digits():
    return digits_script.split_digits()


def digits_of(name, digits, count):
    """Digits to learn, as large as a network's images."""
    images = torch.from_numpy(digits.train_images[:count])
    side = SIDES[name]
    return torch.nn.functional.interpolate(images.float(), (side, side), mode="bilinear").to(torch.uint8)


def provenance(name):
    return json.loads(shipped_weights(name).with_suffix(".json").read_text(encoding="utf-8"))


def grey(name, count=40):
    """Blots, grey all over, in which every grey level occurs."""
    side = SIDES[name]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").mul(255).to(torch.uint8)
    levels = torch.arange(256, dtype=torch.uint8).repeat(side * side).reshape(-1, 1, side, side)
    return torch.cat([images, levels])


@pytest.mark.parametrize(("name", "limit"), [(DIGITS_CONVNET, 1_000_000), (FASHION_CONVNET, 2_000_000)])
def test_shipped_weights_are_those_of_the_json(name, limit):
    assert file_sha256(shipped_weights(name)) == provenance(name)["sha256"]
    assert shipped_weights(name).stat().st_size < limit


def test_held_out_digits_are_recognised_as_the_json_says_and_none_was_learned(digits):
    logits = DigitsConvnet(features_list=["logits"])(torch.from_numpy(digits.held_out_images))[0]
    held_out, said = training.performance(logits, digits.held_out_labels), provenance(DIGITS_CONVNET)
    assert len(digits.held_out_labels) == said["held_out_images"]
    # No held-out image is near a tie (the smallest margin is 0.04), so no rounding of another CPU moves this.
    assert held_out.accuracy == said["held_out_accuracy"] >= 0.98
    assert held_out.cross_entropy == pytest.approx(said["held_out_cross_entropy"], rel=1e-3)
    learned = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in learned for image in digits.held_out_images)


def test_clothes_are_recognised_and_every_feature_varies_over_them():
    """These 64 are harder than all 10,000, of which the JSON says 0.92: figures of the network as it was made."""
    with Image.open(CLOTHES) as sheet:
        tiles = np.array(sheet).reshape(8, 28, 8, 28).transpose(0, 2, 1, 3).reshape(64, 1, 28, 28)
    features, logits = FashionConvnet(features_list=["64", "logits"])(torch.from_numpy(tiles))
    found = training.performance(logits, np.array([*map(int, LABELS)]))
    assert found.accuracy == 56 / 64  # the smallest margin is 0.01
    assert found.cross_entropy == pytest.approx(0.341177, rel=1e-4)
    assert features.shape == (64, 64)
    assert features.std(dim=0).min() > 0.2
    assert provenance(FASHION_CONVNET)["smallest_feature_std"] > 0.5


def test_every_feature_varies_over_the_digits(digits):
    images = np.concatenate([digits.train_images, digits.held_out_images])
    features = DigitsConvnet(features_list=["64"])(torch.from_numpy(images))[0]
    assert features.shape == (1797, 64)
    assert features.std(dim=0).min() == pytest.approx(provenance(DIGITS_CONVNET)["smallest_feature_std"], rel=1e-3)
    assert features.std(dim=0).min() > 0.01


def test_script_makes_weights_of_the_shipped_kind(digits):
    """A short training: the script's loop learns (chance is 0.1), and its network has the shipped tensors."""
    network = training.train(DIGITS_CONVNET, replace(digits_script.RECIPE, epochs=3), digits)
    with torch.no_grad():
        logits = network(network_input(torch.from_numpy(digits.held_out_images)))
    assert training.performance(logits, digits.held_out_labels).accuracy > 0.5
    DigitsConvnet().network.load_state_dict(network.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_distance_grows_with_damage(name, digits):
    """FID of the features orders pictures as a person would: real ones, then ever noisier ones."""
    images = digits_of(name, digits, 1400)
    extract = load(resolve(name, "any", None, tuple(images.shape[1:])), "cpu")
    reference = Moments.of(extract(images[:700]).features.numpy())
    noise = torch.randn(images[700:].shape, generator=torch.Generator().manual_seed(0))
    damaged = [(images[700:] + level * noise).clamp(0, 255).to(torch.uint8) for level in (0, 40, 80)]
    distances = [frechet_distance(Moments.of(extract(some).features.numpy()), reference) for some in damaged]
    assert distances == sorted(distances)
    assert distances[1] > 1.5 * distances[0]


@pytest.mark.parametrize("name", NAMES)
def test_grey_and_equal_rgb_give_the_same_features_and_a_run_those_of_the_class(name):
    images, extractor = grey(name), CONVNETS[name]()
    features, logits = extractor(images)
    for one, three in zip((features, logits), extractor(images.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(one, three)
    levels = images.clamp(1, 254)
    coloured = torch.cat([levels + 1, levels, levels - 1], dim=1)
    assert torch.equal(extractor(levels)[0], extractor(coloured)[0])
    extraction = load(resolve(name, "any", None, tuple(images.shape[1:])), "cpu")(images)
    assert torch.equal(extraction.features, features)
    assert torch.equal(extraction.logits, logits)


@pytest.mark.parametrize("name", NAMES)
def test_layers_come_in_the_order_of_the_request(name):
    logits, features = CONVNETS[name](features_list=["logits", "64"])(grey(name)[:3])
    assert (logits.shape, features.shape) == ((3, 10), (3, 64))
    with pytest.raises(ValueError, match="2048"):
        CONVNETS[name](features_list=["2048"])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 8, 8),
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_images_are_refused(images):
    with raises(ValueError):
        DigitsConvnet()(images)


@pytest.mark.parametrize("name", NAMES)
def test_torch_fidelity_recomputes_our_numbers_from_png_files(name, digits, tmp_path):
    """What design.md promises of every number, for someone with the PNG files and torch-fidelity's Python function."""
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, CONVNETS[name])
    images = digits_of(name, digits, 700)
    halves = {"samples": images[:300], "reference": images[300:]}
    for half, some in halves.items():
        (tmp_path / half).mkdir()
        for index, image in enumerate(some.numpy()):
            Image.fromarray(image[0]).save(tmp_path / half / f"{index:06d}.png")
    inputs = {"input1": str(tmp_path / "samples"), "input2": str(tmp_path / "reference"), "feature_extractor": name}
    how = {"cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}
    theirs = torch_fidelity.calculate_metrics(**inputs, **how, fid=True, isc=True)
    extract = load(resolve(name, "any", None, tuple(images.shape[1:])), "cpu")
    samples, reference = (extract(some) for some in halves.values())
    ours = frechet_distance(Moments.of(samples.features.numpy()), Moments.of(reference.features.numpy()))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    scores = InceptionSums.of(samples.logits.numpy(), inception_splits(300, 10, seed=2020), 10).scores()
    assert scores.mean() == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
