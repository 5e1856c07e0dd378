"""Figures of a run: FID against S, and the samples themselves side by side."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from eval.tables import FID, SIGMA_HAT, Pivot, pivot
from workers.files import replacing

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 10, "legend.fontsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "axes.edgecolor": "#555555", "axes.titlecolor": "#444444",
    "savefig.dpi": 200, "svg.hashsalt": "taugrid",
}  # fmt: skip
"""The salt fixes the ids within an SVG."""

MARKERS = "osD^vP<>phd*"
SIGMA_HAT_COLOUR = "#d55e00"
"""Vermilion of the Okabe-Ito palette: apart from all of viridis for every common kind of colour vision."""
PANELS_ACROSS = 3
DODGE = 0.024
"""Points of one S are spread over this part of the axis, in the order of eta, or their bars would hide one another."""
FEWEST_TICKS = 5
TITLE_WIDTH = 52
"""Characters that fit above a panel."""


class LineStyle(NamedTuple):
    """How one eta is drawn, the same in every panel."""

    name: str
    shift: float
    colour: str | tuple[float, ...]
    marker: str
    dashes: str


def quality(frame: pd.DataFrame, path_stem: Path) -> None:
    """`quality_figure(frame)` as `path_stem` + .png and .svg, put in place whole; equal input gives equal bytes."""
    figure = quality_figure(frame)
    with _plain_style():
        for kind, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            with replacing(path_stem.with_name(f"{path_stem.name}.{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)


def quality_figure(frame: pd.DataFrame) -> Figure:
    """FID against S, both logarithmic: a line for each eta, bars of ±1 standard error, a panel for each pivot.

    A cell without an FID is left out of its line, as is one with an FID of 0 or less, which has no logarithm.
    """
    pivots = pivot(frame, FID.column, FID.error)
    styles = _styles({label for table in pivots for label in table.values.index})
    across = max(1, min(len(pivots), PANELS_ACROSS))
    down = max(1, math.ceil(len(pivots) / across))
    with _plain_style():
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        figure = Figure(figsize=(1.3 + 3.6 * across, 0.3 + 3.1 * down), layout=layout)
        scales = {"xscale": "log", "yscale": "log"}
        panels = list(figure.subplots(down, across, sharey=True, squeeze=False, subplot_kw=scales).flat)
        for panel in panels[max(1, len(pivots)) :]:
            panel.remove()
        for panel, table in zip(panels, pivots, strict=False):
            _draw(panel, table, styles)
        for panel in panels[::across]:
            panel.set_ylabel(FID.heading)
        _mark_quality(panels[0])
        _legend(figure, styles.values())
    return figure


def _plain_style() -> AbstractContextManager[None]:
    """`STYLE` on top of matplotlib's own defaults, so that a person's matplotlibrc changes nothing."""
    return cast(AbstractContextManager[None], style.context(STYLE, after_reset=True))


def _styles(labels: Iterable[str]) -> dict[str, LineStyle]:
    """Viridis from dark to light in the order of eta, so that colour reads as a scale; sigma_hat apart, and dashed."""
    given = set(labels)
    numbers = sorted(given - {SIGMA_HAT}, key=float)
    shades = colormaps["viridis"](np.linspace(0.0, 0.82, max(2, len(numbers))))
    shifts = DODGE * (np.linspace(-0.5, 0.5, len(given)) if len(given) > 1 else np.zeros(1))
    styles = {
        label: LineStyle(rf"$\eta$ = {label}", shifts[i], tuple(shades[i]), MARKERS[i % len(MARKERS)], "-")
        for i, label in enumerate(numbers)
    }
    if SIGMA_HAT in given:
        styles[SIGMA_HAT] = LineStyle(r"$\hat{\sigma}$", shifts[-1], SIGMA_HAT_COLOUR, "X", "--")
    return styles


def _draw(panel: Axes, table: Pivot, styles: Mapping[str, LineStyle]) -> None:
    steps = [int(steps) for steps in table.values.columns]
    lines = [textwrap.fill(line, TITLE_WIDTH) for line in (table.heading, *table.notes) if line]
    panel.set_title("\n".join(lines), parse_math=False)  # a path may hold a dollar sign
    panel.set_xlabel("sampling steps $S$")
    span = _mark_steps(panel, steps)
    for label in table.values.index:
        look, value = styles[str(label)], table.values.loc[label]
        shown = value[value > 0]
        if shown.empty:
            continue
        panel.errorbar(
            shown.index.to_numpy() * math.exp(span * look.shift),
            shown,
            yerr=table.errors.loc[label, shown.index].fillna(0.0),
            label=look.name,
            color=look.colour,
            marker=look.marker,
            linestyle=look.dashes,
            linewidth=1.3,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=1.0,
            capsize=2.5,
        )


def _mark_steps(panel: Axes, steps: Sequence[int]) -> float:
    """Ticks at every S of the grid, the number left out where the next one is too near; returns log(right / left)."""
    extent = math.log(steps[-1] / steps[0])
    written = {steps[-1]}
    for candidate in reversed(steps):
        if math.log(min(written) / candidate) > 0.085 * extent:
            written.add(candidate)
    panel.xaxis.set_major_locator(FixedLocator(steps))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if round(x) in written else ""))
    panel.xaxis.set_minor_locator(NullLocator())
    margin = 0.06 * extent or math.log(2)
    panel.set_xlim(steps[0] * math.exp(-margin), steps[-1] * math.exp(margin))
    return extent + 2 * margin


def _mark_quality(panel: Axes) -> None:
    """Round numbers as ticks, also over a narrow range, where a logarithmic axis tends to have none."""
    low, high = panel.get_ylim()
    choices = [LogLocator(subs=subs, numticks=50) for subs in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))]
    for locator in [*choices, MaxNLocator(7, steps=[1, 2, 5, 10])]:
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(ticks) >= FEWEST_TICKS:
            break
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylim(low, high)


def _legend(figure: Figure, styles: Iterable[LineStyle]) -> None:
    """One legend for all panels, outside of them, in the order of eta."""
    lines: dict[str, Any] = {}
    for panel in figure.axes:
        handles, names = panel.get_legend_handles_labels()
        lines |= dict(zip(names, handles, strict=True))
    names = [look.name for look in styles if look.name in lines]
    if names:
        figure.legend([lines[name] for name in names], names, loc="outside right upper", frameon=False)
    else:
        panel = figure.axes[0]
        panel.text(0.5, 0.5, "no cell has an FID", transform=panel.transAxes, ha="center", backgroundcolor="white")


TILE = 48
"""Pixels that a small image is enlarged to, about: 8x8 becomes 48x48, 32x32 becomes 64x64."""
LARGEST_TILE = 96
"""Images above this are reduced, so that a grid of large ones stays a figure."""
GAP, BLOCK_GAP, MARGIN, FONT_SIZE = 2, 14, 14, 19


def samples(images: Mapping[tuple[str, int], NDArray[np.uint8]], path: Path) -> None:
    """`samples_image(images)` as a PNG, put in place whole."""
    with replacing(path) as temporary:
        samples_image(images).save(temporary, format="PNG", optimize=True)


def samples_image(images: Mapping[tuple[str, int], NDArray[np.uint8]]) -> Image.Image:
    """Rows of eta and columns of S, in each cell the same n images as a block; cells that `images` lacks stay blank.

    `images` maps (eta as in a config: "0.2" or "sigma_hat", S) to uint8 images (n, H, W), (n, H, W, 1) or (n, H, W, 3),
    where n, H and W are the same in every cell and image i of each cell has the same sample index. The picture is grey
    if all of them are, else RGB.

    Raises:
        ValueError: if there are no images, they differ in n, H or W, or a key is neither a number nor "sigma_hat".
    """
    sizes = {array.shape[:3] for array in images.values()}
    if len(sizes) != 1 or 0 in next(iter(sizes)):
        raise ValueError("every cell must have the same number of images, at least one, and all of the same size")
    etas = sorted({eta for eta, _ in images}, key=lambda eta: math.inf if eta == "sigma_hat" else float(eta))
    steps = sorted({steps for _, steps in images})
    blocks = {cell: _block(array) for cell, array in images.items()}
    width, height = next(iter(blocks.values())).size

    font = _font()
    labels = [SIGMA_HAT if eta == "sigma_hat" else f"η = {eta}" for eta in etas]
    left = MARGIN + math.ceil(max(font.getlength(label) for label in labels)) + MARGIN
    titles = [f"S = {s}" for s in steps]
    column = max(width, *(math.ceil(font.getlength(title)) for title in titles))
    xs = [left + (column - width) // 2 + i * (column + BLOCK_GAP) for i in range(len(steps))]
    ys = [2 * MARGIN + FONT_SIZE + i * (height + BLOCK_GAP) for i in range(len(etas))]
    mode = "RGB" if any(block.mode == "RGB" for block in blocks.values()) else "L"
    canvas = Image.new(mode, (xs[-1] + (column + width) // 2 + MARGIN, ys[-1] + height + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for x, title in zip(xs, titles, strict=True):
        draw.text((x + width / 2, MARGIN + FONT_SIZE), title, fill="black", font=font, anchor="ms")
    for y, label in zip(ys, labels, strict=True):
        draw.text((left - MARGIN, y + height / 2), label, fill="black", font=font, anchor="rm")
    for (eta, s), block in blocks.items():
        canvas.paste(block, (xs[steps.index(s)], ys[etas.index(eta)]))
    return canvas


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib's own data: it is there on every machine, and has Greek letters."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)


def _block(images: NDArray[np.uint8]) -> Image.Image:
    """The images of a cell in a block that is about as wide as two squares: 8 as 2 rows of 4."""
    grey = images.ndim == 3 or images.shape[3] == 1
    count, height, width = images.shape[:3]
    down = math.isqrt(count)
    across = math.ceil(count / down)
    size = _tile_size(width, height)
    resampling = Image.Resampling.NEAREST if size[0] >= width else Image.Resampling.LANCZOS
    block = Image.new("L" if grey else "RGB", (across * (size[0] + GAP) - GAP, down * (size[1] + GAP) - GAP), "white")
    for i, pixels in enumerate(images):
        tile = Image.fromarray(pixels.reshape(height, width) if grey else pixels).resize(size, resampling)
        block.paste(tile, (i % across * (size[0] + GAP), i // across * (size[1] + GAP)))
    return block


def _tile_size(width: int, height: int) -> tuple[int, int]:
    """Whole multiples for small images, so that every pixel stays a square; large ones reduced to LARGEST_TILE."""
    longest = max(width, height)
    if longest > LARGEST_TILE:
        return max(1, width * LARGEST_TILE // longest), max(1, height * LARGEST_TILE // longest)
    factor = max(1, math.floor(TILE / longest + 0.5))
    return width * factor, height * factor
