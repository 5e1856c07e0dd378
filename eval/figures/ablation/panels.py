"""Figures of the keys that are compared: FID against S with a panel for each value, and a heat map over two keys."""

import math
from collections.abc import Collection, Iterator, Sequence
from numbers import Real

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from taugrid.eval.figures.drawing import (
    LEGEND_LINE,
    PANELS_ACROSS,
    fid_figure,
    legend_name,
    ordered_styles,
    plain_style,
    shifts,
)
from taugrid.eval.figures.over_steps import draw_over_steps
from taugrid.eval.tables.ablation.effects import TOGETHER, Effect, short_keys_of
from taugrid.eval.tables.entries import write_number
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import Layout, Pivot
from taugrid.eval.tables.quality import QualityTable

LINES_BESIDE = 14
"""Lines of a legend that fit beside a row of panels."""
CHARACTER_WIDTH = 0.068
"""Inches that a character of a legend takes."""
SHORT_NAME = 10
"""Characters of a name that fit without more width."""
MOST_PANELS = 12
"""Of a heat map."""


def name_of(label: Sequence[str], heads: Sequence[str], all_labels: Collection[Sequence[str]]) -> str:
    """A row's name in a legend, such as "schedule=cosine", without what all rows share; "all" if that is everything."""
    varies = [len(set(texts)) > 1 for texts in zip(*all_labels, strict=True)]
    parts = zip(heads, label, varies, strict=True)
    return " ".join(f"{head}={text}" for head, text, differs in parts if differs) or "all"


def make_room(figure: Figure, names: Collection[str]) -> None:
    """Make a figure wide and high enough for a legend of `names` beside its panels."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    figure.set_figwidth(figure.get_figwidth() + CHARACTER_WIDTH * max(0, longest - SHORT_NAME))
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, len(names) - LINES_BESIDE))


def panels_figures(table: QualityTable, found: Sequence[Effect]) -> Iterator[tuple[str, Figure]]:
    """Name and figure for each key of the effects `found` on FID.

    There is a panel for each value of the key, and a line for everything else: means over replicates with their errors.
    """
    settings = table.arranged(Layout()).settings
    for key, short in short_keys_of(found).items():
        keys = key.split(TOGETHER)
        if set(keys) & {"steps", "eta"}:
            continue  # S is the axis of every panel, and eta makes the lines of figures/quality
        rows = (*(name for name in settings if name not in keys), "eta")
        tables = table.arranged(Layout(rows)).tables(FID)
        labels = dict.fromkeys(label for each in tables for label in each.labels)
        names = {" ".join(label): legend_name(name_of(label, tables[0].heads, labels)) for label in labels}
        figure = fid_figure(tables, draw_over_steps, ordered_styles(names, shifts(len(names))), "log")
        make_room(figure, names.values())
        yield f"by-{short.replace(TOGETHER, '-')}", figure


def heat_maps(table: QualityTable, found: Sequence[Effect]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of FID over the first two keys that are ablated and numbers, or over one and S."""
    frame = table.frame
    numeric = [key for key in short_keys_of(found) if _is_numeric(frame, key)]
    chosen = [*numeric, "steps"] if "steps" not in numeric and frame["steps"].nunique() > 1 else numeric
    if not numeric or len(chosen) < 2:
        return
    tables = table.arranged(Layout((chosen[0],), chosen[1])).tables(FID)
    positive = [number for each in tables for number in each.values.to_numpy().flat if number > 0]
    if positive:
        norm = LogNorm(min(positive), max(positive) * (1 + 1e-9))
        yield "heat-map", _heat_map(tables[:MOST_PANELS], norm)


def _is_numeric(frame: pd.DataFrame, key: str) -> bool:
    if key == "eta" and (frame["sigma"] != "eta").any():
        return False  # sigma_hat is a row of its own
    values = list(frame[key]) if key in frame else [None]
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in values)


def _heat_map(tables: Sequence[Pivot], norm: LogNorm) -> Figure:
    across = min(len(tables), PANELS_ACROSS)
    down = math.ceil(len(tables) / across)
    rows, columns = tables[0].values.shape
    with plain_style():
        size = (1.6 + across * (1.0 + 0.75 * columns), 0.5 + down * (1.0 + 0.42 * rows))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine())
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel in panels[len(tables) :]:
            panel.remove()
        for panel, table in zip(panels, tables, strict=False):
            image = _draw(panel, table, norm)
        bar = figure.colorbar(image, ax=panels[: len(tables)], label=FID.heading)
        bar.ax.yaxis.set_minor_formatter("{x:g}")
        bar.ax.yaxis.set_major_formatter("{x:g}")
    return figure


def _draw(panel: Axes, table: Pivot, norm: LogNorm):  # type: ignore[no-untyped-def]  # matplotlib's image
    values = table.values.sort_index(key=_as_numbers).sort_index(axis=1, key=_as_numbers)
    image = panel.imshow(values.to_numpy(), norm=norm, cmap="viridis_r", aspect="auto")
    panel.grid(visible=False)
    panel.set_title(table.label, parse_math=False)
    panel.set_xlabel(table.across)
    panel.set_ylabel(table.heads[0])
    panel.set_xticks(range(values.shape[1]), [str(column) for column in values.columns])
    panel.set_yticks(range(values.shape[0]), [str(label) for label in values.index])
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        if math.isfinite(value):
            dark = value > 0 and norm(value) > 0.5
            panel.text(column, row, write_number(value)[0], ha="center", va="center", fontsize=8,
                       color="white" if dark else "black")  # fmt: skip
    return image


def _as_numbers(labels: pd.Index) -> pd.Index:
    return pd.Index([float(label) for label in labels])
