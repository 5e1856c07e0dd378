"""A forest plot of effects: each with its 95 % interval, beside the line of no effect."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator

from taugrid.eval.figures.drawing import plain_style, say_if_empty
from taugrid.eval.tables.ablation.effects import EACH_CELL, EACH_S, EVERYWHERE, Effect, short_keys_of
from taugrid.eval.tables.ablation.effects_files import GIVEN_NOISE
from taugrid.eval.tables.ablation.seeds import LEVEL

MOST_ROWS = 36
"""If there are more effects, those of single cells are left to effects.md."""
ROW_HEIGHT = 0.22
"""Inches."""
CAPTION_WIDTH = 100
"""Characters."""
SPAN = 5.0
"""The axis is logarithmic where some row reaches this many times as far from 0 as the median row: on a linear axis, one
such row would hide the others."""
TICKS_APART = 3.0
"""Times one tick of a logarithmic axis at which the next may stand; more where the axis is longer."""
MOST_TICKS = 5
"""On a side, beyond the linear part: labels have room for these."""
CERTAIN, OPEN = "#0072b2", "#888888"
"""Blue of the Okabe-Ito palette, and grey."""


def effects_figure(found: Sequence[Effect]) -> Figure:
    """A panel for each value of a key, a row for each effect: filled and blue where p (Holm) is below `LEVEL`.

    Single cells come first: an average over them can hide that they differ in sign.
    """
    scopes = (EACH_CELL, EACH_S, EVERYWHERE) if len(found) <= MOST_ROWS else (EACH_S, EVERYWHERE)
    rows = [effect for scope in scopes for effect in found if effect.scope == scope]
    names = short_keys_of(found)
    values = dict.fromkeys((effect.key, effect.value) for effect in found)
    panels_of = [[effect for effect in rows if (effect.key, effect.value) == value] for value in values]
    heights = [len(its) + 2.4 for its in panels_of]
    with plain_style():
        figure = Figure(figsize=(7.2, 0.8 + ROW_HEIGHT * sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.05))
        panels = figure.subplots(len(panels_of), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for panel, its in zip(panels, panels_of, strict=True):
            _draw(panel, its, f"{names[its[0].key]}: {its[0].value} minus {its[0].base}")
        beyond = _linear_reach(rows)
        for panel in panels:
            panel.tick_params(labelbottom=True)
            if beyond is not None:
                _bend(panel, beyond, rows)
        figure.supxlabel(textwrap.fill(_caption(rows, beyond), CAPTION_WIDTH), fontsize=9)
        say_if_empty(figure, "no effect has an interval")
    return figure


def _draw(panel: Axes, rows: Sequence[Effect], title: str) -> None:
    panel.set_title(title, loc="left", parse_math=False)
    panel.axvline(0, color="#555555", linewidth=0.8)
    panel.grid(visible=False, axis="y")
    for place, effect in enumerate(rows):
        certain = effect.p_holm is not None and effect.p_holm < LEVEL
        colour = CERTAIN if certain else OPEN
        reach = None if effect.low is None else [[effect.effect - effect.low]] * 2
        panel.errorbar(
            [effect.effect],
            [place],
            xerr=reach,
            fmt="o" if effect.scope == EACH_CELL else "D",
            markersize=5,
            color=colour,
            markerfacecolor=colour if certain else "white",
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
    return " ".join(filter(None, ["average", f"at {effect.settings}" if effect.settings else "over all cells"]))


def _linear_reach(rows: Sequence[Effect]) -> float | None:
    """How far from 0 the axis is linear: the median reach, to one digit; None if all of it is linear.

    The median is of single cells where `rows` has them, because averages contain the outlier, and is the lower one of
    an even number: of two rows, either may be the outlier. Rows at 0 have no size to compare with.
    """
    reaches = sorted(reach for row in rows if row.scope == rows[0].scope and (reach := _reach(row)))
    middle = reaches[(len(reaches) - 1) // 2] if reaches else math.inf
    return float(f"{middle:.1g}") if max(map(_reach, rows)) > SPAN * middle else None


def _reach(row: Effect) -> float:
    """The largest distance from 0 of the effect and of its interval's ends."""
    return max(abs(end) for end in (row.effect, row.low, row.high) if end is not None)


def _bend(panel: Axes, beyond: float, rows: Sequence[Effect]) -> None:
    """Make the axis logarithmic from +-`beyond` on, with a tick and a dotted line there."""
    panel.set_xscale("symlog", linthresh=beyond)
    largest = max(map(_reach, rows))
    apart = max(TICKS_APART, (largest / beyond) ** (1 / MOST_TICKS))
    decades = range(math.floor(math.log10(beyond)), math.floor(math.log10(largest)) + 1)
    sizes = [beyond / 2, beyond]
    for size in (step * 10.0**decade for decade in decades for step in (1, 2, 5)):
        sizes += [size] if apart * sizes[-1] <= size <= largest else []
    ends = [end for row in rows for end in (row.effect, row.low, row.high) if end is not None]
    low, high = min(-beyond, *ends), max(beyond, *ends)
    panel.set_xticks([x for x in (*(-size for size in reversed(sizes)), 0.0, *sizes) if low <= x <= high])
    panel.autoscale(axis="x")  # margins that were made for a linear axis are wide on this one
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    for place in (-beyond, beyond):
        panel.axvline(place, color="#777777", linewidth=1.2, linestyle=":", zorder=1)


def _caption(rows: Sequence[Effect], beyond: float | None) -> str:
    over = " or ".join(dict.fromkeys("sampling alone" if e.over == "sampling" else f"{e.over}s" for e in rows))
    scale = "" if beyond is None else " The axis is linear between the dotted lines and logarithmic outside them."
    over += GIVEN_NOISE if any(effect.given_noise for effect in rows) else ""
    cells = "a cell each, and averages over cells (diamonds)" if rows[0].scope == EACH_CELL else "averages over cells"
    return (
        f"Differences of FID, all else equal (below 0 is better): {cells}, with 95 % intervals over {over}. Filled: p "
        f"below {LEVEL} after Holm's correction.{scale}"
    )
