"""A run's figures within a page: each matplotlib's SVG, buttons that hide its lines, and a table of its numbers."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.container import Container
from matplotlib.figure import Figure

from taugrid.eval.figures.ablation import costs_figure
from taugrid.eval.figures.drawing import key_of, number_ids, plain_style
from taugrid.eval.figures.lines import LABELS, losses_figure, quality_figure, running_mean
from taugrid.eval.pages.answer import Measured
from taugrid.eval.tables.cost import Cost, costs_table
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.quality import QualityTable
from taugrid.registry.metrics import MetricColumn

MAX_POINTS = 20
"""Rows of a model's losses. The log of a training may have thousands."""
MAX_MODELS = 12
SIMPLIFIED = 0.4  # points less than this many pixels off their line are left out
PLAIN = {"-\n": "-", "\n": " ", "$S$": "S", r"\$": "$"}  # TeX and lines of a figure's legend -> text on a button


class Chart(NamedTuple):
    svg: Markup
    legend: Mapping[str, str]  # key of each line, with which the ids of its elements begin -> its name
    alt_text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def quality_chart(
    quality: QualityTable, cells: Sequence[Measured], published: Sequence[Mapping[str, Any]], metric: MetricColumn = FID
) -> Chart:
    """A metric against `report.x`; numbers in `published`, rows of published.csv, are dotted where nothing differs."""
    theirs = {row["cell"]: float(row["published"]) for row in published if not row["differs"]}
    frame, x = quality.means.frame, quality.layout.x
    figure = quality_figure(frame, quality.used_protocols, theirs, x, metric, quality.floors)
    column = cells[0].table.column_key if cells else "S"
    rows = [(cell.line, str(cell.at), f"{cell.entry.shown} {cell.entry.mark}".rstrip()) for cell in cells]
    rows += [
        (f"{cell.line}, published", str(cell.at), f"{theirs[cell.entry.cell]:g}")
        for cell in cells
        if cell.entry.cell in theirs
    ]
    along = LABELS[x].replace("$", "")
    name = "steps" if metric == FID else f"steps-{metric.name}"
    return chart(figure, name, f"{metric.title} against {along}", ("row", column, metric.title), rows)


def cost_chart(costs: Sequence[Cost]) -> Chart:
    alt_text = f"{costs[0].metric.title} against network evaluations and device seconds"
    return chart(costs_figure(costs), "cost", alt_text, *costs_table(costs))


def loss_chart(logs: Mapping[str, pd.DataFrame]) -> Chart:
    """The losses of the first `MAX_MODELS` models, from the columns `step` and `loss` of their logs, by name."""
    shown, rows = dict(list(logs.items())[:MAX_MODELS]), list[tuple[str, str, str]]()
    for name, log in shown.items():
        step = log["step"].to_numpy()
        mean = running_mean(step, log["loss"].to_numpy())
        targets = np.geomspace(max(1, step[0]), step[-1], MAX_POINTS)  # equally far apart on a logarithmic scale
        places = sorted({min(int(np.searchsorted(step, target)), len(step) - 1) for target in targets})
        rows += [(name, f"{step[i]:,}", f"{mean[i]:.4g}") for i in places]
    alt_text = "training loss against the step"
    return chart(losses_figure(shown), "loss", alt_text, ("model", "step", "loss (running mean)"), rows)


def chart(figure: Figure, name: str, alt_text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Chart:
    """A figure as part of a page, with a button for each of its lines and a table of its numbers. `name` begins all
    ids, and is unique within the page. `alt_text` is for screen readers."""
    legend: dict[str, str] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            artist = handle.get_children()[0] if isinstance(handle, Container) else handle
            for written, shown in PLAIN.items():
                label = label.replace(written, shown)
            legend.setdefault(key_of(artist), label)
    return Chart(_svg(figure, name, alt_text), legend, alt_text, columns, rows)


def _svg(figure: Figure, name: str, alt_text: str) -> Markup:
    """Matplotlib's SVG; the page's policy allows no `style`, so styles become attributes, and ids begin with `name`."""
    number_ids(figure)
    with plain_style(), rc_context({"path.simplify_threshold": SIMPLIFIED}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue().partition("<svg")[2].rstrip()
    text = re.sub("<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(' style="(.*?)"', lambda style: re.sub("([a-z-]+): ([^;]+);? ?", r' \1="\2"', style[1]), text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", text).replace("xlink:href", "href")
    text = text.replace(' target="_blank"', ' tabindex="-1"')  # the page has the same links in its table
    label = escape(f"{alt_text}; the numbers are in the table below")
    return Markup(f'<svg role="img" stroke-linejoin="round" aria-label="{label}"{text}')
