"""Figures of lines: a metric over steps or what they cost, over checkpoints, reconstruction errors, training losses."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from taugrid.eval.figures import drawing
from taugrid.eval.figures.drawing import GREY, Styles, Values, legend_name, scale_of
from taugrid.eval.tables.arrangement import pivot_tables
from taugrid.eval.tables.checkpoints import BestCheckpoint
from taugrid.eval.tables.cost import IMAGES
from taugrid.eval.tables.labels import OPTIONS, SIGMA_HAT, is_number, row_name, short_samplers
from taugrid.eval.tables.long_form import CHECKPOINT, FID
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_table
from taugrid.eval.tables.table import (
    INDISTINGUISHABLE,
    NO_FLOORS,
    NO_VALUE,
    UNTESTED,
    Floors,
    Label,
    Table,
    Value,
    with_floors,
)
from taugrid.grids import EVALUATIONS, short_names
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

LABELS = {
    "steps": "sampling steps $S$",
    "evaluations": "network evaluations per image",
    "seconds": f"device seconds per {IMAGES:,} images",
}
"""Value of `report.x` -> the axis in words, with its unit."""
FAR = 4  # a floor is far below values that are more than this many times as large
NAME_WIDTH = 26  # characters in a line of a checkpoint's name, below a panel
CHARACTER_HEIGHT = 0.036  # height in inches that a character of such a name takes, at its angle
MAX_ALIKE = 4  # checkpoints that a panel's title names beside the best
SMOOTHING = 1.25  # the running mean of a loss at a step is over the steps within this factor of it


def places_of(frame: pd.DataFrame, x: str) -> dict[str, float]:
    """Where each cell is on the axis of `report.x`; cells without a place are left out."""
    seconds = frame["seconds"] / frame["num_samples"] * IMAGES
    at = {"steps": frame["steps"], "evaluations": frame[EVALUATIONS], "seconds": seconds.where(seconds > 0)}[x]
    return {cell: float(place) for cell, place in zip(frame["cell"], at, strict=True) if pd.notna(place)}


def draw_over_steps(
    panel: Axes,
    table: Table,
    styles: Styles,
    places: Mapping[str, float] | None = None,
    x: str = "steps",
    published: Mapping[str, float] = {},
) -> None:
    """Draw a line for each row of `table`, without values that have no place on the axis; its title is from `table`.

    `places` are those of cells; None: each column is at its number. `published` has others' values by cell: they are
    dotted. The floor is dashed, but only written where it has no place on the axis, or is so far below all values that
    their differences would vanish."""
    lines = [textwrap.fill(line, drawing.TITLE_WIDTH) for line in (short_samplers(table.label), *table.notes) if line]
    panel.set_title("\n".join(lines), parse_math=False)  # a path may hold a dollar sign
    panel.set_xlabel(LABELS[x])
    scale = table.metric.scale
    rows = {
        label: np.array([
            (column if places is None else places.get(value.cell, math.nan), value.number * scale, value.error * scale)
            for column, value in zip(table.columns, table.row(label), strict=True)
        ], dtype=np.float64)
        for label in table.labels
    }  # fmt: skip
    every = np.concatenate(list(rows.values()))
    ticks = np.unique(every[np.isfinite(every[:, 0]), 0]).tolist() or [1.0]
    drawing.mark_numbers(panel, () if x == "seconds" else ticks)
    extent = math.log(ticks[-1] / ticks[0])
    margin = 0.06 * extent or math.log(2)
    panel.set_xlim(ticks[0] * math.exp(-margin), ticks[-1] * math.exp(margin))
    if table.floor is not None:
        _draw_floor(panel, table, float(np.nanmin(every[:, 1], initial=np.inf)))
    for label, row in rows.items():
        look, (at, values, errors) = styles[" ".join(label)], row.T
        shown = drawing.has_place(values, panel.get_yscale()) & np.isfinite(at)
        if not shown.any():
            continue
        positions = at[shown] * math.exp((extent + 2 * margin) * look.x_offset)
        drawing.draw_line(panel, positions, values[shown], errors[shown], look)
        cells = [value.cell for value in table.row(label)]
        if beside := [(place, published[cell]) for place, cell in zip(at, cells, strict=True) if cell in published]:
            (line,) = panel.plot(*np.array(beside).T, ":", color=look.colour, marker=look.marker, markersize=5)
            line.set_markerfacecolor("white")
            drawing.name_parts(look, [line])


def _draw_floor(panel: Axes, table: Table, lowest: float) -> None:
    assert table.floor is not None
    floor, across = table.floor.mean * table.metric.scale, panel.get_yaxis_transform()
    text = f"real against real: {table.floor_value}"
    is_far = panel.get_yscale() == "log" and floor * FAR < lowest
    if drawing.has_place(np.array(floor), panel.get_yscale()) and not is_far:
        panel.axhline(floor, color=GREY, linewidth=1.0, linestyle="--", zorder=1)
    else:
        floor, text, across = 0.01, f"{text}, below this axis", panel.transAxes
    panel.text(0.01, floor, text, transform=across, va="bottom", fontsize=8, color=GREY)


def quality_figure(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    published: Mapping[str, float] = {},
    x: str = "steps",
    metric: MetricColumn = FID,
    floors: Floors = NO_FLOORS,
) -> Figure:
    """A metric against S, or what `report.x` names, with bars of ±1 standard error: a panel for each pivot.

    There is a line for each eta or, if samplers vary, for each sampler and eta. A sampler that ignores what panels
    differ in is in all of them. Cells that can't be compared by their `protocols` share no panel. Values that have no
    logarithm are left out. `published` has others' values by cell, to be dotted. `floors` are dashed."""
    rows = [name for name in ("sampler", OPTIONS) if name in frame and frame[name].nunique() > 1]
    for column in ("spacing", "clip"):
        values, empty = frame[column].dropna().unique(), frame[frame[column].isna()]
        if len(values) > 1 and len(empty):
            repeated = (empty.assign(**{column: value}) for value in values)
            frame = pd.concat([frame.dropna(subset=[column]), *repeated], ignore_index=True)
    pivots = with_floors(pivot_tables(frame, metric, protocols, [*rows, "eta"]), floors)
    labels = list(dict.fromkeys(label for table in pivots for label in table.labels))
    if not rows:  # from dark to light in the order of eta, like a scale; samplers without eta follow, and sigma_hat
        numbers = {label: float(label[0]) if is_number(label[0]) else math.inf for label in labels}
        labels.sort(key=lambda label: (label[0] == SIGMA_HAT, numbers[label], label[0]))
    names = {label: row_name(zip((*rows, "η"), label, strict=True)) for label in labels}
    return tables_figure(pivots, names, places_of(frame, x), x, metric, published)


def tables_figure(
    tables: Sequence[Table],
    names: Mapping[Label, str],
    places: Mapping[str, float] | None,
    x: str,
    metric: MetricColumn,
    published: Mapping[str, float] = {},
) -> Figure:
    """A panel for each table over `report.x`, with a line for each row, by its name in the legend."""
    written = {label: legend_name(name) for label, name in names.items()}
    styles = drawing.row_styles(written, tables[0].row_keys if tables else ())
    draw = partial(draw_over_steps, places=places, x=x, published=published)
    return drawing.panels_figure(tables, draw, styles, "log", metric.heading, scale_of(tables))


def reconstruction_figure(frame: pd.DataFrame) -> Figure:
    """The error of `reconstruction_frame` against S, both logarithmic: a line for each setting, bars of ±1 se."""
    table = reconstruction_table(frame)
    names = {label: label[0] for label in table.labels}
    return tables_figure([table] if names else [], names, None, "steps", RECONSTRUCTION_ERROR)


Trajectories = tuple[str, Mapping[int, Sequence[Value]]]
"""A panel of checkpoints: its title, and for each S ascending the value of each checkpoint."""


def checkpoints_figure(
    frame: pd.DataFrame,
    order: Sequence[str],
    protocols: Mapping[str, ProtocolFields] = {},
    best: Sequence[BestCheckpoint] = (),
    metric: MetricColumn = FID,
) -> Figure:
    """A metric over checkpoints, from left to right in `order`: a line for each S, a panel for each eta of each pivot.
    Bars are ±1 standard error. A panel's title names the `best`, checkpoints that can't be distinguished from them
    after ≈, and those that are not tested after ?. If the names of the checkpoints differ only in a number at their
    end, it is the training step of the axis."""
    pivots = pivot_tables(frame, metric, protocols)
    panels = _over_checkpoints(frame, order, pivots, best)
    lengths = sorted({steps for _, lines in panels for steps in lines})
    styles = drawing.ordered_styles({str(steps): f"$S$ = {steps}" for steps in lengths})
    draw = partial(_draw_checkpoints, order=order, scale=metric.scale)
    figure = drawing.panels_figure(panels, draw, styles, "linear", metric.heading, scale_of(pivots))
    # Names of checkpoints are long, and below a panel they would take its height.
    longest = max(map(len, short_names(order)), default=0)
    rows = math.ceil(len(panels) / drawing.PANELS_ACROSS)
    figure.set_figheight(figure.get_figheight() + rows * CHARACTER_HEIGHT * min(longest, NAME_WIDTH))
    return figure


def training_steps(order: Sequence[str]) -> list[int] | None:
    """The numbers at the end of the checkpoints' names, if the names differ in nothing else."""
    matches = [match for name in order if (match := re.fullmatch(r"(.*?)(\d+)/*", name, re.DOTALL)) is not None]
    is_one_training = len(matches) == len(order) and len({match[1] for match in matches}) == 1
    return [int(match[2]) for match in matches] if is_one_training else None


def _over_checkpoints(
    frame: pd.DataFrame, order: Sequence[str], pivots: Sequence[Table], best: Sequence[BestCheckpoint]
) -> list[Trajectories]:
    """A panel for each eta, over tables that differ only in the checkpoint."""
    shown = frame[frame[CHECKPOINT].isin(order)]
    checkpoint_of = dict(zip(shown["cell"], shown[CHECKPOINT], strict=True))
    panels: dict[str, dict[int, dict[str, Value]]] = {}
    for table in pivots:
        for ((eta,), steps), value in table.values.items():
            if value.cell in checkpoint_of:
                row = f"η = {eta}" if is_number(eta) or eta == SIGMA_HAT else eta
                heading = ", ".join(filter(None, [row, table.heading_without(CHECKPOINT)]))
                lines = panels.setdefault(heading, {}).setdefault(int(str(steps)), {})
                lines[checkpoint_of[value.cell]] = value
    numbers, texts = training_steps(order), dict[str, str]()
    names = dict(zip(order, map(str, numbers) if numbers else short_names(order), strict=True))
    for one in best:  # such as "S = 10: best 1500 (≈ 1400, 1450; ? 1300)"
        marked = [_marked(INDISTINGUISHABLE, one.alike, names), _marked(UNTESTED, one.untested, names)]
        others = "; ".join(filter(None, marked))
        others = f" ({others})" if others else ""
        texts[one.cell] = f"S = {one.steps}: best {names.get(one.checkpoint, one.checkpoint)}{others}"
    found = list[Trajectories]()
    for heading, by_steps in panels.items():
        ordered = {steps: [by_steps[steps].get(name, NO_VALUE) for name in order] for steps in sorted(by_steps)}
        named = [texts[value.cell] for line in ordered.values() for value in line if value.cell in texts]
        title = "\n".join(textwrap.fill(line, drawing.TITLE_WIDTH) for line in (heading, *named))
        found.append((title, ordered))
    return found


def _marked(mark: str, checkpoints: Sequence[str], names: Mapping[str, str]) -> str:
    """The last of some checkpoints after a mark, and how many more there are; empty if there are none."""
    shown = [names[checkpoint] for checkpoint in checkpoints if checkpoint in names]
    more = f" and {len(shown) - MAX_ALIKE} more" if len(shown) > MAX_ALIKE else ""
    return f"{mark} {', '.join(shown[-MAX_ALIKE:])}{more}" if shown else ""


def _draw_checkpoints(panel: Axes, shown: Trajectories, styles: Styles, order: Sequence[str], scale: float) -> None:
    title, lines = shown
    names, numbers = short_names(order), training_steps(order)
    places: Values = np.array(numbers or range(len(names)), dtype=np.float64)
    width = float(np.ptp(places)) if numbers else len(names)
    for steps, line in lines.items():
        look = styles[str(steps)]
        values, errors = np.array([(value.number, value.error) for value in line]).T * scale
        there = drawing.has_place(values, panel.get_yscale())
        if there.any():
            # Leave a gap for a missing value: a line would suggest that one checkpoint leads to the next.
            places_there = places + look.x_offset * width
            drawing.draw_line(panel, places_there, np.where(there, values, math.nan), errors, look)
    panel.set_title(title, parse_math=False)
    panel.set_xlabel("training step" if numbers else "checkpoint")
    if not numbers:
        panel.set_xlim(-0.5, len(names) - 0.5)
        wrapped = [textwrap.fill(name, NAME_WIDTH).replace("$", r"\$") for name in names]
        panel.set_xticks(places, wrapped, rotation=30, ha="right", rotation_mode="anchor")


def losses_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss against the step, both logarithmic: the logged values in light, their running mean in dark.
    `curves` are the columns `step` and `loss` of log.jsonl, by the model's name in the legend."""
    styles = drawing.ordered_styles({name: legend_name(name) for name in curves})
    return drawing.panels_figure([curves], _draw_losses, styles, "log", "loss")


def _draw_losses(panel: Axes, curves: Mapping[str, pd.DataFrame], styles: Styles) -> None:
    for name, log in curves.items():
        step, loss, look = log["step"].to_numpy(), log["loss"].to_numpy(), styles[name]
        raw = panel.plot(step, loss, color=look.colour, linewidth=0.6, alpha=0.3)
        mean = panel.plot(step, running_mean(step, loss), color=look.colour, linewidth=1.5, label=look.name)
        drawing.name_parts(look, [*raw, *mean])
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_xlabel("training step")


def running_mean(step: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the finite losses at each increasing step over the steps within a factor of `SMOOTHING`: uniform on a
    log scale. NaN where none is finite."""
    is_finite = np.isfinite(loss)
    sums = np.concatenate([[0.0], np.where(is_finite, loss, 0.0).cumsum()])
    counts = np.concatenate([[0], is_finite.cumsum()])
    first, end = np.searchsorted(step, step / SMOOTHING), np.searchsorted(step, step * SMOOTHING, side="right")
    number = counts[end] - counts[first]
    mean: NDArray[np.float64] = np.where(number > 0, (sums[end] - sums[first]) / np.maximum(number, 1), np.nan)
    return mean
