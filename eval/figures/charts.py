"""Figures of a run: FID over S and over checkpoints, the error of reconstructions over S, the loss of training."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from taugrid.eval.tables import reconstruction
from taugrid.eval.tables.quality import CHECKPOINT, FID, SIGMA_HAT, Pivot, pivot, short_names
from taugrid.protocol import ProtocolFields
from taugrid.storage import replacing

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
LEAST_SPAN = 1.1
"""The axis of values reaches at least so many times its lower end, or nearly equal values would look far apart."""
TITLE_WIDTH = 52
"""Characters that fit above or below a panel."""
SMOOTHING = 1.25
"""The running mean of a loss goes from so many times a step to so small a part of it."""
NAME_WIDTH = 26
"""Characters in a line of a checkpoint's name, below a panel."""
CHARACTER_HEIGHT = 0.036
"""Inches that a character of such a name takes downwards, at its angle."""
LEGEND_LINE = 0.19
"""Inches that a line of a legend below the panel takes."""


Values = NDArray[np.float64]
Table = TypeVar("Table")


class LineStyle(NamedTuple):
    """How one eta or setting is drawn, the same in every panel."""

    name: str
    shift: float
    colour: str | tuple[float, ...]
    marker: str
    dashes: str


Styles = Mapping[str, LineStyle]


class Ablation(NamedTuple):
    """One panel of `checkpoints`: FID and its standard error by S (index, ascending) and checkpoint (columns)."""

    heading: str
    values: pd.DataFrame
    errors: pd.DataFrame


def quality(frame: pd.DataFrame, path_stem: Path, protocols: Mapping[str, ProtocolFields] = {}) -> None:
    """`quality_figure` as `path_stem` + .png and .svg, put in place whole; equal input gives equal bytes."""
    _save(quality_figure(frame, protocols), path_stem)


def quality_figure(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields] = {}) -> Figure:
    """FID against S, both logarithmic: a line for each eta, bars of ±1 standard error, a panel for each pivot.

    `protocols` spells out the rows' hashes: cells that are not comparable share no panel.

    A cell without an FID is left out of its line, as is one with an FID of 0 or less, which has no logarithm.
    """
    pivots = pivot(frame, FID.name, FID.error, protocols)
    styles = _eta_styles({label for table in pivots for label in table.values.index})
    return _fid_figure(pivots, _draw, styles, "log")


def checkpoints(
    frame: pd.DataFrame, order: Sequence[str], path_stem: Path, protocols: Mapping[str, ProtocolFields] = {}
) -> None:
    """`checkpoints_figure` as `path_stem` + .png and .svg, put in place whole; equal input gives equal bytes."""
    _save(checkpoints_figure(frame, order, protocols), path_stem)


def checkpoints_figure(
    frame: pd.DataFrame, order: Sequence[str], protocols: Mapping[str, ProtocolFields] = {}
) -> Figure:
    """FID over checkpoints: a line for each S, bars of ±1 standard error, a panel for each eta of each pivot.

    Args:
        frame: of the quality table, with the column `CHECKPOINT`.
        order: its values from left to right, as the grid has them.
        protocols: spell out the rows' hashes: cells that are not comparable share no panel.
    """
    tables = _over_checkpoints(frame, order, pivot(frame, FID.name, FID.error, protocols))
    lengths = sorted({steps for table in tables for steps in table.values.index})
    styles = _ordered_styles({str(steps): f"$S$ = {steps}" for steps in lengths}, _shifts(len(lengths)))
    figure = _fid_figure(tables, _draw_over_checkpoints, styles, "linear")
    # Names of checkpoints are long, and below a panel they would take its height.
    longest = max(map(len, short_names(order)), default=0)
    rows = math.ceil(len(tables) / PANELS_ACROSS)
    figure.set_figheight(figure.get_figheight() + rows * CHARACTER_HEIGHT * min(longest, NAME_WIDTH))
    return figure


def _fid_figure(
    tables: Sequence[Table], draw: Callable[[Axes, Table, Styles], None], styles: Styles, x_scale: str
) -> Figure:
    """A panel for each of `tables`, with one scale for FID and one legend."""
    across = max(1, min(len(tables), PANELS_ACROSS))
    down = max(1, math.ceil(len(tables) / across))
    with _plain_style():
        figure, panels = _panels(down, across, x_scale)
        for panel in panels[max(1, len(tables)) :]:
            panel.remove()
        for panel, table in zip(panels, tables, strict=False):
            draw(panel, table, styles)
        for panel in panels[::across]:
            panel.set_ylabel(FID.heading)
        _mark_values(panels[0])
        _legend(figure, styles.values(), "outside right upper")
        _say_if_empty(figure, "no cell has an FID")
    return figure


def _over_checkpoints(frame: pd.DataFrame, order: Sequence[str], pivots: Sequence[Pivot]) -> list[Ablation]:
    """One for each eta of the pivots that differ in nothing but their checkpoint."""
    shown = frame[frame[CHECKPOINT].isin(order)]
    checkpoint_of = dict(zip(shown["cell"], shown[CHECKPOINT], strict=True))
    points: list[dict[str, Any]] = []
    for table in pivots:
        shared = table.heading_without(CHECKPOINT)
        for label, steps in product(table.cells.index, table.cells.columns):
            if (cell := table.cells.at[label, steps]) in checkpoint_of:
                heading = ", ".join(filter(None, [f"η = {label}", shared]))
                number: dict[str, Any] = {"fid": table.values.at[label, steps], "error": table.errors.at[label, steps]}
                points.append({"heading": heading, "steps": steps, "checkpoint": checkpoint_of[cell], **number})
    if not points:
        return []
    return [
        Ablation(str(heading), *(_by_steps(part, column).reindex(columns=list(order)) for column in ("fid", "error")))
        for heading, part in pd.DataFrame(points).groupby("heading", sort=False)
    ]


def _by_steps(points: pd.DataFrame, column: str) -> pd.DataFrame:
    return points.pivot(index="steps", columns="checkpoint", values=column)


def _draw_over_checkpoints(panel: Axes, table: Ablation, styles: Styles) -> None:
    names = short_names([str(checkpoint) for checkpoint in table.values.columns])
    places = np.arange(len(names), dtype=np.float64)
    for steps in table.values.index:
        look, value = styles[str(steps)], table.values.loc[steps]
        if (value > 0).any():
            # A gap where there is none: a line would say that the checkpoint before leads to the one behind.
            shown = value.where(value > 0).to_numpy()
            _draw_line(panel, places + look.shift * len(names), shown, table.errors.loc[steps].to_numpy(), look)
    panel.set_title(textwrap.fill(table.heading, TITLE_WIDTH), parse_math=False)
    panel.set_xlabel("checkpoint")
    panel.set_xlim(-0.5, len(names) - 0.5)
    lines = [textwrap.fill(name, NAME_WIDTH).replace("$", r"\$") for name in names]
    panel.set_xticks(places, lines, rotation=30, ha="right", rotation_mode="anchor")


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


def losses(curves: Mapping[str, pd.DataFrame], path_stem: Path) -> None:
    """`losses_figure(curves)` as `path_stem` + .png and .svg, put in place whole; equal input gives equal bytes."""
    _save(losses_figure(curves), path_stem)


def losses_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """The loss of trainings against the step, both logarithmic: light as it was logged, dark its running mean.

    Args:
        curves: the columns `step` and `loss` of log.jsonl, by what the legend calls the model.
    """
    styles = _ordered_styles({name: _legend_name(name) for name in curves}, _shifts(len(curves)))
    with _plain_style():
        figure, (panel,) = _panels(1, 1)
        for name, log in curves.items():
            step, loss, colour = log["step"].to_numpy(), log["loss"].to_numpy(), styles[name].colour
            panel.plot(step, loss, color=colour, linewidth=0.6, alpha=0.3)
            panel.plot(step, _running_mean(step, loss), color=colour, linewidth=1.5, label=styles[name].name)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        panel.set_xlabel("training step")
        panel.set_ylabel("loss")
        _mark_values(panel)
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * len(curves))
        _legend(figure, styles.values(), "outside lower center")
    return figure


def _running_mean(step: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """At each of the increasing steps the mean over those within a factor of `SMOOTHING` of it: even in log."""
    sums = np.concatenate([[0.0], loss.cumsum()])
    first, end = np.searchsorted(step, step / SMOOTHING), np.searchsorted(step, step * SMOOTHING, side="right")
    mean: NDArray[np.float64] = (sums[end] - sums[first]) / (end - first)
    return mean


def _save(figure: Figure, path_stem: Path) -> None:
    with _plain_style():
        for kind, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            with replacing(path_stem.with_name(f"{path_stem.name}.{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)


def _panels(down: int, across: int, x_scale: str = "log") -> tuple[Figure, list[Axes]]:
    """A figure and its panels row by row, with a common logarithmic scale for the values."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(1.3 + 3.6 * across, 0.3 + 3.1 * down), layout=layout)
    scales = {"xscale": x_scale, "yscale": "log"}
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


def _draw(panel: Axes, table: Pivot, styles: Styles) -> None:
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
        positions = shown.index.to_numpy() * math.exp(span * look.shift)
        _draw_line(panel, positions, shown.to_numpy(), table.errors.loc[label, shown.index].to_numpy(), look)


def _draw_line(panel: Axes, positions: Values, values: Values, errors: Values, look: LineStyle) -> None:
    """Points joined by a line, with bars; an error that is NaN has none, nor has the legend where all are."""
    panel.errorbar(
        positions,
        values,
        yerr=None if np.isnan(errors).all() else np.nan_to_num(errors),
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
    """Round numbers as ticks, also over a narrow range, where a logarithmic axis tends to have none.

    Where the values are nearly equal, the range is widened to `LEAST_SPAN`.
    """
    low, high = panel.get_ylim()
    widening = math.sqrt(max(1.0, LEAST_SPAN * low / high))
    low, high = low / widening, high * widening
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
