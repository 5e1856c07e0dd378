"""Encodes images as PNG and lays them out in the columns of a file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.images import encode_png
from taugrid.parquet.schemas import SETTING_FIELDS
from taugrid.parquet.writer import BYTES_PER_GROUP, ROWS_PER_GROUP, PartWriter


def pictures(batch: NDArray[np.uint8], start: int) -> dict[str, Any]:
    """The columns `image` and `index` for a (B, C, H, W) batch whose first image has index `start`."""
    return _picture_columns([encode_png(image) for image in batch], start)


def _picture_columns(pngs: Sequence[bytes], start: int) -> dict[str, Any]:
    index = range(start, start + len(pngs))
    return {
        "image": [{"bytes": png, "path": f"{i:07d}.png"} for i, png in zip(index, pngs, strict=True)],
        "index": index,
    }


class SampleWriter:
    """Encodes batches of one shard in order and writes them; row groups depend on the images alone, not on timing."""

    def __init__(self, part: PartWriter, settings: Mapping[str, Any], start: int) -> None:
        self._part = part
        self._settings = settings
        self._next = start
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def append(self, images: NDArray[np.uint8]) -> None:
        """Add a (B, C, H, W) batch; the first of the shard has index `start`."""
        self.append_encoded([encode_png(image) for image in images])

    def append_encoded(self, pngs: Sequence[bytes]) -> None:
        """Add images that are PNG already, such as those of an earlier file of the same shard."""
        for png in pngs:
            if self._pending and self._pending_bytes + len(png) > BYTES_PER_GROUP:
                self.flush()
            self._pending.append(png)
            self._pending_bytes += len(png)
            if len(self._pending) == ROWS_PER_GROUP:
                self.flush()

    def flush(self) -> None:
        """Write the pending images as a row group."""
        count = len(self._pending)
        if count:
            columns = _picture_columns(self._pending, self._next)
            columns |= {name: [self._settings[name]] * count for name, _ in SETTING_FIELDS}
            self._part.write(columns)
            self._next += count
            self._pending, self._pending_bytes = [], 0
