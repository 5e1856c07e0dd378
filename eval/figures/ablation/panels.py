"""A figure for each key that is compared: FID against S, one panel for each of its values, with shared axes."""

from collections.abc import Collection, Iterator, Mapping, Sequence

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
CHARACTER_WIDTH = 0.068
"""Inches that a character of a legend takes."""
SHORT_NAME = 10
"""Characters of a name that fit without more width."""


def name_of(label: Sequence[str], heads: Sequence[str], all_labels: Collection[Sequence[str]]) -> str:
    """A row's name in a legend, such as "schedule=cosine", without what all rows share; "all" if that is everything."""
    varies = [len(set(texts)) > 1 for texts in zip(*all_labels, strict=True)]
    parts = zip(heads, label, varies, strict=True)
    return " ".join(f"{head}={text}" for head, text, differs in parts if differs) or "all"


def make_room(figure: Figure, names: Collection[str]) -> None:
    """Make a figure wide and high enough for a legend of `names` beside its panels."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    figure.set_figwidth(figure.get_figwidth() + CHARACTER_WIDTH * max(0, longest - SHORT_NAME))
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, len(names) - LINES_BESIDE))


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
        labels = dict.fromkeys(label for table in tables for label in table.labels)
        names = {" ".join(label): legend_name(name_of(label, tables[0].heads, labels)) for label in labels}
        figure = fid_figure(tables, draw_over_steps, ordered_styles(names, shifts(len(names))), "log")
        make_room(figure, names.values())
        yield f"by-{short.replace(TOGETHER, '-')}", figure
