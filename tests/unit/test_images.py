import numpy as np
import pytest

from taugrid.errors import NotFinite
from taugrid.images import decode_png, encode_png, to_uint8


def test_what_is_no_number_is_no_grey_level():
    for value in (np.nan, np.inf, -np.inf):
        x = np.zeros((2, 1, 2, 2), np.float32)
        x[1, 0, 1, 1] = value
        with pytest.raises(NotFinite):
            to_uint8(x)


def test_rounding_is_to_nearest_and_clips():
    """Trap 11: truncating instead of rounding is half a grey level darker on average."""
    levels = np.arange(256)
    exact = (levels / 127.5 - 1).astype(np.float32)
    assert np.array_equal(to_uint8(exact), levels)
    assert np.array_equal(to_uint8(exact + np.float32(0.49 / 127.5)), levels)
    assert np.array_equal(to_uint8(exact[:-1] + np.float32(0.51 / 127.5)), levels[1:])
    assert to_uint8(np.array([-7, 7], np.float32)).tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless(channels):
    picture = np.random.default_rng(0).integers(0, 256, (channels, 8, 8), dtype=np.uint8)
    assert np.array_equal(decode_png(encode_png(picture)), picture)
