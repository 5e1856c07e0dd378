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


def test_fingerprint_is_of_shape_and_content():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    fingerprint = data.fingerprint(images)
    assert data.fingerprint(np.asfortranarray(images)) == fingerprint
    changed = images.copy()
    changed[1, 2, 1, 1] += 1
    others = {data.fingerprint(other) for other in (changed, images.reshape(2, 1, 3, 4), images[:1])}
    assert len(others | {fingerprint}) == 4


@pytest.mark.parametrize("module", ["workers.data", "workers.training"])
def test_the_drivers_modules_import_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
