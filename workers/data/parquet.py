"""`parquet`: the image column of Parquet files, in a folder or on the Hugging Face hub."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from taugrid.config import Data
from taugrid.config.model import is_hub_id
from taugrid.errors import DamagedFile, UserError
from taugrid.workers import hub
from taugrid.workers.data.decoding import EncodedDataset
from taugrid.workers.data.places import root_of
from taugrid.workers.data.readers.directory import below, fits
from taugrid.workers.data.readers.parquet_files import parquet_reader
from taugrid.workers.data.readers.picture import Picture, SourceError

SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\b.*")
"""How Hugging Face names the files of a split. A hash may follow."""

HUB_ROOT = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<folder>.+?))?/?")
"""A data set's address as huggingface_hub's file system writes it; a slash in a revision is %2F."""


def read(data: Data) -> EncodedDataset:
    """The image column of Parquet files, by path, then row. `root` is a file, a folder, or hf://datasets/ORG/NAME.

    A split's files are named SPLIT.parquet or SPLIT-*.parquet, or are in a folder of its name, as Hugging Face writes
    and finds them.

    Raises:
        UserError: if there are none, one of X-00000-of-0000N is missing, or one can't be read.
    """
    patterns = _patterns(data.split)
    root = _hub_folder(data, patterns) if "://" in str(data.root) else root_of(data)
    if root.is_file():
        root, paths = root.parent, [root] if fits(root.name, patterns) else []
    else:
        paths = below(root, patterns)
        _require_all_shards(paths)
    if not paths:
        wanted = "*.parquet" if data.split == "all" else f"{data.split}.parquet or {data.split}-*.parquet"
        hint = "" if data.split == "all" else ", or data.split: all"
        raise UserError(f"data: there is no {wanted} in {data.root}: set data.root to a folder that has some{hint}")
    try:
        tables = [parquet_reader(path) for path in paths]
    except (SourceError, DamagedFile) as error:
        raise UserError(f"data: {error}") from None

    def pictures() -> Iterator[Picture]:
        for table in tables:
            yield from table.pictures(0)

    return EncodedDataset(root, paths, sum(table.num_images for table in tables), pictures, lambda picture: picture)


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
                f"data: {folder} has {count - len(missing)} of the {count} files {split}-*-of-{count:05d}; number "
                f"{missing[0]} is missing: get it (data.download: true, from hf://), or set data.root to one file"
            )


def _patterns(split: str) -> list[str]:
    """Patterns of the relative paths of a split's files; a star matches slashes too."""
    if split == "all":
        return ["*.parquet"]
    names = [f"{split}.parquet", f"{split}-*.parquet", f"{split}/*.parquet"]
    return [*names, *(f"*/{name}" for name in names)]


def _hub_folder(data: Data, patterns: Sequence[str]) -> Path:
    """The folder in Hugging Face's cache that holds a data set's Parquet files, downloaded if `data.download` is set.

    The commit in the cache is reused, so that a data set doesn't change between two commands. With `download`, the hub
    provides the files that the cache lacks, and the list of files if the cache has none.
    """
    match = HUB_ROOT.fullmatch(str(data.root))
    revision = match and match["revision"] and unquote(match["revision"])
    identifier = "" if match is None else match["repo"] + (f"@{revision}" if revision else "")
    if match is None or not is_hub_id(identifier):
        raise UserError(
            f"data.root: {data.root} is neither a path nor hf://datasets/ORG/NAME, perhaps with @REVISION or /FOLDER"
        )
    within = f"{match['folder']}/" if match["folder"] else ""
    wanted = [f"{within}{pattern}" for pattern in patterns]
    cached = _cached_snapshot(match["repo"], revision, [] if data.download else wanted)
    if data.download:
        commit = None if cached is None else cached.name
        cached = hub.snapshot(identifier, wanted, "data.root", commit, kind="dataset")
    elif cached is None:
        raise UserError(
            f"data: Hugging Face's cache does not hold all of {data.root}: set data.download: true, or data.root to a "
            "folder with its Parquet files"
        )
    return cached / within


def _cached_snapshot(repository: str, revision: str | None, wanted: list[str]) -> Path | None:
    """The folder in Hugging Face's cache, named after its commit; None if it is known to lack some of the files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=wanted, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)
