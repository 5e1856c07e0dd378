"""Published data sets from their files to pixels. Every file here is written by the test, but for Fashion-MNIST's."""

import gzip
import hashlib
import io
import pickle
import shutil
import struct
import sys
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import lmdb
import numpy as np
import pytest
import torchvision
from pictures import NOWHERE, noise, refused, write_picture
from PIL import Image
from snapshots import recorded

from taugrid.config import Data
from taugrid.registry.datasets import DATASETS
from taugrid.workers.data import load as data
from taugrid.workers.data import published

pytestmark = pytest.mark.usefixtures("user_cache")


def published_with(monkeypatch, name, **num_images):
    changed = replace(DATASETS[name], num_images=DATASETS[name].num_images | num_images)
    monkeypatch.setitem(DATASETS, name, changed)


# Fashion-MNIST


SIZES = {"train": 5, "test": 3}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with few random images in the names and the format of Fashion-MNIST's files."""
    folder = tmp_path / "files"
    folder.mkdir()
    for seed, (split, count) in enumerate(SIZES.items()):
        name, pixels = published.IDX_IMAGES[split], noise(count, 28, 28, seed=seed).tobytes()
        content = struct.pack(">IIII", 0x803, count, 28, 28) + pixels
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        labels = struct.pack(">II", 0x801, count) + bytes(count)
        (folder / f"{published.IDX_LABELS[split]}.gz").write_bytes(gzip.compress(labels))
        monkeypatch.setitem(published.SHA256, name, hashlib.sha256(pixels).hexdigest())
    published_with(monkeypatch, "fashion-mnist", **SIZES)
    return folder


def fashion(root, **keys):
    return Data(name="fashion-mnist", root=None if root is None else str(root), **keys)


def test_fashion_mnist_from_a_folder_of_idx_files(files):
    train, test = (data.load_images(fashion(files, split=split)) for split in SIZES)
    assert np.array_equal(train, noise(5, 1, 28, 28, seed=0))
    assert np.array_equal(test, noise(3, 1, 28, 28, seed=1))
    whole = data.load_images(fashion(files, limit=6))
    assert np.array_equal(whole, np.concatenate([train, test[:1]]))


@pytest.mark.parametrize("layout", ["debian", "torchvision", "unpacked"])
def test_fashion_mnist_is_found_where_others_put_it(files, layout, tmp_path, monkeypatch):
    packed = files / "t10k-images-idx3-ubyte.gz"
    if layout == "debian":
        monkeypatch.setattr(published, "DEBIAN_FOLDER", files)
    else:
        raw = tmp_path / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        if layout == "torchvision":
            shutil.copy(packed, raw)
        else:
            (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    found = data.load_images(fashion(None if layout == "debian" else tmp_path, split="test"))
    assert np.array_equal(found, noise(3, 1, 28, 28, seed=1))


def test_fashion_mnist_that_is_not_there_says_how_to_get_it(tmp_path, user_cache, monkeypatch):
    monkeypatch.setattr(published, "DEBIAN_FOLDER", tmp_path / "debian")
    for root, place in ((None, user_cache / "datasets"), (tmp_path / "mine", tmp_path / "mine")):
        line = refused(fashion(root))
        assert "train-images-idx3-ubyte.gz" in line
        assert str(place) in line
        assert ("debian" in line.split(":")[1]) == (root is None), "a root that is given is the only place"
        for way in ("set root", "download: true"):
            assert way in line


@pytest.mark.parametrize(
    "content",
    [
        struct.pack(">IIII", 0x803, 2, 28, 28) + bytes(2 * 28 * 28),
        struct.pack(">IIII", 0x803, 3, 28, 28) + bytes(2 * 28 * 28),
        struct.pack(">II", 0x801, 2) + bytes(2),
    ],
    ids=["few", "short", "labels"],
)
def test_other_idx_files_are_refused(content, tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    recorded(refused(fashion(tmp_path, split="test")))


def test_a_fashion_mnist_cut_short_is_named(files):
    path = files / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    recorded(refused(fashion(files, split="test")), "read")


def test_fashion_mnist_is_downloaded_once(files, tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(files))) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        kind = torchvision.datasets.FashionMNIST
        monkeypatch.setattr(kind, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        packed_here = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in files.glob("*.gz")]
        monkeypatch.setattr(kind, "resources", packed_here)
        found = data.load_images(fashion(tmp_path / "new", split="test", download=True))
        server.shutdown()
    again = data.load_images(fashion(tmp_path / "new", split="test", download=True, limit=2))  # no server any more
    assert np.array_equal(found[:2], again)


# CIFAR-10


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Batches of 3 random images in CIFAR-10's format; torchvision is told their MD5s in place of the real ones."""
    kind, folder, written = torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py", {}
    folder.mkdir()

    def write(name, value):
        (folder / name).write_bytes(pickle.dumps(value))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for files in ("train_list", "test_list"):
        names = [name for name, _ in getattr(kind, files)]
        written |= {name: noise(3, 3, 32, 32, seed=len(written) + i) for i, name in enumerate(names)}
        batches = [write(name, {"data": written[name].reshape(3, 3072), "labels": [0] * 3}) for name in names]
        monkeypatch.setattr(kind, files, batches)
    name, md5 = write("batches.meta", {"label_names": ["x"]})
    published_with(monkeypatch, "cifar10", train=15, test=3)
    monkeypatch.setattr(kind, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return written


def test_cifar10_has_its_channels_in_front_and_its_batches_in_order(cifar10, tmp_path):
    whole, train, test = (
        data.load_images(Data(name="cifar10", root=str(tmp_path), split=split)) for split in ("all", "train", "test")
    )
    assert np.array_equal(train, np.concatenate([cifar10[f"data_batch_{i}"] for i in range(1, 6)]))
    assert np.array_equal(test, cifar10["test_batch"])
    assert np.array_equal(whole, np.concatenate([train, test]))
    assert whole.flags.c_contiguous


def test_cifar10_that_is_missing_or_damaged_says_how_to_get_it(cifar10, tmp_path):
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"")
    damaged, missing = refused(Data(name="cifar10", root=str(tmp_path))), refused(Data(name="cifar10"))
    recorded(damaged, "batches")
    recorded(missing, "missing")
    assert all("download: true" in line and "cifar-10-python.tar.gz" in line for line in (damaged, missing))


@pytest.mark.parametrize(
    ("kind", "attribute", "value"), [("FashionMNIST", "mirrors", [NOWHERE]), ("CIFAR10", "url", f"{NOWHERE}x.tar.gz")]
)
def test_a_download_without_a_network_is_one_line(kind, attribute, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(getattr(torchvision.datasets, kind), attribute, value)
    name = {"FashionMNIST": "fashion-mnist", "CIFAR10": "cifar10"}[kind]
    line = refused(Data(name=name, root=str(tmp_path / "new"), download=True))
    recorded(line, "downloaded")
    assert capsys.readouterr().out == "", "stdout belongs to --json"


# CelebA


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Seven images in torchvision's layout; PNG in files that are called .jpg, so that pixels can be compared."""
    folder, pixels, lines = tmp_path / "celeba", {}, []
    for i, partition in enumerate("0102001"):
        name = f"{i + 1:06d}.jpg"
        pixels[name] = noise(3, 218, 178, seed=i)
        write_picture(folder / "img_align_celeba" / name, pixels[name], format="PNG")
        lines.append(f"{name} {partition}\n")
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    published_with(monkeypatch, "celeba", train=4, validation=2, test=1)
    return pixels


def test_celeba_is_cut_as_the_paper_does(celeba, tmp_path):
    """Rows 57 to 184 and columns 25 to 152, as paper.md says; then halved."""
    section = Data(name="celeba", root=str(tmp_path), shape=(3, 128, 128))
    cut = np.stack([pixels[:, 57:185, 25:153] for pixels in celeba.values()])
    assert np.array_equal(data.load_images(section), cut)
    halved = data.load_images(section.model_copy(update={"shape": None}))
    assert halved.shape == (7, 3, 64, 64)
    expected = Image.fromarray(cut[0].transpose(1, 2, 0)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(halved[0].transpose(1, 2, 0), np.asarray(expected))
    for split, numbers in {"train": (0, 2, 4, 5), "validation": (1, 6), "test": (3,)}.items():
        assert np.array_equal(data.load_images(section.model_copy(update={"split": split})), cut[list(numbers)])
    assert Data(name="celeba", split="train").held_out.split == "test"


def test_celeba_that_is_not_there_or_not_whole_is_refused(celeba, tmp_path, monkeypatch):
    line = refused(Data(name="celeba", root=str(tmp_path / "x")))
    assert f"{tmp_path}/x/celeba" in line
    assert "download: true" in line
    write_picture(tmp_path / "celeba" / "img_align_celeba" / "000004.jpg", noise(3, 100, 100))
    recorded(refused(Data(name="celeba", root=str(tmp_path))), "aligned")
    (tmp_path / "celeba" / "img_align_celeba" / "000004.jpg").unlink()
    line = refused(Data(name="celeba", root=str(tmp_path), limit=6))
    recorded(line, "directory")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("202599\n000001.jpg 0\n")
    recorded(refused(Data(name="celeba", root=str(tmp_path), limit=5)))


def test_other_images_are_not_taken_for_celebas(celeba, tmp_path, monkeypatch):
    """Models go by the name alone, so that it must be all of CelebA, whatever part of it is used."""
    monkeypatch.undo()
    for split, count in (("all", 202_599), ("train", 162_770), ("test", 19_962)):
        line = refused(Data(name="celeba", root=str(tmp_path), split=split, limit=1))
        recorded(line, "images")
        assert f"published with {count}: " in line


def test_celeba_without_a_way_to_download_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    line = refused(Data(name="celeba", root=str(tmp_path), download=True))
    recorded(line, "downloaded")


# LSUN


@pytest.fixture
def lsun(tmp_path, monkeypatch):
    """A database of WebP, as LSUN's are, with a JPEG and a grey PNG among them; the keys are not written in order."""
    pixels = [noise(3, 40, 64, seed=0), noise(3, 70, 32, seed=1), noise(3, 33, 33, seed=2), noise(1, 32, 50, seed=3)]
    with (
        lmdb.open(str(tmp_path / "church_outdoor_val_lmdb"), map_size=2**24) as database,
        database.begin(write=True) as transaction,
    ):
        for key, image, kind in zip(("b", "d", "a", "c"), pixels, ("WEBP", "WEBP", "JPEG", "PNG"), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, format=kind)
            transaction.put(key.encode(), buffer.getvalue())
    published_with(monkeypatch, "lsun", validation=4)
    return Data(name="lsun", category="church_outdoor", split="validation", root=str(tmp_path), shape=(3, 32, 32))


def test_lsun_is_what_torchvision_gives(lsun, tmp_path, monkeypatch):
    found = data.load_images(lsun)
    monkeypatch.chdir(tmp_path)  # where torchvision leaves its pickle
    size = torchvision.transforms.Compose([torchvision.transforms.Resize(32), torchvision.transforms.CenterCrop(32)])
    theirs = torchvision.datasets.LSUN(str(tmp_path), classes=["church_outdoor_val"], transform=size)
    pixels = np.stack([np.asarray(picture) for picture, _ in theirs]).transpose(0, 3, 1, 2)
    assert np.array_equal(found, pixels)


def test_lsun_without_its_database_or_lmdb_says_how_to_get_them(lsun, tmp_path, monkeypatch):
    line = refused(lsun.model_copy(update={"split": "train"}))
    assert f"no {tmp_path}/church_outdoor_train_lmdb/data.mdb" in line
    assert "https://github.com/fyu/lsun" in line
    monkeypatch.setitem(sys.modules, "lmdb", None)
    recorded(refused(lsun), "install")


def test_other_images_are_not_taken_for_lsuns(lsun, tmp_path, monkeypatch):
    published_with(monkeypatch, "lsun", validation=300)
    line = refused(lsun.model_copy(update={"limit": 2}))
    recorded(line, "validation")
    assert "published with 300" in line
    for category, taken in (("bedroom", False), ("cat", True)):
        shutil.copytree(tmp_path / "church_outdoor_val_lmdb", tmp_path / f"{category}_train_lmdb")
        section = lsun.model_copy(update={"category": category, "split": "train"})
        if taken:  # how many there are of the others is not known here
            assert len(data.load_images(section)) == 4
        else:
            assert "published with 3033042" in refused(section)


def test_a_damaged_lsun_is_one_line(lsun, tmp_path, monkeypatch):
    published_with(monkeypatch, "lsun", validation=5)
    folder = tmp_path / "church_outdoor_val_lmdb"
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as transaction:
        transaction.put(b"bb", b"no picture")
    assert " bb can't" in refused(lsun)
    (folder / "data.mdb").write_bytes(bytes(8192))
    assert "is not a complete LMDB" in refused(lsun)
