"""Published data sets, folders and Parquet files, as 8-bit images: where their files are, and how they are read.

Small ones are read whole (`READERS`); those whose images must be decoded are described for `decoding.py` (`ENCODED`).
Imports neither torch nor torchvision, unless one of them is needed to read or download a data set.
"""

import gzip
import hashlib
import io
import math
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taugrid import hub
from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.parquet import DamagedFile
from taugrid.storage import user_cache
from taugrid.workers.data import readers
from taugrid.workers.data.decoding import Encoded, locked
from taugrid.workers.data.readers import Picture, SourceError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_MNIST_FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}

FASHION_MNIST_SHA256 = {
    "train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
}
"""SHA-256 of its pixels. MNIST's files have the same names, so that one can be taken for the other."""

IDX_UINT8_3D = 0x00000803
"""The first four bytes of an IDX file of bytes in three dimensions."""

CELEBA_SIZE = (218, 178)
CELEBA_ROWS, CELEBA_COLUMNS = slice(57, 185), slice(25, 153)
"""The 128x128 pixels of an aligned CelebA image, height x width as above, that the DDIM authors' code takes."""

CELEBA_PARTITIONS = {"train": ("0",), "validation": ("1",), "test": ("2",), "all": ("0", "1", "2")}
"""How list_eval_partition.txt writes a split."""

CELEBA_IMAGES = {"train": 162_770, "validation": 19_867, "test": 19_962}
"""Images of each split, as published."""

LSUN_TRAIN = {"bedroom": 3_033_042, "church_outdoor": 126_227}
"""Images of a category's training split, as published (Yu et al. 2015); of other categories any are taken."""

LSUN_VALIDATION = 300
"""Images of any category's validation split."""

SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\b.*")
"""How Hugging Face names the files of a split, with or without a hash behind."""

HUB_ROOT = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<folder>.+?))?/?")
"""As huggingface_hub's file system writes it; a slash within a revision is %2F."""


def default_root() -> Path:
    """Where data sets are downloaded to, and looked for, unless `data.root` says otherwise."""
    return user_cache() / "datasets"


def decoded_folder() -> Path:
    """Where decoded images are kept."""
    return user_cache() / "decoded"


def _root(data: Data) -> Path:
    return default_root() if data.root is None else Path(data.root)


def fashion_mnist(data: Data) -> NDArray[np.uint8]:
    """The images of Fashion-MNIST, (N, 28, 28) uint8, from IDX files, packed by gzip or not.

    They are looked for in `root` and in its FashionMNIST/raw, as torchvision lays them out; without a root also where
    Debian's package puts them.

    Raises:
        UserError: if a file is missing or damaged, saying how to get it.
    """
    splits = ("train", "test") if data.split == "all" else (data.split,)
    return np.concatenate([_fashion_mnist_split(_fashion_mnist_file(data, split), split) for split in splits])


def _fashion_mnist_split(path: Path, split: str) -> NDArray[np.uint8]:
    images = read_idx(path)
    if hashlib.sha256(images.tobytes()).hexdigest() != FASHION_MNIST_SHA256[split]:
        raise UserError(f"data: {path} does not hold Fashion-MNIST's images as published (MNIST's, perhaps?)")
    return images


def _fashion_mnist_file(data: Data, split: str) -> Path:
    root, name = _root(data), FASHION_MNIST_FILES[split]
    folders = [root, root / "FashionMNIST" / "raw", *([DEBIAN_FASHION_MNIST] if data.root is None else [])]
    candidates = [folder / f"{name}{ending}" for folder in folders for ending in (".gz", "")]
    found = next(filter(Path.is_file, candidates), None)
    if found is None and data.download:
        _download("FashionMNIST", root)
        found = next(filter(Path.is_file, candidates), None)
    if found is None:
        raise UserError(
            f"data: Fashion-MNIST is not here ({name}.gz in none of {', '.join(map(str, folders))}): set data.root to "
            "a folder of its IDX files, or data.download: true, or install Debian's package dataset-fashion-mnist"
        )
    return found


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The images of an IDX file, (N, height, width) uint8; a name that ends in .gz is unpacked.

    Raises:
        UserError: if it is no IDX file of images, or not all of it.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {path} can't be read ({error}): get it anew") from None
    if len(content) < 16:
        raise UserError(f"data: {path} is no IDX file of images: get it anew")
    kind, *shape = struct.unpack(">IIII", content[:16])
    if kind != IDX_UINT8_3D or len(content) != 16 + math.prod(shape):
        raise UserError(f"data: {path} is no whole IDX file of images: get it anew")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)


def cifar10(data: Data) -> NDArray[np.uint8]:
    """The images of CIFAR-10, (N, 3, 32, 32) uint8, through torchvision, which knows its files' MD5.

    Raises:
        UserError: if a file is missing or not as published, saying how to get it.
    """
    from torchvision.datasets import CIFAR10

    root = _root(data)
    images = _read_cifar10(root, data.split)
    if images is None and data.download:
        _download("CIFAR10", root)
        images = _read_cifar10(root, data.split)
    if images is None:
        folder = root / CIFAR10.base_folder
        fault = f"the files in {folder} are not all there as published" if folder.is_dir() else f"there is no {folder}"
        raise UserError(
            f"data: CIFAR-10 is not here ({fault}): set data.root to the folder that {CIFAR10.filename} was unpacked "
            f"in ({CIFAR10.url}), or data.download: true"
        )
    return images


def _read_cifar10(root: Path, split: str) -> NDArray[np.uint8] | None:
    from torchvision.datasets import CIFAR10

    parts = {"train": (True,), "test": (False,), "all": (True, False)}[split]
    try:
        images = np.concatenate([CIFAR10(str(root), train=train).data for train in parts])
    except RuntimeError:  # torchvision's, for a file that is missing or not as published
        return None
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def celeba(data: Data) -> Encoded:
    """The aligned images of CelebA, cut to 128x128, in the order of list_eval_partition.txt.

    They lie as torchvision lays them out, in `root`/celeba, or in `root` itself.

    Raises:
        UserError: if they are not there, or not as many as were published, saying how to get them.
    """
    root = _root(data)
    candidates = [root / "celeba", root]
    found = next(filter(_holds_celeba, candidates), None)
    if found is None and data.download:
        if find_spec("gdown") is None:
            raise UserError("data: CelebA lies at Google Drive: pip install 'taugrid[celeba]' to download it")
        _download("CelebA", root)
        found = next(filter(_holds_celeba, candidates), None)
    if found is None:
        raise UserError(
            f"data: CelebA is not here (list_eval_partition.txt and img_align_celeba/ in neither of {candidates[0]}, "
            f"{root}): set data.root to where they are, or data.download: true (Google Drive has a daily limit; by "
            "hand: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
        )
    partition = found / "list_eval_partition.txt"
    lines = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(line) != 2 or line[1] not in CELEBA_PARTITIONS["all"] for line in lines):
        raise UserError(f"data: {partition} is not CelebA's (lines of a file's name and 0, 1 or 2): get it anew")
    names = [name for name, partition in lines if partition in CELEBA_PARTITIONS[data.split]]
    paths = [found / "img_align_celeba" / name for name in names]
    published = sum(CELEBA_IMAGES.values()) if data.split == "all" else CELEBA_IMAGES[data.split]
    _require_published(data, len(paths), published, partition)
    return Encoded(found, [partition, *paths], len(paths), lambda: paths, _decode_celeba)


def _require_published(data: Data, count: int, published: int | None, path: Path) -> None:
    """UserError unless there are as many images, before `data.limit`, as in the data set whose name models go by."""
    if published is not None and count != published:
        raise UserError(
            f"data: {path} has {count} images of {data.full_name}'s split {data.split}, which was published with "
            f"{published}: get it anew; a part of it is data.limit, and other images are data.name: folder"
        )


def _holds_celeba(folder: Path) -> bool:
    return (folder / "list_eval_partition.txt").is_file() and (folder / "img_align_celeba").is_dir()


def _decode_celeba(path: Path) -> Picture:
    picture = _decode_file(path)
    if picture.pixels.shape[1:] != CELEBA_SIZE:
        height, width = picture.pixels.shape[1:]
        raise SourceError(f"{path} is {height}x{width}, but the aligned images of CelebA are 218x178: take those")
    return picture._replace(pixels=picture.pixels[:, CELEBA_ROWS, CELEBA_COLUMNS])


def lsun(data: Data) -> Encoded:
    """The images of a category of LSUN, in the order of its LMDB's keys, as torchvision gives them.

    torchvision itself keeps a pickle of the keys in the current folder, under a name that two databases can share.

    Raises:
        UserError: if its database or the module lmdb is missing, or images of it are, saying how to get it.
    """
    part = {"train": "train", "validation": "val"}[data.split]
    folder = _root(data) / f"{data.category}_{part}_lmdb"
    if not (folder / "data.mdb").is_file():
        raise UserError(
            f"data: LSUN's {data.category} is not here (no {folder}/data.mdb): get {folder.name} with the script of "
            "https://github.com/fyu/lsun, unpack it, and set data.root to the folder that it is in (taugrid does not "
            "download LSUN)"
        )
    if find_spec("lmdb") is None:
        raise UserError("data: LSUN's databases need the module lmdb: pip install 'taugrid[lsun]'")
    import lmdb

    try:
        with lmdb.open(str(folder), readonly=True, lock=False) as database:
            count = database.stat()["entries"]
    except lmdb.Error as error:
        raise UserError(f"data: {folder} is no whole LMDB ({error}): get it anew") from None
    published = LSUN_VALIDATION if part == "val" else LSUN_TRAIN.get(str(data.category))
    _require_published(data, count, published, folder)
    return Encoded(folder, [folder / "data.mdb"], count, partial(_lmdb_values, folder), _decode_lsun)


def _lmdb_values(folder: Path) -> Iterator[tuple[str, bytes]]:
    import lmdb

    try:
        with (
            lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as database,
            database.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                yield f"{folder} {key.decode(errors='replace')}", value
    except lmdb.Error as error:
        raise DamagedFile(f"{folder} can't be read: {error}") from None


def _decode_lsun(item: tuple[str, bytes]) -> Picture:
    """LSUN's images are WebP."""
    name, content = item
    try:
        with Image.open(io.BytesIO(content), formats=("WEBP", "JPEG", "PNG")) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedFile(f"{name} can't be decoded: {' '.join(str(error).split())}") from None
    return Picture(name, pixels.transpose(2, 0, 1), lossy=True)


def folder(data: Data) -> Encoded:
    """The PNG and JPEG files below `root`, or below its subfolder for a split, sorted by path.

    Linked subfolders are not entered; names that begin with a dot are passed over.

    Raises:
        UserError: if there are none.
    """
    root = _root(data) if data.split == "all" else _root(data) / data.split
    if not root.is_dir():
        ways = "set data.root to the folder" + ("" if data.split == "all" else " above it, or data.split: all")
        raise UserError(f"data: there is no folder {root}: {ways}")
    paths = _below(root, [f"*{ending}" for ending in readers.EXTENSIONS])
    if not paths:
        raise UserError(f"data: {root} and its subfolders hold no .png, .jpg or .jpeg: set data.root to where they are")
    return Encoded(root, paths, len(paths), lambda: paths, _decode_file)


def _below(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below `root` whose relative path fits one of `patterns`, in lower case, sorted by it."""
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            relative = (Path(parent) / name).relative_to(root).as_posix()
            if not name.startswith(".") and _fits(relative, patterns):
                found.append(relative)
    return [root / relative for relative in sorted(found)]


def _fits(relative: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(relative.lower(), pattern) for pattern in patterns)


def _decode_file(path: Path) -> Picture:
    return readers.decode(str(path), path.read_bytes())


def parquet(data: Data) -> Encoded:
    """The image column of Parquet files, by path, then row: `root` is a file, a folder, or hf://datasets/ORG/NAME.

    Of a split are the files named SPLIT.parquet or SPLIT-*.parquet and those in a folder of its name, as Hugging Face
    writes and finds them.

    Raises:
        UserError: if there are none, one of X-00000-of-0000N is missing, or one can't be read.
    """
    patterns = _parquet_patterns(data.split)
    root = _hub_folder(data, patterns) if "://" in str(data.root) else _root(data)
    if root.is_file():
        root, paths = root.parent, [root] if _fits(root.name, patterns) else []
    else:
        paths = _below(root, patterns)
        _require_all_shards(paths)
    if not paths:
        wanted = "*.parquet" if data.split == "all" else f"{data.split}.parquet or {data.split}-*.parquet"
        hint = "" if data.split == "all" else ", or data.split: all"
        raise UserError(f"data: there is no {wanted} in {data.root}: set data.root to a folder with some{hint}")
    try:
        tables = [readers.parquet_reader(path) for path in paths]
    except (SourceError, DamagedFile) as error:
        raise UserError(f"data: {error}") from None

    def pictures() -> Iterator[Picture]:
        for table in tables:
            yield from table.pictures()

    return Encoded(root, paths, sum(table.num_images for table in tables), pictures, lambda picture: picture)


def _require_all_shards(paths: Sequence[Path]) -> None:
    numbers: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := SHARD_NAME.fullmatch(path.name):
            key = path.parent, match["split"], int(match["count"])
            numbers.setdefault(key, set()).add(int(match["number"]))
    for (folder, split, count), found in numbers.items():
        missing = sorted(set(range(count)) - found)
        if missing:
            raise UserError(
                f"data: {folder} has {count - len(missing)} of the {count} files {split}-*-of-{count:05d}, not number "
                f"{missing[0]}: get what is missing (data.download: true, from hf://), or set data.root to one file"
            )


def _parquet_patterns(split: str) -> list[str]:
    """What relative paths of a split's files look like; in these a star stands for slashes too."""
    if split == "all":
        return ["*.parquet"]
    names = [f"{split}.parquet", f"{split}-*.parquet", f"{split}/*.parquet"]
    return [*names, *(f"*/{name}" for name in names)]


def _hub_folder(data: Data, patterns: Sequence[str]) -> Path:
    """The folder in Hugging Face's cache that holds a data set's Parquet files, downloaded if that is wanted.

    The commit that the cache knows is kept to, so that a data set doesn't change between two commands. With `download`
    the hub is asked for what the cache lacks of it, and for a list of its files where the cache has none.
    """
    match = HUB_ROOT.fullmatch(str(data.root))
    revision = match and match["revision"] and unquote(match["revision"])
    identifier = "" if match is None else match["repo"] + (f"@{revision}" if revision else "")
    if match is None or not hub.is_id(identifier):
        raise UserError(
            f"data.root: {data.root} is neither a path nor hf://datasets/ORG/NAME, with @REVISION or /FOLDER behind it"
        )
    within = f"{match['folder']}/" if match["folder"] else ""
    wanted = [f"{within}{pattern}" for pattern in patterns]
    cached = _cached_snapshot(match["repo"], revision, [] if data.download else wanted)
    if data.download:
        commit = None if cached is None else cached.name
        cached = hub.snapshot(identifier, wanted, "data.root", commit, kind="dataset")
    elif cached is None:
        raise UserError(
            f"data: {data.root} is not in Hugging Face's cache, or not all of it: set data.download: true, or "
            "data.root to a folder of its Parquet files"
        )
    return cached / within


def _cached_snapshot(repository: str, revision: str | None, wanted: list[str]) -> Path | None:
    """The folder, named by its commit, in Hugging Face's cache; None if it is known to lack some of the files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=wanted, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def _download(name: str, root: Path) -> None:
    """Have torchvision download what it calls `name` to `root`; other processes that want it wait."""
    from torchvision import datasets

    try:
        with locked(root / f".{name}.lock"), redirect_stdout(sys.stderr):
            getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # urllib's, gdown's, requests', torchvision's own, the operating system's
        raise UserError(
            f"data: {name} can't be downloaded to {root}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


READERS: dict[str, Callable[[Data], NDArray[np.uint8]]] = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}
ENCODED: dict[str, Callable[[Data], Encoded]] = {"celeba": celeba, "lsun": lsun, "folder": folder, "parquet": parquet}
