"""What all figures of a run share: style, panels, lines, ticks, legends, and saving."""

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from matplotlib import colormaps, style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from taugrid.eval.tables.labels import SIGMA_HAT, short_samplers
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.table import Table
from taugrid.storage import replacing

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 10, "legend.fontsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "axes.edgecolor": "#555555", "axes.titlecolor": "#444444",
    "savefig.dpi": 200, "svg.hashsalt": "taugrid",
}  # fmt: skip
"""The salt fixes the ids within an SVG."""

SAMPLER_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
"""The Okabe-Ito palette without yellow, which is too light for a line: samplers have no order."""
GREY = "#555555"
SIGMA_HAT_COLOUR = "#d55e00"
"""Vermilion of the Okabe-Ito palette, distinct from viridis in every common kind of colour vision."""
SAMPLER_DASHES = ("-", "--", "-.")
MARKERS = "osD^vP<>phd*"
PANELS_ACROSS = 3
DODGE = 0.024
"""Points of one S are spread over this share of the axis, in the order of eta, so that no bar hides another."""
MAX_TICKS = 8
"""Numbers that fit below a panel. More are not marked one by one."""
WIDE = 4  # a value axis over more than this factor has at least two of 1, 2 and 5 times powers of ten
MIN_SPAN = 1.1
"""The value axis ends at no less than this many times its start; otherwise nearly equal values would look far apart."""
HEADING_WIDTH = 40  # characters that fit beside a panel
TITLE_WIDTH = 52  # characters that fit above or below a panel
LEGEND_LINE = 0.19  # inches that a line of a legend below the panel takes

ROW_HEIGHT = 3.4  # height of a figure with one row of panels, in inches
MAX_LEGEND_LINES = 14  # lines of a legend that fit beside a row of panels; with more, the figure gets higher
CHARACTER_WIDTH = 0.068  # width of a character of a legend, in inches
MAX_NAME_LENGTH = 10  # characters of a legend's name that fit beside the panels; with more, the figure gets wider

MAX_SIDE = 2**15
"""Pixels. A larger picture gets fewer per inch: matplotlib refuses 2^16; its SVG stays sharp."""

Values = NDArray[np.float64]
FigureTable = TypeVar("FigureTable")


class LineStyle(NamedTuple):
    """The style of one eta or setting, the same in every panel."""

    name: str
    x_offset: float
    colour: str | tuple[float, ...]
    marker: str
    dashes: str
    key: str  # the ids of the line's elements in an SVG begin with this, so that a page can hide them together


Styles = Mapping[str, LineStyle]


def save(figure: Figure, path_stem: Path) -> None:
    """Write `path_stem` + .png and .svg, each atomically; equal figures give equal bytes."""
    number_ids(figure)
    with plain_style():
        dpi = min(STYLE["savefig.dpi"], MAX_SIDE / max(figure.get_size_inches()))
        for kind, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            with replacing(path_stem.with_name(f"{path_stem.name}.{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata, dpi=dpi)
            figure.set_layout_engine("none")  # the other file has the same layout, and need not compute it


def number_ids(figure: Figure) -> None:
    """Add a number to each artist's id, such as "line-2.7", so that no two within an SVG are the same."""
    for number, artist in enumerate(figure.findobj(lambda artist: artist.get_gid() is not None)):
        artist.set_gid(f"{key_of(artist)}.{number}")


def key_of(artist: Artist) -> str:
    """The id of an artist without the number, empty if it has none."""
    return (artist.get_gid() or "").partition(".")[0]


def name_parts(look: LineStyle, artists: Iterable[Artist]) -> None:
    """Give the line's key to `artists`, which are drawn for it."""
    for artist in artists:
        artist.set_gid(look.key)


def make_panels(down: int, across: int, x_scale: str = "log") -> tuple[Figure, list[Axes]]:
    """A figure and its panels row by row, with a common logarithmic scale for the values."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(1.3 + 3.6 * across, 0.3 + (ROW_HEIGHT - 0.3) * down), layout=layout)
    scales = {"xscale": x_scale, "yscale": "log"}
    return figure, list(figure.subplots(down, across, sharey=True, squeeze=False, subplot_kw=scales).flat)


def plain_style() -> AbstractContextManager[None]:
    """`STYLE` on top of matplotlib's defaults, so that a user's matplotlibrc has no effect."""
    return cast(AbstractContextManager[None], style.context(STYLE, after_reset=True))


def panels_figure(
    tables: Sequence[FigureTable],
    draw: Callable[[Axes, FigureTable, Styles], None],
    styles: Styles,
    x_scale: str,
    heading: str,
    y_scale: str = "log",
) -> Figure:
    """A panel for each of `tables`, with one scale for the values under `heading`, and one legend beside them."""
    across = max(1, min(len(tables), PANELS_ACROSS))
    down = max(1, math.ceil(len(tables) / across))
    with plain_style():
        figure, panels = make_panels(down, across, x_scale)
        for panel in panels[max(1, len(tables)) :]:
            panel.remove()
        for panel, table in zip(panels, tables, strict=False):
            panel.set_yscale(y_scale)
            draw(panel, table, styles)
        for panel in panels[::across]:
            panel.set_ylabel(textwrap.fill(heading, HEADING_WIDTH))
        if y_scale == "log":
            mark_values(panels[0])
        lines: dict[str, Any] = {}
        for panel in figure.axes:
            handles, labels = panel.get_legend_handles_labels()
            lines |= dict(zip(labels, handles, strict=True))
        if names := [look.name for look in styles.values() if look.name in lines]:
            figure.legend([lines[name] for name in names], names, loc="outside right upper", frameon=False)
            make_room(figure, names)
        else:
            where: dict[str, Any] = {"transform": panels[0].transAxes, "ha": "center", "backgroundcolor": "white"}
            panels[0].text(0.5, 0.5, "nothing has been measured", **where)
    return figure


def ordered_styles(names: Mapping[str, str], spread: float = DODGE, others: int = 0) -> dict[str, LineStyle]:
    """Viridis from dark to light in the order of `names`, which maps labels to their names in the legend. The points of
    one S are spread over the share `spread` of the axis, also those of `others` behind them."""
    shades = colormaps["viridis"](np.linspace(0.0, 0.82, max(2, len(names))))
    count = len(names) + others
    offsets = spread * np.linspace(-0.5, 0.5, count) if count > 1 else np.zeros(1)
    return {
        label: LineStyle(name, float(offsets[i]), tuple(shades[i]), MARKERS[i % len(MARKERS)], "-", f"line-{i}")
        for i, (label, name) in enumerate(names.items())
    }


def row_styles(
    names: Mapping[tuple[str, ...], str], row_keys: Sequence[str], spread: float = DODGE
) -> dict[str, LineStyle]:
    """`ordered_styles` for the labels of rows; where `row_keys` has samplers, a colour for each of them instead. If a
    single row has sigma_hat, it comes last, dashed, in a colour of its own."""
    hats = [label for label in names if SIGMA_HAT in label]
    special = hats if len(hats) == 1 else []
    usual = [label for label in names if label not in special]
    styles = ordered_styles({" ".join(label): names[label] for label in usual}, spread, len(special))
    for label in special:
        offset = spread / 2 if len(names) > 1 else 0.0
        styles[" ".join(label)] = LineStyle(names[label], offset, SIGMA_HAT_COLOUR, "X", "--", "line-hat")
    if "sampler" in row_keys:
        lines: dict[str, int] = {}  # of each sampler
        for (key, look), label in zip(styles.items(), [*usual, *special], strict=True):
            sampler = label[row_keys.index("sampler")]
            lines[sampler] = lines.get(sampler, -1) + 1
            place, dashes = list(lines).index(sampler) % len(SAMPLER_COLOURS), SAMPLER_DASHES[lines[sampler] % 3]
            styles[key] = look._replace(colour=SAMPLER_COLOURS[place], dashes=dashes)
    return styles


def legend_name(label: str) -> str:
    """A setting, wrapped to lines that fit. A dollar sign in it is shown literally."""
    return textwrap.fill(short_samplers(label), TITLE_WIDTH).replace("$", r"\$")


def draw_line(panel: Axes, positions: Values, values: Values, errors: Values, look: LineStyle) -> None:
    drawn = panel.errorbar(
        positions,
        values,
        yerr=None if np.isnan(errors).all() else np.nan_to_num(errors),
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
    name_parts(look, drawn.get_children())


def has_place(values: Values, scale: str) -> NDArray[np.bool_]:
    """Which values an axis of this scale can show."""
    return values > 0 if scale == "log" else np.isfinite(values)


def scale_of(tables: Sequence[Table]) -> str:
    """The scale of the value axis: logarithmic, unless the metric may be 0 or less (KID's estimate is unbiased)."""
    is_log = all(table.metric == FID or not any(v.number <= 0 for v in table.values.values()) for table in tables)
    return "log" if is_log else "linear"


def mark_numbers(panel: Axes, at: Sequence[float] = ()) -> None:
    """Put ticks on the logarithmic horizontal axis at each number of a few, else at round numbers."""
    is_few = 0 < len(at) <= MAX_TICKS
    panel.xaxis.set_major_locator(FixedLocator(list(at)) if is_few else LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())


def mark_values(panel: Axes) -> None:
    """Put ticks at round numbers on the logarithmic vertical axis, whose range is widened to `MIN_SPAN`."""
    low, high = panel.get_ylim()
    widening = math.sqrt(max(1.0, MIN_SPAN * low / high))
    panel.set_ylim(low / widening, high * widening)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > WIDE * low else MaxNLocator(5))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(NullLocator())


def make_room(figure: Figure, names: Collection[str], below: int = 0) -> None:
    """Make a figure wide and high enough for a legend of `names` beside its panels, and `below` lines under it."""
    lines = [line for name in names for line in name.split("\n")]
    longest = max(map(len, lines), default=0)
    figure.set_figwidth(figure.get_figwidth() + CHARACTER_WIDTH * max(0, longest - MAX_NAME_LENGTH))
    extra = max(0, len(lines) + below - MAX_LEGEND_LINES)
    figure.set_figheight(max(figure.get_figheight(), ROW_HEIGHT + LEGEND_LINE * extra))
