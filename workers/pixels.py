"""The pixels of the shards that a worker sampled last: their features need no file to be read and no PNG decoded."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.storage import Storage

MAX_BYTES = 64 * 2**20
"""Bytes that a worker keeps, in host memory: 21,000 images of 3 x 32 x 32. A node may have a hundred workers."""


RowGroup = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Consecutive indices (B,) and their images (B, C, H, W), as `parquet.read_images` yields them of a file."""


def row_groups(start: int, counts: Sequence[int], batches: Sequence[NDArray[np.uint8]]) -> list[RowGroup]:
    """The images from number `start` on, in groups of these sizes; they come in batches of any sizes."""
    images, ends = np.concatenate(batches), np.cumsum(counts)[:-1]
    index = np.arange(start, start + len(images))
    return list(zip(np.split(index, ends), np.split(images, ends), strict=True))


class LastSampled:
    """The last shards that a worker sampled, by path, as far as they fit into `MAX_BYTES`. May be used by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, tuple[bytes, list[RowGroup]]] = OrderedDict()

    def add(self, path: str, digest: bytes, groups: list[RowGroup]) -> None:
        """Keep what a committed file holds. `digest`: the SHA-256 of its seal."""
        with self._lock:
            self._shards[path] = digest, groups
            self._shards.move_to_end(path)
            while sum(images.nbytes for _, groups in self._shards.values() for _, images in groups) > MAX_BYTES:
                self._shards.popitem(last=False)

    def take(self, path: str, storage: Storage) -> list[RowGroup] | None:
        """Remove and return a shard, if the file in place is the one that was written here, by its seal; else None."""
        with self._lock:
            sampled = self._shards.pop(path, None)
        is_same = sampled is not None and parquet.file_end(Path(path), storage)[0].digest == sampled[0]
        return sampled[1] if sampled is not None and is_same else None

    def clear(self) -> None:
        with self._lock:
            self._shards.clear()
