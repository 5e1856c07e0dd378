"""Folders and Parquet files, here and on the hub, as data sets."""

from pathlib import Path

import hub
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import NOWHERE, noise, refused, write_picture
from snapshots import recorded

from taugrid.config import Data
from taugrid.images import encode_png
from taugrid.workers.data import load as data

pytestmark = pytest.mark.usefixtures("user_cache")


# A folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of grey and RGB images in subfolders, and what is to be passed over."""
    root, pixels = tmp_path / "pictures", {}
    for i, name in enumerate(["b.png", "train/2.PNG", "train/deep/1.png", "test/x.png", "a-grey.png"]):
        pixels[name] = noise(1 if "grey" in name else 3, 6, 7, seed=i)
        write_picture(root / name, pixels[name])
    (root / "notes.txt").write_text("no image")
    (root / "._b.png").write_bytes(b"what a Mac leaves")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "b.png").write_bytes(b"")
    return root, pixels


def of_folder(root, **keys):
    return Data(**{"name": "folder", "root": str(root), "shape": (3, 6, 7)} | keys)


def test_a_folder_is_searched_and_sorted_by_path(pictures):
    root, pixels = pictures
    found = data.load_images(of_folder(root))
    names = ["a-grey.png", "b.png", "test/x.png", "train/2.PNG", "train/deep/1.png"]
    for image, name in zip(found, names, strict=True):
        assert np.array_equal(image, np.broadcast_to(pixels[name], (3, 6, 7))), name
    train = data.load_images(of_folder(root, split="train"))
    assert np.array_equal(train, found[3:])
    assert np.array_equal(data.load_images(of_folder(root, limit=2)), found[:2])


@pytest.mark.parametrize("keys", [{"shape": (1, 6, 7)}, {"shape": (3, 7, 7)}, {"split": "validation"}, {"root": "/no"}])
def test_images_that_do_not_fit_are_refused(pictures, keys):
    recorded(refused(of_folder(**{"root": pictures[0]} | keys)))


def test_an_empty_folder_and_a_damaged_file_are_named(pictures, tmp_path):
    root, _ = pictures
    (tmp_path / "empty").mkdir()
    recorded(refused(of_folder(tmp_path / "empty")), "hold")
    path = root / "test" / "x.png"
    path.write_bytes(path.read_bytes()[:60])
    recorded(refused(of_folder(root)), "decoded")
    path.unlink()
    path.symlink_to(root / "gone.png")
    recorded(refused(of_folder(root)), "directory")


# Parquet


def write_parquet(path, batch):
    """Images as Hugging Face's `datasets` writes them, beside a column of labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = [{"bytes": encode_png(image), "path": None} for image in batch]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"label": range(len(batch)), "image": pa.array(column, kind)}), path)


@pytest.fixture
def tables(tmp_path):
    """A data set as Hugging Face lays it out: (its folder, its training images, its test images)."""
    train, test, root = noise(40, 3, 6, 7), noise(3, 3, 6, 7, seed=1), tmp_path / "tables"
    write_parquet(root / "data" / "train-00000-of-00002.parquet", train[:35])
    write_parquet(root / "data" / "train-00001-of-00002.parquet", train[35:])
    write_parquet(root / "data" / "test-00000-of-00001.parquet", test)
    (root / "README.md").write_text("A card.")
    return root, train, test


def of_parquet(root, **keys):
    return Data(**{"name": "parquet", "root": str(root), "shape": (3, 6, 7)} | keys)


def test_parquet_files_are_taken_by_split_and_in_order(tables):
    root, train, test = tables
    assert np.array_equal(data.load_images(of_parquet(root, split="train")), train)
    assert np.array_equal(data.load_images(of_parquet(root, split="test")), test)
    assert np.array_equal(data.load_images(of_parquet(root)), np.concatenate([test, train]))
    assert np.array_equal(data.load_images(of_parquet(root, split="train", limit=36)), train[:36])
    file = root / "data" / "test-00000-of-00001.parquet"
    for split in ("all", "test"):
        assert np.array_equal(data.load_images(of_parquet(file, split=split)), test)
    recorded(refused(of_parquet(file, split="train")), "there")


@pytest.mark.parametrize("name", ["test.parquet", "test-00000.parquet", "default/test/0000.parquet"])
def test_a_split_is_known_by_the_name_of_its_file_or_folder(name, tmp_path):
    write_parquet(tmp_path / name, noise(2, 1, 6, 7))
    write_parquet(tmp_path / "latest-0.parquet", noise(5, 1, 6, 7))
    assert len(data.load_images(of_parquet(tmp_path, split="test"))) == 2


def test_a_split_of_which_a_file_is_missing_is_refused(tables):
    root, _, test = tables
    (root / "data" / "train-00000-of-00002.parquet").unlink()
    for split in ("train", "all"):
        line = refused(of_parquet(root, split=split))
        recorded(line, "missing")
    assert np.array_equal(data.load_images(of_parquet(root, split="test")), test), "which is whole"
    named = of_parquet(root / "data" / "train-00001-of-00002.parquet")
    assert len(data.load_images(named)) == 5, "one file that is named is what is wanted"


def test_parquet_that_is_missing_or_damaged_is_refused(tables, tmp_path):
    root, _, _ = tables
    recorded(refused(of_parquet(root, split="validation")), "validation")
    recorded(refused(of_parquet(tmp_path / "none")), "there")
    path = root / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    recorded(refused(of_parquet(root, split="test")), "read")
    pq.write_table(pa.table({"label": [1]}), path)
    recorded(refused(of_parquet(path)), "PNG")


# The hub


def test_a_data_set_of_the_hub_is_downloaded_once_and_only_the_split(tables, tmp_path, monkeypatch):
    root, train, test = tables
    section = of_parquet("hf://datasets/org/clothes", split="train")
    cache = tmp_path / "hub"
    with hub.serving({"datasets/org/clothes": root}, cache, monkeypatch) as requests:
        line = refused(section)
        recorded(line, "datasets")
        assert requests == [], "nothing is asked for unless download says so"
        download = section.model_copy(update={"download": True})
        assert np.array_equal(data.load_images(download), train)
        assert {Path(r).name for r in requests if r.startswith("GET") and "/resolve/" in r} == {
            f"train-0000{i}-of-00002.parquet" for i in range(2)
        }
        at_commit = of_parquet(f"hf://datasets/org/clothes@{hub.commit(root)}/data", split="test", download=True)
        assert np.array_equal(data.load_images(at_commit), test)
    requests.clear()
    for known in (section, download):
        data.decoded.cache_clear()
        assert np.array_equal(data.load_images(known), train), "no hub is needed any more"
    assert requests == []


def test_a_cache_with_a_part_of_a_data_set_is_completed_at_its_commit(tables, tmp_path, monkeypatch):
    """As `hf_hub_download` leaves it, without a list of the files: only the hub knows what is missing."""
    root, train, test = tables
    cache, first = tmp_path / "hub", "data/train-00000-of-00002.parquet"
    known = of_parquet("hf://datasets/org/clothes", split="train")
    download = known.model_copy(update={"download": True})
    with hub.serving({"datasets/org/clothes": root}, cache, monkeypatch) as requests:
        huggingface_hub.hf_hub_download("org/clothes", first, repo_type="dataset", cache_dir=cache)
        recorded(refused(known), "number")
        assert np.array_equal(data.load_images(download), train)
        line = refused(known.model_copy(update={"split": "test"}))
        recorded(line, "datasets")
        requests.clear()
        assert np.array_equal(data.load_images(download.model_copy(update={"split": "test"})), test)
    asked = [request for request in requests if "/resolve/" not in request]
    assert asked == [], "the commit is kept to: what the hub has now may be another"


def test_what_the_hub_does_not_have_is_one_line(tables, tmp_path, monkeypatch):
    with hub.serving({"datasets/org/clothes": tables[0]}, tmp_path / "hub", monkeypatch):
        assert "org/shoes" in refused(of_parquet("hf://datasets/org/shoes", download=True))
        none = refused(of_parquet("hf://datasets/org/clothes", split="validation", download=True))
        recorded(none, "there")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE.rstrip("/"))
    assert "org/hats" in refused(of_parquet("hf://datasets/org/hats", download=True))
    recorded(refused(of_parquet("s3://bucket/x")), "datasets")
