"""Pictures of the board: the first images of a cell in one PNG, side by side."""

import numpy as np

from taugrid.errors import DamagedFile, UserError
from taugrid.images import encode_png
from taugrid.orchestrator.board.document import PER_CELL, BoardRow
from taugrid.parquet import first_pictures


def strip(row: BoardRow) -> bytes:
    """The images 0 to `PER_CELL` - 1 of a cell in native size, as one PNG; missing ones are black.

    Raises:
        UserError: if it has no images, or they can't be read.
    """
    found, folder = row.run.found, row.of("folders")
    if folder is None:
        raise UserError("there are no images of this cell")
    try:
        names = sorted(name for name in found.storage.level(found.root / "samples" / folder).files)
        parts = [found.root / "samples" / folder / name for name in names if name.endswith(".parquet")]
        if not parts:
            raise UserError("there are no images of this cell")
        pictures = first_pictures(parts, PER_CELL, found.storage)
    except (DamagedFile, OSError, ValueError) as error:
        raise UserError(f"the images of this cell can't be read: {error}") from None
    blank = np.zeros((PER_CELL - len(pictures), *pictures.shape[1:]), np.uint8)
    side_by_side = np.concatenate([*pictures, *blank], axis=1)
    return encode_png(side_by_side[None] if side_by_side.ndim == 2 else side_by_side.transpose(2, 0, 1))
