"""A heat map of FID over two keys of the grid that are numbers, a panel for all else."""

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from taugrid.eval.figures.drawing import PANELS_ACROSS, plain_style
from taugrid.eval.tables.ablation.effects import Effect
from taugrid.eval.tables.ablation.one_table import Layout, one_table
from taugrid.eval.tables.entries import write_number
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import Pivot
from taugrid.protocol import ProtocolFields

MOST_PANELS = 12


def heat_maps(
    frame: pd.DataFrame, found: Sequence[Effect], protocols: Mapping[str, ProtocolFields]
) -> Iterator[tuple[str, Figure]]:
    """Name and figure, if at least two keys are numbers: the first two that are ablated, or one and S.

    `frame` is in the order of the grid.
    """
    numeric = [key for key in dict.fromkeys(effect.key for effect in found) if _is_numeric(frame, key)]
    chosen = [*numeric, "steps"] if "steps" not in numeric and frame["steps"].nunique() > 1 else numeric
    if not numeric or len(chosen) < 2:
        return
    tables = one_table(frame, FID, protocols, Layout((chosen[0],), chosen[1]))
    positive = [number for table in tables for number in table.values.to_numpy().flat if number > 0]
    if positive:
        yield "heat-map", _figure(tables[:MOST_PANELS], LogNorm(min(positive), max(positive) * (1 + 1e-9)))


def _is_numeric(frame: pd.DataFrame, key: str) -> bool:
    if key == "eta" and (frame["sigma"] != "eta").any():
        return False  # sigma_hat is a row of its own
    values = list(frame[key]) if key in frame else [None]
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in values)


def _figure(tables: Sequence[Pivot], norm: LogNorm) -> Figure:
    across = min(len(tables), PANELS_ACROSS)
    down = math.ceil(len(tables) / across)
    rows, columns = tables[0].values.shape
    with plain_style():
        size = (1.6 + across * (1.0 + 0.75 * columns), 0.5 + down * (1.0 + 0.42 * rows))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine())
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel in panels[len(tables) :]:
            panel.remove()
        for panel, table in zip(panels, tables, strict=False):
            image = _draw(panel, table, norm)
        bar = figure.colorbar(image, ax=panels[: len(tables)], label=FID.heading)
        bar.ax.yaxis.set_minor_formatter("{x:g}")
        bar.ax.yaxis.set_major_formatter("{x:g}")
    return figure


def _draw(panel: Axes, table: Pivot, norm: LogNorm):  # type: ignore[no-untyped-def]  # matplotlib's image
    values = table.values.sort_index(key=_as_numbers).sort_index(axis=1, key=_as_numbers)
    image = panel.imshow(values.to_numpy(), norm=norm, cmap="viridis_r", aspect="auto")
    panel.grid(visible=False)
    panel.set_title(table.label, parse_math=False)
    panel.set_xlabel(table.across)
    panel.set_ylabel(table.heads[0])
    panel.set_xticks(range(values.shape[1]), [str(column) for column in values.columns])
    panel.set_yticks(range(values.shape[0]), [str(label) for label in values.index])
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        if math.isfinite(value):
            dark = value > 0 and norm(value) > 0.5
            panel.text(column, row, write_number(value, math.nan)[0], ha="center", va="center", fontsize=8,
                       color="white" if dark else "black")  # fmt: skip
    return image


def _as_numbers(labels: pd.Index) -> pd.Index:
    return pd.Index([float(label) for label in labels])
