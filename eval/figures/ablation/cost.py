"""The figure of cost: FID against network evaluations and device seconds, with the Pareto-optimal cells joined."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from taugrid.eval.figures.ablation.panels import make_room, name_of
from taugrid.eval.figures.drawing import (
    Styles,
    legend,
    legend_name,
    make_panels,
    mark_values,
    ordered_styles,
    plain_style,
    say_if_empty,
)
from taugrid.eval.tables.ablation.cost import IMAGES, Cost
from taugrid.eval.tables.long_form import FID

CAPTION = (
    "Filled: Pareto-optimal, joined by the grey line. A setting has a marker for each S. Bars: ± one standard error."
)


def costs_figure(found: Sequence[Cost]) -> Figure:
    """A panel for each cost, both axes logarithmic; filled points are Pareto-optimal, and a line joins them."""
    labels = dict.fromkeys(map(_setting, found))
    heads = [name for cost in found[:1] for name in cost.settings if name != "S"]
    names = {label: legend_name(name_of(label, heads, labels)) for label in labels}
    styles = ordered_styles({" ".join(label): name for label, name in names.items()}, [0.0] * len(labels))
    with plain_style():
        figure, (left, right) = make_panels(1, 2)
        _draw(left, found, lambda cost: cost.evaluations, lambda cost: cost.best_for_evaluations, styles)
        _draw(right, found, lambda cost: cost.seconds, lambda cost: cost.best_for_seconds, styles)
        left.set_xlabel("network evaluations per image")
        right.set_xlabel(f"device seconds per {IMAGES:,} images")
        left.set_ylabel(FID.heading)
        mark_values(left)
        for panel in (left, right):
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_locator(NullLocator())
        figure.supxlabel(CAPTION, fontsize=9)
        make_room(figure, names.values())
        legend(figure, styles.values(), "outside right upper")
        say_if_empty(figure, "no cell has an FID")
    return figure


def _setting(cost: Cost) -> tuple[str, ...]:
    """Everything but S."""
    return tuple(value for name, value in cost.settings.items() if name != "S")


def _draw(
    panel: Axes,
    found: Sequence[Cost],
    price: Callable[[Cost], float | None],
    is_best: Callable[[Cost], bool],
    styles: Styles,
) -> None:
    shown = [cost for cost in found if price(cost) is not None and cost.fid > 0]
    for cost in shown:
        look, error = styles[" ".join(_setting(cost))], 0.0 if math.isnan(cost.fid_se) else cost.fid_se
        face = look.colour if is_best(cost) else "white"
        panel.errorbar(
            [price(cost) or 0],
            [cost.fid],
            yerr=[error],
            color=look.colour,
            marker=look.marker,
            markersize=6,
            markerfacecolor=face,
            linestyle="",
            label=look.name,
            capsize=2.0,
        )
    for apart in dict.fromkeys(cost.apart for cost in shown):
        best = sorted((price(cost) or 0, cost.fid) for cost in shown if cost.apart == apart and is_best(cost))
        if best:
            panel.plot(*np.array(best).T, color="#999999", linewidth=1.0, zorder=0)
