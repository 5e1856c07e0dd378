"""The quality tables in LaTeX, for a document that loads booktabs."""

from collections.abc import Mapping, Set

import pandas as pd

from taugrid.eval.tables.ablation.one_table import USUAL, Layout
from taugrid.eval.tables.ablation.replicates import averaged
from taugrid.eval.tables.entries import (
    INDISTINGUISHABLE,
    JOINED,
    MISSING,
    Entry,
    entries,
    legend,
    marked_pivots,
    sizes,
    tabulated,
)
from taugrid.eval.tables.pivots import SIGMA_HAT, Pivot
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn

_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_TEX |= {"±": r"$\pm$", "×": r"$\times$", "η": r"$\eta$", "–": "--", "σ": r"$\sigma$"}
_TEX |= {character: f"${character}$" for character in "|<>"}  # the old font encoding has others in their place
_TEX |= {INDISTINGUISHABLE: r"$\approx$", JOINED: r"$\ddagger$"}


def _tex(text: str) -> str:
    pieces = ("".join(_TEX.get(character, character) for character in piece) for piece in text.split(SIGMA_HAT))
    return r"$\hat{\sigma}$".join(pieces)


def to_latex(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
    layout: Layout = USUAL,
) -> str:
    """A `table` environment for each table of each metric; arguments as in `marked_pivots`."""
    of_means = "" if frame.empty else averaged(frame, protocols).caption().rstrip(".")
    tables = [
        _table(pivot, metric, frame, of_means)
        for metric in tabulated(frame)
        for pivot in marked_pivots(frame, metric, protocols, indistinguishable, joined, layout)
    ]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *tables])


def _table(pivot: Pivot, metric: MetricColumn, frame: pd.DataFrame, of_means: str) -> str:
    labels, rows = zip(*entries(pivot, metric), strict=True)
    heads, steps = [_tex(head) for head in pivot.heads], [_tex(str(steps)) for steps in pivot.values.columns]
    across = "$S$" if pivot.across == "S" else _tex(pivot.across)
    # The corner has S above the columns and eta above the labels: names of column levels are written there.
    columns = pd.MultiIndex.from_product([[across], steps], names=["", heads[-1]])
    # Labels before the last are cells of a label's text: pandas writes an index of several levels in two lines.
    index = [" & ".join(map(_tex, label)) for label in labels]
    texts = pd.DataFrame([[_entry(entry) for entry in row] for row in rows], index=index, columns=columns)
    table = texts.style.to_latex(
        column_format="l" * len(heads) + "r" * len(steps),
        position_float="centering",
        hrules=True,
        multicol_align="c",
        caption=_caption(pivot, metric, frame, of_means),
    )
    # pandas draws no rule below the first line of a header, and knows of one column of labels.
    n, blank = len(heads), " & " * (len(heads) - 1)
    table = table.replace("\n & \\multicolumn", f"\n{blank} & \\multicolumn", 1)
    rule = f"\n\\cmidrule(lr){{{n + 1}-{len(steps) + n}}}\n"
    return table.replace(f"\n{heads[-1]} &", f"{rule}{' & '.join(heads)} &", 1)


def _caption(pivot: Pivot, metric: MetricColumn, frame: pd.DataFrame, of_means: str) -> str:
    means = of_means or (f"± is {metric.error_means}" if pivot.errors.notna().any(axis=None) else "")
    number = "N = " + sizes(frame) if "num_samples" not in pivot.settings else ""
    lines = [line.rstrip(".") for line in legend([pivot], metric)]
    return _tex(". ".join(filter(None, [metric.heading, pivot.label, number, means, *pivot.notes, *lines]))) + "."


def _entry(entry: Entry) -> str:
    if entry.value == MISSING:
        return _tex(MISSING)
    body = entry.joined(" ").replace("±", r"\pm")
    # A mark of zero width keeps the digits of a column aligned.
    mark = f"\\rlap{{$^{{{_tex(entry.mark).replace('$', '')}}}$}}" if entry.mark else ""
    return (f"$\\mathbf{{{body}}}$" if entry.best else f"${body}$") + mark
