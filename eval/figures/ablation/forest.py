"""A forest plot of effects: each with its 95 % interval, beside the line of no effect."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from taugrid.eval.figures.drawing import plain_style, say_if_empty
from taugrid.eval.tables.ablation.effects import EACH_CELL, Effect
from taugrid.eval.tables.ablation.effects_files import short_keys_of
from taugrid.eval.tables.ablation.seeds import LEVEL

MOST_ROWS = 36
"""If there are more effects, those of single cells are left to effects.md."""
ROW_HEIGHT = 0.22
"""Inches."""
CAPTION_WIDTH = 100
"""Characters."""
SPAN = 5.0
"""Times the middle effect from which the largest would hide the small ones on a linear axis."""
CERTAIN, OPEN = "#0072b2", "#888888"
"""Blue of the Okabe-Ito palette, and grey."""


def effects_figure(found: Sequence[Effect]) -> Figure:
    """A panel for each key, a row for each effect: filled and blue where p (Holm) is below `LEVEL`."""
    rows = list(found) if len(found) <= MOST_ROWS else [effect for effect in found if effect.scope != EACH_CELL]
    names = short_keys_of(rows)
    by_key = {key: [effect for effect in rows if effect.key == key] for key in names}
    heights = [len(its) + 1.6 for its in by_key.values()]
    with plain_style():
        figure = Figure(figsize=(7.2, 0.8 + ROW_HEIGHT * sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.05))
        panels = figure.subplots(len(by_key), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for panel, (key, its) in zip(panels, by_key.items(), strict=True):
            _draw(panel, its, f"{names[key]}, against {its[0].base}")
        beyond = _linear_reach(rows)
        if beyond is not None:
            panels[0].set_xscale("symlog", linthresh=beyond)
            panels[0].xaxis.set_major_formatter("{x:g}")
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
        face = colour if certain else "white"
        panel.errorbar([effect.effect], [place], xerr=reach, fmt="o", color=colour, markerfacecolor=face, capsize=2.5)
    panel.set_yticks(range(len(rows)), [f"{e.value}  {e.settings or 'all'}".replace("$", r"\$") for e in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)


def _linear_reach(rows: Sequence[Effect]) -> float | None:
    """How far the axis is linear, if effects differ so much that the small ones would not be seen on it."""
    sizes = sorted(abs(effect.effect) for effect in rows)
    middle = sizes[len(sizes) // 2]
    return float(f"{middle:.1g}") if middle and sizes[-1] > SPAN * middle else None


def _caption(rows: Sequence[Effect], beyond: float | None) -> str:
    over = " or ".join(dict.fromkeys("sampling alone" if e.over == "sampling" else f"{e.over}s" for e in rows))
    scale = "" if beyond is None else f" The axis is logarithmic beyond ±{beyond:g}."
    return (
        f"FID minus the base's, all else equal (below 0 is better), with 95 % intervals over {over}. Filled: p below "
        f"{LEVEL} after Holm's correction.{scale}"
    )
