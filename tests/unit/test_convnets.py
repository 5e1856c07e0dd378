"""The shipped classifiers are what their JSON says, and torch-fidelity takes them."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import convnet_training as training
import make_digits_convnet as digits_script
import numpy as np
import pytest
import torch
import torch_fidelity
from make_fashion_convnet import read_fashion, read_idx
from PIL import Image
from snapshots import raises
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from taugrid.eval.features.load import load
from taugrid.eval.features.networks import DigitsConvnet, FashionConvnet, network_input
from taugrid.eval.features.resolve import resolve, shipped_weights
from taugrid.eval.metrics.frechet import frechet_distance
from taugrid.eval.metrics.inception import InceptionSums, inception_splits
from taugrid.eval.metrics.statistics import Moments
from taugrid.hashing import file_sha256
from taugrid.registry.extractors import DIGITS_CONVNET, FASHION_CONVNET

pytestmark = pytest.mark.usefixtures("one_thread")

FASHION_MNIST = Path(__file__).parents[3] / "shared" / "data" / "fashion-mnist"
CONVNETS = {c.shipped_as: c for c in (DigitsConvnet, FashionConvnet)}
NAMES = list(CONVNETS)
SIDES = {DIGITS_CONVNET: 8, FASHION_CONVNET: 28}


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small gain nothing from a second thread, and lose much where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> training.Images:
    return digits_script.split_digits()


@pytest.fixture(scope="module")
def fashion() -> training.Images:
    if not FASHION_MNIST.is_dir():
        pytest.skip("Fashion-MNIST is not beside the repository")
    return read_fashion(FASHION_MNIST)


@pytest.fixture(scope="module")
def all_digits(digits) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([digits.train_images, digits.held_out_images]))


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


def test_held_out_digits_are_recognised_as_the_json_says(digits):
    logits = DigitsConvnet(features_list=["logits"])(torch.from_numpy(digits.held_out_images))[0]
    held_out, said = training.performance(logits, digits.held_out_labels), provenance(DIGITS_CONVNET)
    assert len(digits.held_out_labels) == said["held_out_images"]
    # No held-out image is near a tie (the smallest margin is 0.04), so no rounding of another CPU moves this.
    assert held_out.accuracy == said["held_out_accuracy"]
    assert held_out.accuracy >= 0.98
    assert held_out.cross_entropy == pytest.approx(said["held_out_cross_entropy"], rel=1e-3)


@pytest.mark.long
def test_held_out_clothes_are_recognised_as_the_json_says(fashion):
    extractor, said = FashionConvnet(features_list=["logits"]), provenance(FASHION_CONVNET)
    logits = torch.cat([extractor(chunk)[0] for chunk in torch.from_numpy(fashion.held_out_images).split(1000)])
    held_out = training.performance(logits, fashion.held_out_labels)
    assert (len(logits), len(fashion.train_labels)) == (said["held_out_images"], said["train_images"])
    assert held_out.accuracy == pytest.approx(said["held_out_accuracy"], abs=2e-4)  # two images near a tie
    assert held_out.accuracy >= 0.9
    assert held_out.cross_entropy == pytest.approx(said["held_out_cross_entropy"], rel=1e-4)


def test_no_held_out_digit_was_learned(digits):
    learned = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in learned for image in digits.held_out_images)


def test_script_makes_weights_of_the_shipped_kind(digits):
    """A short training: the script's loop learns (chance is 0.1), and its network has the shipped tensors."""
    network = training.train(DIGITS_CONVNET, replace(digits_script.RECIPE, epochs=3), digits)
    with torch.no_grad():
        logits = network(network_input(torch.from_numpy(digits.held_out_images)))
    assert training.performance(logits, digits.held_out_labels).accuracy > 0.5
    DigitsConvnet().network.load_state_dict(network.state_dict())


def test_shifted_training_images_are_moved_by_one_pixel():
    images = torch.full((400, 1, 8, 9), -1.0)
    images[:, 0, 3, 5] = 1.0
    moved = training.shift_some(images, 0.5, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    places = [tuple(place) for place in torch.nonzero(moved[:, 0] == 1.0)[:, 1:].tolist()]
    assert set(places) == {(row, column) for row in (2, 3, 4) for column in (4, 5, 6)}
    assert len(places) == 400
    # Half are left alone, and a ninth of the others comes to rest where it was: 222 of 400 expected, sd 10.
    assert 180 < places.count((3, 5)) < 265


def test_idx_files_of_another_kind_are_refused(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    whole = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + values.tobytes()
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(whole))
    assert np.array_equal(read_idx(path), values)
    for broken in (whole[:-1], whole[:2] + b"\x0d" + whole[3:]):
        path.write_bytes(gzip.compress(broken))
        with raises(ValueError):
            read_idx(path)


def test_every_feature_varies_over_the_digits(all_digits):
    features = DigitsConvnet(features_list=["64"])(all_digits)[0]
    assert features.shape == (1797, 64)
    assert features.std(dim=0).min() == pytest.approx(provenance(DIGITS_CONVNET)["smallest_feature_std"], rel=1e-3)
    assert features.std(dim=0).min() > 0.01


def test_every_feature_varies_over_clothes(fashion):
    features = FashionConvnet(features_list=["64"])(torch.from_numpy(fashion.held_out_images[:500]))[0]
    assert features.shape == (500, 64)
    assert features.std(dim=0).min() > 0.5
    assert provenance(FASHION_CONVNET)["smallest_feature_std"] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_distance_grows_with_damage(name, request):
    """FID of the features orders pictures as a person would: real ones, then ever noisier ones."""
    data = request.getfixturevalue("digits" if name == DIGITS_CONVNET else "fashion")
    images = torch.from_numpy(data.train_images[:1400])
    extract = load(resolve(name, "any", None, tuple(images.shape[1:])), "cpu")
    reference = Moments.of(extract(images[:700]).features.numpy())
    noise = torch.randn(images[700:].shape, generator=torch.Generator().manual_seed(0))
    damaged = [(images[700:] + level * noise).clamp(0, 255).to(torch.uint8) for level in (0, 40, 80)]
    distances = [frechet_distance(Moments.of(extract(some).features.numpy()), reference) for some in damaged]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]


@pytest.mark.parametrize("name", NAMES)
def test_grey_and_equal_rgb_give_the_same_features(name):
    images = grey(name)
    extractor = CONVNETS[name]()
    for one, three in zip(extractor(images), extractor(images.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(one, three)
    levels = images.clamp(1, 254)
    coloured = torch.cat([levels + 1, levels, levels - 1], dim=1)
    assert torch.equal(extractor(levels)[0], extractor(coloured)[0])


@pytest.mark.parametrize("name", NAMES)
def test_loaded_network_gives_the_classs_own_features(name):
    images = grey(name)
    features, logits = CONVNETS[name]()(images)
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
def test_torch_fidelity_recomputes_our_numbers_from_png_files(name, request, tmp_path):
    """What design.md promises of every number, for someone with the PNG files and torch-fidelity's Python function."""
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, CONVNETS[name])
    data = request.getfixturevalue("digits" if name == DIGITS_CONVNET else "fashion")
    images = torch.from_numpy(data.train_images)
    halves = {"samples": images[:300], "reference": images[300:700]}
    for half, some in halves.items():
        (tmp_path / half).mkdir()
        for index, image in enumerate(some):
            Image.fromarray(image[0].numpy()).save(tmp_path / half / f"{index:06d}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "samples"),
        input2=str(tmp_path / "reference"),
        feature_extractor=name,
        fid=True,
        isc=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    extract = load(resolve(name, "any", None, tuple(images.shape[1:])), "cpu")
    samples, reference = (extract(some) for some in halves.values())
    ours = frechet_distance(Moments.of(samples.features.numpy()), Moments.of(reference.features.numpy()))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    scores = InceptionSums.of(samples.logits.numpy(), inception_splits(300, 10, seed=2020), 10).scores()
    assert scores.mean() == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
