"""One table of a metric: its numbers, marks and notes, as Markdown, LaTeX, text for a console, or entries for HTML.

With an error, value and error get as many decimals as show two significant digits of the error, but are never rounded
left of the point (14.21 ± 0.32, 367 ± 12). Without one, a value has two decimals, or three significant digits if that
is more (13.36, 0.00412). There are never more than six decimals. A missing value is a dash.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from taugrid.eval.metrics.floor import Floor
from taugrid.eval.tables.labels import SIGMA_HAT, short_columns, short_samplers
from taugrid.registry.metrics import MetricColumn
from taugrid.words import markdown_table

MISSING = "–"
NOTHING = 5e-7  # smaller values have no digit that is shown
ROUNDING = 1e-9
"""A spread or a standard error below this share of what it belongs to is rounding: it occurs if every subset is the
whole set, or if two cells have the same samples, as any eta at S = 1."""
Z_95 = 1.96
"""|z| from which on a single difference is significant: chance alone reaches it 1 time in 20. For the best of a column
and all others, seeds.py has the limit."""
INDISTINGUISHABLE = "≈"
UNTESTED = "?"
JOINED = "‡"
MEANINGS = {
    INDISTINGUISHABLE: "not distinguishable from the best of its column by {test}, 95 % jointly for all cells of the "
    "column",
    UNTESTED: "not tested against the best of its column: their difference has no standard error",
    JOINED: "has another protocol than most, see the notes",
}
"""The marks after values, and their explanations below a table."""
BEST = "*"  # the mark of the best of a column where nothing can be bold

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

Floors = Mapping[int, Mapping[str, Floor]]  # N -> column of a metric -> its floor
NO_FLOORS: Floors = {}
Label = tuple[str, ...]


class Entry(NamedTuple):
    """A number of a table as text; missing parts are empty."""

    value: str
    error: str
    best: bool
    mark: str
    number: float  # NaN if it is missing
    cell: str

    @property
    def shown(self) -> str:
        return f"{self.value} {self.error}".rstrip()


class Value(NamedTuple):
    """A number of a table, not scaled."""

    number: float
    error: float = math.nan
    cell: str = ""
    spread: float = math.nan  # the standard deviation between replicates
    fewer: int | None = None  # the number of replicates, if others have more


NO_VALUE = Value(math.nan)


@dataclass(frozen=True)
class Table:
    """A table of one metric."""

    metric: MetricColumn
    settings: Mapping[str, str]
    """The settings that distinguish this table from others, checkpoints by short names. Empty if it is the only one."""
    labels: Sequence[Label]  # for each row, its label for each of `row_keys`
    columns: Sequence[Any]
    values: Mapping[tuple[Label, Hashable], Value]  # by row and column; a missing number is NaN or left out
    notes: tuple[str, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)  # cell id -> the mark after its value
    row_keys: tuple[str, ...] = ("η",)
    column_key: str = "S"
    over_seeds: bool = False  # whether values are means over replicates
    num_samples: int = 0
    floor: Floor | None = None  # the metric of real images against real images at this N, if it is known

    def row(self, label: Label) -> list[Value]:
        """The value of each column."""
        return [self.values.get((label, column), NO_VALUE) for column in self.columns]

    def _in_column(self, column: Hashable) -> dict[Label, Value]:
        found = {label: self.values.get((label, column), NO_VALUE) for label in self.labels}
        return {label: value for label, value in found.items() if not math.isnan(value.number)}

    def _best(self, column: Hashable) -> float:
        """The best value of a column; NaN where nothing competes: one value, or one of several samplers alone."""
        there = self._in_column(column)
        competing = len(there)
        if "sampler" in self.row_keys:
            place = self.row_keys.index("sampler")
            if len({label[place] for label in self.labels}) > 1:
                competing = len({label[place] for label in there})
        if competing < 2:
            return math.nan
        numbers = [value.number for value in there.values()]
        return max(numbers) if self.metric.higher_is_better else min(numbers)

    def contests(self) -> Iterator[tuple[str, list[str]]]:
        """The best cell of each column with all others that are not as good, if there are any."""
        for column in self.columns:
            best, there = self._best(column), list(self._in_column(column).values())
            others = [value.cell for value in there if value.number != best]
            if math.isfinite(best) and others:
                yield next(value.cell for value in there if value.number == best), others

    @cached_property
    def entries(self) -> list[list[Entry]]:
        """Each row as text."""
        best = [self._best(column) for column in self.columns]
        return [
            [self._entry(value, value.number == top) for value, top in zip(self.row(label), best, strict=True)]
            for label in self.labels
        ]

    def _entry(self, value: Value, best: bool) -> Entry:
        scale = self.metric.scale
        number, error = value.number * scale, value.error * scale
        text, behind = write_number(number, error)
        if behind and math.isfinite(value.spread):
            behind += f" ({value.spread * scale:.{_decimals(error, digits=2)}f})"
        if value.fewer is not None and math.isfinite(number):
            behind = f"{behind} (n = {value.fewer})".lstrip()
        mark = self.marks.get(value.cell, "") if math.isfinite(number) else ""
        return Entry(text, behind, best, mark, number, value.cell)

    @property
    def has_best(self) -> bool:
        return any(entry.best for row in self.entries for entry in row)

    @property
    def error_means(self) -> str:
        """Explains ±; empty if there is none."""
        known = any(not math.isnan(value.error) for value in self.values.values())
        return f"± is {self.metric.error_means}." if known else ""

    @property
    def row_headings(self) -> list[str]:
        """The headings of the columns of row labels; the last also has the columns' key: "η \\ S"."""
        *others, last = self.row_keys
        return [*others, f"{last} \\ {self.column_key}" if last else self.column_key]

    @property
    def short_settings(self) -> dict[str, str]:
        names = short_columns(self.settings)
        return {names[column]: value for column, value in self.settings.items()}

    @property
    def label(self) -> str:
        """The settings as names write them, such as "schedule=linear clip=x0"."""
        return " ".join(f"{name}={value}" for name, value in self.short_settings.items())

    @property
    def heading(self) -> str:
        """The settings under their full names, such as "diffusion.schedule = linear, clip = x0"."""
        return self.heading_without("")

    def heading_without(self, left_out: str) -> str:
        """The heading that is common to tables that differ only in this setting."""
        return ", ".join(f"{setting} = {value}" for setting, value in self.settings.items() if setting != left_out)

    @property
    def floor_value(self) -> str:
        """The floor with its standard deviation over draws, as text; empty if none is known."""
        scale, floor = self.metric.scale, self.floor
        return shown_number(scale * floor.mean, scale * floor.spread) if floor else ""

    @property
    def legend(self) -> list[str]:
        """A line for each mark of its entries."""
        test = f"the difference of {self.metric.title}, paired where noise is shared"
        if self.over_seeds:
            test = "Student's t for differences paired by seed"
        seen = {mark for row in self.entries for entry in row for mark in entry.mark}
        return [f"{mark} {m.format(test=test)}." for mark, m in MEANINGS.items() if mark in seen]

    @property
    def markdown(self) -> str:
        """In GitHub's Markdown, without heading and notes."""
        rows = [
            [*labels, *(f"{f'**{e.shown}**' if e.best else e.shown} {e.mark}".rstrip() for e in row)]
            for labels, row in zip(self.labels, self.entries, strict=True)
        ]
        columns = "l" * len(self.row_keys) + "r" * len(self.columns)
        return markdown_table([*self.row_headings, *map(str, self.columns)], columns, rows)

    def latex(self, caption: Sequence[str], siunitx: bool = False) -> str:
        """A `table` environment that needs booktabs; the sentences of the caption get full stops."""
        labels, columns = len(self.row_keys), len(self.columns)
        across = "$S$" if self.column_key == "S" else in_tex(self.column_key)
        write = _siunitx_entry if siunitx else _tex_entry
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{in_tex('. '.join(filter(None, caption)))}.}}",
            rf"\begin{{tabular}}{{{'l' * labels}{'r' * columns}}}",
            r"\toprule",
            " & " * labels + (across if columns == 1 else rf"\multicolumn{{{columns}}}{{c}}{{{across}}}") + r" \\",
            rf"\cmidrule(lr){{{labels + 1}-{labels + columns}}}",
            " & ".join(map(in_tex, (*self.row_keys, *map(str, self.columns)))) + r" \\",
            r"\midrule",
        ]
        for label, row in zip(self.labels, self.entries, strict=True):
            lines.append(" & ".join([*map(in_tex, label), *map(write, row)]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def console(self, bold: bool, width: int) -> Iterator[RichTable]:
        """The table, split by its columns into tables of at most `width` characters; not `bold`: stars are the best."""
        wide, left = Console(width=10_000), list(range(len(self.columns)))
        while left:
            count = len(left)
            while Measurement.get(wide, wide.options, drawn := self._drawn(left[:count], bold, width)).minimum > width:
                if count == 1:
                    break
                count -= 1
            yield drawn
            left = left[count:]

    def _drawn(self, places: Sequence[int], bold: bool, width: int) -> RichTable:
        drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        columns: list[list[Text]] = [
            [Text(short_samplers(text)) for text in texts] for texts in zip(*self.labels, strict=True)
        ]
        for heading in self.row_headings:
            drawn.add_column(Text(heading), overflow="fold", max_width=max(10, width // 2 // len(self.row_keys)))
        for place in places:
            entries, head = [row[place] for row in self.entries], str(self.columns[place])
            marks = [("" if bold or not entry.best else BEST) + entry.mark for entry in entries]
            wide = max(len(text) for text in (head, *(entry.shown for entry in entries)))
            texts = [
                Text(f"{entry.shown:>{wide}} {mark}".rstrip(), "bold" if bold and entry.best else "")
                for entry, mark in zip(entries, marks, strict=True)
            ]
            drawn.add_column(f"{head:>{wide}}", min_width=max(text.cell_len for text in texts))
            columns.append(texts)
        for row in zip(*columns, strict=True):
            drawn.add_row(*row)
        return drawn


def with_floors(tables: Iterable[Table], floors: Floors) -> list[Table]:
    return [replace(table, floor=floors.get(table.num_samples, {}).get(table.metric.name)) for table in tables]


def legend(tables: Sequence[Table]) -> list[str]:
    """A line for each meaning of each mark that some entry has."""
    lines = dict.fromkeys(line for table in tables for line in table.legend)
    return sorted(lines, key=lambda line: list(MEANINGS).index(line[0]))


def in_tex(text: str) -> str:
    """A text for LaTeX, with all characters escaped that it would obey."""
    pieces = ("".join(_TEX.get(character, character) for character in piece) for piece in text.split(SIGMA_HAT))
    return r"$\hat{\sigma}$".join(pieces)


def _tex_entry(entry: Entry) -> str:
    if entry.value == MISSING:
        return in_tex(MISSING)
    body = entry.shown.replace("±", r"\pm")
    return (f"$\\mathbf{{{body}}}$" if entry.best else f"${body}$") + _tex_mark(entry)


def _siunitx_entry(entry: Entry) -> str:
    """Value and error as one number, with what follows them (spread, number of replicates) as text."""
    if entry.value == MISSING:
        return in_tex(MISSING)
    error, _, behind = entry.error.removeprefix("± ").partition(" ") if "±" in entry.error else ("", "", entry.error)
    number = f"\\num{{{entry.value}{f' +- {error}' if error else ''}}}"
    body = " ".join(filter(None, [number, behind]))
    return (f"{{\\bfseries {body}}}" if entry.best else body) + _tex_mark(entry)


def _tex_mark(entry: Entry) -> str:
    """The mark after a value. With zero width, it keeps the digits of a column aligned."""
    return f"\\rlap{{$^{{{in_tex(entry.mark).replace('$', '')}}}$}}" if entry.mark else ""


def write_number(value: float, error: float = math.nan) -> tuple[str, str]:
    """Value and "± error" by the rules in the module's docstring; the error is empty if there is none."""
    if not math.isfinite(value):
        return MISSING, ""
    # a single split has spread 0, and subsets that equal the whole set have nearly none: neither means anything.
    if not (math.isfinite(error) and error > ROUNDING * abs(value)):
        value = 0.0 if abs(value) < NOTHING else value
        return f"{value:z.{max(2, _decimals(value, digits=3))}f}", ""
    decimals = _decimals(error, digits=2)
    return f"{value:z.{decimals}f}", f"± {error:.{decimals}f}"


def shown_number(value: float | None, error: float | None = None) -> str:
    """`write_number` as one text; None is a missing value, or no error."""
    texts = write_number(math.nan if value is None else value, math.nan if error is None else error)
    return " ".join(filter(None, texts))


def _decimals(number: float, digits: int) -> int:
    """The number of decimals that show `digits` significant digits, at most 6, after rounding: 0.0999 becomes 0.10."""
    exponent = int(f"{number:.{digits - 1}e}".split("e")[1]) if number else 0
    return min(max(0, digits - 1 - exponent), 6)
