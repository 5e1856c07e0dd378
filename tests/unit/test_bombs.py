"""Small files that claim to hold much are refused before they fill the memory: anybody's directory is looked at."""

import errno
import gzip
import io
import os
import shutil
import struct
import zipfile
from contextlib import contextmanager
from functools import partial

import nights
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from snapshots import raises
from test_board import RUN
from test_board_served import served

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError, user_errors
from taugrid.eval.metrics.reference_statistics import open_moments, read_statistics
from taugrid.eval.sources import open_images
from taugrid.images import decode_png
from taugrid.storage import LOCAL, LocalStorage, read_json
from taugrid.workers.data.published import read_idx

ROWS = 2_000_000


def black(width, height):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_table(folder, columns, at_most, compression="none", **options):
    """A Parquet file, which is small on the disk."""
    path = folder / "part.parquet"
    pq.write_table(pa.table(columns), path, compression=compression, **options)
    assert path.stat().st_size < at_most
    return path


def with_images(folder, images, at_most=2**20, **options):
    image = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    return write_table(folder, {"image": image, "index": range(len(images))}, at_most, **options)


_pools = []  # buffers may outlive a test, but not their pool


@contextmanager
def refused_in_memory(most):
    """Arrow's memory has its peak before a file is refused."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool := pa.proxy_memory_pool(before))
    _pools.append(pool)
    try:
        with pytest.raises(DamagedFile):
            yield
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < most


def inspected(path):
    parquet.inspect(path, every_byte=False)


def inspected_whole(path):
    parquet.inspect(path, every_byte=True)


def features(path, column="label"):
    next(parquet.read_features(path, column))


def numbers(path, column="label"):
    next(parquet.read_numbers(path, column))


def encoded(path):
    next(parquet.read_encoded(path))


def history(path):
    parquet.read_table(path.read_bytes())


COUNT, NAMES = 20_000, [f"a{i}" for i in range(300)]
INDEX, ZEROS = pa.array(np.arange(COUNT)), pa.array(np.zeros(COUNT, np.int64))
MANY = pa.StructArray.from_arrays([ZEROS] * len(NAMES), NAMES)
LISTS = pa.ListArray.from_arrays(pa.array([0, COUNT], pa.int32()), ZEROS)
NULLS = pa.nulls(1000, pa.list_(pa.float32(), 10_000))
EQUAL = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array([b"x" * 100_000]))
PICTURES = pa.ListArray.from_arrays(pa.array([0, 1000], pa.int32()), EQUAL)
IMAGE = pa.StructArray.from_arrays([PICTURES, pa.array(["0.png"])], ["bytes", "path"])

DELTAS = {"use_dictionary": False, "column_encoding": {"index": "DELTA_BINARY_PACKED"}}
PLAIN = {"write_statistics": False, "store_schema": False}
ALL_ROWS, NIGHTS = {"index": np.arange(ROWS)}, {"night": ["x" * 50_000] * 5000, "fid": np.zeros(5000)}
BOMBS = [
    # columns, bytes on the disk at most, options of the file, readers
    (ALL_ROWS, 4 * ROWS, {"compression": "zstd"}, inspected, inspected_whole),
    (ALL_ROWS, 4 * ROWS, DELTAS, inspected, inspected_whole),
    (ALL_ROWS, 4 * ROWS, DELTAS | {"row_group_size": ROWS // 40}, inspected, inspected_whole),
    *(
        ({"index": np.arange(1000), column: ["x" * 10_000] * 1000}, 100_000, {}, partial(features, column=column),
         partial(numbers, column=column)) for column in ("label", "features", "pixels", "index")
    ),
    ({"index": MANY}, 400_000, {}, inspected),  # 40 MB in memory or more, as the next two
    ({"index": INDEX, "label": MANY}, 400_000, {}, features, numbers),
    ({"index": INDEX[:1000], "label": NULLS}, 400_000, {}, features, numbers),
    ({"index": [0], "image": IMAGE}, 110_000, PLAIN, encoded),  # 100 MB
    ({"index": [0], "image.bytes": PICTURES}, 110_000, PLAIN, encoded),
    (dict.fromkeys(NAMES, LISTS), 200_000, {"write_statistics": False}, history),  # 48 MB
    (NIGHTS, 200_000, {"compression": "zstd"}, history),
]  # fmt: skip
LARGE_BOMBS = [
    ({"image": [{"bytes": b"x" * 200_000, "path": ""}] * 1000, "index": range(1000)}, 300_000, {}, encoded),
    (NIGHTS, 200_000, {}, history),
]
"""Their columns are unpacked before they are refused."""


@pytest.mark.parametrize(
    ("bomb", "most"), [*((bomb, 4 * 2**20) for bomb in BOMBS), *((bomb, 256 * 2**20) for bomb in LARGE_BOMBS)]
)
def test_parquet_that_claims_more_than_it_holds_is_refused_in_little_memory(tmp_path, bomb, most):
    columns, at_most, options, *reads = bomb
    path = write_table(tmp_path, columns, at_most, **options)
    for read in reads:
        with refused_in_memory(most):
            read(path)


def test_pictures_that_are_as_large_on_the_disk_are_read(tmp_path):
    path = with_images(tmp_path, [bytes([i]) * 2000 for i in range(100)])
    assert [len(pngs) for _, pngs in parquet.read_encoded(path)] == [100]


def test_a_log_that_claims_any_size_is_not_read_whole(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    for storage in (LocalStorage(tmp_path), LOCAL):
        with pytest.raises(OSError) as refused:
            storage.read(path)
        assert refused.value.errno == errno.EFBIG
        assert storage.read(path, 0, 10) == bytes(10)
        assert len(storage.read(path, 199 * 2**20)) == 2**20, "what a log has grown by"


@pytest.mark.parametrize("name", ["ledger.jsonl", "plan.json"])
def test_status_refuses_a_pipe_and_a_log_of_any_size_without_a_traceback(tmp_path, name):
    shutil.copytree(RUN, run := tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    if name == "plan.json":
        os.mkfifo(run / name)
    else:
        (run / name).touch()
        os.truncate(run / name, 200 * 2**20)
    with pytest.raises(UserError, match=name), user_errors():
        nights.taugrid("status", run)


@pytest.mark.parametrize(
    "read",
    [
        lambda storage, path: storage.read(path, 0, 0),
        lambda storage, path: read_json(path, storage),
        lambda storage, path: storage.opened(path).__enter__(),
        lambda storage, path: storage.readable(path).__enter__(),
        lambda storage, path: storage.append(path, b"x"),
    ],
)
def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path, read):
    os.mkfifo(tmp_path / "plan.json")
    (tmp_path / "link").symlink_to("plan.json")
    both_ends = os.open(tmp_path / "plan.json", os.O_RDWR)  # or the test would wait where it fails
    try:
        for name in ("plan.json", "link"):
            with pytest.raises(OSError) as refused:
                read(LocalStorage(tmp_path), tmp_path / name)
            assert refused.value.errno == errno.ESPIPE
    finally:
        os.close(both_ends)


def test_a_png_that_claims_too_many_pixels_is_not_decoded():
    assert decode_png(black(4096, 4096)).shape == (1, 4096, 4096)
    with pytest.raises(DamagedFile):
        decode_png(black(4096, 4097))


def test_a_figure_shows_no_more_pixels_than_fit_into_memory(tmp_path):
    path = with_images(tmp_path, [black(4000, 4000)] * 7, use_dictionary=False)
    assert len(parquet.first_pictures([path], 6, LOCAL)) == 6
    with pytest.raises(DamagedFile):
        parquet.first_pictures([path], 7, LOCAL)
    assert [len(images) for _, images in parquet.read_images(path)] == [6, 1]
    path = with_images(tmp_path, [black(8, 8), black(4000, 4000)], use_dictionary=False)
    with pytest.raises(DamagedFile):
        list(parquet.read_images(path))


@pytest.mark.parametrize("shape", [(1024, 1025), (3000, 3000)])
def test_a_strip_of_the_board_has_no_large_images(tmp_path, monkeypatch, shape):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "runs" / "a"
    shutil.copytree(RUN, run)
    for part in run.glob("samples/*/*.parquet"):
        shutil.move(with_images(tmp_path, [black(*shape)] * 16, use_dictionary=False), part)
    with served(tmp_path / "runs") as client:
        document = client.document()
        row = document["rows"][0]
        assert document["images"]["rows"][0], "there are some"
        assert client.get(f"/images/{document['runs'][0]['key']}/{row[1]}.png")[0] == 404


def moments(path, size, save=np.savez_compressed):
    save(path, mu=np.zeros(size), sigma=np.zeros((size, size)))
    return path


@pytest.mark.long
def test_an_npz_of_some_kilobytes_is_not_unpacked_into_memory(tmp_path):
    assert open_moments(moments(tmp_path / "small.npz", 500)).dimensions == 500
    bomb = moments(tmp_path / "bomb.npz", 3000)
    assert bomb.stat().st_size < 200_000
    with pytest.raises(DamagedFile):
        open_moments(bomb)
    size = 2000
    arrays = dict.fromkeys(("scatter", "root"), np.zeros((size, size))) | {"n": np.array(5), "mean": np.zeros(size)}
    np.savez(tmp_path / "honest.npz", **arrays, more=np.random.default_rng(0).random(10**6), sha256=np.array(""))
    with zipfile.ZipFile(tmp_path / "honest.npz") as archive, zipfile.ZipFile(tmp_path / "x.npz", "w", 14) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    with pytest.raises(DamagedFile, match=r"x\.npz"):
        open_moments(tmp_path / "x.npz")
    assert read_statistics(tmp_path / "x.npz") is None


@pytest.mark.parametrize("shape", [(10**6, 64, 64, 3), (3, 64, 64, 3), (1, 10**5, 10**5, 3)])
def test_an_npz_whose_header_is_not_of_its_array_is_refused_before_it_is_read(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(5 * 64 * 64 * 3))
    with pytest.raises((DamagedFile, UserError)):
        open_images(str(tmp_path / "a.npz"))


def test_an_npz_of_images_that_are_too_large_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((1, 4096, 4097, 1), np.uint8))
    with raises(ValueError):
        open_images(str(tmp_path / "a.npz"))


def test_a_gz_of_some_kilobytes_is_not_unpacked_into_memory(tmp_path):
    def idx(count):
        path = tmp_path / "a.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(struct.pack(">4I", 0x803, count, 1000, 1000) + bytes(count * 10**6))
        return path

    assert read_idx(idx(2)).shape == (2, 1000, 1000)
    with pytest.raises(UserError):
        read_idx(idx(70))
