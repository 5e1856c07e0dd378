"""Where the tiles of a picture stand and what is written beside them, kept as a text within its PNG.

A page can take such a picture apart, and show the words in its own colours and to screen readers.
"""

import json
from typing import NamedTuple

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

KEY = "taugrid-tiles"


class Tiles(NamedTuple):
    """A grid of tiles of one size, in pixels."""

    width: int
    height: int
    xs: list[int]
    """The left edge of each column."""
    ys: list[int]
    """The top of each row."""
    titles: list[str]
    """What stands above the columns."""
    labels: list[str]
    """What stands beside the rows."""
    corner: str
    """What the titles count; empty if they say it themselves."""

    @property
    def text(self) -> PngInfo:
        """The layout as `PIL.Image.save` takes it (`pnginfo`)."""
        info = PngInfo()
        info.add_text(KEY, json.dumps(self._asdict()))
        return info

    def rows(self, picture: Image) -> list[list[Image]]:
        return [[picture.crop((x, y, x + self.width, y + self.height)) for x in self.xs] for y in self.ys]


def tiles_of(picture: Image) -> Tiles | None:
    """The layout that a PNG has; None if it has none that this version knows, as those of others."""
    text = picture.info.get(KEY)
    try:
        return None if text is None else Tiles(**json.loads(text))
    except (ValueError, TypeError):
        return None
