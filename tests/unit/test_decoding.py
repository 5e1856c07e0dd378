"""How images are fitted to a shape, and the file that they are decoded to once."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torchvision
from pictures import noise
from PIL import Image
from snapshots import raises

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.workers.data import decoding, folder
from taugrid.workers.data import load as data
from taugrid.workers.data.decoding import DecodedImage, SourceError


def fit(pixels, shape):
    return decoding.fit(DecodedImage("x", pixels, lossy=False), shape).pixels


@pytest.mark.parametrize("size", [(32, 32), (40, 64), (64, 40), (33, 47), (100, 33), (32, 90), (71, 71)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_square_is_what_torchvision_makes_of_an_image(size, channels):
    """Resize and CenterCrop of a Pillow image, as in the DDIM authors' code for LSUN."""
    pixels = noise(channels, *size)
    picture = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    theirs = torchvision.transforms.CenterCrop(32)(torchvision.transforms.Resize(32)(picture))
    assert np.array_equal(fit(pixels, (channels, 32, 32)), np.atleast_3d(np.asarray(theirs)).transpose(2, 0, 1))


def test_another_shape_is_covered_and_its_middle_taken():
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (1, 30, 1))
    found = fit(ramp, (1, 15, 30))  # 30x90 becomes 15x45, and 7 or 8 columns go on both sides
    assert found.shape == (1, 15, 30)
    expected = np.tile((np.arange(30) + 8 + 0.5) * 2 - 0.5, (15, 1)) * (255 / 89)
    np.testing.assert_allclose(found[0], expected, atol=1.5)
    assert fit(ramp, (1, 30, 20)).shape == (1, 30, 20)


def test_an_image_of_the_shape_is_not_touched():
    pixels = noise(3, 5, 8)
    assert fit(pixels, (3, 5, 8)) is pixels
    assert np.array_equal(fit(pixels[:1], (3, 5, 8)), np.concatenate([pixels[:1]] * 3))


@pytest.mark.parametrize(
    ("pixels", "shape"), [(noise(3, 8, 8), (1, 8, 8)), (noise(1, 8, 7), (1, 8, 8)), (noise(1, 7, 80), (1, 8, 8))]
)
def test_what_can_not_be_fitted_is_refused(pixels, shape):
    with raises(SourceError):
        fit(pixels, shape)


@pytest.fixture
def section(tmp_path, monkeypatch):
    """A folder of 70 images, more than one thread takes at once, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i, image in enumerate(noise(70, 9, 12)):
        path = tmp_path / "pictures" / f"{i % 7}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return Data(name="folder", root=str(tmp_path / "pictures"), shape=(1, 6, 6))


@pytest.fixture
def load(capsys):
    """Loads a section as a new process would: (its images, its fingerprint, whether images were decoded)."""

    def once(section):
        found = decoding.load_or_decode(section, folder.read(section), data.decoded_folder())
        return *found, "decoding" in capsys.readouterr().err

    return once


def files_of(kind):
    return sorted(data.decoded_folder().glob(f"*{kind}"))


def test_images_are_decoded_once_and_then_mapped(section, load):
    first, fingerprint, decoded = load(section)
    assert decoded
    again, known, decoded = load(section)
    assert not decoded
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    assert np.array_equal(first, again)
    assert fingerprint == known == data.fingerprint(np.array(first)), "as if it were computed from the pixels"


def test_other_files_or_other_pixels_are_decoded_anew(section, load, tmp_path):
    known = {load(section)[1]}
    for changed in ({"limit": 3}, {"shape": (3, 6, 6)}, {"shape": (1, 6, 5)}, {"split": "train"}):
        if "split" in changed:
            shutil.copytree(tmp_path / "pictures" / "0", tmp_path / "pictures" / "train")
        _, fingerprint, decoded = load(section.model_copy(update=changed))
        assert decoded
        assert fingerprint not in known
        known.add(fingerprint)
    path = tmp_path / "pictures" / "3" / "003.png"
    Image.fromarray(noise(9, 12, seed=5)).save(path)
    _, fingerprint, decoded = load(section)
    assert decoded
    assert fingerprint not in known
    os.utime(path)
    assert load(section)[1:] == (fingerprint, True), "a new time may be new content, and is not here"


@pytest.mark.parametrize("kind", [".npy", ".json"])
def test_a_cache_cut_short_is_made_anew(section, load, kind):
    first, fingerprint, _ = load(section)
    first = np.array(first)
    [path] = files_of(kind)
    path.write_bytes(path.read_bytes()[:-9])
    again, known, decoded = load(section)
    assert decoded
    assert np.array_equal(first, again)
    assert fingerprint == known
    assert not files_of(".tmp")


def test_of_two_at_once_one_decodes_and_the_other_waits(section, tmp_path, monkeypatch):
    """Two threads stand for two processes: a lock of `flock` belongs to an opened file."""
    found, decodings, both, locked = folder.read(section), [], Barrier(2), decoding.locked
    monkeypatch.setattr(decoding, "locked", lambda path: both.wait(60) + 1 and locked(path))
    noting = found.reader._replace(decode_item=lambda path: decodings.append(path) or found.reader.decode_item(path))
    with ThreadPoolExecutor(2) as pool:
        arguments = section, found._replace(reader=noting), tmp_path / "cache"
        waiting = [pool.submit(decoding.load_or_decode, *arguments) for _ in range(2)]
        first, second = (future.result() for future in waiting)
    assert sorted(decodings) == sorted(found.files)
    assert first.fingerprint == second.fingerprint


def test_a_failure_leaves_nothing_behind(section, load, tmp_path):
    (tmp_path / "pictures" / "6" / "069.png").write_bytes(b"")
    with raises(UserError):
        load(section)
    assert not files_of(".npy")
    assert not files_of(".tmp")


def test_a_cache_that_can_not_be_made_is_one_line(section, load, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with raises(UserError):
        load(section)


def test_the_record_beside_the_images_is_sealed(section, load):
    load(section)
    [path] = files_of(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 64}))
    assert load(section)[2], "a fingerprint that was changed by hand is not believed"
