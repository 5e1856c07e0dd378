import errno
import json
import os
import pickle
import resource
from contextlib import contextmanager, nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.hashing import digests_of
from taugrid.images import decode_png
from taugrid.storage import LocalStorage

SETTINGS = {
    "seed": 3, "steps": 10, "eta": 1.0, "sigma": "sigma_hat", "spacing": "linear", "sampler": "ddim",
    "clip": "x0_and_eps", "cell": "0123456789", "model": "abcdef0123",
}  # fmt: skip


def pictures(count, channels=1, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def write(path, batch, start=0, batches=1, metadata=None, commit=lambda part: part.commit(replace=False)):
    with parquet.PartWriter(path, parquet.sample_schema(metadata or {"cell": "0123456789"})) as part:
        writer = parquet.SampleWriter(part, SETTINGS, start)
        for chunk in np.array_split(batch, batches):
            writer.append(chunk)
        writer.finish()
        return commit(part)


def test_a_shard_reads_back_with_its_indices_and_settings(tmp_path):
    path = tmp_path / "part.parquet"
    batch = pictures(2500)
    assert write(path, batch, start=5000, batches=7)
    part = parquet.inspect(path)
    assert (part.start, part.stop, part.metadata) == (5000, 7500, {"cell": "0123456789"})
    index, read = (np.concatenate(column) for column in zip(*parquet.read_images(path), strict=True))
    assert np.array_equal(index, np.arange(5000, 7500))
    assert np.array_equal(read, batch)
    table = pq.read_table(path)
    assert table.slice(0, 1).drop_columns(["image", "index", "pixels"]).to_pylist() == [SETTINGS]
    assert np.array_equal(table["pixels"], digests_of(batch))
    assert np.array_equal(parquet.read_digests(path), digests_of(batch))
    about = pq.ParquetFile(path).metadata
    assert about.num_row_groups == 3, "row groups are bounded"
    column = about.row_group(0).column(0)
    assert (column.has_offset_index, column.compression) == (True, "UNCOMPRESSED")
    found = parquet.read_png(path, [5100, 7499, 7])
    assert {number: decode_png(png).tolist() for number, png in found.items()} == {
        5100: batch[100].tolist(), 7499: batch[-1].tolist()
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


@pytest.mark.parametrize("indices", [[[]], [[7, 8], [9]], [[7, 9]], [[7], [9]], [[7, 8], [8]], [[8, 7]], [[7, 9], [9]]])
def test_a_writer_knows_what_its_file_holds_as_a_reader_finds_it(tmp_path, indices):
    path = tmp_path / "numbers.parquet"
    with parquet.PartWriter(path, parquet.number_schema({"cell": "0123456789", "more": {"a": 1}}, ["x"])) as part:
        for index in indices:
            part.write({"index": index, "x": [0.5] * len(index)})
        part.commit(replace=False)
    try:
        found = parquet.inspect(path)
    except DamagedFile:
        found = None
    assert part.content == found
    assert (found is not None) == (indices == [[7, 8], [9]])


@pytest.mark.long
@given(batches=st.integers(1, 40))
def test_bytes_do_not_depend_on_how_batches_arrive(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("bytes")
    batch = pictures(1100, size=2)
    write(folder / "one", batch)
    write(folder / "many", batch, batches=batches)
    assert (folder / "one").read_bytes() == (folder / "many").read_bytes()


def test_a_commit_never_overwrites_unless_told_to(tmp_path):
    path = tmp_path / "part.parquet"
    assert write(path, pictures(3))
    before = path.read_bytes()
    assert write(path, pictures(5, seed=1)) is False
    assert path.read_bytes() == before
    assert write(path, pictures(5, seed=1), commit=lambda part: part.commit(replace=True))
    assert parquet.inspect(path).stop == 5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("version", ["another version", None])
@pytest.mark.parametrize(
    ("rows", "cell", "replaced"), [(4, "0123456789", True), (3, "0123456789", False), (4, "another", False)]
)
def test_a_file_of_another_version_is_replaced_only_by_more_of_the_same_rows(tmp_path, rows, cell, replaced, version):
    """A worker of an interrupted driver may commit its batches after the next driver has looked."""
    path = tmp_path / "part.parquet"
    write(path, pictures(3))
    before = path.stat().st_ino
    commit = lambda part: part.commit_over(version)  # noqa: E731
    assert write(path, pictures(rows), metadata={"cell": cell}, commit=commit) is replaced
    assert (path.stat().st_ino != before) is replaced
    assert parquet.inspect(path).stop == (rows if replaced else 3)


class OnAFullDisk(LocalStorage):
    """Its files are the kernel's device that has no space."""

    @contextmanager
    def temporary(self, path):
        with super().temporary(path) as temporary:
            temporary.symlink_to("/dev/full")
            yield temporary


@contextmanager
def no_file_larger_than(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("code", "storage", "limit"),
    [(errno.ENOSPC, OnAFullDisk, nullcontext()), (errno.EFBIG, LocalStorage, no_file_larger_than(50_000))],
    ids=["on opening it", "on writing to it"],
)
def test_an_error_of_writing_names_the_file(tmp_path, code, storage, limit):
    """By the name the driver knows that its run directory is full, and ends the run; and so from another process."""
    path = tmp_path / "p"

    def write_much():
        with parquet.PartWriter(path, parquet.number_schema({}, ["x"]), storage(tmp_path)) as part:
            part.write({"index": np.arange(100_000), "x": np.arange(100_000.0)})
            part.commit(replace=True)

    with limit, pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_much()
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert (arrived.errno, arrived.filename) == (code, str(path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [41, pytest.param(3, marks=pytest.mark.long)])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, step):
    """Page checksums do not cover headers, indexes and footer: in a small file that is most of the bytes."""
    path = tmp_path / "part.parquet"
    write(path, pictures(3))
    data = path.read_bytes()
    for position in range(0, len(data), step):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(DamagedFile):
            parquet.inspect(path)


def test_page_checksums_are_written_and_read(tmp_path):
    """What other readers can check without knowing of the seal."""
    path = tmp_path / "part.parquet"
    write(path, pictures(500))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4  # among the images, by far the largest column
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)
    with pytest.raises(DamagedFile, match="CRC"):
        list(parquet.read_images(path))


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.999])
def test_a_cut_off_file_is_noticed(tmp_path, keep):
    path = tmp_path / "part.parquet"
    write(path, pictures(500))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(DamagedFile):
        parquet.inspect(path, every_byte=False)


def test_the_schema_is_the_contract(tmp_path):
    """Column names and types that users' queries rely on; changing them would break every reader of old runs."""
    path = tmp_path / "part.parquet"
    write(path, pictures(1))
    schema = pq.read_schema(path)
    assert {field.name: str(field.type) for field in schema} == {
        "image": "struct<bytes: binary, path: string>", "index": "int64", "pixels": "int64", "seed": "int64",
        "steps": "int32", "eta": "double", "sigma": "string", "spacing": "string", "sampler": "string",
        "clip": "string", "cell": "string", "model": "string",
    }  # fmt: skip
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}


def test_features_read_back_in_order(tmp_path):
    path = tmp_path / "f.parquet"
    features = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    with parquet.PartWriter(path, parquet.feature_schema({"cell": "c"}, 4, 2)) as part:
        for start in (0, 15):
            rows = features[start : start + 15]
            part.write({"index": np.arange(start, start + len(rows)), "features": rows, "logits": rows[:, :2]})
        part.commit(replace=False)
    index, read = (np.concatenate(column) for column in zip(*parquet.read_features(path, "features"), strict=True))
    assert np.array_equal(index, np.arange(20))
    assert np.array_equal(read, features)
    assert parquet.inspect(path).metadata == {"cell": "c"}
