"""A forest plot: each effect with its 95 % interval, beside the line of no effect."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from taugrid.eval.figures.drawing import CHARACTER_WIDTH, plain_style, say_if_empty
from taugrid.eval.tables.ablation.effects import CONDITIONAL_ON_SEED, Effect, short_key_names
from taugrid.eval.tables.ablation.pairing import EACH_CELL, EACH_S, EVERYWHERE
from taugrid.eval.tables.ablation.seeds import LEVEL
from taugrid.eval.tables.labels import short_samplers
from taugrid.eval.tables.long_form import FID
from taugrid.registry.metrics import MetricColumn

MAX_ROWS = 36
"""With more effects than this, those of single cells are only in effects.md."""
ROW_HEIGHT = 0.22
"""Inches."""
CAPTION_WIDTH = 100
"""Characters."""
TITLE_WIDTH = 72
"""Characters that fit above a panel."""
MAX_LABEL = 30
"""Characters of a row's label that fit beside a panel; with more, the figure gets wider."""
MAX_LINEAR_RATIO = 5.0
"""If a row reaches more than this many times as far from 0 as the median row, the axis is partly logarithmic: on a
linear axis, this row would squeeze the others."""
SIGNIFICANT, NOT_SIGNIFICANT = "#0072b2", "#888888"
"""Colours: blue of the Okabe-Ito palette, and grey."""


def effects_figure(effects: Sequence[Effect], metric: MetricColumn = FID) -> Figure:
    """A panel for each value of a key, a row for each effect on `metric`: filled and blue if p (Holm) is below `LEVEL`.

    Single cells come first: an average over them can hide that they differ in sign.
    """
    scopes = (EACH_CELL, EACH_S, EVERYWHERE) if len(effects) <= MAX_ROWS else (EACH_S, EVERYWHERE)
    rows = [effect for scope in scopes for effect in effects if effect.scope == scope]
    names = short_key_names(effects)
    values = dict.fromkeys((effect.key, effect.value) for effect in effects)
    groups = [[effect for effect in rows if (effect.key, effect.value) == value] for value in values]
    heights = [len(group) + 2.4 for group in groups]
    width = 7.2 + CHARACTER_WIDTH * max(0, *(len(_row_label(effect)) - MAX_LABEL for effect in rows))
    with plain_style():
        figure = Figure(figsize=(width, 0.8 + ROW_HEIGHT * sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.05))
        panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for panel, group in zip(panels, groups, strict=True):
            title = f"{names[group[0].key]}: {group[0].value} minus {group[0].base}"
            _draw(panel, group, textwrap.fill(short_samplers(title), TITLE_WIDTH))
        threshold = _linear_threshold(rows)
        for panel in panels:
            panel.tick_params(labelbottom=True)
            if threshold is not None:
                panel.set_xscale("asinh", linear_width=threshold)
                panel.xaxis.set_major_formatter("{x:g}")
        figure.supxlabel(textwrap.fill(_caption(rows, threshold, metric), CAPTION_WIDTH), fontsize=9)
        say_if_empty(figure, "no effect has an interval")
    return figure


def _draw(panel: Axes, rows: Sequence[Effect], title: str) -> None:
    panel.set_title(title, loc="left", parse_math=False)
    panel.axvline(0, color="#555555", linewidth=0.8)
    panel.grid(visible=False, axis="y")
    for place, effect in enumerate(rows):
        colour = SIGNIFICANT if effect.is_significant else NOT_SIGNIFICANT
        half_width = None if effect.low is None else effect.effect - effect.low
        panel.errorbar(
            [effect.effect],
            [place],
            xerr=half_width,
            fmt="o" if effect.scope == EACH_CELL else "D",
            markersize=5,
            color=colour,
            markerfacecolor=colour if effect.is_significant else "white",
            capsize=2.5,
        )
    cells = sum(effect.scope == EACH_CELL for effect in rows)
    if 0 < cells < len(rows):
        panel.axhline(cells - 0.5, color="#bbbbbb", linewidth=0.8)
    panel.set_yticks(range(len(rows)), [_row_label(effect).replace("$", r"\$") for effect in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)


def _row_label(effect: Effect) -> str:
    if effect.scope == EACH_CELL:
        return effect.settings or "its only cell"
    return f"average at {effect.settings}" if effect.settings else "average over all cells"


def _linear_threshold(rows: Sequence[Effect]) -> float | None:
    """The distance from 0 up to which the axis is about linear: the rows' median; None if all of it is linear.

    The median is over single cells if `rows` has any, because averages contain the outlier. Of an even number it is the
    lower one: of two rows, either may be the outlier. Rows at 0 have no size to compare with.
    """
    reach = [max(abs(end) for end in (row.effect, row.low, row.high) if end is not None) for row in rows]
    sizes = sorted(size for row, size in zip(rows, reach, strict=True) if row.scope == rows[0].scope and size)
    median = sizes[(len(sizes) - 1) // 2] if sizes else math.inf
    return median if max(reach) > MAX_LINEAR_RATIO * median else None


def _caption(rows: Sequence[Effect], threshold: float | None, metric: MetricColumn) -> str:
    over = " or ".join(dict.fromkeys("sampling alone" if e.over == "sampling" else f"{e.over}s" for e in rows))
    scale = "" if threshold is None else " The axis is linear near 0 and logarithmic far from it."
    over += CONDITIONAL_ON_SEED if any(effect.is_conditional_on_seed for effect in rows) else ""
    cells = "a cell each, and averages over cells (diamonds)" if rows[0].scope == EACH_CELL else "averages over cells"
    side = "above" if metric.higher_is_better else "below"
    return (
        f"Differences of {metric.title}, all else equal ({side} 0 is better): {cells}, "
        f"with 95 % intervals over {over}. Filled: p below {LEVEL} after Holm's correction.{scale}"
    )
