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

from taugrid.eval.figures.pictures import EtaAndSteps, tiles_of
from taugrid.eval.tables.labels import eta_in_words, is_number

LARGE = 256
"""Pixels of the longer side of images that a reader may enlarge, if those of all cells fit the budget."""
SIDES = (96, 64, 32, 16)
"""Else the longer side that images are brought to, the first that fits the budget."""
PIXELATED = 32
"""Images up to this side are enlarged, each pixel to a square: who shows or prints a page would blur them."""
MAX_ACROSS = 8
DETERMINISTIC = "η = 0.0"
TAG_BYTES = 180
"""What the page spends on an image besides its data."""


class ImageGrid(NamedTuple):
    """The images of cells that differ in eta and S only."""

    title: str
    steps: tuple[int, ...]
    rows: tuple[tuple[str, tuple[tuple[Markup, ...], ...]], ...]
    """Labels of eta, and the images of each S; none where the cell has no images."""
    per_cell: int
    """Images for each cell."""
    is_small: bool

    @property
    def across(self) -> int:
        """Images side by side in a cell: 4 of 8, which make 2 rows."""
        return min(MAX_ACROSS, math.ceil(self.per_cell / max(1, math.isqrt(self.per_cell))))

    @property
    def size(self) -> int:
        return sum(len(uri) + TAG_BYTES for _, cells in self.rows for images in cells for uri in images)

    @property
    def same_noise(self) -> tuple[tuple[str, tuple[Markup, ...]], ...]:
        """The images of eta = 0, by S: image n of each comes from one x_T (figure 5 of the paper). None for one S."""
        rows = (cells for label, cells in self.rows if label == DETERMINISTIC)
        by_steps = tuple((f"S = {s}", images) for s, images in zip(self.steps, next(rows, ()), strict=False) if images)
        return by_steps if len(by_steps) > 1 else ()


class TileTable(NamedTuple):
    """A picture of tiles as a table, whose labels are text."""

    corner: str
    titles: list[str]
    rows: list[tuple[str, list[Markup]]]
    """Labels, and the tiles of the row."""


class PagePicture(NamedTuple):
    file: str
    """Its name in figures/."""
    title: str
    of: str
    """The cell or group of cells that it shows; empty if there is one such figure."""
    alt_text: str
    """The text for screen readers."""
    data: Markup = Markup()
    """The whole picture; empty if it is a table, or does not fit into the page."""
    table: TileTable | None = None

    @property
    def size(self) -> int:
        tiles = [] if self.table is None else [uri for _, row in self.table.rows for uri in row]
        return sum(len(uri) + TAG_BYTES for uri in filter(None, [self.data, *tiles]))

    def with_images(self, png: bytes) -> "PagePicture":
        """The picture with the content of its file: as a table if the file has the positions of its tiles."""
        table = _tile_table(png)
        return self._replace(table=table, data=Markup() if table else data_uri(png))


def data_uri(png: bytes) -> Markup:
    """PNG bytes as a URI that loads nothing."""
    return Markup("data:image/png;base64,") + Markup(base64.b64encode(png).decode())


def uri_bytes(png: bytes) -> int:
    """The length of `data_uri`, and of the tag around it."""
    return 4 * math.ceil(len(png) / 3) + TAG_BYTES


def grids(groups: Mapping[str, Mapping[EtaAndSteps, NDArray[np.uint8]]], budget: int) -> list[ImageGrid]:
    """A grid for each group: as many of the first images as fit `budget` bytes, as large as fits; none if nothing does.

    `groups` have the images (n, H, W) or (n, H, W, 3) of each place by title, with equal n within a group.
    """
    for side in (*([LARGE] if _fits_large(groups, budget) else []), *SIDES):
        encoded = {
            title: {place: [_png(image, side) for image in images] for place, images in cells.items()}
            for title, cells in groups.items()
        }
        count = _fitting([pngs for cells in encoded.values() for pngs in _as_shown(cells)], budget)
        if count:
            return [_grid(title, cells, count, groups[title]) for title, cells in encoded.items()]
    return []


def _fits_large(groups: Mapping[str, Mapping[EtaAndSteps, NDArray[np.uint8]]], budget: int) -> bool:
    """Whether all images are larger and fit well, going by the first of each cell: encoding all would take long."""
    cells = [images for places in groups.values() for images in places.values() if len(images)]
    is_larger = bool(cells) and max(cells[0].shape[1:3]) > SIDES[0] and len(cells) * LARGE**2 <= budget
    return is_larger and sum(uri_bytes(_png(images[0], LARGE)) * len(images) for images in cells) <= budget // 2


def _as_shown(cells: Mapping[EtaAndSteps, Sequence[bytes]]) -> list[Sequence[bytes]]:
    """The images of each cell, twice if the page has them twice (`ImageGrid.same_noise`)."""
    again = [pngs for (eta, _), pngs in cells.items() if eta == "0"]
    return [*cells.values(), *(again if len(again) > 1 else [])]


def _fitting(cells: Sequence[Sequence[bytes]], budget: int) -> int:
    most = max(map(len, cells), default=0)
    totals = np.cumsum([sum(uri_bytes(pngs[i]) for pngs in cells if i < len(pngs)) for i in range(most)])
    return int(np.searchsorted(totals, budget, side="right"))


def _grid(
    title: str,
    cells: Mapping[EtaAndSteps, Sequence[bytes]],
    count: int,
    images: Mapping[EtaAndSteps, NDArray[np.uint8]],
) -> ImageGrid:
    etas = sorted({eta for eta, _ in cells}, key=lambda eta: float(eta) if is_number(eta) else math.inf)
    steps = tuple(sorted({steps for _, steps in cells}))
    shown = {eta: eta_in_words(str(float(eta)) if is_number(eta) else eta) for eta in etas}
    rows = tuple(
        (shown[eta], tuple(tuple(map(data_uri, cells.get((eta, s), ())[:count])) for s in steps)) for eta in etas
    )
    first = next(iter(images.values()))
    return ImageGrid(title, steps, rows, min(count, len(first)), max(first.shape[1:3]) <= PIXELATED)


def _png(image: NDArray[np.uint8], side: int) -> bytes:
    picture = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if max(picture.size) <= PIXELATED:
        factor = max(1, min(side, SIDES[0]) // max(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _encoded(picture)


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _tile_table(png: bytes) -> TileTable | None:
    """The tiles of a picture; None if its file lacks their positions, or is damaged."""
    try:
        with Image.open(io.BytesIO(png)) as whole:
            if (tiles := tiles_of(whole)) is None:
                return None
            rows = [[data_uri(_encoded(tile)) for tile in row] for row in tiles.rows(whole)]
    except (OSError, SyntaxError):
        return None  # a browser shows what is left of it
    return TileTable(tiles.corner, tiles.titles, list(zip(tiles.labels, rows, strict=True)))
