"""Images within a page: the same indices of every cell, and whole figures, as PNG in data URIs, within a budget."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from taugrid.eval.figures.pictures import EtaAndSteps
from taugrid.eval.tables.labels import eta_in_words, is_number

LARGE = 256  # pixels of the longer side of images that a reader may enlarge, if those of all cells fit the budget
SIDES = (96, 64, 32, 16)  # else the longer side that images are brought to, the first that fits the budget
PIXELATED = 32
"""Images up to this side are enlarged, each pixel to a square: who shows or prints a page would blur them."""
MAX_ACROSS = 8
DETERMINISTIC = "η = 0.0"
TAG_BYTES = 180  # what the page spends on an image besides its data


class ImageGrid(NamedTuple):
    """The images of cells that differ in eta and S only."""

    title: str
    steps: tuple[int, ...]
    rows: Sequence[tuple[str, Sequence[Sequence[Markup]]]]
    """Labels of eta, and the images of each S; none where the cell has no images."""
    per_cell: int  # images for each cell
    is_small: bool

    @property
    def across(self) -> int:
        """Images side by side in a cell: 4 of 8, which make 2 rows."""
        return min(MAX_ACROSS, math.ceil(self.per_cell / max(1, math.isqrt(self.per_cell))))

    @property
    def size(self) -> int:
        return sum(len(uri) + TAG_BYTES for _, cells in self.rows for images in cells for uri in images)

    @property
    def same_noise(self) -> list[tuple[str, Sequence[Markup]]]:
        """The images of eta = 0, by S: image n of each comes from one x_T (figure 5 of the paper). None for one S."""
        rows = (cells for label, cells in self.rows if label == DETERMINISTIC)
        by_steps = [(f"S = {s}", images) for s, images in zip(self.steps, next(rows, ()), strict=False) if images]
        return by_steps if len(by_steps) > 1 else []


class PagePicture(NamedTuple):
    file: str  # its name in figures/
    title: str
    of: str  # the cell or group of cells that it shows; empty if there is one such figure
    alt_text: str  # the text for screen readers
    data: Markup = Markup()  # its file as a URI; empty if it does not fit into the page


def data_uri(png: bytes) -> Markup:
    """PNG bytes as a URI that loads nothing."""
    return Markup("data:image/png;base64,") + Markup(base64.b64encode(png).decode())


def uri_bytes(png: bytes) -> int:
    """The length of `data_uri`, and of the tag around it."""
    return 4 * math.ceil(len(png) / 3) + TAG_BYTES


def grids(groups: Mapping[str, Mapping[EtaAndSteps, NDArray[np.uint8]]], budget: int) -> list[ImageGrid]:
    """A grid for each group: as many of the first images as fit `budget` bytes, as large as fits; none if nothing does.
    `groups` have the images (n, H, W) or (n, H, W, 3) of each place by title, with equal n within a group."""
    sides, arrays = [*SIDES], [images for cells in groups.values() for images in cells.values() if len(images)]
    is_large = bool(arrays) and max(arrays[0].shape[1:3]) > SIDES[0] and len(arrays) * LARGE**2 <= budget
    # Encoding all of them as large as this takes long: the first of each cell tell whether they fit well.
    if is_large and sum(uri_bytes(_png(images[0], LARGE)) * len(images) for images in arrays) <= budget // 2:
        sides.insert(0, LARGE)
    for side in sides:
        encoded = {
            title: {place: [_png(image, side) for image in images] for place, images in cells.items()}
            for title, cells in groups.items()
        }
        shown: list[list[bytes]] = []
        for cells in encoded.values():
            again = [pngs for (eta, _), pngs in cells.items() if eta == "0"]  # `ImageGrid.same_noise` has them too
            shown += [*cells.values(), *(again if len(again) > 1 else [])]
        most = max(map(len, shown), default=0)
        totals = np.cumsum([sum(uri_bytes(pngs[i]) for pngs in shown if i < len(pngs)) for i in range(most)])
        if count := int(np.searchsorted(totals, budget, side="right")):
            return [_grid(title, cells, count, groups[title]) for title, cells in encoded.items()]
    return []


def _grid(
    title: str,
    cells: Mapping[EtaAndSteps, Sequence[bytes]],
    count: int,
    images: Mapping[EtaAndSteps, NDArray[np.uint8]],
) -> ImageGrid:
    etas = sorted({eta for eta, _ in cells}, key=lambda eta: float(eta) if is_number(eta) else math.inf)
    steps = tuple(sorted({steps for _, steps in cells}))
    shown = {eta: eta_in_words(str(float(eta)) if is_number(eta) else eta) for eta in etas}
    rows = [(shown[eta], [[*map(data_uri, cells.get((eta, s), ())[:count])] for s in steps]) for eta in etas]
    first = next(iter(images.values()))
    return ImageGrid(title, steps, rows, min(count, len(first)), max(first.shape[1:3]) <= PIXELATED)


def _png(image: NDArray[np.uint8], side: int) -> bytes:
    picture = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if max(picture.size) <= PIXELATED:
        factor = max(1, min(side, SIDES[0]) // max(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
