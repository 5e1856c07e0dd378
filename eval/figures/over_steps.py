"""Figures of values against the number of sampling steps S, both axes logarithmic: FID, and reconstructions' error."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from taugrid.eval.figures.drawing import (
    LEGEND_LINE,
    TITLE_WIDTH,
    LineStyle,
    Styles,
    draw_line,
    fid_figure,
    legend,
    legend_name,
    make_panels,
    mark_values,
    name_parts,
    ordered_styles,
    plain_style,
    say_if_empty,
    x_offsets,
)
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import SIGMA_HAT, Pivot, is_number, pivot_tables
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_pivot
from taugrid.protocol import ProtocolFields


def draw_over_steps(panel: Axes, table: Pivot, styles: Styles, published: Mapping[str, float] = {}) -> None:
    """Draw a line for each row of `table`, without values that have no logarithm; heading and notes make the title.

    `published` has others' values by cell: they are dotted.
    """
    steps = [int(steps) for steps in table.values.columns]
    lines = [textwrap.fill(line, TITLE_WIDTH) for line in (table.label, *table.notes) if line]
    panel.set_title("\n".join(lines), parse_math=False)  # a path may hold a dollar sign
    panel.set_xlabel("sampling steps $S$")
    span = _mark_steps(panel, steps)
    for place, label in enumerate(table.labels):
        look, value, error = styles[" ".join(label)], table.values.iloc[place], table.errors.iloc[place]
        shown = value[value > 0]
        if shown.empty:
            continue
        positions = shown.index.to_numpy() * math.exp(span * look.x_offset)
        draw_line(panel, positions, shown.to_numpy(), error[shown.index].to_numpy(), look)
        cells = table.cells.iloc[place] if published else ()
        if beside := [(s, published[cell]) for s, cell in zip(steps, cells, strict=False) if cell in published]:
            (line,) = panel.plot(*np.array(beside).T, ":", color=look.colour, marker=look.marker, markersize=5)
            line.set_markerfacecolor("white")
            name_parts(look, [line])


def _mark_steps(panel: Axes, steps: Sequence[int]) -> float:
    """Put a tick at every S of the grid, without a number if the next is too near. Returns log(right / left)."""
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


SIGMA_HAT_COLOUR = "#d55e00"
"""Vermilion of the Okabe-Ito palette, distinct from viridis in every common kind of colour vision."""


def quality_figure(
    frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields] = {}, published: Mapping[str, float] = {}
) -> Figure:
    """FID against S, both logarithmic: a line for each eta, bars of ±1 standard error, a panel for each pivot.

    `protocols` has the rows' protocols by hash: cells that can't be compared don't share a panel. Cells without an FID,
    or with one of 0 or less, which has no logarithm, are left out. `published` has others' FIDs by cell, to be dotted.
    """
    pivots = pivot_tables(frame, FID, protocols)
    styles = _eta_styles({label for table in pivots for label in table.values.index})
    return fid_figure(pivots, partial(draw_over_steps, published=published), styles, "log")


def _eta_styles(labels: Iterable[str]) -> dict[str, LineStyle]:
    """Colours from dark to light in the order of eta, like a scale; sigma_hat is dashed in a colour of its own."""
    distinct = set(labels)
    numbers = sorted(filter(is_number, distinct), key=float)
    others = sorted(distinct - {*numbers, SIGMA_HAT})  # samplers without eta
    offsets = x_offsets(len(distinct))
    names = {label: rf"$\eta$ = {label}" for label in numbers} | {label: legend_name(label) for label in others}
    styles = ordered_styles(names, offsets)
    if SIGMA_HAT in distinct:
        styles[SIGMA_HAT] = LineStyle(r"$\hat{\sigma}$", offsets[-1], SIGMA_HAT_COLOUR, "X", "--", "line-hat")
    return styles


def reconstruction_figure(frame: pd.DataFrame) -> Figure:
    """The error of `reconstruction_frame` against S, both logarithmic: a line for each setting, bars of ±1 se."""
    table = reconstruction_pivot(frame)
    labels = [str(label) for label in table.values.index]
    styles = ordered_styles({label: legend_name(label) for label in labels}, x_offsets(len(labels)))
    with plain_style():
        figure, (panel,) = make_panels(1, 1)
        if labels:
            draw_over_steps(panel, table, styles)
        panel.set_ylabel(RECONSTRUCTION_ERROR.title)
        mark_values(panel)
        if len(labels) > 1:
            # Below the panel, in a taller figure: long names of settings next to the panel would narrow it.
            lines = sum(look.name.count("\n") + 1 for look in styles.values())
            figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)
            legend(figure, styles.values(), "outside lower center")
        say_if_empty(figure, "no error has been measured")
    return figure
