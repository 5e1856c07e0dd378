import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from orchestrator import config
from workers import data


def test_digits_span_the_grey_levels_and_keep_their_order():
    images = data.load_images(config.Data(name="digits"))
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.uint8
    counts = load_digits().data.reshape(1797, 1, 8, 8)
    assert set(np.unique(images)) == {round(k * 255 / 16) for k in range(17)}
    np.testing.assert_array_equal(np.rint(images * (16 / 255)), counts)


def test_splits_of_digits_are_whole_and_apart():
    whole, train, test = (data.load_images(config.Data(split=split)) for split in ("all", "train", "test"))
    np.testing.assert_array_equal(np.concatenate([train, test]), whole)
    assert len(test) == 360
    assert config.Data(split="train").held_out == config.Data(split="test")
    assert config.Data().held_out == config.Data(), "nothing is held out: what there is is reconstructed"


@pytest.mark.parametrize("name", ["gaussian", "two-points"])
def test_a_distribution_is_a_data_set_of_draws(name):
    section = config.Data(name=name, shape=(3, 4, 2))
    images, others = data.load_images(section), data.load_images(section.model_copy(update={"split": "test"}))
    assert images.shape == others.shape == (10_000, 3, 4, 2)
    known = data.distribution(section)
    mean = known.mean if name == "gaussian" else known.weights @ known.points
    found = images.reshape(len(images), -1) / 127.5 - 1
    within = np.abs(mean) < 0.9  # beyond 1 pixels are clipped
    np.testing.assert_allclose(found.mean(axis=0)[within], mean[within], atol=0.01)
    assert data.fingerprint(images) != data.fingerprint(others)
    with pytest.raises(ValueError, match="digits is not known"):
        data.distribution(config.Data())


def test_fingerprint_is_of_shape_and_content():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    fingerprint = data.fingerprint(images)
    assert data.fingerprint(np.asfortranarray(images)) == fingerprint
    changed = images.copy()
    changed[1, 2, 1, 1] += 1
    others = {data.fingerprint(other) for other in (changed, images.reshape(2, 1, 3, 4), images[:1])}
    assert len(others | {fingerprint}) == 4


@pytest.mark.parametrize("module", ["workers.data", "workers.training", "orchestrator.selfcheck"])
def test_the_drivers_modules_import_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
