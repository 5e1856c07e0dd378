"""Figures of grids that compare settings: cost, effects, a panel for each value of a key, and a map over two keys."""

import math
import textwrap
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from taugrid.eval.figures import drawing
from taugrid.eval.figures.drawing import Styles, legend_name, scale_of
from taugrid.eval.figures.lines import LABELS, places_of, tables_figure
from taugrid.eval.tables.cost import Cost
from taugrid.eval.tables.effects import (
    CONDITIONAL_ON_SEED,
    EACH_CELL,
    EACH_S,
    EVERYWHERE,
    KEY_SEPARATOR,
    Effect,
    short_key_names,
)
from taugrid.eval.tables.labels import row_name, short_samplers
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.quality import QualityTable
from taugrid.eval.tables.seeds import LEVEL
from taugrid.eval.tables.table import Table, with_floors, write_number
from taugrid.grids import Layout
from taugrid.registry.metrics import MetricColumn

COSTS_CAPTION = (
    "Filled: Pareto-optimal, that is, no cell has a better {title} at no more cost; the grey line joins these.\n"
    "Bars: ± one standard error. Left: equal numbers of evaluations are spread sideways. Right: numbers are S."
)
MAX_SPREAD = math.log(2)
"""Settings with equal numbers of evaluations are spread over 0.3 of the distance to the next number, or this factor."""
GREY = "#999999"

MAX_EFFECTS = 36  # with more effects than this, those of single cells are only in effects.md
EFFECT_HEIGHT = 0.22  # inches of a row
CAPTION_WIDTH = 100
EFFECTS_TITLE_WIDTH = 72  # characters that fit above a panel
MAX_LABEL = 30  # characters of a row's label that fit beside a panel; with more, the figure gets wider
SIGNIFICANT, NOT_SIGNIFICANT = "#0072b2", "#888888"  # colours: blue of the Okabe-Ito palette, and grey

MAX_MAPS = 12  # panels of a heat map


def name_of(label: Sequence[str], row_keys: Sequence[str], all_labels: Collection[Sequence[str]]) -> str:
    """A row's name in a legend, without settings that all rows share; "all" without any."""
    varies = [len(set(texts)) > 1 for texts in zip(*all_labels, strict=True)]
    parts = zip(row_keys, label, varies, strict=True)
    return row_name((key, text) for key, text, differs in parts if differs) or "all"


def costs_figure(costs: Sequence[Cost]) -> Figure:
    """A metric against network evaluations and seconds of devices; Pareto-optimal points are filled and joined."""
    metric, is_log = costs[0].metric, all(cost.value > 0 for cost in costs)
    labels = dict.fromkeys(map(_setting, costs))
    row_keys = [name for name in costs[0].settings if name != "S"]
    names = {label: legend_name(name_of(label, row_keys, labels)) for label in labels}
    logs = sorted({math.log(cost.evaluations) for cost in costs})
    spread = min([MAX_SPREAD, *(0.3 * (right - left) for left, right in pairwise(logs))]) if len(labels) > 1 else 0.0
    with drawing.plain_style():
        figure, (left, right) = drawing.make_panels(1, 2)
        left.set_yscale("log" if is_log else "linear")
        styles, exact = (drawing.row_styles(names, row_keys, width) for width in (spread, 0.0))
        _draw_costs(left, [(cost.evaluations, cost, cost.best_for_evaluations) for cost in costs], styles)
        timed = [(cost.seconds, cost, cost.best_for_seconds) for cost in costs if cost.seconds is not None]
        _draw_costs(right, timed, exact)
        for place, (seconds, cost, _) in enumerate(sorted(timed, key=lambda point: point[0])):
            look, at = styles[" ".join(_setting(cost))], (4, (4, -9)[place % 2])  # neighbours may be close
            where: dict[str, Any] = {"xytext": at, "textcoords": "offset points"}
            text = right.annotate(cost.settings["S"], (seconds, cost.value), fontsize=7, color=look.colour, **where)
            drawing.name_parts(look, [text])
        left.set_xlabel(LABELS["evaluations"])
        right.set_xlabel(LABELS["seconds"])
        left.set_ylabel(metric.heading)
        if is_log:
            drawing.mark_values(left)
        drawing.mark_numbers(left, sorted({cost.evaluations for cost in costs}))
        drawing.mark_numbers(right)
        figure.supxlabel(COSTS_CAPTION.format(title=metric.title), fontsize=9)
        drawing.make_room(figure, names.values(), below=4)  # the line on filled markers, and the caption
        marker: dict[str, Any] = {"markersize": 6, "markerfacecolor": "white", "linestyle": ""}
        handles = [Line2D([], [], color=look.colour, marker=look.marker, **marker) for look in styles.values()]
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=6, linewidth=1.0))
        in_legend = [*(look.name for look in styles.values()), "Pareto-optimal (filled)"]
        figure.legend(handles, in_legend, loc="outside right upper", frameon=False)
    return figure


def _setting(cost: Cost) -> tuple[str, ...]:
    """The values of all settings but S."""
    return tuple(value for name, value in cost.settings.items() if name != "S")


def _draw_costs(panel: Axes, points: Sequence[tuple[float, Cost, bool]], styles: Styles) -> None:
    """Draw cells at their price; those that are Pareto-optimal are filled, and joined where they can be compared."""
    best: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    for price, cost, is_best in points:
        look, error = styles[" ".join(_setting(cost))], 0.0 if math.isnan(cost.error) else cost.error
        at = price * math.exp(look.x_offset)
        drawn = panel.errorbar(
            [at], [cost.value], yerr=[error], label=look.name, color=look.colour, marker=look.marker, markersize=6,
            markerfacecolor=look.colour if is_best else "white", linestyle="", capsize=2.0,
        )  # fmt: skip
        drawing.name_parts(look, drawn.get_children())
        if is_best:
            best.setdefault(cost.comparable_by, []).append((at, cost.value))
    for group in best.values():
        panel.plot(*np.array(sorted(group)).T, color=GREY, linewidth=1.0, zorder=0)


def effects_figure(effects: Sequence[Effect], metric: MetricColumn = FID) -> Figure:
    """A forest plot: a panel for each value of a key, a row for each effect on `metric` with its 95 % interval. Single
    cells come first: an average over them can hide that they differ in sign."""
    scopes = (EACH_CELL, EACH_S, EVERYWHERE) if len(effects) <= MAX_EFFECTS else (EACH_S, EVERYWHERE)
    rows = [effect for scope in scopes for effect in effects if effect.scope == scope]
    names = short_key_names(effects)
    values = dict.fromkeys((effect.key, effect.value) for effect in effects)
    groups = [[effect for effect in rows if (effect.key, effect.value) == value] for value in values]
    heights = [len(group) + 2.4 for group in groups]
    width = 7.2 + drawing.CHARACTER_WIDTH * max(0, *(len(_effect_label(effect)) - MAX_LABEL for effect in rows))
    with drawing.plain_style():
        figure = Figure(figsize=(width, 0.8 + EFFECT_HEIGHT * sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.05))
        panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for panel, group in zip(panels, groups, strict=True):
            title = short_samplers(f"{names[group[0].key]}: {group[0].value} minus {group[0].base}")
            panel.set_title(textwrap.fill(title, EFFECTS_TITLE_WIDTH), loc="left", parse_math=False)
            _draw_effects(panel, group)
        over = " or ".join(dict.fromkeys("sampling alone" if e.over == "sampling" else f"{e.over}s" for e in rows))
        over += CONDITIONAL_ON_SEED if any(effect.is_conditional_on_seed for effect in rows) else ""
        are_cells = rows[0].scope == EACH_CELL
        shown = "a cell each, and averages over cells (diamonds)" if are_cells else "averages over cells"
        caption = (
            f"Differences of {metric.title}, all else equal ({'above' if metric.higher_is_better else 'below'} 0 is "
            f"better): {shown}, with 95 % intervals over {over}. Filled: p below {LEVEL} after Holm's correction."
        )
        figure.supxlabel(textwrap.fill(caption, CAPTION_WIDTH), fontsize=9)
    return figure


def _draw_effects(panel: Axes, group: Sequence[Effect]) -> None:
    panel.axvline(0, color="#555555", linewidth=0.8)
    panel.grid(visible=False, axis="y")
    for place, effect in enumerate(group):
        colour = SIGNIFICANT if effect.is_significant else NOT_SIGNIFICANT
        panel.errorbar(
            [effect.effect],
            [place],
            xerr=None if effect.low is None else effect.effect - effect.low,
            fmt="o" if effect.scope == EACH_CELL else "D",
            markersize=5,
            color=colour,
            markerfacecolor=colour if effect.is_significant else "white",
            capsize=2.5,
        )
    cells = sum(effect.scope == EACH_CELL for effect in group)
    if 0 < cells < len(group):
        panel.axhline(cells - 0.5, color="#bbbbbb", linewidth=0.8)
    panel.set_yticks(range(len(group)), [_effect_label(effect).replace("$", r"\$") for effect in group])
    panel.set_ylim(len(group) - 0.4, -0.6)
    panel.tick_params(labelbottom=True)


def _effect_label(effect: Effect) -> str:
    if effect.scope == EACH_CELL:
        return effect.settings or "its only cell"
    return f"average at {effect.settings}" if effect.settings else "average over all cells"


def per_key_figures(
    table: QualityTable, effects: Sequence[Effect], metric: MetricColumn = FID
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each ablated key: a panel for each value, a line for each combination of other settings."""
    settings, x = table.arranged(Layout()).settings, table.layout.x
    places = places_of(table.means.frame, x)
    for key, short in short_key_names(effects).items():
        keys = key.split(KEY_SEPARATOR)
        if set(keys) & {"steps", "eta"}:
            continue  # S, or what it costs, is the axis of every panel, and eta makes the lines of figures/quality
        rows = (*(name for name in settings if name not in keys), "eta")
        tables = with_floors(table.arranged(Layout(rows)).tables(metric), table.floors)
        labels = dict.fromkeys(label for pivot in tables for label in pivot.labels)
        names = {label: name_of(label, tables[0].row_keys, labels) for label in labels}
        yield f"by-{short.replace(KEY_SEPARATOR, '-')}", tables_figure(tables, names, places, x, metric)


def heat_maps(
    table: QualityTable, effects: Sequence[Effect], metric: MetricColumn = FID
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of a metric over the first two numeric ablated keys, or over one and S."""
    frame = table.frame

    def is_numeric(key: str) -> bool:
        if key == "eta" and ((frame["sigma"] != "eta") | frame["eta"].isna()).any():
            return False  # sigma_hat is a row of its own, and so is a sampler without eta
        return key in frame and all(isinstance(value, Real) and not isinstance(value, bool) for value in frame[key])

    numeric = [key for key in short_key_names(effects) if is_numeric(key)]
    chosen = [*numeric, "steps"] if "steps" not in numeric and frame["steps"].nunique() > 1 else numeric
    if not numeric or len(chosen) < 2:
        return
    tables = table.arranged(Layout((chosen[0],), chosen[1])).tables(metric)
    is_log = scale_of(tables) == "log"
    values = [value.number for pivot in tables for value in pivot.values.values()]
    known = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    if known:
        norm = LogNorm(min(known), max(known) * (1 + 1e-9)) if is_log else Normalize(min(known), max(known))
        yield "heat-map", _heat_map(tables[:MAX_MAPS], norm)


def _heat_map(tables: Sequence[Table], norm: Normalize) -> Figure:
    across = min(len(tables), drawing.PANELS_ACROSS)
    down = math.ceil(len(tables) / across)
    is_higher_better = tables[0].metric.higher_is_better
    with drawing.plain_style():
        size = 1.6 + across * (1.0 + 0.75 * len(tables[0].columns)), 0.5 + down * (1.0 + 0.42 * len(tables[0].labels))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine())
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel in panels[len(tables) :]:
            panel.remove()
        for panel, table in zip(panels, tables, strict=False):
            labels, columns = sorted(table.labels, key=lambda label: float(label[0])), sorted(table.columns, key=float)
            there = {at: value.number for at, value in table.values.items()}
            values = np.array([[there.get((label, column), math.nan) for column in columns] for label in labels])
            image = panel.imshow(values, norm=norm, cmap="viridis" if is_higher_better else "viridis_r", aspect="auto")
            panel.grid(visible=False)
            panel.set_title(table.label, parse_math=False)
            panel.set_xlabel(table.column_key)
            panel.set_ylabel(table.row_keys[0])
            panel.set_xticks(range(len(columns)), list(map(str, columns)))
            panel.set_yticks(range(len(labels)), [label for (label,) in labels])
            for (row, column), value in np.ndenumerate(values):
                if math.isfinite(value):
                    shade = norm(value)  # masked if its logarithm does not exist
                    dark = shade is not np.ma.masked and (shade < 0.5) == is_higher_better
                    colour, text = "white" if dark else "black", write_number(value)[0]
                    panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        bar = figure.colorbar(image, ax=panels[: len(tables)], label=tables[0].metric.heading)  # all share `norm`
        bar.ax.yaxis.set_minor_formatter("{x:g}")
        bar.ax.yaxis.set_major_formatter("{x:g}")
    return figure
