"""The decoded images of a cell: their hashes, and how far two sets of images are apart."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.rundir.directory import RunDir

Digests = NDArray[np.int64]
"""(N,): the first 8 bytes of the SHA-256 of each decoded image, in the order of the indices."""

ImageBatch = NDArray[np.uint8]
"""(n, C, H, W)."""

FIRST_IMAGES = 16
"""Images of each cell that a baseline keeps: they say by how much the images of a later night differ."""

GONE = (FileNotFoundError, NotADirectoryError, DamagedFile)


class PixelDistance(NamedTuple):
    images: int
    differing: int
    largest: int | None
    """Grey levels, over all pixels; None if the baseline's images are gone."""
    mean: float | None
    """Grey levels, over the pixels of the images that differ."""


def digests_of(batch: ImageBatch) -> Digests:
    hashes = b"".join(hashlib.sha256(image.tobytes()).digest()[:8] for image in batch)
    return np.frombuffer(hashes, "<i8")


def pixel_digests(rundir: RunDir, cell: Cell) -> Digests | None:
    """Of all images of a cell: read and decoded or, if they were removed, as recorded. None if some are missing."""
    removed = rundir.removed_digests(cell)
    if removed is not None:
        return removed[: cell.settings.num_samples]
    found = []
    for shard in cell.shards:
        path = rundir.sample_part(cell, shard)
        try:
            found += [digests_of(batch) for _, batch in parquet.read_images(path, shard.stop, rundir.storage)]
        except GONE:
            return None
    digests = np.concatenate(found)
    return digests if len(digests) == cell.settings.num_samples else None


def first_images(rundir: RunDir, cell: Cell) -> ImageBatch | None:
    """The first `FIRST_IMAGES` images of a cell; None if they are gone."""
    first = cell.shards[0]
    path, count = rundir.sample_part(cell, first), min(first.stop, FIRST_IMAGES)
    try:
        found = [batch for _, batch in parquet.read_images(path, count, rundir.storage)]
    except GONE:
        return None
    return np.concatenate(found) if found else None


def all_images(rundir: RunDir, cell: Cell) -> Mapping[int, NDArray[np.uint8]] | None:
    """The images of a cell by index; None if files are gone."""
    found: dict[int, NDArray[np.uint8]] = {}
    for shard in cell.shards:
        path = rundir.sample_part(cell, shard)
        if not rundir.storage.exists(path):
            return None
        for index, batch in parquet.read_images(path, shard.stop, rundir.storage):
            found |= dict(zip(index.tolist(), batch, strict=True))
    return found


def grey_levels_apart(one: ImageBatch, other: ImageBatch) -> float:
    """The mean distance in grey levels of two sets of images, of as many as both have."""
    n = min(len(one), len(other))
    return float(np.abs(one[:n].astype(np.int16) - other[:n].astype(np.int16)).mean())


def distance(
    differing: NDArray[np.int64],
    images: int,
    new: Mapping[int, NDArray[np.uint8]] | None,
    old: Mapping[int, NDArray[np.uint8]] | None,
) -> PixelDistance:
    """The distance in grey levels over the images `differing` (their indices); unknown if a side's images are gone."""
    if not len(differing):
        return PixelDistance(images, 0, 0, 0.0)
    if new is None or old is None:
        return PixelDistance(images, len(differing), None, None)
    apart = [np.abs(new[int(i)].astype(np.int16) - old[int(i)].astype(np.int16)) for i in differing]
    largest = int(max(a.max() for a in apart))
    return PixelDistance(images, len(differing), largest, float(np.mean([a.mean() for a in apart])))
