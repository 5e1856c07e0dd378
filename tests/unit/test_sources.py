import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from part_files import write_part
from PIL import Image
from snapshots import raises, recorded
from torch_fidelity.utils import glob_samples_paths

from taugrid import threads
from taugrid.errors import DamagedFile
from taugrid.eval.sources import batches, open_images
from taugrid.images import encode_png
from taugrid.workers.data.decoding import SourceError
from taugrid.workers.data.folder import EXTENSIONS, files
from taugrid.workers.data.load import fingerprint


def pictures(count=100, channels=3, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def as_folder(folder, batch, start=0):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(batch):
        (folder / f"{start + i:07d}.png").write_bytes(encode_png(image))
    return str(folder)


def as_npz(path, batch):
    np.savez(path, batch.transpose(0, 2, 3, 1))
    return str(path)


def as_shard(path, batch, start=0):
    return str(write_part(path, [batch], start))


def as_huggingface(path, batch, column="img"):
    rows = [{"bytes": encode_png(image), "path": None} for image in batch]
    pq.write_table(pa.table({"label": [0] * len(batch), column: rows}), path)
    return str(path)


def file_bytes(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def read(source, size=32):
    parts = list(batches(source, size))
    assert [len(part.indices) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert np.array_equal(np.concatenate([part.indices for part in parts]), np.arange(source.num_images))
    return np.concatenate([part.images for part in parts])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("large", [0, 10**9], ids=["threads", "no threads"])
def test_the_same_images_are_the_same_source_however_they_are_kept(tmp_path, channels, large, monkeypatch):
    """Their identity is that of taugrid.workers.data.load.fingerprint, so that of a run's reference too."""
    monkeypatch.setattr(threads, "LARGE_BYTES", large)
    batch = pictures(2 * threads.MAX_IMAGES_PER_TASK * threads.THREADS + 5, channels)
    places = {
        "folder": as_folder(tmp_path / "folder", batch),
        "npz": as_npz(tmp_path / "samples.npz", batch),
        "shard": as_shard(tmp_path / "shard.parquet", batch),
        "huggingface": as_huggingface(tmp_path / "data.parquet", batch),
    }
    for place in places.values():
        source = open_images(place)
        assert (source.num_images, source.shape, source.sha256) == (len(batch), batch.shape[1:], fingerprint(batch))
        assert source.warnings == ()
        assert pickle.loads(pickle.dumps(source)) == source, "it travels in a message"
        assert np.array_equal(read(source), batch)


def test_identity_is_of_pixels_in_order_alone(tmp_path):
    batch = pictures(5)
    source = open_images(as_folder(tmp_path / "a", batch))
    renamed = open_images(as_folder(tmp_path / "b", batch, start=500))
    assert renamed.sha256 == source.sha256
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(file_bytes(Image.open(path)) + b"trailing bytes")
    assert open_images(str(tmp_path / "b")).sha256 == source.sha256, "other bytes, the same pixels"
    assert open_images(as_folder(tmp_path / "c", batch[::-1])).sha256 != source.sha256
    changed = batch.copy()
    changed[4, 2, 7, 7] ^= 1
    assert open_images(as_folder(tmp_path / "d", changed)).sha256 != source.sha256


@given(count=st.integers(1, 70), size=st.integers(1, 80))
def test_batches_hold_every_image_once_and_in_order(tmp_path_factory, count, size):
    batch = pictures(count, 1, 2)
    source = open_images(as_npz(tmp_path_factory.mktemp("npz") / "a.npz", batch))
    assert np.array_equal(read(source, size), batch)


def test_shards_are_taken_by_index_and_other_parquet_by_name(tmp_path):
    batch = pictures(30)
    ours = tmp_path / "cell"
    ours.mkdir()
    as_shard(ours / "part-b.parquet", batch[:12], start=0)
    as_shard(ours / "part-a.parquet", batch[12:], start=12)
    assert np.array_equal(read(open_images(str(ours))), batch)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    as_huggingface(theirs / "b.parquet", batch[:12])
    as_huggingface(theirs / "a.parquet", batch[12:])
    assert np.array_equal(read(open_images(str(theirs))), np.concatenate([batch[12:], batch[:12]]))


def test_a_parquet_column_of_plain_bytes_is_taken(tmp_path):
    batch = pictures(3)
    table = pa.table({"png": pa.array([encode_png(image) for image in batch], pa.large_binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert np.array_equal(read(open_images(str(tmp_path / "a.parquet"))), batch)


def test_folders_are_read_as_torch_fidelity_reads_them(tmp_path):
    """Not recursively, by extension in any case, sorted by real path."""
    folder = tmp_path / "folder"
    batch = pictures(4)
    as_folder(folder, batch[:2], start=5)
    (folder / "9.PNG").write_bytes(encode_png(batch[2]))
    (folder / "notes.txt").write_text("none")
    as_folder(folder / "sub", batch)
    (tmp_path / "0.png").write_bytes(encode_png(batch[3]))
    (folder / "z.png").symlink_to(tmp_path / "0.png")
    theirs = glob_samples_paths(str(folder), samples_find_deep=False, samples_find_ext="png,jpg,jpeg", verbose=False)
    assert files(folder, EXTENSIONS) == theirs
    source = open_images(str(folder))
    assert np.array_equal(read(source), batch[[3, 0, 1, 2]])
    recorded("\n".join(source.warnings), "subfolders")


def test_jpeg_is_taken_with_a_warning_whatever_it_is_called(tmp_path):
    as_folder(tmp_path, pictures(3))
    picture = Image.fromarray(pictures(1)[0].transpose(1, 2, 0))
    (tmp_path / "x.png").write_bytes(file_bytes(picture, "JPEG"))
    source = open_images(str(tmp_path))
    assert source.num_images == 4
    recorded(source.warnings[0], "images")


def test_a_reference_of_guided_diffusion_is_taken_for_its_images(tmp_path):
    """Its mu and sigma are of the training set, its images 10,000 of these, so the two are not the same reference."""
    batch = pictures(3)
    np.savez(tmp_path / "a.npz", arr_0=batch.transpose(0, 2, 3, 1), mu=np.zeros(4), sigma=np.eye(4))
    source = open_images(str(tmp_path / "a.npz"))
    assert np.array_equal(read(source), batch)
    recorded(source.warnings[0], "sigma")


def test_splits_in_one_folder_are_said(tmp_path):
    for split in ("test", "train"):
        as_huggingface(tmp_path / f"{split}-00000-of-00001.parquet", pictures(2))
    recorded(open_images(str(tmp_path)).warnings[0], "splits")


def refused(path, error=SourceError):
    with raises(error):
        open_images(str(path))


def test_a_truncated_picture_is_named(tmp_path):
    as_folder(tmp_path, pictures(40, size=64))
    damaged = tmp_path / "0000037.png"
    for content in (damaged.read_bytes()[:2000], b"no picture", b""):
        damaged.write_bytes(content)
        refused(tmp_path, DamagedFile)


def test_mixed_sizes_and_mixed_colours_name_two_files(tmp_path):
    sizes = tmp_path / "sizes"
    as_folder(sizes, pictures(40))
    as_folder(sizes, pictures(2, size=9), start=38)
    refused(sizes)
    colours = tmp_path / "colours"
    as_folder(colours, pictures(2))
    as_folder(colours, pictures(1, channels=1), start=1)
    refused(colours)


def png_of_16_bits(colour_type, channels):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    rows = (b"\0" + bytes(2 * 2 * channels)) * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["RGBA", "P", "LA", "1", "CMYK", "16-bit I", "16-bit RGB"])
def test_other_kinds_of_pictures_are_refused(tmp_path, kind):
    """Pillow opens 16-bit RGB as 8-bit RGB without a word."""
    of_16_bits = {"16-bit I": (0, 1), "16-bit RGB": (2, 3)}
    if kind in of_16_bits:
        data = png_of_16_bits(*of_16_bits[kind])
    else:
        data = file_bytes(Image.new(kind, (2, 2)), "JPEG" if kind == "CMYK" else "PNG")
    (tmp_path / "a.png").write_bytes(data)
    refused(tmp_path)


def test_what_is_no_source_is_refused(tmp_path):
    refused(tmp_path / "none")
    refused(tmp_path)
    (tmp_path / "a.txt").write_text("")
    refused(tmp_path / "a.txt")
    as_folder(tmp_path / "deeper", pictures(1))
    refused(tmp_path)
    as_shard(tmp_path / "deeper" / "a.parquet", pictures(1))
    refused(tmp_path / "deeper")


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(2), "sigma": np.eye(2)},
        {"images": np.zeros((1, 2, 2, 3), np.uint8)},
        {"arr_0": np.zeros((1, 2, 2, 3), np.float32)},
        {"arr_0": np.zeros((1, 3, 4, 4), np.uint8)},
        {"arr_0": np.zeros((0, 4, 4, 3), np.uint8)},
        {"arr_0": np.array([{}])},
        {"arr_0": np.asfortranarray(np.ones((5, 4, 4, 3), np.uint8))},
    ],
)
def test_other_npz_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_with_one_wrong_bit_is_named_or_is_the_same(tmp_path, save):
    """Wherever the bit is: one in numpy's header makes the array shorter, one in zip's records makes it encrypted."""
    path, generator = tmp_path / "a.npz", np.random.default_rng(0)
    save(path, pictures(3, size=4).transpose(0, 2, 3, 1))
    whole, source, messages = path.read_bytes(), open_images(str(path)), []
    for position in generator.integers(len(whole), size=600):
        wrong = bytearray(whole)
        wrong[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(wrong)
        try:
            assert open_images(str(path)).sha256 == source.sha256
        except DamagedFile as error:
            messages.append(str(error))
    assert len(messages) > 300, "most of the bits matter"
    assert all(str(path) in message and "\n" not in message for message in messages)
    path.write_bytes(whole[:-100])
    refused(path, DamagedFile)


def test_a_header_that_says_fewer_images_than_there_are_is_found_out(tmp_path):
    """An array's checksum is looked at only at its end, which a reader of the first 100 images never sees."""
    path = tmp_path / "a.npz"
    np.savez(path, pictures(200).transpose(0, 2, 3, 1))
    data = path.read_bytes()
    assert data.count(b"(200, 8, 8, 3)") == 1
    path.write_bytes(data.replace(b"(200, 8, 8, 3)", b"(100, 8, 8, 3)"))
    refused(path, DamagedFile)


def test_other_parquet_is_refused(tmp_path):
    path, png, large = tmp_path / "a.parquet", encode_png(pictures(1)[0]), encode_png(pictures(1, size=64)[0])
    for columns, error in (
        ({"label": [1], "text": ["a"]}, SourceError),
        ({"a": [b""], "b": [b""]}, SourceError),
        ({"image": pa.array([], pa.binary())}, SourceError),
        ({"image": [png, None]}, SourceError),
        ({"image": [large, large[:1000]]}, DamagedFile),
    ):
        pq.write_table(pa.table(columns), path)
        refused(path, error)
    path.write_bytes(path.read_bytes()[:-10])
    refused(path, DamagedFile)


def test_shards_of_two_cells_and_missing_ones_are_refused(tmp_path):
    for start in (0, 4):
        as_shard(tmp_path / f"{start}.parquet", pictures(5), start)
    refused(tmp_path)
    (tmp_path / "4.parquet").unlink()
    for start in (5, 10):
        as_shard(tmp_path / f"{start}.parquet", pictures(5), start)
    assert open_images(str(tmp_path)).num_images == 15
    for start in (5, 0):
        (tmp_path / f"{start}.parquet").unlink()
        refused(tmp_path)
    refused(tmp_path / "10.parquet")


def test_rows_that_are_missing_in_a_shard_are_said(tmp_path):
    table = pq.read_table(as_shard(tmp_path / "a.parquet", pictures(9)))
    for rows in ([0, 1, 2, 5, 6], [0, 2, 1]):
        pq.write_table(table.take(rows), tmp_path / "a.parquet")
        refused(tmp_path / "a.parquet")


def test_images_that_change_after_they_were_opened_are_found_out(tmp_path):
    batch = pictures(5)
    source = open_images(as_folder(tmp_path / "a", batch))
    (tmp_path / "a" / "0000004.png").write_bytes(encode_png(batch[0]))
    with raises(SourceError):
        list(batches(source, 2))


def test_sources_import_no_torch():
    code = "import sys, taugrid.eval.sources, taugrid.eval.reference, taugrid.eval.metrics.score; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "taugrid.eval.sources" in done.stdout.split()
    assert not {"torch", "ray", "diffusers", "torchvision"} & set(done.stdout.split())
