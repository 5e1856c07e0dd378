"""What `taugrid evaluate` refuses, in one line that names the file, key or value; and what it leaves out and says."""

import json

import numpy as np
import pytest
from command import write_folder
from PIL import Image
from shared import taugrid
from snapshots import recorded

from taugrid.config import Data
from taugrid.workers.data.load import load_images

pytestmark = pytest.mark.usefixtures("private_cache")

DIGITS = ("--extractor", "digits-convnet")


@pytest.fixture
def refused():
    """Runs `taugrid evaluate` and returns the one line with which it refuses."""

    def run(samples, reference, *arguments):
        error = taugrid("evaluate", "--samples", samples, "--reference", reference, *arguments, code=2).stderr
        *before, last = error.strip().splitlines()
        assert last.startswith("taugrid: "), error
        assert not any(line.startswith(("Traceback", "taugrid: ")) for line in before), error
        return last

    return run


def test_moments_of_another_extractor_are_refused_before_any_work(copy, refused, held_out, tmp_path):
    np.savez(tmp_path / "moments.npz", mu=np.zeros(5), sigma=np.eye(5))
    error = taugrid("run", copy, "--set", f"evaluate.reference={tmp_path / 'moments.npz'}", code=2).stderr
    assert all(fact in error for fact in ("evaluate.reference", "moments.npz", "5 features", "digits-convnet", "64"))
    assert len(error.strip().splitlines()) == 1
    recorded(refused(held_out, tmp_path / "moments.npz", *DIGITS), "features")


def test_missing_weights_are_refused_with_the_ways_out(refused, few, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: no network
    line = refused(few, few)
    place = tmp_path / "torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    ways_out = ("https://github.com/", str(place), "--weights", "--extractor=imagenet-lite0")
    assert all(part in line for part in ("inception-v3-compat", *ways_out))
    line = refused(few, few, "--weights", tmp_path / "absent.pth")
    recorded(line, "weights")


@pytest.mark.parametrize("extractor", ["inception-v3-compat", "vgg16", "digits-convnet"])
@pytest.mark.parametrize("content", [b"", b"abc", b"no weights, but a text\n", b'{"a": 1}', bytes(1000)])
def test_wrong_weights_are_refused_by_name(refused, few, tmp_path, extractor, content):
    (tmp_path / "wrong.pth").write_bytes(content)
    assert "wrong.pth" in refused(few, few, "--extractor", extractor, "--weights", tmp_path / "wrong.pth")


def test_weights_of_another_network_are_refused(refused, few, tmp_path):
    import torch

    torch.save({"conv": torch.zeros(3)}, tmp_path / "other.pth")
    recorded(refused(few, few, "--weights", tmp_path / "other.pth"), "inception")


def test_truncated_images_are_named(refused, few, held_out):
    path = few / "0007.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert str(path) in refused(few, held_out, *DIGITS)
    assert str(path) in refused(held_out, few, *DIGITS)
    path.write_bytes(b"")
    assert str(path) in refused(few, held_out, *DIGITS)


@pytest.mark.parametrize(("shape", "said"), [((9, 8), "grey of 9x8"), ((8, 8, 3), "RGB of 8x8")])
def test_images_of_two_kinds_are_refused(refused, few, held_out, shape, said):
    Image.fromarray(np.zeros(shape, np.uint8)).save(few / "0007.png")
    line = refused(few, held_out, *DIGITS)
    assert said in line
    assert str(few / "0007.png") in line


def test_places_without_images_are_refused(refused, few, held_out, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    for place, said in (("empty", "holds no .png"), ("nowhere", "there is no"), ("text.txt", "does not hold images")):
        for flag, places in ("--samples", (tmp_path / place, held_out)), ("--reference", (few, tmp_path / place)):
            line = refused(*places, *DIGITS)
            assert said in line
            assert line.startswith(f"taugrid: {flag}: ")


def test_a_single_image_is_refused(refused, few, held_out, tmp_path):
    one = write_folder(tmp_path / "one", load_images(Data())[:1])
    recorded(refused(one, held_out, *DIGITS), "images")
    recorded(refused(few, one, *DIGITS, "--metrics", "fid,kid"), "images")


def test_an_extractor_without_logits_gives_no_inception_score(refused, few, held_out):
    pixels = ("--extractor", "pixels", "--metrics")
    recorded(refused(few, held_out, *pixels, "isc"), "pixels")
    found = json.loads(
        taugrid("evaluate", "--samples", few, "--reference", held_out, *pixels, "isc,fid", "--json").stdout
    )
    assert set(found["metrics"]) == {"fid"}
    recorded("\n".join(found["notes"]), "pixels")


def test_a_kid_subset_size_above_n_elsewhere_is_reduced_and_recorded(few, held_out):
    asked = (*DIGITS, "--metrics", "kid", "--set", "evaluate.kid_subset_size=1000")
    found = json.loads(taugrid("evaluate", "--samples", few, "--reference", held_out, *asked, "--json").stdout)
    assert found["protocol"]["kid_subset_size"] == 12
    assert np.isfinite(found["metrics"]["kid_mean"])


OWN = '''
import torch
import torch_fidelity


class Nan(torch_fidelity.FeatureExtractorBase):
    """Gives nan for images that are not all black."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    def forward(self, images):
        mean = images.flatten(1).float().mean(dim=1, keepdim=True)
        return (torch.where(mean > 0, torch.nan, mean).expand(-1, 3),)

    @staticmethod
    def get_provided_features_list():
        return ("mean",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "mean"
'''


@pytest.mark.long
def test_features_that_are_nan_are_refused(refused, few, monkeypatch, tmp_path):
    (tmp_path / "own_extractor_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    black = write_folder(tmp_path / "black", np.zeros((5, 1, 8, 8), np.uint8))
    line = refused(few, black, "--extractor", "own_extractor_of_a_test:Nan", "--metrics", "fid")
    recorded(line, "infinity")


def test_keys_and_metrics_that_there_are_not_are_refused(refused, few, held_out):
    line = refused(few, held_out, *DIGITS, "--metrics", "fid,fud")
    assert "'fud'" in line
    assert line.startswith("taugrid: --metrics")
    assert "--set sample" in refused(few, held_out, *DIGITS, "--set", "sample.steps=5")
    assert "isc_split" in refused(few, held_out, *DIGITS, "--set", "evaluate.isc_split=5")
    assert "--reference PATH" in taugrid("evaluate", "--samples", few, code=2).stderr
