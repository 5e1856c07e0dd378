"""The quality table as text: csv, json, Markdown and LaTeX in files, and drawn in a terminal.

In a terminal, the best of a column is bold, or marked with a star in a log, a pipe and where there are no colours.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from taugrid.eval.tables.entries import INDISTINGUISHABLE, JOINED, MISSING, Entry
from taugrid.eval.tables.labels import SIGMA_HAT, short_samplers
from taugrid.eval.tables.long_form import FID, as_csv, as_json, has_values, with_notes, write_files
from taugrid.eval.tables.pivots import Table
from taugrid.eval.tables.quality import MetricTables, QualityTable, legend, sizes
from taugrid.eval.tables.reconstruction import RECONSTRUCTION_ERROR, reconstruction_table

SIUNITX = (
    "% For a document with \\usepackage{booktabs,siunitx} in its preamble.\n"
    "\\begingroup\\sisetup{separate-uncertainty, detect-weight}\\setlength{\\belowcaptionskip}{1ex}",
    "\\endgroup",
)
"""The lines around tables whose numbers siunitx sets: 13.2 ± 1.7 in place of 13.2(17), bold where the text is."""
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_TEX |= {"±": r"$\pm$", "×": r"$\times$", "η": r"$\eta$", "–": "--", "σ": r"$\sigma$"}
_TEX |= {character: f"${character}$" for character in "|<>"}  # the old font encoding has others in their place
_TEX |= {INDISTINGUISHABLE: r"$\approx$", JOINED: r"$\ddagger$"}

CONSOLE_WIDTH = 80
"""The largest width of tables, in characters, which rich also assumes if there is no terminal."""
MAX_ROWS = 60
"""Rows in all tables of further metrics. With more, they are left out, or the first would scroll off the screen."""
MIN_LABEL_WIDTH = 10
"""Characters to which a label may be folded."""
BEST = "*"
"""The mark of the best of a column where nothing can be bold."""


def write_quality(table: QualityTable, folder: Path, stem: str = "quality") -> None:
    """Write quality.{csv,json,md,tex} into `folder`, which is made if it is missing; `stem` is another name."""
    document = {"rows": table.long.to_dict("records"), "protocols": table.protocols, "notes": list(table.notes)}
    alike = {section.metric: sorted(section.alike) for section in table.sections}
    document |= {"indistinguishable": alike.pop(FID, []), "joined": sorted(table.joined)}
    others = {m.name: cells for m, cells in alike.items() if has_values(table.frame, m.sampling_error)}
    document |= {"indistinguishable_in": others} if others else {}
    floors = {str(n): {name: floor._asdict() for name, floor in by_name.items()} for n, by_name in table.floors.items()}
    document |= {"floors": floors} if floors else {}
    folder.mkdir(parents=True, exist_ok=True)
    text = with_notes(f"{table.about}\n\n{to_markdown(table)}", table.notes)
    tex = "".join(f"% {' '.join(line.split())}\n" for line in (table.about, *table.notes)) + to_latex(table)
    write_files(folder, stem, csv=as_csv(table.long), json=as_json(document), md=text, tex=tex)


def to_markdown(table: QualityTable) -> str:
    """A section for each metric, in GitHub's Markdown."""
    return "\n".join(map(section_markdown, table.sections))


def section_markdown(section: MetricTables) -> str:
    blocks = [f"## {section.metric.heading}", *filter(None, [section.means])]
    for pivot in section.tables:
        settings = ", ".join(f"`{key}` = `{value}`" for key, value in pivot.short_settings.items())
        blocks += [f"### {settings}"] if settings else []
        blocks += [pivot.markdown, *pivot.notes]
    return "\n\n".join([*blocks, *section.legend]) + "\n"


def to_latex(table: QualityTable, siunitx: bool = False) -> str:
    """A `table` environment for each table of each metric, for a document that loads booktabs and, if so, siunitx."""
    before, *after = SIUNITX if siunitx else ["% Needs \\usepackage{booktabs}."]
    return "\n".join([before, *(section_latex(table, section, siunitx) for section in table.sections), *after])


def section_latex(table: QualityTable, section: MetricTables, siunitx: bool = False) -> str:
    metric, texts = section.metric, []
    for each in section.tables:
        means = section.caption or (f"± is {metric.error_means}" if each.errors.notna().any(axis=None) else "")
        number = f"N = {sizes(table.frame)}" if "num_samples" not in each.settings else ""
        marks = (line.rstrip(".") for line in legend([each]))
        caption = [metric.heading, each.label, number, means.rstrip("."), *each.notes, *marks]
        texts.append(_latex(each, caption, siunitx))
    return "\n".join(texts)


def _latex(table: Table, caption: Sequence[str], siunitx: bool) -> str:
    """A `table` environment; the sentences of the caption that are not empty get full stops."""
    write, labels, columns = _siunitx_entry if siunitx else _entry, len(table.row_keys), len(table.columns)
    across = "$S$" if table.column_key == "S" else _tex(table.column_key)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex('. '.join(filter(None, caption)))}.}}",
        rf"\begin{{tabular}}{{{'l' * labels}{'r' * columns}}}",
        r"\toprule",
        " & " * labels + (across if columns == 1 else rf"\multicolumn{{{columns}}}{{c}}{{{across}}}") + r" \\",
        rf"\cmidrule(lr){{{labels + 1}-{labels + columns}}}",
        " & ".join(map(_tex, (*table.row_keys, *table.columns))) + r" \\",
        r"\midrule",
        *(
            " & ".join([*map(_tex, label), *map(write, row)]) + r" \\"
            for label, row in zip(table.labels, table.entries, strict=True)
        ),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    pieces = ("".join(_TEX.get(character, character) for character in piece) for piece in text.split(SIGMA_HAT))
    return r"$\hat{\sigma}$".join(pieces)


def _entry(entry: Entry) -> str:
    if entry.value == MISSING:
        return _tex(MISSING)
    body = entry.shown.replace("±", r"\pm")
    return (f"$\\mathbf{{{body}}}$" if entry.best else f"${body}$") + _tex_mark(entry)


def _siunitx_entry(entry: Entry) -> str:
    """Value and error as one number, with what follows them (spread, number of replicates) as text."""
    if entry.value == MISSING:
        return _tex(MISSING)
    error, _, behind = entry.error.removeprefix("± ").partition(" ") if "±" in entry.error else ("", "", entry.error)
    number = f"\\num{{{entry.value}{f' +- {error}' if error else ''}}}"
    body = " ".join(filter(None, [number, behind]))
    return (f"{{\\bfseries {body}}}" if entry.best else body) + _tex_mark(entry)


def _tex_mark(entry: Entry) -> str:
    """The mark after a value. With zero width, it keeps the digits of a column aligned."""
    return f"\\rlap{{$^{{{_tex(entry.mark).replace('$', '')}}}$}}" if entry.mark else ""


@dataclass(frozen=True)
class LazyRenderable:
    """Text and tables that are made when `rich` prints them: only then it is known whether the console shows bold."""

    parts: Callable[[bool, int], Iterator[RenderableType]]
    """Called with (shows_bold, width), the width in characters."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shows_bold = console.color_system is not None and not console.no_color
        yield from self.parts(shows_bold, min(CONSOLE_WIDTH, options.max_width))


def to_console(quality: QualityTable) -> LazyRenderable:
    """The tables of every metric, for `rich` to print; notes and the star's meaning are below the first.

    A table wider than 80 characters, or than the terminal, gets its errors below the values, and else is split.
    """
    first, *others = quality.sections

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        for pivot in first.tables:
            yield Text(": ".join(filter(None, [first.metric.heading, pivot.label])))
            yield from _console_tables(pivot, bold, width)
            yield from map(Text, pivot.notes)
        yield from map(Text, filter(None, [first.caption, *_star(first.tables, bold), *first.legend]))
        if sum(len(table.values) for section in others for table in section.tables) > MAX_ROWS:
            yield Text(f"{' and '.join(section.metric.title for section in others)}: see tables/quality.md")
            return
        for section in others:
            means = "" if section.caption else section.error_means.rstrip(".")  # the caption is below the first table
            heading = "; ".join(filter(None, (section.metric.heading, means)))
            for table in section.tables:
                yield from (Text(), Text(": ".join(filter(None, [heading, table.label]))))
                yield from _console_tables(table, bold, width)
            yield from map(Text, section.legend)
        if others:
            yield Text()

    return LazyRenderable(parts)


def reconstruction_to_console(frame: pd.DataFrame, about: str, notes: Sequence[str] = ()) -> LazyRenderable:
    """The table of reconstruction errors, with `about` and `notes` of `write_reconstruction` below it."""
    table, metric = reconstruction_table(frame), RECONSTRUCTION_ERROR
    with_errors = table.errors.notna().any(axis=None)

    def parts(bold: bool, width: int) -> Iterator[RenderableType]:
        yield Text(metric.heading)
        yield from _console_tables(table, bold, width)
        error_means = [f"± is {metric.error_means}."] if with_errors else []
        yield from map(Text, [*_star([table], bold), about, *table.notes, *error_means, *notes])

    return LazyRenderable(parts)


def _star(tables: Sequence[Table], bold: bool) -> list[str]:
    """The line that explains the star, if there is one."""
    return [f"{BEST} the best of its column."] if not bold and any(table.has_best for table in tables) else []


def _console_tables(pivot: Table, bold: bool, width: int) -> Iterator[RichTable]:
    """The table, split by its columns into tables that are not wider than `width` characters."""
    rows = pivot.entries
    if not bold:
        rows = [[entry._replace(mark=(BEST if entry.best else "") + entry.mark) for entry in row] for row in rows]
    gap = 2  # a space of padding, and one where the box has its divider
    labels = [tuple(map(short_samplers, label)) for label in pivot.labels]
    label_columns = zip(pivot.row_headings, *labels, strict=True)
    lengths = [max(map(len, column)) for column in label_columns]
    gaps = gap * (len(lengths) - 1)
    for separator in (" ", "\n"):  # errors beside the values; below them if even folded labels leave too little room
        columns = [_aligned(head, column, separator) for head, *column in zip(pivot.columns, *rows, strict=True)]
        widths = [gap + len(column[0]) for column in columns]
        left = min(width // 2, width - sum(widths) - gaps if separator == " " else width)
        label_widths = list(lengths)
        while sum(label_widths) > left and max(label_widths) > MIN_LABEL_WIDTH:
            label_widths[label_widths.index(max(label_widths))] -= 1
        label_width_total = sum(label_widths) + gaps
        if label_width_total + sum(widths) <= width:
            break
    parts: list[list[int]] = [[]]
    for i, column_width in enumerate(widths):
        if parts[-1] and label_width_total + sum(widths[j] for j in parts[-1]) + column_width > width:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for head, label_width in zip(pivot.row_headings, label_widths, strict=True):
            table.add_column(Text(_folded(head, label_width)), width=label_width, overflow="fold")
        for i in part:
            table.add_column(Text(columns[i][0]))
        for k, label in enumerate(labels):
            texts = (Text(columns[i][k + 1], "bold" if bold and rows[k][i].best else "") for i in part)
            table.add_row(*map(Text, map(_folded, label, label_widths)), *texts)
        yield table


def _folded(label: str, width: int) -> str:
    """A label in lines of at most `width` characters, which end behind " :_=" or a word where they can."""
    lines = [""]
    for part in re.split(r"(?<=[ :_=])|(?<=[a-z])(?=[A-Z])", label):
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _aligned(head: str, column: Sequence[Entry], separator: str) -> list[str]:
    """The heading and the entries of a column, padded to one width, with aligned digits and marks after them."""
    mark_width = max(len(entry.mark) for entry in column)
    cells = [(head, ""), *((entry.joined(separator), entry.mark) for entry in column)]
    width = max(len(line) for text, _ in cells for line in text.split("\n"))
    return [
        "\n".join(line.rjust(width) for line in text.split("\n")) + (f" {mark.ljust(mark_width)}" if mark_width else "")
        for text, mark in cells
    ]
