"""The figure of reconstructions: their error against S."""

import pandas as pd
from matplotlib.figure import Figure

from taugrid.eval.figures.drawing import (
    LEGEND_LINE,
    legend,
    legend_name,
    make_panels,
    mark_values,
    ordered_styles,
    plain_style,
    say_if_empty,
    shifts,
)
from taugrid.eval.figures.over_steps import draw_over_steps
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_pivot


def reconstruction_figure(frame: pd.DataFrame) -> Figure:
    """The error of `reconstruction_frame` against S, both logarithmic: a line for each setting, bars of ±1 se."""
    table = reconstruction_pivot(frame)
    labels = [str(label) for label in table.values.index]
    styles = ordered_styles({label: legend_name(label) for label in labels}, shifts(len(labels)))
    with plain_style():
        figure, (panel,) = make_panels(1, 1)
        if labels:
            draw_over_steps(panel, table, styles)
        panel.set_ylabel(RECONSTRUCTION_ERROR.title)
        mark_values(panel)
        if len(labels) > 1:
            # Below the panel, in a taller figure: long names of settings next to the panel would narrow it.
            lines = sum(look.name.count("\n") + 1 for look in styles.values())
            figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)
            legend(figure, styles.values(), "outside lower center")
        say_if_empty(figure, "no error has been measured")
    return figure
