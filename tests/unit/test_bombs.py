"""Small files that claim to hold much are refused before they fill the memory: anybody's directory is looked at."""

import gzip
import io
import shutil
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_board import RUN
from test_board_served import served

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.metrics.reference_statistics import open_moments, read_statistics
from taugrid.eval.sources import open_source
from taugrid.images import decode_png
from taugrid.storage import LOCAL
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
