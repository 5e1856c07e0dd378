"""Figures of ablated config keys: a metric against S with a panel for each value of a key, or a map over two keys."""

import math
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from numbers import Real

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from taugrid.eval.figures.drawing import (
    PANELS_ACROSS,
    legend_name,
    make_room,
    panels_figure,
    plain_style,
    row_styles,
    x_offsets,
)
from taugrid.eval.figures.over_steps import Along, draw_over_steps, scale_of
from taugrid.eval.tables.ablation.effects import Effect, short_key_names
from taugrid.eval.tables.ablation.pairing import KEY_SEPARATOR
from taugrid.eval.tables.entries import write_number
from taugrid.eval.tables.labels import row_name
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import Pivot, with_floors
from taugrid.eval.tables.quality import QualityTable
from taugrid.grids.axes import Layout
from taugrid.registry.metrics import MetricColumn

MAX_PANELS = 12
"""Panels of a heat map."""


def name_of(label: Sequence[str], row_keys: Sequence[str], all_labels: Collection[Sequence[str]]) -> str:
    """A row's name in a legend, without settings that all rows share; "all" without any."""
    varies = [len(set(texts)) > 1 for texts in zip(*all_labels, strict=True)]
    parts = zip(row_keys, label, varies, strict=True)
    return row_name((key, text) for key, text, differs in parts if differs) or "all"


def per_key_figures(
    table: QualityTable, effects: Sequence[Effect], metric: MetricColumn = FID
) -> Iterator[tuple[str, Figure]]:
    """Name and figure for each key of the effects on a metric.

    There is a panel for each value of the key, and a line for each combination of the other settings: means over
    replicates with their errors.
    """
    settings = table.arranged(Layout()).settings
    for key, short in short_key_names(effects).items():
        keys = key.split(KEY_SEPARATOR)
        if set(keys) & {"steps", "eta"}:
            continue  # S, or what it costs, is the axis of every panel, and eta makes the lines of figures/quality
        rows = (*(name for name in settings if name not in keys), "eta")
        tables = with_floors(table.arranged(Layout(rows)).tables(metric), table.floors)
        labels = dict.fromkeys(label for pivot in tables for label in pivot.labels)
        names = {label: legend_name(name_of(label, tables[0].row_keys, labels)) for label in labels}
        draw = partial(draw_over_steps, axis=Along.of(table.means.frame, table.layout.x))
        styles = row_styles(names, tables[0].row_keys, x_offsets(len(names)))
        figure = panels_figure(tables, draw, styles, "log", metric, scale_of(tables))
        make_room(figure, names.values())
        yield f"by-{short.replace(KEY_SEPARATOR, '-')}", figure


def heat_maps(
    table: QualityTable, effects: Sequence[Effect], metric: MetricColumn = FID
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of a metric over the first two numeric ablated keys, or over one and S."""
    frame = table.frame
    numeric = [key for key in short_key_names(effects) if _is_numeric(frame, key)]
    chosen = [*numeric, "steps"] if "steps" not in numeric and frame["steps"].nunique() > 1 else numeric
    if not numeric or len(chosen) < 2:
        return
    tables = table.arranged(Layout((chosen[0],), chosen[1])).tables(metric)
    is_log = scale_of(tables) == "log"
    values = [value for pivot in tables for value in pivot.values.to_numpy().flat if value > 0 or not is_log]
    known = [value for value in values if math.isfinite(value)]
    if known:
        norm = LogNorm(min(known), max(known) * (1 + 1e-9)) if is_log else Normalize(min(known), max(known))
        yield "heat-map", _heat_map(tables[:MAX_PANELS], norm)


def _is_numeric(frame: pd.DataFrame, key: str) -> bool:
    if key == "eta" and ((frame["sigma"] != "eta") | frame["eta"].isna()).any():
        return False  # sigma_hat is a row of its own, and so is a sampler without eta
    return key in frame and all(isinstance(value, Real) and not isinstance(value, bool) for value in frame[key])


def _heat_map(tables: Sequence[Pivot], norm: Normalize) -> Figure:
    across = min(len(tables), PANELS_ACROSS)
    down = math.ceil(len(tables) / across)
    rows, columns = tables[0].values.shape
    with plain_style():
        size = (1.6 + across * (1.0 + 0.75 * columns), 0.5 + down * (1.0 + 0.42 * rows))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine())
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel in panels[len(tables) :]:
            panel.remove()
        used = panels[: len(tables)]
        images = [_draw(panel, table, norm) for panel, table in zip(used, tables, strict=True)]
        bar = figure.colorbar(images[0], ax=used, label=tables[0].metric.heading)  # all share `norm`
        bar.ax.yaxis.set_minor_formatter("{x:g}")
        bar.ax.yaxis.set_major_formatter("{x:g}")
    return figure


def _draw(panel: Axes, table: Pivot, norm: Normalize):  # type: ignore[no-untyped-def]  # matplotlib's image
    values = table.values.sort_index(key=_as_numbers).sort_index(axis=1, key=_as_numbers)
    image = panel.imshow(
        values.to_numpy(), norm=norm, cmap="viridis" if table.metric.higher_is_better else "viridis_r", aspect="auto"
    )
    panel.grid(visible=False)
    panel.set_title(table.label, parse_math=False)
    panel.set_xlabel(table.column_key)
    panel.set_ylabel(table.row_keys[0])
    panel.set_xticks(range(values.shape[1]), [str(column) for column in values.columns])
    panel.set_yticks(range(values.shape[0]), [str(label) for label in values.index])
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        if math.isfinite(value):
            shade = norm(value)  # masked if its logarithm does not exist
            dark = shade is not np.ma.masked and (shade < 0.5) == table.metric.higher_is_better
            panel.text(column, row, write_number(value)[0], ha="center", va="center", fontsize=8,
                       color="white" if dark else "black")  # fmt: skip
    return image


def _as_numbers(labels: pd.Index) -> pd.Index:
    return pd.Index([float(label) for label in labels])
