"""Pictures of samples side by side: grids of image tiles with labelled rows and columns.

Each is a PNG, put in place whole, with equal bytes for equal input, and grey if all images are, else RGB. Images are
uint8 (n, H, W), (n, H, W, 1) or (n, H, W, 3); a `ValueError` says if there are none, or if they differ in n, H or W.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from taugrid.eval.tables.labels import eta_in_words, is_number
from taugrid.storage import replacing

ImageArray = NDArray[np.uint8]
EtaAndSteps = tuple[str, int]
"""The place of a cell in a grid of pictures: eta as in a config ("0.2" or "sigma_hat"), and S."""

TILE = 48  # approximate size in pixels that a small image is enlarged to: 8x8 becomes 48x48, 32x32 becomes 64x64
LARGEST_TILE = 96  # larger images are reduced to this size, so that a grid of them stays readable
SIDES = ("baseline", "tonight")
NOT_THERE = "its images are not at hand"
GAP, BLOCK_GAP, MARGIN, FONT_SIZE = 2, 14, 14, 19


def samples(images: Mapping[EtaAndSteps, ImageArray], path: Path, title: str = "") -> None:
    """Rows of eta and columns of S, with the same n images as a block in each cell. Missing cells stay blank. n, H and
    W are the same in every cell, and image i of each cell has the same sample index."""
    _check_sizes(images.values())
    etas = sorted({eta for eta, _ in images}, key=lambda eta: float(eta) if is_number(eta) else math.inf)
    steps = sorted({steps for _, steps in images})
    blocks = {(etas.index(eta), steps.index(s)): _block(array) for (eta, s), array in images.items()}
    _write(blocks, list(map(eta_in_words, etas)), [f"S = {s}" for s in steps], path, BLOCK_GAP, title=title)


def consistency(images: Mapping[int, ImageArray], path: Path) -> None:
    """A row for each S, ascending, and a column for each x_T, that of sample i in column i: the paper's figure 5."""
    steps = sorted(images)
    _write_rows([images[s] for s in steps], [f"S = {s}" for s in steps], path, corner="sample")


def reconstructions(originals: ImageArray, rebuilt: Mapping[int, ImageArray], path: Path) -> None:
    """The original images, and below them, in the same order, what encoding and decoding with S steps makes of them."""
    steps = sorted(rebuilt)
    labels = ["original", *(f"S = {s}" for s in steps)]
    _write_rows([originals, *(rebuilt[s] for s in steps)], labels, path, corner="image")


def interpolations(rows: ImageArray, path: Path) -> None:
    """A row for each pair of x_T, a column for each fraction of the way from one to the other, eq. 67. `rows` are (r,
    k, H, W) or (r, k, H, W, 3), k >= 2; row i leads from sample 2 i to sample 2 i + 1 in equal parts."""
    labels = [f"{2 * i} → {2 * i + 1}" for i in range(len(rows))]
    _write_rows(list(rows), labels, path, _fractions(rows.shape[1]))


def interpolation_grid(images: ImageArray, path: Path) -> None:
    """The grid of two pairs of x_T: its first row leads from sample 0 to 1, its last from sample 2 to 3. `images` are
    (k, k, H, W) or (k, k, H, W, 3), k >= 2; down the columns is the way from the first row to the last."""
    down, across = images.shape[:2]
    if down != across:
        raise ValueError(f"a grid of two pairs must have as many rows as columns, not {down} x {across}")
    fractions = _fractions(across)
    _write_rows(list(images), ["0 → 1", *fractions[1:-1], "2 → 3"], path, fractions)


def classes(rows: Mapping[str, ImageArray], path: Path, title: str) -> None:
    """A row for each class, by its name, with as many images of it as every row has."""
    count = min(map(len, rows.values()))
    _write_rows([images[:count] for images in rows.values()], list(rows), path, title=title)


def before_and_after(before: ImageArray | None, after: ImageArray | None, path: Path) -> None:
    """The baseline's images, and below them tonight's of the same indices. A row that is None is said to be gone."""
    there = [images for images in (before, after) if images is not None]
    count = min(map(len, there))
    blank = np.full_like(there[0][:count], 255)
    rows = [blank if images is None else images[:count] for images in (before, after)]
    gone = [i for i, images in enumerate((before, after)) if images is None]
    _write_rows(rows, SIDES, path, corner="sample", gone=gone)


def pairs(before: ImageArray, after: ImageArray, labels: Sequence[str], path: Path) -> None:
    """A row for each pair of images, named by `labels`: A, B and the size of their difference, the largest white."""
    distance = np.abs(after.astype(np.int16) - before)
    factor = 255 / max(1, int(distance.max()))
    scaled = np.rint(distance * factor).astype(np.uint8)
    rows = [np.stack(row) for row in zip(before, after, scaled, strict=True)]
    _write_rows(rows, labels, path, ["A", "B (new)", f"|B - A| x {factor:.3g}"])


def _fractions(count: int) -> list[str]:
    if count < 2:
        raise ValueError(f"an interpolation must have at least 2 images, its ends, not {count}")
    return [f"{i / (count - 1):.2g}" for i in range(count)]


def _check_sizes(arrays: Iterable[ImageArray]) -> None:
    sizes = {array.shape[:3] for array in arrays}
    if len(sizes) != 1 or 0 in next(iter(sizes)):
        actual = " and ".join(" x ".join(map(str, size)) for size in sorted(sizes)) or "none"
        raise ValueError(
            "every cell or row must have the same number of images, at least one, and all of the same size; "
            f"found (images x height x width) {actual}"
        )


def _write_rows(
    rows: Sequence[ImageArray], labels: Sequence[str], path: Path, titles: Sequence[str] = (), **more: Any
) -> None:
    """A tile for each image, without `titles` under its index in its row."""
    _check_sizes(rows)
    blocks = {(i, j): _block(row[j : j + 1]) for i, row in enumerate(rows) for j in range(len(row))}
    _write(blocks, labels, titles or [str(index) for index in range(len(rows[0]))], path, GAP, **more)


def _write(
    blocks: Mapping[tuple[int, int], Image.Image],
    labels: Sequence[str],
    titles: Sequence[str],
    path: Path,
    gap: int,
    corner: str = "",
    title: str = "",
    gone: Collection[int] = (),
) -> None:
    """Write blocks of one size at their (row, column), with row labels on the left, column titles above, a `gap` apart.
    `corner` is the unit of the titles; rows that are `gone` are said to be missing."""
    font = label_font()
    width, height = next(iter(blocks.values())).size
    left = MARGIN + math.ceil(max(font.getlength(label) for label in (*labels, corner))) + MARGIN
    column = max(width, *(math.ceil(font.getlength(head)) for head in titles))
    heads = MARGIN + FONT_SIZE + (MARGIN + FONT_SIZE if title else 0)  # the base line of the titles
    xs = [left + (column - width) // 2 + i * (column + gap) for i in range(len(titles))]
    ys = [heads + MARGIN + i * (height + gap) for i in range(len(labels))]
    mode = "RGB" if any(block.mode == "RGB" for block in blocks.values()) else "L"
    across = max(xs[-1] + (column + width) // 2, MARGIN + math.ceil(font.getlength(title))) + MARGIN
    canvas = Image.new(mode, (across, ys[-1] + height + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    texts: list[tuple[tuple[float, float], str, str]] = [((MARGIN, MARGIN + FONT_SIZE), title, "ls")]
    texts.append(((left - MARGIN, heads), corner, "rs"))
    texts += [((x + width / 2, heads), head, "ms") for x, head in zip(xs, titles, strict=True)]
    texts += [((left - MARGIN, y + height / 2), label, "rm") for y, label in zip(ys, labels, strict=True)]
    texts += [((xs[0], ys[i] + height / 2), NOT_THERE, "lm") for i in gone]
    for (i, j), block in blocks.items():
        canvas.paste(block, (xs[j], ys[i]))
    for at, text, anchor in texts:
        draw.text(at, text, fill="black", font=font, anchor=anchor)
    with replacing(path) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)


def _block(images: ImageArray) -> Image.Image:
    """The n images in a block with at least as many columns as rows: 8 as 2 rows of 4."""
    grey = images.ndim == 3 or images.shape[3] == 1
    count, height, width = images.shape[:3]
    down = math.isqrt(count)
    across = math.ceil(count / down)
    longest = max(width, height)
    if longest > LARGEST_TILE:
        size = max(1, width * LARGEST_TILE // longest), max(1, height * LARGEST_TILE // longest)
    else:  # a whole multiple, so that pixels stay square
        factor = max(1, math.floor(TILE / longest + 0.5))
        size = width * factor, height * factor
    resampling = Image.Resampling.NEAREST if size[0] >= width else Image.Resampling.LANCZOS
    block = Image.new("L" if grey else "RGB", (across * (size[0] + GAP) - GAP, down * (size[1] + GAP) - GAP), "white")
    for i, pixels in enumerate(images):
        tile = Image.fromarray(pixels.reshape(height, width) if grey else pixels).resize(size, resampling)
        block.paste(tile, (i % across * (size[0] + GAP), i // across * (size[1] + GAP)))
    return block


def label_font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib's data: it is on every machine and has Greek letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)
