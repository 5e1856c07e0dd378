"""Libraries that people use read our sample files as they are, and see the same images and settings."""

import re
from pathlib import Path

import numpy as np
import pytest
from part_files import SETTINGS, write_part

from taugrid.images import decode_png
from taugrid.storage import open_place

pytestmark = pytest.mark.long

FOLDERS = {"S0010-eta0.2-aaaaaaaaaa": {}, "S0010-sigma_hat-cccccccccc": {"eta": 1.0, "sigma": "sigma_hat"}}
ROWS = 2 * 2 * 30


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "rgb"])
def run(request, tmp_path_factory):
    """(samples folder, image of (cell folder, index)) of two cells with two shards each."""
    root = tmp_path_factory.mktemp("samples")
    pictures = np.random.default_rng(0).integers(0, 256, (ROWS, request.param, 8, 8), dtype=np.uint8)
    expected = {}
    for number, (folder, changes) in enumerate(FOLDERS.items()):
        for shard in range(2):
            batch = pictures[(2 * number + shard) * 30 :][:30]
            path = root / folder / f"part-{shard:06d}.parquet"
            write_part(path, [batch], shard * 30, cell=folder[-10:], **changes)
            expected |= {(folder[-10:], shard * 30 + i): image for i, image in enumerate(batch)}
    return root, expected


def same(image, expected):
    return np.array_equal(np.asarray(image), expected[0] if len(expected) == 1 else expected.transpose(1, 2, 0))


def test_hugging_face_datasets_sees_pictures(run, tmp_path):
    import datasets

    root, expected = run
    files = sorted(map(str, root.glob("*/*.parquet")))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(loaded) == ROWS
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["eta"].dtype == "float64"
    assert all(same(row["image"], expected[row["cell"], row["index"]]) for row in loaded)


def test_pandas(run):
    import pandas as pd

    root, expected = run
    table = pd.read_parquet(root)
    assert len(table) == ROWS
    assert {name: str(table[name].dtype) for name in ("index", "steps", "eta")} == {
        "index": "int64", "steps": "int32", "eta": "float64",
    }  # fmt: skip
    row = table[(table["sigma"] == "sigma_hat") & (table["index"] == 42)].iloc[0]
    assert np.array_equal(decode_png(row["image"]["bytes"]), expected[row["cell"], 42])
    assert row["image"]["path"] == "0000042.png"


def test_duckdb(run):
    import duckdb

    root, expected = run
    query = f"select cell, count(*), max(index), any_value(eta) from '{root}/*/*.parquet' group by cell order by cell"
    assert duckdb.sql(query).fetchall() == [("aaaaaaaaaa", 30 * 2, 59, 0.2), ("cccccccccc", 30 * 2, 59, 1.0)]
    png = duckdb.sql(f"select image.bytes from '{root}/*/*.parquet' where cell = 'cccccccccc' and index = 5").fetchall()
    assert np.array_equal(decode_png(png[0][0]), expected["cccccccccc", 5])


def test_polars(run):
    import polars as pl

    root, expected = run
    table = pl.read_parquet(f"{root}/*/*.parquet")
    assert table.height == ROWS
    row = table.filter((pl.col("cell") == "aaaaaaaaaa") & (pl.col("index") == 59)).row(0, named=True)
    assert np.array_equal(decode_png(row["image"]["bytes"]), expected["aaaaaaaaaa", 59])
    assert table.schema["steps"] == pl.Int32


STORAGE = Path(__file__).parents[2] / "docs/storage.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", STORAGE.read_text(), re.DOTALL)
assert len(SNIPPETS) == 4


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: re.search(r"import (\w+)\nfrom|import (\w+)", text)[0])
def test_snippets_for_buckets_read_them(snippet, s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    bucket = s3.bucket()
    root, storage = open_place(f"s3://{bucket}/runs/mine", "--out")
    path = root / "samples/S0010/part-000000.parquet"
    write_part(path, [np.zeros((30, 1, 8, 8), np.uint8)], storage=storage)
    names: dict[str, object] = {}
    exec(snippet.replace("my-bucket", bucket), names)
    table = names["table"]
    assert (table.fetchall() if "duckdb" in snippet else len(table)) in ([(SETTINGS["cell"], 30)], 30)
