"""A table of one metric in LaTeX, for a document that loads booktabs."""

from collections.abc import Sequence

import pandas as pd

from taugrid.eval.tables.entries import INDISTINGUISHABLE, JOINED, MISSING, Entry
from taugrid.eval.tables.labels import SIGMA_HAT
from taugrid.eval.tables.pivots import Pivot

_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_TEX |= {"±": r"$\pm$", "×": r"$\times$", "η": r"$\eta$", "–": "--", "σ": r"$\sigma$"}
_TEX |= {character: f"${character}$" for character in "|<>"}  # the old font encoding has others in their place
_TEX |= {INDISTINGUISHABLE: r"$\approx$", JOINED: r"$\ddagger$"}


def _tex(text: str) -> str:
    pieces = ("".join(_TEX.get(character, character) for character in piece) for piece in text.split(SIGMA_HAT))
    return r"$\hat{\sigma}$".join(pieces)


def latex_table(pivot: Pivot, caption: Sequence[str], siunitx: bool = False) -> str:
    """A `table` environment; the sentences of the caption that are not empty get full stops.

    With `siunitx`, that package sets numbers and their errors.
    """
    write = siunitx_entry if siunitx else _entry
    heads, columns = [_tex(head) for head in pivot.row_keys], [_tex(column) for column in pivot.columns]
    across = "$S$" if pivot.column_key == "S" else _tex(pivot.column_key)
    # Labels before the last are cells of a label's text: pandas writes an index of several levels in two lines.
    index = [" & ".join(map(_tex, label)) for label in pivot.labels]
    texts = pd.DataFrame(
        [[write(entry) for entry in row] for row in pivot.entries],
        index=index,
        # The corner has S above the columns and eta above the labels: names of column levels are written there.
        columns=pd.MultiIndex.from_product([[across], columns], names=["", heads[-1]]),
    )
    table = texts.style.to_latex(
        column_format="l" * len(heads) + "r" * len(columns),
        position_float="centering",
        hrules=True,
        multicol_align="c",
        caption=_tex(". ".join(filter(None, caption))) + ".",
    )
    # pandas draws no rule below the first line of a header, and knows of one column of labels.
    n, blank = len(heads), " & " * (len(heads) - 1)
    table = table.replace("\n & \\multicolumn", f"\n{blank} & \\multicolumn", 1)
    rule = f"\n\\cmidrule(lr){{{n + 1}-{len(columns) + n}}}\n"
    return table.replace(f"\n{heads[-1]} &", f"{rule}{' & '.join(heads)} &", 1)


def _entry(entry: Entry) -> str:
    if entry.value == MISSING:
        return _tex(MISSING)
    body = entry.shown.replace("±", r"\pm")
    return (f"$\\mathbf{{{body}}}$" if entry.best else f"${body}$") + _mark(entry)


def siunitx_entry(entry: Entry) -> str:
    """Value and error as one number, with what follows them (spread, number of replicates) as text."""
    if entry.value == MISSING:
        return _tex(MISSING)
    error, _, behind = entry.error.removeprefix("± ").partition(" ") if "±" in entry.error else ("", "", entry.error)
    number = f"\\num{{{entry.value}{f' +- {error}' if error else ''}}}"
    body = " ".join(filter(None, [number, behind]))
    return (f"{{\\bfseries {body}}}" if entry.best else body) + _mark(entry)


def _mark(entry: Entry) -> str:
    """The mark after a value. With zero width, it keeps the digits of a column aligned."""
    return f"\\rlap{{$^{{{_tex(entry.mark).replace('$', '')}}}$}}" if entry.mark else ""
