"""A figure for each key that is compared: FID against S, one panel for each of its values, with shared axes."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from taugrid.eval.figures.drawing import LEGEND_LINE, fid_figure, legend_name, ordered_styles, shifts
from taugrid.eval.figures.over_steps import draw_over_steps
from taugrid.eval.tables.ablation.effects import TOGETHER, Effect
from taugrid.eval.tables.ablation.effects_files import short_keys_of
from taugrid.eval.tables.ablation.one_table import Layout, one_table, settings_in_rows
from taugrid.eval.tables.long_form import FID
from taugrid.protocol import ProtocolFields

LINES_BESIDE = 14
"""As many lines of a legend fit beside a row of panels."""


def panels_figures(
    frame: pd.DataFrame, found: Sequence[Effect], protocols: Mapping[str, ProtocolFields]
) -> Iterator[tuple[str, Figure]]:
    """Name and figure for each key of the effects; lines are everything else, means over replicates with their errors.

    `frame` is in the order of the grid.
    """
    settings = settings_in_rows(frame, protocols)
    for key, short in short_keys_of(found).items():
        keys = key.split(TOGETHER)
        if set(keys) & {"steps", "eta"}:
            continue  # S is the axis of every panel, and eta makes the lines of figures/quality
        rows = (*(name for name in settings if name not in keys), "eta")
        tables = one_table(frame, FID, protocols, Layout(rows))
        heads = tables[0].heads
        names = {
            " ".join(label): legend_name(" ".join(f"{head}={text}" for head, text in zip(heads, label, strict=True)))
            for table in tables
            for label in table.labels
        }
        figure = fid_figure(tables, draw_over_steps, ordered_styles(names, shifts(len(names))), "log")
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, len(names) - LINES_BESIDE))
        yield f"by-{short.replace(TOGETHER, '-')}", figure
