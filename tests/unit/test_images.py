import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from snapshots import raises

from taugrid.errors import DamagedFile, NotFinite
from taugrid.images import decode_png, encode_png, to_uint8
from taugrid.workers.data.decoding import EncodedImage, decode_image


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


def of_format(name, mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, format=name)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["GIF", "BMP", "TIFF", "JPEG", "WEBP", "PPM", "ICO"])
def test_samples_are_png_and_nothing_else(name):
    """Each further format is a parser that a file from somebody else could reach."""
    with raises(DamagedFile):
        decode_png(of_format(name))
    if name != "JPEG":
        with raises(DamagedFile):
            decode_image(EncodedImage("a.png", of_format(name)))


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "I;16", "LA"])
def test_samples_are_grey_or_rgb(mode):
    with pytest.raises(DamagedFile, match=f"but {mode} "):
        decode_png(of_format("PNG", mode))


def bomb(width):
    """A PNG of a few bytes that claims to be `width` pixels wide and high."""
    header = struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(1000)), b"IEND": b""}
    data = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(data)


def test_a_decompression_bomb_is_one_line():
    for read in (decode_png, lambda data: decode_image(EncodedImage("a.png", data))):
        with raises(DamagedFile):
            read(bomb(20_000))


def test_no_flipped_byte_of_a_png_is_other_pixels():
    """Pillow decodes some of them without a word, since it checks no checksum of compressed pixels."""
    grain = np.random.default_rng(0).integers(0, 3, (32, 32))
    slope = (np.add.outer(3 * np.arange(32), 2 * np.arange(32)) + grain).astype(np.uint8)
    whole, silent = encode_png(slope[None]), []
    assert np.array_equal(decode_image(EncodedImage("a.png", whole)).pixels, slope[None])
    for place in range(whole.index(b"IDAT") + 4, len(whole) - 16):
        data = bytearray(whole)
        data[place] ^= 1
        with suppress(OSError, SyntaxError), Image.open(io.BytesIO(data)) as picture:
            silent += [bytes(data)] if not np.array_equal(np.asarray(picture), slope) else []
    assert len(silent) > 3
    for data in silent:
        with pytest.raises(DamagedFile):
            decode_image(EncodedImage("a.png", data))
