"""The figure of cost: a metric against network evaluations and device seconds, with the Pareto-optimal cells joined."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from taugrid.eval.figures.ablation.panels import name_of
from taugrid.eval.figures.drawing import (
    Styles,
    legend_name,
    make_panels,
    make_room,
    mark_numbers,
    mark_values,
    name_parts,
    plain_style,
    row_styles,
)
from taugrid.eval.tables.ablation.cost import IMAGES, Cost, named

CAPTION = (
    "Filled: Pareto-optimal, that is, no cell has a {better} at no more cost; the grey line joins these. "
    "Bars: ± one standard error. Left: equal numbers of evaluations are spread sideways. Right: numbers are S."
)
CAPTION_WIDTH = 110
"""Characters in a line of the caption."""
SPREAD = 0.3
"""Settings with equal numbers of evaluations are spread over this share of the distance to the next number."""
MAX_SPREAD = math.log(2)
"""They are spread over a factor of two at most."""
GREY = "#999999"


def costs_figure(costs: Sequence[Cost]) -> Figure:
    """A panel for each cost; filled points are Pareto-optimal, and a line joins them.

    All axes are logarithmic, but for values that may be 0 or less.
    """
    metric, is_log = costs[0].metric, all(cost.value > 0 for cost in costs)
    labels = dict.fromkeys(map(_setting, costs))
    row_keys = [name for cost in costs[:1] for name in cost.settings if name != "S"]
    names = {label: legend_name(name_of(label, row_keys, labels)) for label in labels}
    spread = _spread(cost.evaluations for cost in costs) if len(labels) > 1 else 0.0
    with plain_style():
        figure, (left, right) = make_panels(1, 2)
        left.set_yscale("log" if is_log else "linear")
        styles = row_styles(names, row_keys, list(np.linspace(-spread / 2, spread / 2, len(labels))))
        _draw(left, costs, lambda cost: cost.evaluations, lambda cost: cost.best_for_evaluations, styles)
        exact = row_styles(names, row_keys, [0.0] * len(labels))
        _draw(right, costs, lambda cost: cost.seconds, lambda cost: cost.best_for_seconds, exact)
        _write_steps(right, costs, exact)
        left.set_xlabel("network evaluations per image")
        right.set_xlabel(f"device seconds per {IMAGES:,} images")
        left.set_ylabel(metric.heading)
        if is_log:
            mark_values(left)
        mark_numbers(left, sorted({cost.evaluations for cost in costs}))
        mark_numbers(right)
        figure.supxlabel(textwrap.fill(named(CAPTION, metric), CAPTION_WIDTH), fontsize=9)
        make_room(figure, names.values(), below=4)  # the line on filled markers, and the caption
        _legend(figure, styles)
    return figure


def _spread(counts: Iterable[int]) -> float:
    """The width of the part of a logarithmic axis over which markers with one number are spread."""
    logs = sorted({math.log(count) for count in counts})
    return min([MAX_SPREAD, *(SPREAD * (right - left) for left, right in pairwise(logs))])


def _write_steps(panel: Axes, costs: Sequence[Cost], styles: Styles) -> None:
    """Write S beside each marker: above and below in turn from left to right, as neighbours may be close."""
    shown = [(cost.seconds, cost) for cost in costs if cost.seconds is not None]
    for place, (seconds, cost) in enumerate(sorted(shown, key=lambda pair: pair[0])):
        look = styles[" ".join(_setting(cost))]
        text = panel.annotate(
            cost.settings["S"],
            (seconds, cost.value),
            xytext=(4, (4, -9)[place % 2]),
            textcoords="offset points",
            fontsize=7,
            color=look.colour,
        )
        name_parts(look, [text])


def _legend(figure: Figure, styles: Styles) -> None:
    """Add a legend: every setting with an empty marker, and the meaning of filled markers."""
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=6, markerfacecolor="white", linestyle="")
        for look in styles.values()
    ]
    best = Line2D([], [], color=GREY, marker="o", markersize=6, linewidth=1.0)
    names = [*(look.name for look in styles.values()), "Pareto-optimal (filled)"]
    figure.legend([*handles, best], names, loc="outside right upper", frameon=False)


def _setting(cost: Cost) -> tuple[str, ...]:
    """The values of all settings but S."""
    return tuple(value for name, value in cost.settings.items() if name != "S")


def _draw(
    panel: Axes,
    costs: Sequence[Cost],
    price: Callable[[Cost], float | None],
    is_best: Callable[[Cost], bool],
    styles: Styles,
) -> None:
    shown = [cost for cost in costs if price(cost) is not None]
    places = {cost.cell: (price(cost) or 0) * math.exp(styles[" ".join(_setting(cost))].x_offset) for cost in shown}
    for cost in shown:
        look, error = styles[" ".join(_setting(cost))], 0.0 if math.isnan(cost.error) else cost.error
        drawn = panel.errorbar(
            [places[cost.cell]],
            [cost.value],
            yerr=[error],
            label=look.name,
            color=look.colour,
            marker=look.marker,
            markersize=6,
            markerfacecolor=look.colour if is_best(cost) else "white",
            linestyle="",
            capsize=2.0,
        )
        name_parts(look, drawn.get_children())
    for group in dict.fromkeys(cost.comparable_by for cost in shown):
        best = sorted(
            (places[cost.cell], cost.value) for cost in shown if cost.comparable_by == group and is_best(cost)
        )
        if best:
            panel.plot(*np.array(best).T, color=GREY, linewidth=1.0, zorder=0)
