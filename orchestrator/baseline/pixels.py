"""The decoded images of a cell: their hashes, and the distance between two sets of images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.hashing import digests_of
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.rundir.directory import RunDir

Digests = NDArray[np.int64]
"""(N,): the first 8 bytes of the SHA-256 of each decoded image, in the order of the indices."""

ImageBatch = NDArray[np.uint8]
"""(n, C, H, W)."""

FIRST_IMAGES = 16
"""The number of images of each cell that a baseline keeps, to measure by how much those of a later night differ."""

GONE = (FileNotFoundError, NotADirectoryError, DamagedFile)


@dataclass(frozen=True)
class PixelDistance:
    """How many of the images differ, and by how many grey levels; None if the baseline's images are gone."""

    images: int
    differing: int
    largest: int | None
    mean: float | None  # over the pixels of the images that differ


def pixel_digests(rundir: RunDir, cell: Cell) -> Digests | None:
    """The hashes of all images of a cell; if the images were removed, as recorded. None if some are missing."""
    removed = rundir.removed_digests(cell)
    if removed is not None:
        return removed[: cell.settings.num_samples]
    hashes = []
    for shard in cell.shards:
        path = rundir.sample_part(cell, shard)
        try:
            hashes += [digests_of(batch) for _, batch in parquet.read_images(path, shard.stop, rundir.storage)]
        except GONE:
            return None
    digests = np.concatenate(hashes)
    return digests if len(digests) == cell.settings.num_samples else None


def images_of(rundir: RunDir, cell: Cell, count: int | None = None) -> ImageBatch | None:
    """The first `count` images of a cell, or all; None if some are gone."""
    stop = min(cell.settings.num_samples, count or cell.settings.num_samples)
    batches: list[ImageBatch] = []
    for shard in cell.shards:
        path = rundir.sample_part(cell, shard)
        try:
            if shard.start < stop:
                read = parquet.read_images(path, min(shard.stop, stop), rundir.storage)
                batches += [batch for _, batch in read]
        except GONE:
            return None
    return np.concatenate(batches) if batches else None


def distance(
    differing: NDArray[np.int64], images: int, new: ImageBatch | None, old: ImageBatch | None
) -> PixelDistance:
    """The distance in grey levels over the images `differing` (their indices); unknown if a side's images are gone."""
    if not len(differing):
        return PixelDistance(images, 0, 0, 0.0)
    if new is None or old is None:
        return PixelDistance(images, len(differing), None, None)
    distances = [np.abs(new[int(i)].astype(np.int16) - old[int(i)].astype(np.int16)) for i in differing]
    largest = int(max(image.max() for image in distances))
    return PixelDistance(images, len(differing), largest, float(np.mean([image.mean() for image in distances])))
