"""The shipped digits classifier is what its JSON says; torch-fidelity's extractors give torch-fidelity's features."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchvision.models import VGG16_Weights

import eval.weights.make_digits_convnet as make
from eval.extractor_names import DIGITS_CONVNET, INCEPTION, KNOWN, resolve, sha256, shipped_weights, torch_hub_folder
from eval.extractors import DigitsConvnet, load, network_input
from eval.statistics import InceptionSums, Moments, frechet_distance, inception_splits

pytestmark = pytest.mark.usefixtures("one_thread")

PROVENANCE = json.loads(shipped_weights().with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small gain nothing from a second thread, and lose much where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> make.Digits:
    return make.split_digits()


@pytest.fixture(scope="module")
def all_digits(digits) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([digits.train_images, digits.held_out_images]))


# digits-convnet


def test_shipped_weights_are_those_of_the_json():
    assert sha256(shipped_weights()) == PROVENANCE["sha256"]
    assert shipped_weights().stat().st_size < 1_000_000


def test_held_out_performance_is_that_of_the_json(digits):
    logits = DigitsConvnet(features_list=["logits"])(torch.from_numpy(digits.held_out_images))[0]
    held_out = make.performance(logits, digits)
    assert len(digits.held_out_labels) == PROVENANCE["held_out_images"]
    # No held-out image is near a tie (the smallest margin is 0.04), so no rounding of another CPU moves this.
    assert held_out.accuracy == PROVENANCE["held_out_accuracy"]
    assert held_out.accuracy >= 0.98
    assert held_out.cross_entropy == pytest.approx(PROVENANCE["held_out_cross_entropy"], rel=1e-3)


def test_no_held_out_image_was_learned(digits):
    learned = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in learned for image in digits.held_out_images)


def test_script_makes_weights_of_the_shipped_kind(digits, monkeypatch):
    """A short training: the script's loop learns (chance is 0.1), and its network has the shipped tensors."""
    monkeypatch.setattr(make, "EPOCHS", 3)
    network = make.train(digits)
    with torch.no_grad():
        logits = network(network_input(torch.from_numpy(digits.held_out_images)))
    assert make.performance(logits, digits).accuracy > 0.5
    DigitsConvnet().network.load_state_dict(network.state_dict())


def test_shifted_training_images_are_moved_by_one_pixel():
    images = torch.full((400, 1, 8, 8), -1.0)
    images[:, 0, 3, 4] = 1.0
    moved = make.shift_some(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    places = {tuple(place) for place in torch.nonzero(moved[:, 0] == 1.0)[:, 1:].tolist()}
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}
    assert (moved == 1.0).sum() == 400


def test_every_feature_varies_over_the_digits(all_digits):
    features = DigitsConvnet(features_list=["64"])(all_digits)[0]
    assert features.shape == (1797, 64)
    assert features.std(dim=0).min() > 0.01


def test_distance_grows_with_damage(all_digits):
    """FID of digits-convnet features orders pictures as a person would: digits, then ever noisier digits."""
    extract = load(resolve(None, "digits", None, (1, 8, 8)), "cpu")
    reference = Moments.of(extract(all_digits[:900]).features.numpy())
    noise = torch.randn(897, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    distances = [
        frechet_distance(
            Moments.of(extract((all_digits[900:] + level * noise).clamp(0, 255).to(torch.uint8)).features.numpy()),
            reference,
        )
        for level in (0, 20, 40, 80)
    ]
    assert distances == sorted(distances)
    assert distances[1] > 1.5 * distances[0]


def test_grey_and_equal_rgb_give_the_same_features(all_digits):
    levels = torch.arange(256, dtype=torch.uint8).repeat(8 * 8 // 4).reshape(-1, 1, 8, 8)  # every grey level occurs
    images = torch.cat([all_digits[:50], levels])
    extractor = DigitsConvnet()
    for grey, rgb in zip(extractor(images), extractor(images.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(grey, rgb)
    levels = images.clamp(1, 254)
    coloured = torch.cat([levels + 1, levels, levels - 1], dim=1)
    assert torch.equal(extractor(levels)[0], extractor(coloured)[0])


def test_layers_come_in_the_order_of_the_request(all_digits):
    logits, features = DigitsConvnet(features_list=["logits", "64"])(all_digits[:3])
    assert (logits.shape, features.shape) == ((3, 10), (3, 64))
    with pytest.raises(ValueError, match="2048"):
        DigitsConvnet(features_list=["2048"])


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.zeros(2, 1, 8, 8), "not float32 of shape (2, 1, 8, 8)"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), "not uint8 of shape (2, 1, 16, 16)"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), "not uint8 of shape (2, 2, 8, 8)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), "not uint8 of shape (1, 8, 8)"),
    ],
)
def test_other_images_are_refused(images, complaint):
    with pytest.raises(ValueError) as error:
        DigitsConvnet()(images)
    expected = f"digits-convnet takes uint8 images of shape (B, 1, 8, 8) or (B, 3, 8, 8), {complaint}"
    assert str(error.value) == expected


def test_torch_fidelity_recomputes_our_numbers_from_png_files(all_digits, tmp_path):
    """What design.md promises of every number, for someone with the PNG files and torch-fidelity's Python function."""
    if DIGITS_CONVNET not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(DIGITS_CONVNET, DigitsConvnet)
    halves = {"samples": all_digits[:300], "reference": all_digits[300:700]}
    for name, images in halves.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{index:06d}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "samples"),
        input2=str(tmp_path / "reference"),
        feature_extractor=DIGITS_CONVNET,
        fid=True,
        isc=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    extract = load(resolve(None, "digits", None, (1, 8, 8)), "cpu")
    samples, reference = (extract(images) for images in halves.values())
    ours = frechet_distance(Moments.of(samples.features.numpy()), Moments.of(reference.features.numpy()))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    score = InceptionSums.of(samples.logits.numpy(), inception_splits(300, 10, seed=2020), 10).score()
    assert score.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)


# Names


def test_resolving_a_name_imports_no_torch():
    code = (
        "import sys; from eval.extractor_names import resolve; spec = resolve(None, 'digits', None, (1, 8, 8)); "
        "assert not {'torch', 'torch_fidelity'} & set(sys.modules); print(spec.name, spec.weights_sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [DIGITS_CONVNET, PROVENANCE["sha256"]]


def test_unknown_extractor_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown extractor 'inception-v3' \(did you mean 'inception-v3-compat'\?"):
        resolve("inception-v3", "digits", None, (1, 8, 8))
    with pytest.raises(ValueError, match="known: digits-convnet, inception-v3-compat, vgg16"):
        resolve("zzz", "digits", None, (1, 8, 8))


def test_layers_and_files_are_torch_fidelitys():
    for name, known in KNOWN.items():
        extractor = DigitsConvnet if name == DIGITS_CONVNET else FEATURE_EXTRACTORS_REGISTRY[name]
        assert extractor.get_default_feature_layer_for_metric("fid") == known.feature_layer
        assert known.logits_layer in (None, extractor.get_default_feature_layer_for_metric("isc"))
    assert KNOWN[INCEPTION].url == URL_INCEPTION_V3
    assert KNOWN["vgg16"].url == VGG16_Weights.IMAGENET1K_V1.url
    assert KNOWN["clip-vit-b-32"].url == MODEL_URLS["clip-vit-b-32"]
    assert MODEL_METADATA["clip-vit-b-32"]["hash"] in (KNOWN["clip-vit-b-32"].cached_as or "")


def test_pixels_are_grey_levels_in_c_order():
    spec = resolve(None, "gaussian", None, (3, 2, 5))
    assert (spec.name, spec.dimensions, spec.logits_layer, spec.classes) == ("pixels", 30, None, None)
    images = torch.arange(60, dtype=torch.uint8).reshape(2, 3, 2, 5) * 4
    features, logits = load(spec, "cpu")(images)
    assert logits is None
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features.numpy(), np.arange(60).reshape(2, 30) * 4 / 127.5 - 1, atol=1e-7)
    with pytest.raises(ValueError, match="pixels has no weights"):
        resolve("pixels", "digits", "some/file", (1, 8, 8))


def test_weights_that_are_not_here_are_refused_with_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError) as error:
        resolve(None, "photographs", None, (3, 32, 32))
    message = str(error.value)
    place = tmp_path / "hub" / "checkpoints" / Path(URL_INCEPTION_V3).name
    assert all(part in message for part in (URL_INCEPTION_V3, str(place), "evaluate.weights: PATH"))
    assert "\n" not in message
    with pytest.raises(ValueError, match=r"evaluate.weights: there is no file .*absent.pth"):
        resolve(INCEPTION, "photographs", str(tmp_path / "absent.pth"), (3, 32, 32))
    with pytest.raises(ValueError, match=r"torch.hub.load\('facebookresearch/dinov2', 'dinov2_vitb14'\)"):
        resolve("dinov2-vit-b-14", "photographs", None, (3, 32, 32))
    with pytest.raises(ValueError, match="takes no weights path"):
        resolve("dinov2-vit-b-14", "photographs", str(shipped_weights()), (3, 32, 32))


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": "~/elsewhere"}, {"TORCH_HOME": "~/torch-home"}])
def test_hub_folder_is_torchs(variables, monkeypatch):
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(torch_hub_folder()) == torch.hub.get_dir()


def test_weights_that_torch_fidelity_has_cached_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    spec = resolve(INCEPTION, "photographs", None, (3, 32, 32))
    assert (spec.weights_path, spec.weights_sha256) == (str(place), sha256(place))
    assert (spec.feature_layer, spec.logits_layer, spec.dimensions) == ("2048", "logits_unbiased", 2048)


# Loading


class _Blank(torch_fidelity.FeatureExtractorInceptionV3):
    """torch-fidelity's Inception as its layers are born: it has no way to make one without a file of weights."""

    def load_state_dict(self, *_, **__):
        return None


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """Inception weights of Kaiming-normal noise: torch's default gives the same features for all images."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    blank = _Blank(INCEPTION, ["2048"], feature_extractor_weights_path=str(folder / "empty.pth"))
    for parameter in blank.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
    torch.save(blank.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


def test_inception_gives_torch_fidelitys_features(inception_file, all_digits):
    spec = resolve(INCEPTION, "photographs", str(inception_file), (3, 32, 32))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = torch_fidelity.utils.create_feature_extractor(
        INCEPTION, ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=str(inception_file),
        verbose=False,
    )  # fmt: skip
    extract = load(spec, "cpu")
    features, logits = extract(images)
    expected_features, expected_logits = theirs(images)
    assert (features.shape, logits.shape) == ((2, spec.dimensions), (2, spec.classes)) == ((2, 2048), (2, 1008))
    assert (features - expected_features).abs().max() < 1e-4
    assert (logits - expected_logits).abs().max() < 1e-4
    assert features.std(dim=0).max() > 1e-3  # else any two would agree
    grey = all_digits[:1]
    expected = theirs(grey.repeat(1, 3, 1, 1))[0]
    assert (extract(grey).features - expected).abs().max() < 1e-4


class _Malicious:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_are_refused(tmp_path):
    trace, weights = tmp_path / "trace", tmp_path / "weights.pth"
    torch.save({"conv": _Malicious(trace)}, weights)
    spec = resolve(INCEPTION, "photographs", str(weights), (3, 32, 32))
    with pytest.raises(ValueError, match=r"weights.pth is no file of plain tensors"):
        load(spec, "cpu")
    assert not trace.exists()
    pickle.loads(pickle.dumps(_Malicious(trace)))
    assert trace.exists()  # so the file above would have run it


def test_weights_of_another_extractor_are_refused(tmp_path):
    weights = tmp_path / "other.pth"
    torch.save({"conv": torch.zeros(3)}, weights)
    with pytest.raises(ValueError, match=r"other.pth holds no weights of inception-v3-compat: .*Missing key"):
        load(resolve(INCEPTION, "photographs", str(weights), (3, 32, 32)), "cpu")
    with pytest.raises(ValueError, match=r"other.pth holds no weights of digits-convnet"):
        load(resolve(DIGITS_CONVNET, "digits", str(weights), (1, 8, 8)), "cpu")


def test_weights_other_than_those_resolved_are_refused(tmp_path):
    copy = tmp_path / "own.safetensors"
    copy.write_bytes(shipped_weights().read_bytes())
    spec = resolve(DIGITS_CONVNET, "digits", str(copy), (1, 8, 8))
    assert spec == replace(resolve(None, "digits", None, (1, 8, 8)), weights_path=str(copy))
    load(spec, "cpu")
    copy.write_bytes(b"changed meanwhile")
    with pytest.raises(ValueError, match="SHA-256"):
        load(spec, "cpu")
    copy.unlink()
    with pytest.raises(ValueError, match=r"no file .*own\.safetensors on this machine"):
        load(spec, "cpu")


def test_extractor_without_logits_gives_none(all_digits):
    shipped = resolve(None, "digits", None, (1, 8, 8))
    without = replace(shipped, logits_layer=None, classes=None)
    extraction = load(without, "cpu")(all_digits[:2])
    assert extraction.logits is None
    assert torch.equal(extraction.features, load(shipped, "cpu")(all_digits[:2]).features)
