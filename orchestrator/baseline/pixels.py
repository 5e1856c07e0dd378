"""Hashes of decoded images, and how far two sets of images are apart."""

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

FIRST_IMAGES = 16
"""Images of each cell that a baseline keeps: they say by how much the images of a later night differ."""


class PixelDistance(NamedTuple):
    """How far the images of a cell are from the baseline's."""

    images: int
    differing: int
    largest: int | None
    """Grey levels, over all pixels; None if the baseline's images are gone."""
    mean: float | None
    """Grey levels, over the pixels of the images that differ."""


def digests_of(batch: NDArray[np.uint8]) -> Digests:
    """Of images (B, C, H, W)."""
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
            for _, batch in parquet.read_images(path, shard.stop, rundir.storage):
                found.append(digests_of(batch))
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            return None
    digests = np.concatenate(found)
    return digests if len(digests) == cell.settings.num_samples else None


def first_images(rundir: RunDir, cell: Cell) -> NDArray[np.uint8] | None:
    """The first `FIRST_IMAGES` images (n, C, H, W) of a cell; None if they are gone."""
    first, found = cell.shards[0], []
    try:
        for _, batch in parquet.read_images(
            rundir.sample_part(cell, first), min(first.stop, FIRST_IMAGES), rundir.storage
        ):
            found.append(batch)
    except (FileNotFoundError, NotADirectoryError, DamagedFile):
        return None
    return np.concatenate(found) if found else None


def grey_levels_apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The mean distance in grey levels of two sets of images (n, C, H, W), of as many as both have."""
    n = min(len(one), len(other))
    return float(np.abs(one[:n].astype(np.int16) - other[:n].astype(np.int16)).mean())


def distance(
    differing: NDArray[np.int64],
    images: int,
    new: Mapping[int, NDArray[np.uint8]] | None,
    old: Mapping[int, NDArray[np.uint8]] | None,
) -> PixelDistance:
    """The distance in grey levels over the images `differing` (their indices), if both sides' images are at hand."""
    if new is None or old is None or not len(differing):
        return PixelDistance(images, len(differing), None if len(differing) else 0, None if len(differing) else 0.0)
    apart = [np.abs(new[int(i)].astype(np.int16) - old[int(i)].astype(np.int16)) for i in differing]
    return PixelDistance(
        images, len(differing), int(max(a.max() for a in apart)), float(np.mean([a.mean() for a in apart]))
    )
