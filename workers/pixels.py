"""The pixels of the shards that a worker sampled last: their features need no file to be read and no PNG decoded."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.storage import Storage

MAX_BYTES = 64 * 2**20
"""Bytes that a worker keeps, in host memory: 21,000 images of 3 x 32 x 32. A node may have a hundred workers."""


class KeptPixels:
    """The (B, C, H, W) uint8 batches of one shard; none are kept of a shard that is too large."""

    def __init__(self) -> None:
        self.size = 0
        self._batches: list[NDArray[np.uint8]] = []

    def append(self, batch: NDArray[np.uint8]) -> None:
        self.size += batch.nbytes
        if self.size > MAX_BYTES:
            self._batches.clear()
        else:
            self._batches.append(batch)

    def split(self, counts: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """The images in batches of these sizes."""
        images = np.concatenate(self._batches)
        return iter(np.split(images, np.cumsum(counts)[:-1]))


class SampledShard(NamedTuple):
    """What a committed file holds."""

    digest: bytes
    """The SHA-256 of its seal."""
    cell: str
    start: int
    """The index of its first image."""
    counts: tuple[int, ...]
    """The number of images in each of its row groups."""
    pixels: KeptPixels

    @property
    def groups(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """What `parquet.read_images` yields of the file."""
        first = self.start
        for images in self.pixels.split(self.counts):
            yield np.arange(first, first + len(images)), images
            first += len(images)


class LastSampled:
    """The last shards that a worker sampled, by path, as far as they fit into `MAX_BYTES`. May be used by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, SampledShard] = OrderedDict()

    def add(self, path: str, sampled: SampledShard) -> None:
        if sampled.pixels.size > MAX_BYTES:
            return
        with self._lock:
            self._shards.pop(path, None)
            self._shards[path] = sampled
            while sum(shard.pixels.size for shard in self._shards.values()) > MAX_BYTES:
                self._shards.popitem(last=False)

    def take(self, path: str, storage: Storage) -> SampledShard | None:
        """Remove and return a shard, if the file in place is the one that was written here, by its seal; else None."""
        with self._lock:
            sampled = self._shards.pop(path, None)
        is_same = sampled is not None and parquet.file_end(Path(path), storage).digest == sampled.digest
        return sampled if is_same else None

    def clear(self) -> None:
        with self._lock:
            self._shards.clear()
