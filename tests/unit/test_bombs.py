"""Small files that claim to hold much are refused before they fill the memory: anybody's directory is looked at."""

import errno
import gzip
import io
import os
import shutil
import struct
import zipfile
from contextlib import contextmanager

import nights
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_board import RUN
from test_board_served import served

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError, user_errors
from taugrid.eval.metrics.reference_statistics import open_moments, read_statistics
from taugrid.eval.sources import open_source
from taugrid.images import decode_png
from taugrid.storage import LOCAL, LocalStorage, read_json
from taugrid.workers.data.fashion_mnist import read_idx

ROWS = 2_000_000


def black(width, height):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def with_images(path, images, **options):
    column = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    pq.write_table(pa.table({"image": column, "index": range(len(images))}), path, **options)


DELTAS = {"use_dictionary": False, "column_encoding": {"index": "DELTA_BINARY_PACKED"}}


@pytest.mark.parametrize(
    ("index", "options"),
    [
        (np.arange(ROWS), {"compression": "zstd"}),
        (np.arange(ROWS), {"compression": "none", **DELTAS}),
        (np.arange(ROWS), {"compression": "none", "row_group_size": ROWS // 40, **DELTAS}),
    ],
)
def test_rows_that_do_not_fit_into_a_file_are_not_read(tmp_path, index, options):
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"index": index}), path, **options)
    assert path.stat().st_size < 4 * ROWS
    for every_byte in (True, False):
        with pytest.raises(DamagedFile):
            parquet.inspect(path, every_byte)


@pytest.mark.parametrize("column", ["label", "features", "pixels", "index"])
def test_texts_in_place_of_numbers_are_not_read(tmp_path, column):
    path = tmp_path / "part.parquet"
    values = {"index": np.arange(1000), column: ["x" * 10_000] * 1000}
    pq.write_table(pa.table(values), path, compression="none")
    assert path.stat().st_size < 100_000
    for read in (parquet.read_numbers, parquet.read_features):
        with pytest.raises(DamagedFile):
            next(read(path, column))


def test_a_picture_that_stands_for_many_is_not_read_for_each(tmp_path):
    path = tmp_path / "part.parquet"
    with_images(path, [b"x" * 200_000] * 1000, compression="none")
    assert path.stat().st_size < 300_000
    with pytest.raises(DamagedFile):
        next(parquet.read_encoded(path))
    with_images(path, [bytes([i]) * 2000 for i in range(100)], compression="none")
    assert [len(pngs) for _, pngs in parquet.read_encoded(path)] == [100], "these are as large on the disk"


_pools = []  # buffers may outlive a test, but not their pool


@contextmanager
def refused_in_little_memory():
    """Arrow's memory has its peak before a file is refused."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool := pa.proxy_memory_pool(before))
    _pools.append(pool)
    try:
        with pytest.raises(DamagedFile):
            yield
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 4 * 2**20


COUNT, NAMES = 20_000, [f"a{i}" for i in range(300)]
INDEX, ZEROS = pa.array(np.arange(COUNT)), pa.array(np.zeros(COUNT, np.int64))
MANY = pa.StructArray.from_arrays([ZEROS] * len(NAMES), NAMES)


@pytest.mark.parametrize(
    "columns",
    [
        {"index": MANY},
        {"index": INDEX, "label": MANY},
        {"index": INDEX[:1000], "label": pa.nulls(1000, pa.list_(pa.float32(), 10_000))},
    ],
)
def test_a_column_of_many_in_place_of_one_is_not_read(tmp_path, columns):
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table(columns), path, compression="none")
    assert path.stat().st_size < 400_000, "at least 40 MB in memory"

    def index(path, column):
        yield parquet.inspect(path, every_byte=False)

    for read in (parquet.read_features, parquet.read_numbers) if "index" in columns and len(columns) > 1 else (index,):
        with refused_in_little_memory():
            next(read(path, "label"))


def test_a_list_of_one_picture_is_not_read(tmp_path):
    path = tmp_path / "part.parquet"
    equal = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array([b"x" * 100_000]))
    pictures = pa.ListArray.from_arrays(pa.array([0, 1000], pa.int32()), equal)
    image = pa.StructArray.from_arrays([pictures, pa.array(["0.png"])], ["bytes", "path"])
    for columns in ({"image": image}, {"image.bytes": pictures}):
        table = pa.table({"index": [0], **columns})
        pq.write_table(table, path, compression="none", write_statistics=False, store_schema=False)
        assert path.stat().st_size < 110_000, "100 MB in memory"
        with refused_in_little_memory():
            next(parquet.read_encoded(path))


def test_a_history_has_no_lists(tmp_path):
    zeros = pa.ListArray.from_arrays(pa.array([0, COUNT], pa.int32()), ZEROS)
    file = io.BytesIO()
    pq.write_table(pa.table(dict.fromkeys(NAMES, zeros)), file, compression="none", write_statistics=False)
    assert len(file.getvalue()) < 200_000, "48 MB in memory"
    with refused_in_little_memory():
        parquet.read_table(file.getvalue())


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


READS = {
    "read": lambda storage, path: storage.read(path, 0, 0),
    "read_json": lambda storage, path: read_json(path, storage),
    "opened": lambda storage, path: storage.opened(path).__enter__(),
    "readable": lambda storage, path: storage.readable(path).__enter__(),
    "append": lambda storage, path: storage.append(path, b"x"),
}


@pytest.mark.parametrize("read", READS)
def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path, read):
    os.mkfifo(tmp_path / "plan.json")
    (tmp_path / "link").symlink_to("plan.json")
    both_ends = os.open(tmp_path / "plan.json", os.O_RDWR)  # or the test would wait where it fails
    try:
        for name in ("plan.json", "link"):
            with pytest.raises(OSError) as refused:
                READS[read](LocalStorage(tmp_path), tmp_path / name)
            assert refused.value.errno == errno.ESPIPE
    finally:
        os.close(both_ends)


def test_a_png_that_claims_too_many_pixels_is_not_decoded():
    assert decode_png(black(4096, 4096)).shape == (1, 4096, 4096)
    with pytest.raises(DamagedFile):
        decode_png(black(4096, 4097))


def test_a_figure_shows_no_more_pixels_than_fit_into_memory(tmp_path):
    path = tmp_path / "part.parquet"
    with_images(path, [black(4000, 4000)] * 7, compression="none", use_dictionary=False)
    assert len(parquet.first_pictures([path], 6, LOCAL)) == 6
    with pytest.raises(DamagedFile):
        parquet.first_pictures([path], 7, LOCAL)
    assert [len(images) for _, images in parquet.read_images(path)] == [6, 1]
    with_images(path, [black(8, 8), black(4000, 4000)], compression="none", use_dictionary=False)
    with pytest.raises(DamagedFile):
        list(parquet.read_images(path))


@pytest.mark.parametrize("shape", [(1024, 1025), (3000, 3000)])
def test_a_strip_of_the_board_has_no_large_images(tmp_path, monkeypatch, shape):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "runs" / "a"
    shutil.copytree(RUN, run)
    for part in run.glob("samples/*/*.parquet"):
        with_images(part, [black(*shape)] * 16, compression="none", use_dictionary=False)
    with served(tmp_path / "runs") as client:
        document = client.document()
        row = document["rows"][0]
        assert document["images"]["rows"][0], "there are some"
        assert client.get(f"/images/{document['runs'][0]['key']}/{row[1]}.png")[0] == 404


def test_a_history_that_claims_more_than_it_has_is_refused_and_others_are_read():
    for options in ({"compression": "zstd"}, {"compression": "none"}):
        file = io.BytesIO()
        pq.write_table(pa.table({"night": ["x" * 50_000] * 5000, "fid": np.zeros(5000)}), file, **options)
        assert len(file.getvalue()) < 200_000
        with pytest.raises(DamagedFile):
            parquet.read_table(file.getvalue())


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
        open_source(str(tmp_path / "a.npz"))


def test_an_npz_of_images_that_are_too_large_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((1, 4096, 4097, 1), np.uint8))
    with pytest.raises(ValueError, match="pixels"):
        open_source(str(tmp_path / "a.npz"))


def test_a_gz_of_some_kilobytes_is_not_unpacked_into_memory(tmp_path):
    def idx(count):
        path = tmp_path / "a.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(struct.pack(">4I", 0x803, count, 1000, 1000) + bytes(count * 10**6))
        return path

    assert read_idx(idx(2)).shape == (2, 1000, 1000)
    with pytest.raises(UserError):
        read_idx(idx(70))
