"""Sealed records of images that were removed to save space: they count as done, and their scores stay.

removed/<cell's folder>.parquet holds the hash of each decoded image, and in its metadata what the sample files said:
cell, model, weights. It is in place before the first image is deleted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile
from taugrid.hashing import canonical_json
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.rundir.paths import Paths

FOLDER = "removed"


class RemovedImages(Paths):
    """The records below `removed/`."""

    def removal_record(self, cell: Cell) -> Path:
        """The record of a cell's images."""
        return self.root / FOLDER / f"{cell.name}.parquet"

    def removed_images(self, cell: Cell) -> parquet.Part | None:
        """What the record of a cell says; None if there is none. One that is damaged does not count."""
        try:
            return parquet.inspect(self.removal_record(cell), storage=self.storage)
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            return None

    def has_removed_images(self, cell: Cell) -> bool:
        """Whether the cell's images were removed after it was complete."""
        return self.storage.exists(self.removal_record(cell))

    def removed_digests(self, cell: Cell) -> NDArray[np.int64] | None:
        """(N,), the hashes of a cell's decoded images, from its record; None if there is none."""
        if self.removed_images(cell) is None:
            return None
        with self.storage.local_path(self.removal_record(cell)) as local:
            found: NDArray[np.int64] = pq.read_table(local, columns=["pixels"]).column("pixels").to_numpy()
        return found

    def remove_images(self, cell: Cell, metadata: Mapping[str, Any], digests: NDArray[np.int64]) -> None:
        """Write the record of a cell whose images are complete, and delete them.

        Args:
            cell: all its images were read.
            metadata: the cell's `sample_metadata`, and the shards with their hashes.
            digests: (N,), of its decoded images.
        """
        fields = [("index", pa.int64()), ("pixels", pa.int64())]
        schema = pa.schema(fields, metadata={b"taugrid": canonical_json(metadata).encode()})
        with parquet.PartWriter(self.removal_record(cell), schema, self.storage) as part:
            part.write({"index": np.arange(len(digests)), "pixels": digests})
            part.commit(replace=True)
        for shard in cell.shards:
            self.storage.delete(self.sample_part(cell, shard))
