"""What `taugrid evaluate` refuses, in one line that names the file, key or value; and what it leaves out and says."""

import json

import numpy as np
import pytest
import torch
from shared import taugrid
from snapshots import recorded

from taugrid.eval.features.networks import Pixels

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


def test_truncated_images_are_named(refused, few, held_out):
    path = few / "0007.png"
    whole = path.read_bytes()
    for content in (whole[:-30], b""):
        path.write_bytes(content)
        assert str(path) in refused(few, held_out, *DIGITS)
        assert str(path) in refused(held_out, few, *DIGITS)


def test_places_without_images_are_refused(refused, few, held_out, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    for place in ("empty", "nowhere", "text.txt"):
        for flag, places in ("--samples", (tmp_path / place, held_out)), ("--reference", (few, tmp_path / place)):
            line = refused(*places, *DIGITS)
            recorded(line)
            assert line.startswith(f"taugrid: {flag[2:]}: ")


def test_an_extractor_without_logits_gives_no_inception_score(refused, few, held_out):
    pixels = ("--extractor", "pixels", "--metrics")
    recorded(refused(few, held_out, *pixels, "isc"), "pixels")
    asked = ("--samples", few, "--reference", held_out, *pixels, "isc,fid", "--json")
    found = json.loads(taugrid("evaluate", *asked).stdout)
    assert set(found["metrics"]) == {"fid"}
    recorded("\n".join(found["notes"]), "pixels")


def test_features_of_another_size_and_features_that_are_nan_are_refused(refused, few, held_out, tmp_path, monkeypatch):
    np.savez(tmp_path / "moments.npz", mu=np.zeros(5), sigma=np.eye(5))
    recorded(refused(held_out, tmp_path / "moments.npz", *DIGITS), "features")
    monkeypatch.setattr(Pixels, "forward", lambda self, images: (images.flatten(1) + torch.nan,))
    recorded(refused(few, held_out, "--extractor", "pixels", "--metrics", "fid"), "infinity")


def test_keys_and_metrics_that_there_are_not_are_refused(refused, few, held_out):
    line = refused(few, held_out, *DIGITS, "--metrics", "fid,fud")
    assert "'fud'" in line
    assert line.startswith("taugrid: evaluate: metrics")
    assert "--set sample" in refused(few, held_out, *DIGITS, "--set", "sample.steps=5")
    assert "isc_split" in refused(few, held_out, *DIGITS, "--set", "evaluate.isc_split=5")
    assert "--reference PATH" in taugrid("evaluate", "--samples", few, code=2).stderr
