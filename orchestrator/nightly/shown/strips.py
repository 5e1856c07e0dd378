"""Pictures of a night's worst cells: the baseline's images, and below them tonight's of the same noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.figures.pictures import before_and_after
from taugrid.hashing import identity
from taugrid.orchestrator.plan.naming import name_of
from taugrid.storage import Storage

MOST_STRIPS = 4
IMAGES = 8
"""Of each side."""


class BeforeAndAfter(NamedTuple):
    """A cell of the night, as (n, C, H, W) uint8 images 0 to n - 1; None where they are gone."""

    label: str
    baseline: NDArray[np.uint8] | None
    tonight: NDArray[np.uint8] | None


def strips(pairs: Sequence[BeforeAndAfter], folder: Path, storage: Storage) -> dict[str, Path]:
    """Write a PNG for each of the first `MOST_STRIPS` cells that have images, and remove all others from the folder.

    A picture has two rows: the first `IMAGES` images of the baseline, and tonight's of the same indices. If one side
    lacks them, its row says so.

    Args:
        pairs: the worst cell first. Channels are 1 or 3; both sides of a cell have images of the same size.
        folder: `Night.strips`.
        storage: of the history.

    Returns:
        The cell's label -> the file, for the cells that have one.
    """
    shown = [pair for pair in pairs if _has_images(pair.baseline) or _has_images(pair.tonight)][:MOST_STRIPS]
    written: dict[str, Path] = {}
    if shown:
        with storage.local_folder(folder) as local:
            for pair in shown:
                name = f"{_safe(pair.label)}.png"
                before_and_after(_pixels(pair.baseline), _pixels(pair.tonight), local / name)
                written[pair.label] = folder / name
    for path in storage.list(folder, "*.png"):
        if path not in written.values():
            storage.delete(path)
    return written


def _has_images(images: NDArray[np.uint8] | None) -> bool:
    return images is not None and len(images) > 0


def _pixels(images: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """(n, C, H, W) as (n, H, W, C), as pictures take them."""
    return None if images is None or not len(images) else images[:IMAGES].transpose(0, 2, 3, 1)


def _safe(label: str) -> str:
    """The label as a file's name. A label that a name can't hold gets a hash, so that two of them stay apart."""
    name = name_of([label.replace(" ", "-")])
    return name if name == label.replace(" ", "-") else f"{name}-{identity({'label': label})}"
