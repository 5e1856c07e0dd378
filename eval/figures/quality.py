"""The figure of quality versus steps: FID against S."""

from collections.abc import Iterable, Mapping
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from taugrid.eval.figures.drawing import LineStyle, fid_figure, ordered_styles, shifts
from taugrid.eval.figures.over_steps import draw_over_steps
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.pivots import SIGMA_HAT, pivot_tables
from taugrid.protocol import ProtocolFields

SIGMA_HAT_COLOUR = "#d55e00"
"""Vermilion of the Okabe-Ito palette, which every common kind of colour vision can tell from viridis."""


def quality_figure(
    frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields] = {}, published: Mapping[str, float] = {}
) -> Figure:
    """FID against S, both logarithmic: a line for each eta, bars of ±1 standard error, a panel for each pivot.

    `protocols` has the rows' protocols by hash: cells that can't be compared don't share a panel. Cells without an FID,
    or with one of 0 or less, which has no logarithm, are left out. `published` has others' FIDs by cell, to be dotted.
    """
    pivots = pivot_tables(frame, FID.name, FID.error, protocols)
    styles = _eta_styles({label for table in pivots for label in table.values.index})
    return fid_figure(pivots, partial(draw_over_steps, published=published), styles, "log")


def _eta_styles(labels: Iterable[str]) -> dict[str, LineStyle]:
    """Colours from dark to light in the order of eta, so that they read as a scale; sigma_hat is dashed in another."""
    given = set(labels)
    numbers = sorted(given - {SIGMA_HAT}, key=float)
    places = shifts(len(given))
    styles = ordered_styles({label: rf"$\eta$ = {label}" for label in numbers}, places)
    if SIGMA_HAT in given:
        styles[SIGMA_HAT] = LineStyle(r"$\hat{\sigma}$", places[-1], SIGMA_HAT_COLOUR, "X", "--", "line-hat")
    return styles
