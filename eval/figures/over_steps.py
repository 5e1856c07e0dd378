"""Figures of values against the number of sampling steps S, or what they cost: FID, and reconstructions' error."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from taugrid.eval.figures import drawing
from taugrid.eval.figures.drawing import GREY, Styles, Values, legend_name
from taugrid.eval.tables.ablation.cost import IMAGES
from taugrid.eval.tables.labels import OPTIONS, SIGMA_HAT, is_number, short_samplers
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import NO_FLOORS, Floors, Table, pivot_tables, with_floors
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_table
from taugrid.grids import EVALUATIONS
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

LABELS = {
    "steps": "sampling steps $S$",
    "evaluations": "network evaluations per image",
    "seconds": f"device seconds per {IMAGES:,} images",
}
"""Value of `report.x` -> the axis in words, with its unit."""
FAR = 4
"""A floor is far below values that are more than this many times as large."""


class Along(NamedTuple):
    """The horizontal axis: S, or what S steps cost."""

    label: str
    places: Mapping[str, float] | None = None
    """Where each cell is, by its id; a cell without a place is left out. None: at its S."""
    is_measured: bool = False
    """Whether places are measured: ticks are then at round numbers and not at each place."""

    @classmethod
    def of(cls, frame: pd.DataFrame, x: str) -> "Along":
        """The axis for `report.x` and the rows of quality.csv."""
        if x == "evaluations":
            return cls(LABELS[x], dict(zip(frame["cell"], frame[EVALUATIONS], strict=True)))
        if x == "seconds":
            measured = zip(frame["cell"], frame["seconds"] / frame["num_samples"] * IMAGES, strict=True)
            return cls(LABELS[x], {cell: seconds for cell, seconds in measured if seconds > 0}, is_measured=True)
        return cls(LABELS[x])

    def at(self, table: Table, row: int) -> Values:
        """The place of each value of a row, NaN without one."""
        if self.places is None:
            return table.values.columns.to_numpy(dtype=np.float64)
        return np.array([self.places.get(cell, math.nan) for cell in table.cells.iloc[row]])


OVER_STEPS = Along(LABELS["steps"])


def draw_over_steps(
    panel: Axes, table: Table, styles: Styles, axis: Along = OVER_STEPS, published: Mapping[str, float] = {}
) -> None:
    """Draw a line for each row of `table`, without values that have no place on the axis; its title is from `table`.

    `published` has others' values by cell: they are dotted. The floor is dashed, but only written where it has no place
    on the axis, or is so far below all values that their differences would vanish.
    """
    lines = [textwrap.fill(line, drawing.TITLE_WIDTH) for line in (short_samplers(table.label), *table.notes) if line]
    panel.set_title("\n".join(lines), parse_math=False)  # a path may hold a dollar sign
    panel.set_xlabel(axis.label)
    every = np.concatenate([axis.at(table, row) for row in range(len(table.values))])
    places = np.unique(every[np.isfinite(every)]).tolist() or [1.0]
    drawing.mark_numbers(panel, () if axis.is_measured else places)
    extent = math.log(places[-1] / places[0])
    margin = 0.06 * extent or math.log(2)
    panel.set_xlim(places[0] * math.exp(-margin), places[-1] * math.exp(margin))
    if table.floor is not None:
        floor, text, across = table.floor.mean, f"real against real: {table.floor_value}", panel.get_yaxis_transform()
        is_far = panel.get_yscale() == "log" and floor * FAR < np.nanmin(table.values.to_numpy(), initial=np.inf)
        if drawing.has_place(np.array(floor), panel.get_yscale()) and not is_far:
            panel.axhline(floor, color=GREY, linewidth=1.0, linestyle="--", zorder=1)
        else:
            floor, text, across = 0.01, f"{text}, below this axis", panel.transAxes
        panel.text(0.01, floor, text, transform=across, va="bottom", fontsize=8, color=GREY)
    for place, label in enumerate(table.labels):
        look, value, error = styles[" ".join(label)], table.values.iloc[place], table.errors.iloc[place]
        at = axis.at(table, place)
        shown = drawing.has_place(value.to_numpy(), panel.get_yscale()) & np.isfinite(at)
        if not shown.any():
            continue
        positions = at[shown] * math.exp((extent + 2 * margin) * look.x_offset)
        drawing.draw_line(panel, positions, value.to_numpy()[shown], error.to_numpy()[shown], look)
        cells = table.cells.iloc[place] if published else ()
        if beside := [(x, published[cell]) for x, cell in zip(at, cells, strict=False) if cell in published]:
            (line,) = panel.plot(*np.array(beside).T, ":", color=look.colour, marker=look.marker, markersize=5)
            line.set_markerfacecolor("white")
            drawing.name_parts(look, [line])


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
    logarithm are left out. `published` has others' values by cell, to be dotted. `floors` are dashed.
    """
    rows = [name for name in ("sampler", OPTIONS) if name in frame and frame[name].nunique() > 1]
    for column in ("spacing", "clip"):
        values, empty = frame[column].dropna().unique(), frame[frame[column].isna()]
        if len(values) > 1 and len(empty):
            repeated = (empty.assign(**{column: value}) for value in values)
            frame = pd.concat([frame.dropna(subset=[column]), *repeated], ignore_index=True)
    pivots = with_floors(pivot_tables(frame, metric, protocols, [*rows, "eta"]), floors)
    names = {label: "" for table in pivots for label in table.labels}
    if not rows:  # from dark to light in the order of eta, like a scale; samplers without eta follow, and sigma_hat

        def place(label: tuple[str, ...]) -> tuple[bool, bool, float, str]:
            eta = label[0]
            return eta == SIGMA_HAT, not is_number(eta), float(eta) if is_number(eta) else 0.0, eta

        names = dict.fromkeys(sorted(names, key=place), "")
    for *sampler, eta in names:
        of_eta = rf"$\eta$ = {eta}" if is_number(eta) else r"$\hat{\sigma}$" if eta == SIGMA_HAT else legend_name(eta)
        names[*sampler, eta] = " ".join(filter(None, [*map(legend_name, sampler), of_eta]))
    styles = drawing.row_styles(names, [*rows, "eta"])
    draw = partial(draw_over_steps, axis=Along.of(frame, x), published=published)
    figure = drawing.panels_figure(pivots, draw, styles, "log", metric, scale_of(pivots))
    if rows:
        drawing.make_room(figure, [look.name for look in styles.values()])
    return figure


def scale_of(tables: Sequence[Table]) -> str:
    """The scale of the value axis: logarithmic, unless the metric may be 0 or less (KID's estimate is unbiased)."""
    is_log = all(table.metric == FID or not (table.values <= 0).any(axis=None) for table in tables)
    return "log" if is_log else "linear"


def reconstruction_figure(frame: pd.DataFrame) -> Figure:
    """The error of `reconstruction_frame` against S, both logarithmic: a line for each setting, bars of ±1 se."""
    table = reconstruction_table(frame)
    labels = [str(label) for label in table.values.index]
    styles = drawing.ordered_styles({label: legend_name(label) for label in labels})
    with drawing.plain_style():
        figure, (panel,) = drawing.make_panels(1, 1)
        if labels:
            draw_over_steps(panel, table, styles)
        panel.set_ylabel(RECONSTRUCTION_ERROR.title)
        drawing.mark_values(panel)
        if len(labels) > 1:
            # Beside the panel, long names of settings would narrow it.
            drawing.legend(figure, styles.values(), below=True)
        drawing.say_if_empty(figure, "no error has been measured")
    return figure
