"""The labels of data sets: beside their images, in their order."""

import hashlib
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from pictures import noise, write_picture
from sklearn.datasets import load_digits
from snapshots import raises, recorded

from taugrid.config import Data
from taugrid.errors import UserError, WorkerRefusal
from taugrid.images import encode_png
from taugrid.workers.data.load import load_images, load_known_labels, load_labels, number_of_classes
from taugrid.workers.data.published import SHA256

pytestmark = pytest.mark.usefixtures("user_cache")


@pytest.fixture(autouse=True)
def _nothing_kept():
    load_labels.cache_clear()


def refused(section):
    with pytest.raises(UserError) as error:
        load_labels(section)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_digits_have_the_labels_of_their_images():
    whole, target = load_labels(Data()), load_digits().target
    assert np.array_equal(whole.of_images, target)
    assert whole.of_images.dtype == np.int32
    train, test = (load_labels(Data(split=split)).of_images for split in ("train", "test"))
    assert np.array_equal(np.concatenate([train, test]), target)
    assert np.array_equal(load_labels(Data(split="test", limit=7)).of_images, test[:7])
    assert number_of_classes(Data()) == 10


def write_idx(path, labels):
    path.write_bytes(struct.pack(">II", 0x801, len(labels)) + bytes(labels))


def test_fashion_mnist_has_the_labels_of_its_files_in_order(tmp_path, monkeypatch):
    section = Data(name="fashion-mnist", root=str(tmp_path))
    monkeypatch.setattr(type(section.dataset), "published_size", lambda *_: None)
    for split, labels in {"train": [9, 0, 3], "t10k": [2, 1]}.items():
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", labels)
        monkeypatch.setitem(SHA256, f"{split}-labels-idx1-ubyte", hashlib.sha256(bytes(labels)).hexdigest())
    for split, expected in {"all": [9, 0, 3, 2, 1], "train": [9, 0, 3], "test": [2, 1]}.items():
        labels = load_labels(section.model_copy(update={"split": split}))
        assert labels.of_images.tolist() == expected
        assert labels.classes[9] == "Ankle boot"


def test_labels_of_fashion_mnist_that_are_missing_or_not_its_own(tmp_path):
    section = Data(name="fashion-mnist", root=str(tmp_path), split="test")
    assert "t10k-labels-idx1-ubyte" in refused(section)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", [0, 0, 0])
    recorded(refused(section), "published")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 4) + bytes(3))
    recorded(refused(section), "complete")
    assert number_of_classes(section) == 10, "known without a file"


def test_cifar10_has_the_labels_of_its_batches_in_order(tmp_path, monkeypatch):
    class Batches:
        def __init__(self, root, train):
            self.targets = [1, 2] if train else [3]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Batches)
    section = Data(name="cifar10", root=str(tmp_path), split="test")
    monkeypatch.setattr(type(section.dataset), "published_size", lambda *_: None)
    assert load_labels(section).of_images.tolist() == [3]
    assert load_labels(section.model_copy(update={"split": "all"})).of_images.tolist() == [1, 2, 3]
    monkeypatch.setattr(type(section.dataset), "published_size", lambda *_: 4)
    load_labels.cache_clear()
    recorded(refused(section), "labels")


def test_the_classes_of_a_folder_are_its_subfolders(tmp_path):
    names = ["b/1.png", "a/2.png", "b/deep/0.png", "c d/x.png"]
    for i, name in enumerate(names):
        write_picture(tmp_path / name, noise(1, 4, 4, seed=i))
    (tmp_path / "empty").mkdir()
    section = Data(name="folder", root=str(tmp_path), shape=(1, 4, 4))
    found = load_labels(section)
    assert found.classes == ("a", "b", "c d")
    assert len(load_images(section)) == 4
    assert found.of_images.tolist() == [0, 1, 1, 2]  # sorted by path, as the images are
    assert np.array_equal(load_images(section)[0, 0], noise(1, 4, 4, seed=1)[0])
    limited = section.model_copy(update={"limit": 2})
    assert load_labels(limited).of_images.tolist() == [0, 1]
    assert number_of_classes(limited) == 3, "a limit is of images, not of classes"
    write_picture(tmp_path / "z.png", noise(1, 4, 4))
    load_labels.cache_clear()
    recorded(refused(section), "subfolder")


def write_table(path, labels, metadata=None, name="label"):
    png = [encode_png(noise(1, 4, 4, seed=i)) for i in range(len(labels))]
    table = pa.table({"image": png, name: labels})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def hugging_face(*names):
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def test_the_labels_of_parquet_files_are_their_column(tmp_path):
    write_table(tmp_path / "train-00001-of-00002.parquet", [0, 2])
    write_table(tmp_path / "train-00000-of-00002.parquet", [1, 1, 0])
    section = Data(name="parquet", root=str(tmp_path), shape=(1, 4, 4))
    assert load_labels(section).of_images.tolist() == [1, 1, 0, 0, 2]
    assert load_labels(section).classes == ("0", "1", "2")
    for path in tmp_path.iterdir():
        write_table(path, [0], hugging_face("cat", "dog"))
    load_labels.cache_clear()
    assert load_labels(section).classes == ("cat", "dog"), "more than are in the files"


def test_classes_of_one_name_are_told_apart(tmp_path):
    """ImageNet has two cranes; a table by class has a column for each."""
    write_table(tmp_path / "x.parquet", [0, 2], hugging_face("crane", "dog", "crane"))
    classes = load_labels(Data(name="parquet", root=str(tmp_path), shape=(1, 4, 4))).classes
    assert classes == ("crane (0)", "dog", "crane (2)")


@pytest.mark.parametrize("columns", [
    {"labels": [0.0, 1.0]}, {"labels": [0, None]}, {"labels": [0, -1]}, {"labels": ["a", "b"]},
    {"labels": [0, 1], "name": "fine_label"}, {"labels": [0, 2], "metadata": hugging_face("a", "b")},
])  # fmt: skip
def test_columns_that_are_no_labels_are_refused(columns, tmp_path):
    write_table(tmp_path / "x.parquet", **columns)
    recorded(refused(Data(name="parquet", root=str(tmp_path), shape=(1, 4, 4))))


def test_a_data_set_without_labels_says_which_have_them():
    recorded(refused(Data(name="celeba")), "classes")


def test_a_workers_labels_must_be_the_drivers(tmp_path):
    labels = load_labels(Data(split="test"))
    assert load_known_labels(Data(split="test"), labels.sha256) is labels
    changed = labels._replace(of_images=labels.of_images[::-1])
    for other in (changed, labels._replace(classes=(*labels.classes, "x"))):
        with raises(WorkerRefusal):
            load_known_labels(Data(split="test"), other.sha256)
    with raises(WorkerRefusal):
        load_known_labels(Data(name="celeba"), labels.sha256)
