"""Figures of a run as lines over S: FID, and the error of reconstructions."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from eval import reconstruction
from eval.rows import Protocol
from eval.tables import FID, SIGMA_HAT, Pivot, pivot
from workers.files import replacing

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 10, "legend.fontsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "axes.edgecolor": "#555555", "axes.titlecolor": "#444444",
    "savefig.dpi": 200, "svg.hashsalt": "taugrid",
}  # fmt: skip
"""The salt fixes the ids within an SVG."""

MARKERS = "osD^vP<>phd*"
SIGMA_HAT_COLOUR = "#d55e00"
"""Vermilion of the Okabe-Ito palette: apart from all of viridis for every common kind of colour vision."""
PANELS_ACROSS = 3
DODGE = 0.024
"""Points of one S are spread over this part of the axis, in the order of eta, or their bars would hide one another."""
FEWEST_TICKS = 5
TITLE_WIDTH = 52
"""Characters that fit above or below a panel."""
LEGEND_LINE = 0.19
"""Inches that a line of a legend below the panel takes."""


class LineStyle(NamedTuple):
    """How one eta or setting is drawn, the same in every panel."""

    name: str
    shift: float
    colour: str | tuple[float, ...]
    marker: str
    dashes: str


def quality(frame: pd.DataFrame, path_stem: Path, protocols: Mapping[str, Protocol] = {}) -> None:
    """`quality_figure` as `path_stem` + .png and .svg, put in place whole; equal input gives equal bytes."""
    _save(quality_figure(frame, protocols), path_stem)


def quality_figure(frame: pd.DataFrame, protocols: Mapping[str, Protocol] = {}) -> Figure:
    """FID against S, both logarithmic: a line for each eta, bars of ±1 standard error, a panel for each pivot.

    `protocols` spells out the rows' hashes: cells that are not comparable share no panel.

    A cell without an FID is left out of its line, as is one with an FID of 0 or less, which has no logarithm.
    """
    pivots = pivot(frame, FID.column, FID.error, protocols)
    styles = _eta_styles({label for table in pivots for label in table.values.index})
    across = max(1, min(len(pivots), PANELS_ACROSS))
    down = max(1, math.ceil(len(pivots) / across))
    with _plain_style():
        figure, panels = _panels(down, across)
        for panel in panels[max(1, len(pivots)) :]:
            panel.remove()
        for panel, table in zip(panels, pivots, strict=False):
            _draw(panel, table, styles)
        for panel in panels[::across]:
            panel.set_ylabel(FID.heading)
        _mark_values(panels[0])
        _legend(figure, styles.values(), "outside right upper")
        _say_if_empty(figure, "no cell has an FID")
    return figure


def reconstruction_error(frame: pd.DataFrame, path_stem: Path) -> None:
    """`reconstruction_figure(frame)` as `path_stem` + .png and .svg, put in place whole; equal input, equal bytes."""
    _save(reconstruction_figure(frame), path_stem)


def reconstruction_figure(frame: pd.DataFrame) -> Figure:
    """The error of `reconstruction.frame` against S, both logarithmic: a line for each setting, bars of ±1 se."""
    table = reconstruction.pivot(frame)
    labels = [str(label) for label in table.values.index]
    styles = _ordered_styles({label: _legend_name(label) for label in labels}, _shifts(len(labels)))
    with _plain_style():
        figure, (panel,) = _panels(1, 1)
        if labels:
            _draw(panel, table, styles)
        panel.set_ylabel(reconstruction.ERROR.title)
        _mark_values(panel)
        if len(labels) > 1:
            # Below, and the figure higher: names of settings are long, and beside the panel they would narrow it.
            lines = sum(look.name.count("\n") + 1 for look in styles.values())
            figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)
            _legend(figure, styles.values(), "outside lower center")
        _say_if_empty(figure, "no error has been measured")
    return figure


def _save(figure: Figure, path_stem: Path) -> None:
    with _plain_style():
        for kind, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            with replacing(path_stem.with_name(f"{path_stem.name}.{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)


def _panels(down: int, across: int) -> tuple[Figure, list[Axes]]:
    """A figure and its panels row by row, with logarithmic axes and a common scale for the values."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(1.3 + 3.6 * across, 0.3 + 3.1 * down), layout=layout)
    scales = {"xscale": "log", "yscale": "log"}
    return figure, list(figure.subplots(down, across, sharey=True, squeeze=False, subplot_kw=scales).flat)


def _plain_style() -> AbstractContextManager[None]:
    """`STYLE` on top of matplotlib's own defaults, so that a person's matplotlibrc changes nothing."""
    return cast(AbstractContextManager[None], style.context(STYLE, after_reset=True))


def _eta_styles(labels: Iterable[str]) -> dict[str, LineStyle]:
    """Colours from dark to light in the order of eta, so that they read as a scale; sigma_hat apart, and dashed."""
    given = set(labels)
    numbers = sorted(given - {SIGMA_HAT}, key=float)
    shifts = _shifts(len(given))
    styles = _ordered_styles({label: rf"$\eta$ = {label}" for label in numbers}, shifts)
    if SIGMA_HAT in given:
        styles[SIGMA_HAT] = LineStyle(r"$\hat{\sigma}$", shifts[-1], SIGMA_HAT_COLOUR, "X", "--")
    return styles


def _ordered_styles(names: Mapping[str, str], shifts: Sequence[float]) -> dict[str, LineStyle]:
    """Viridis from dark to light in the order of `names`, which maps labels to what the legend calls them."""
    shades = colormaps["viridis"](np.linspace(0.0, 0.82, max(2, len(names))))
    return {
        label: LineStyle(name, shifts[i], tuple(shades[i]), MARKERS[i % len(MARKERS)], "-")
        for i, (label, name) in enumerate(names.items())
    }


def _shifts(count: int) -> list[float]:
    return list(DODGE * np.linspace(-0.5, 0.5, count)) if count > 1 else [0.0] * count


def _legend_name(label: str) -> str:
    """A setting in lines that fit, in which a dollar sign is shown as it is."""
    return textwrap.fill(label, TITLE_WIDTH).replace("$", r"\$")


def _draw(panel: Axes, table: Pivot, styles: Mapping[str, LineStyle]) -> None:
    steps = [int(steps) for steps in table.values.columns]
    lines = [textwrap.fill(line, TITLE_WIDTH) for line in (table.heading, *table.notes) if line]
    panel.set_title("\n".join(lines), parse_math=False)  # a path may hold a dollar sign
    panel.set_xlabel("sampling steps $S$")
    span = _mark_steps(panel, steps)
    for label in table.values.index:
        look, value = styles[str(label)], table.values.loc[label]
        shown = value[value > 0]
        if shown.empty:
            continue
        panel.errorbar(
            shown.index.to_numpy() * math.exp(span * look.shift),
            shown,
            yerr=table.errors.loc[label, shown.index].fillna(0.0),
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


def _mark_steps(panel: Axes, steps: Sequence[int]) -> float:
    """Ticks at every S of the grid, the number left out where the next one is too near; returns log(right / left)."""
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


def _mark_values(panel: Axes) -> None:
    """Round numbers as ticks, also over a narrow range, where a logarithmic axis tends to have none."""
    low, high = panel.get_ylim()
    choices = [LogLocator(subs=subs, numticks=50) for subs in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))]
    for locator in [*choices, MaxNLocator(7, steps=[1, 2, 5, 10])]:
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(ticks) >= FEWEST_TICKS:
            break
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylim(low, high)


def _legend(figure: Figure, styles: Iterable[LineStyle], place: str) -> None:
    """One legend for all panels, outside of them, in the order of the styles."""
    lines: dict[str, Any] = {}
    for panel in figure.axes:
        handles, names = panel.get_legend_handles_labels()
        lines |= dict(zip(names, handles, strict=True))
    names = [look.name for look in styles if look.name in lines]
    if names:
        figure.legend([lines[name] for name in names], names, loc=place, frameon=False)


def _say_if_empty(figure: Figure, text: str) -> None:
    if not any(panel.containers for panel in figure.axes):
        panel = figure.axes[0]
        panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", backgroundcolor="white")
