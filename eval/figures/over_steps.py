"""A panel of values against the number of sampling steps S, both axes logarithmic."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from taugrid.eval.figures.drawing import TITLE_WIDTH, Styles, draw_line, name_parts
from taugrid.eval.tables.pivots import Pivot


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
        positions = shown.index.to_numpy() * math.exp(span * look.shift)
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
