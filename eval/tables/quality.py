"""Quality-versus-steps tables: every cell in long form, and pivoted as in the DDIM paper (rows eta, columns S).

How a value is written: with an error, both get the decimals that show two significant digits of the error, but none
are rounded left of the point (14.21 ± 0.32, 367 ± 12, 4.160 ± 0.012); without one, two decimals, or three significant
digits where those are more (13.36, 0.00412). Never more than six decimals. A missing value is written as a dash.

`protocols`, wherever it is an argument, spells out the rows' short hashes: rows that differ in what must agree get
tables of their own. `indistinguishable` are cells whose FID can't be told from the best of its column (see
eval/tables/differences.py), `joined` those of another kind of protocol that shall share a table all the same (see
`eval.tables.rows.check_joinable`); both are marked.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from taugrid.eval.tables.rows import as_text, series, sort_key, without_nan
from taugrid.metrics import METRICS, MetricColumn
from taugrid.protocol import ProtocolFields, disagreements, kind, shortened
from taugrid.storage import replacing

COLUMNS = (
    "cell", "model", "sampler", "steps", "eta", "sigma", "spacing", "clip", "num_samples", "network_evaluations",
    "fid", "fid_se", "fid_infinity", "isc_mean", "isc_std", "kid_mean", "kid_std", "precision", "recall", "seconds",
    "protocol",
)  # fmt: skip
"""The columns of quality.csv, on which its readers rely: this never changes. A column for each other grid axis follows,
and then those of metrics that are not named here."""
SCORES = COLUMNS[COLUMNS.index("fid") : COLUMNS.index("seconds")]
"""Those that hold scores."""
CHECKPOINT = "model.checkpoint"
"""The grid key, and so the column, of loaded networks: their order is the grid's, for names have none of their own."""
EXACT = "fid_exact"
"""A column more, behind these, where an oracle's samples have a Frechet distance in closed form."""

SIGMA_HAT = "σ̂"
MISSING = "–"
NOTHING = 5e-7
"""Below this no digit of a value is written."""
ROUNDING = 1e-9
"""A spread below this share of its value is rounding: of subsets that are all the whole set, say."""
Z_95 = 1.96
"""|z| from which a difference counts as one: chance gets there 1 time in 20 where there is none. Nothing is corrected
for the number of values in a column, nor for its best having been picked as such."""
INDISTINGUISHABLE = "≈"
JOINED = "‡"
MEANINGS = {
    INDISTINGUISHABLE: "not distinguishable from the best of its column: "
    f"|z| < {Z_95} for the paired difference of FID (values without ± are not tested)",
    JOINED: "of another protocol than most, see the notes",
}
"""The marks behind values, and what the lines under a table say of them."""
CONSOLE_WIDTH = 80
"""Columns that every terminal and pipe has: rich's own width where it finds no terminal."""


FID = METRICS["fid"].columns[0]
EXACT_FID = MetricColumn(EXACT, "FID in closed form, at infinite N")


def score_columns() -> list[MetricColumn]:
    """The numbers that are tabulated, in the order of their columns in quality.csv; the closed form is next to FID."""
    known = [column for metric in METRICS.values() for column in metric.columns]
    known.sort(key=lambda column: COLUMNS.index(column.name) if column.name in COLUMNS else len(COLUMNS))
    known.insert(known.index(FID) + 1, EXACT_FID)
    return known


def appended_columns() -> list[str]:
    """The columns of scores that are no part of `COLUMNS`: they stand behind all others, where some cell has them."""
    names = [name for metric in METRICS.values() for column in metric.columns for name in column.names]
    return [name for name in names if name not in COLUMNS]


def axes(columns: Iterable[str]) -> list[str]:
    """Those of `columns` that are grid keys without a place in `COLUMNS`, in alphabetical order."""
    return sorted(set(columns) - {*COLUMNS, EXACT, *appended_columns()})


@dataclass(frozen=True)
class Pivot:
    """One table as in the paper: its index holds labels of eta, ascending, sigma_hat last; its columns S, ascending.

    `values` and `errors` are float64 with NaN for what is missing, `cells` the ids likewise. `settings` are what sets
    this pivot apart from its siblings (empty where it has none; checkpoints by their short names), `notes` say what
    else differs from row to row, `marks` are what stands behind the value of a cell.
    """

    settings: Mapping[str, str]
    values: pd.DataFrame
    errors: pd.DataFrame
    notes: tuple[str, ...]
    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The settings in a line, such as "diffusion.schedule = linear, clip = x0"."""
        return self.heading_without()

    def heading_without(self, *left_out: str) -> str:
        """The heading that is shared with pivots that differ from this one in the settings `left_out` alone."""
        return ", ".join(f"{setting} = {value}" for setting, value in self.settings.items() if setting not in left_out)


class Entry(NamedTuple):
    """A cell of a pivot as people read it; `error` and `mark` are empty where there is none."""

    value: str
    error: str
    best: bool
    mark: str = ""

    def joined(self, separator: str) -> str:
        """Value and error with `separator` between them."""
        return f"{self.value}{separator}{self.error}" if self.error else self.value


def frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The long form: a row per cell, sorted by its settings, columns as in the contract.

    Checkpoints stand in the order in which `rows` first has them; else the order of `rows` plays no part.
    Integers stay integers, metrics are float64 with NaN for None, a list as the value of an axis becomes its JSON.

    Raises:
        KeyError: if a row lacks one of `COLUMNS`.
    """
    given = {key for row in rows for key in row}
    others = axes(given)
    order = [*others, "model", "sampler", "spacing", "num_samples", "sigma", "eta", "steps", "clip", "cell"]
    places = {name: place for place, name in enumerate(dict.fromkeys(row.get(CHECKPOINT) for row in rows))}

    def ranks(row: Mapping[str, object]) -> list[tuple[int, float, str]]:
        ranked = {**row, CHECKPOINT: places[row.get(CHECKPOINT)]}
        return [sort_key(ranked.get(key)) for key in order]

    ordered = sorted(rows, key=ranks)
    values: dict[str, list[object]] = {column: [row[column] for row in ordered] for column in COLUMNS}
    scores = [name for name in appended_columns() if name in given]
    behind = [*([EXACT] if EXACT in given else []), *others, *scores]
    values |= {name: [row.get(name) for row in ordered] for name in behind}
    floats = {"eta", "seconds", EXACT, *SCORES, *scores}
    return pd.DataFrame({name: series(listed, name in floats) for name, listed in values.items()})


def pivot(
    frame: pd.DataFrame,
    metric: str = "fid",
    error: str | None = "fid_se",
    protocols: Mapping[str, ProtocolFields] = {},
) -> list[Pivot]:
    """`metric` and its `error` for each combination of the settings that vary besides eta and S.

    A sampling setting that is a function of the row, as clip is in the paper (sigma_hat alone clips), sets no pivots
    apart; settings that make another model, and N, always do. Where more than one kind of protocol is left within
    those, the setting "protocol" is its short hash, and a note tells what is particular to it.

    Raises:
        ValueError: if two cells would fall into one place.
    """
    if frame.empty:
        return []
    kinds = {name: kind(protocol) for name, protocol in protocols.items()}
    told = _kind_notes(frame, protocols)
    frame = frame.assign(protocol=frame["protocol"].map(lambda name: kinds.get(name, "unknown")))
    if CHECKPOINT in frame:
        names = short_checkpoints(frame[CHECKPOINT])
        frame = frame.assign(**{CHECKPOINT: frame[CHECKPOINT].map(lambda path: names.get(path, path))})
    apart, by_row = _layout(frame)
    groups = list(frame.groupby(apart, sort=False, dropna=False)) if apart else [((), frame)]
    return [
        Pivot(
            settings={column: as_text(group[column].iloc[0]) for column in apart},
            values=_grid(group, metric),
            errors=_grid(group, error),
            notes=(*(_row_note(group, column) for column in by_row), *told.get(group["protocol"].iloc[0], [])),
            cells=_grid(group, "cell"),
        )
        for _, group in groups
    ]


def short_checkpoints(checkpoints: Iterable[object]) -> dict[str, str]:
    """Each of `checkpoints` that is set, a path or a name, and the short name that tells it from the others."""
    given = list(dict.fromkeys(checkpoint for checkpoint in checkpoints if isinstance(checkpoint, str)))
    return dict(zip(given, short_names(given), strict=True))


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many of those before it as tell it from the others."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts), default=0)):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)


def _kind_notes(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> dict[str, list[str]]:
    """Kind -> a note of what sets it apart from the others of its N, such as "protocol: versions.torch 2.9.1"."""
    particular: dict[str, list[str]] = defaultdict(list)
    for _, group in frame.groupby("num_samples"):
        kinds = {kind(protocols[name]): protocols[name] for name in group["protocol"].unique() if name in protocols}
        for name, by_value in disagreements(kinds).items():
            for value, having in by_value.items():
                for each in having:
                    particular[each].append(f"{name} {value}")
    return {each: [f"protocol: {', '.join(fields)}"] for each, fields in particular.items()}


def _layout(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Columns that set pivots apart, and columns that differ but follow from a pivot and its row."""

    def follows(column: str, given: list[str]) -> bool:
        known = frame.drop_duplicates(given) if given else frame.head(1)
        return len(frame.drop_duplicates([*given, column])) == len(known)

    others = axes(frame.columns)
    apart = [axis for axis in [*others, "num_samples"] if ("." in axis or axis in COLUMNS) and not follows(axis, [])]
    if not follows("model", apart):
        apart.append("model")
    by_row: list[str] = []
    # Clip comes last: where it is a function of the row only within another setting, that one has been set apart.
    for column in [*(axis for axis in others if "." not in axis), "sampler", "spacing", "clip"]:
        if not follows(column, []):
            (by_row if follows(column, [*apart, "sigma", "eta"]) else apart).append(column)
    # Last of all: N, and settings such as a precision, explain a protocol of another kind better than its hash.
    if not follows("protocol", apart):
        apart.append("protocol")
    return apart, by_row


def _labels(group: pd.DataFrame) -> "pd.Series[str]":
    numbers = group["eta"].map(lambda eta: str(float(eta)))
    return numbers.where(group["sigma"] != "sigma_hat", SIGMA_HAT)


def _grid(group: pd.DataFrame, column: str | None) -> pd.DataFrame:
    placed = group.assign(row=_labels(group)).sort_values(["sigma", "eta", "steps"])
    twice = placed[placed.duplicated(["row", "steps"], keep=False)]
    if len(twice):
        place = f"eta {twice['row'].iloc[0]}, S = {twice['steps'].iloc[0]}"
        raise ValueError(f"cells {twice['cell'].iloc[0]} and {twice['cell'].iloc[1]} are both at {place} of one table")
    values = placed.assign(value=placed[column] if column else math.nan)
    grid = values.pivot(index="row", columns="steps", values="value")
    return grid.reindex(index=placed["row"].unique(), columns=sorted(grid.columns))


def _row_note(group: pd.DataFrame, column: str) -> str:
    """Which rows have which value of `column`, such as "clip: none (0.0, 0.2), x0_and_eps (σ̂)"."""
    ordered = group.assign(row=_labels(group), value=group[column].map(as_text)).sort_values(["sigma", "eta"])
    rows = {str(value): ", ".join(part.unique()) for value, part in ordered.groupby("value", sort=False)["row"]}
    return f"{column}: " + ", ".join(f"{v} ({labels})" if len(rows) > 1 else v for v, labels in rows.items())


def _tabulated(frame: pd.DataFrame) -> list[MetricColumn]:
    """The scores that some cell has; FID, all dashes, where no cell has any."""
    given = [column for column in score_columns() if column.name in frame and frame[column.name].notna().any()]
    return [_unscaled(column) if frame[column.name].max() >= 1 else column for column in given] or [FID]


def _unscaled(column: MetricColumn) -> MetricColumn:
    """Without its factor, which is for the small KIDs of Inception's features; KID grows as the features' cube."""
    return replace(column, title=column.title.split(" ×")[0], scale=1.0)


def entries(table: Pivot, metric: MetricColumn) -> Iterator[tuple[str, list[Entry]]]:
    """Each row's label and its cells; best is per column, and said only where there is something to choose from."""
    values, errors = table.values * metric.scale, table.errors * metric.scale
    cells = table.cells.reindex(index=values.index, columns=values.columns)
    best = (values.max() if metric.higher_is_better else values.min()).where(values.count() > 1)
    for label in values.index:
        row = zip(values.loc[label], errors.loc[label], best, cells.loc[label], strict=True)
        yield str(label), [_entry(*placed, table.marks) for placed in row]


def _entry(value: float, error: float, best: float, cell: str, marks: Mapping[str, str]) -> Entry:
    return Entry(*write_number(value, error), value == best, marks.get(cell, "") if math.isfinite(value) else "")


def _marked(
    frame: pd.DataFrame,
    metric: MetricColumn,
    protocols: Mapping[str, ProtocolFields],
    indistinguishable: Set[str],
    joined: Set[str],
) -> list[Pivot]:
    """The pivots of `metric` with marks: FID alone has a test."""
    marks: dict[str, str] = dict.fromkeys(indistinguishable, INDISTINGUISHABLE) if metric.name == FID.name else {}
    marks |= {cell: marks.get(cell, "") + JOINED for cell in joined}
    pivots = pivot(frame, metric.name, metric.error, {} if joined else protocols)
    return [replace(table, marks=marks) for table in pivots]


def _legend(tables: Sequence[Pivot], metric: MetricColumn) -> list[str]:
    """A line for each mark that is in one of the tables."""
    seen = {mark for table in tables for _, row in entries(table, metric) for entry in row for mark in entry.mark}
    return [f"{mark} {meaning}." for mark, meaning in MEANINGS.items() if mark in seen]


def write_number(value: float, error: float) -> tuple[str, str]:
    """Value and "± error" by the rule in the module's docstring."""
    value = 0.0 if abs(value) < NOTHING else value  # not "-0.000000"
    if not math.isfinite(value):
        return MISSING, ""
    # The spread of a single split is 0, and of subsets that are all the whole set next to it: it tells nothing.
    if not (math.isfinite(error) and error > ROUNDING * abs(value)):
        return f"{value:.{max(2, _decimals(value, digits=3))}f}", ""
    decimals = _decimals(error, digits=2)
    return f"{value:.{decimals}f}", f"± {error:.{decimals}f}"


def _decimals(number: float, digits: int) -> int:
    """Decimals that show `digits` significant digits, at most 6; rounded first, as 0.0999 is 0.10 to two digits."""
    exponent = int(f"{number:.{digits - 1}e}".split("e")[1]) if number else 0
    return min(max(0, digits - 1 - exponent), 6)


def markdown(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
) -> str:
    """A section of GitHub's Markdown for each metric that some cell has, with a table for each pivot."""
    blocks: list[str] = []
    for metric in _tabulated(frame):
        blocks.append(f"## {metric.heading}")
        if metric.error and frame[metric.error].notna().any():
            blocks.append(f"± is {metric.error_means}.")
        tables = _marked(frame, metric, protocols, indistinguishable, joined)
        for table in tables:
            if table.settings:
                blocks.append("### " + ", ".join(f"`{key}` = `{value}`" for key, value in table.settings.items()))
            steps = [str(steps) for steps in table.values.columns]
            lines = [["η \\ S", *steps], [":--", *["--:"] * len(steps)]]
            for label, row in entries(table, metric):
                texts = (f"**{e.joined(' ')}**" if e.best else e.joined(" ") for e in row)
                lines.append([label, *(f"{text} {e.mark}".rstrip() for text, e in zip(texts, row, strict=True))])
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            blocks += table.notes
        blocks += _legend(tables, metric)
    return "\n\n".join(blocks) + "\n"


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_TEX |= {"±": r"$\pm$", "×": r"$\times$", "η": r"$\eta$", "–": "--", "σ": r"$\sigma$"}
_TEX |= {character: f"${character}$" for character in "|<>"}  # in text, the old font encoding has others in their place
_TEX |= {INDISTINGUISHABLE: r"$\approx$", JOINED: r"$\ddagger$"}


def _tex(text: str) -> str:
    pieces = ("".join(_TEX.get(character, character) for character in piece) for piece in text.split(SIGMA_HAT))
    return r"$\hat{\sigma}$".join(pieces)


def latex(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
) -> str:
    r"""A `table` environment for each metric and pivot, for a document that loads booktabs."""
    tables = [
        _latex_table(table, metric, frame)
        for metric in _tabulated(frame)
        for table in _marked(frame, metric, protocols, indistinguishable, joined)
    ]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *tables])


def _latex_table(table: Pivot, metric: MetricColumn, frame: pd.DataFrame) -> str:
    count = len(table.values.columns)
    rows = []
    for label, row in entries(table, metric):
        rows.append(" & ".join([_tex(label), *map(_latex_entry, row)]) + r" \\")
    means = f"± is {metric.error_means}" if table.errors.notna().any(axis=None) else ""
    sizes = "N = " + _numbers(frame["num_samples"]) if "num_samples" not in table.settings else ""
    legend = (line.rstrip(".") for line in _legend([table], metric))
    caption = ". ".join(filter(None, [metric.heading, table.heading, sizes, means, *table.notes, *legend]))
    return "\n".join([
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_tex(caption)}.}}",
        f"  \\begin{{tabular}}{{l{'r' * count}}}",
        r"    \toprule",
        f"    & \\multicolumn{{{count}}}{{c}}{{$S$}} \\\\",
        f"    \\cmidrule(lr){{2-{count + 1}}}",
        "    " + " & ".join([r"$\eta$", *map(str, table.values.columns)]) + r" \\",
        r"    \midrule",
        *(f"    {row}" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def _latex_entry(entry: Entry) -> str:
    if entry.value == MISSING:
        return _tex(MISSING)
    body = entry.joined(" ").replace("±", r"\pm")
    # A mark of no width leaves the digits of a column one below the other.
    mark = f"\\rlap{{$^{{{_tex(entry.mark).replace('$', '')}}}$}}" if entry.mark else ""
    return (f"$\\mathbf{{{body}}}$" if entry.best else f"${body}$") + mark


def _numbers(values: "pd.Series[int]") -> str:
    return " or ".join(str(value) for value in sorted(set(values)))


def console(
    frame: pd.DataFrame,
    protocols: Mapping[str, ProtocolFields] = {},
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
) -> Group:
    """The FID pivots, for `rich` to print; what is wider than 80 columns has errors below values, then is cut by S."""
    parts: list[RenderableType] = []
    tables = _marked(frame, FID, protocols, indistinguishable, joined)
    for table in tables:
        parts += [Text(": ".join(filter(None, [FID.heading, table.heading]))), *_console_tables(table)]
        parts += [Text(note) for note in table.notes]
    return Group(*parts, *map(Text, _legend(tables, FID)))


def _console_tables(pivoted: Pivot) -> Iterator[Table]:
    labels, rows = zip(*entries(pivoted, FID), strict=True)
    steps = [str(steps) for steps in pivoted.values.columns]
    corner, gap = "η \\ S", 2  # a space of padding, and one where the box has its divider
    for separator in (" ", "\n"):
        columns = [_aligned(head, column, separator) for head, *column in zip(steps, *rows, strict=True)]
        widths = [gap + len(column[0]) for column in columns]
        if len(corner) + sum(widths) <= CONSOLE_WIDTH:
            break
    parts: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if parts[-1] and len(corner) + sum(widths[j] for j in parts[-1]) + width > CONSOLE_WIDTH:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        table = Table(corner, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i in part:
            table.add_column(columns[i][0])
        for k, label in enumerate(labels):
            table.add_row(label, *(Text(columns[i][k + 1], style="bold" if rows[k][i].best else "") for i in part))
        yield table


def _aligned(head: str, column: Sequence[Entry], separator: str) -> list[str]:
    """The head and the entries of a column, of one width: digits end at the same place, and marks stand behind it."""
    room = max(len(entry.mark) for entry in column)
    blocks = [(head, ""), *((entry.joined(separator), entry.mark) for entry in column)]
    width = max(len(line) for text, _ in blocks for line in text.split("\n"))
    return [
        "\n".join(line.rjust(width) for line in text.split("\n")) + (f" {mark.ljust(room)}" if room else "")
        for text, mark in blocks
    ]


def write(
    rows: Sequence[Mapping[str, object]],
    folder: Path,
    protocols: Mapping[str, ProtocolFields],
    notes: Sequence[str] = (),
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
) -> None:
    """quality.{csv,json,md,tex} in `folder`, each put in place whole; `notes` go under the tables."""
    table = frame(rows)
    about = _about(table, protocols)
    marked = (protocols, indistinguishable, joined)
    document = {"rows": table.to_dict("records"), "protocols": protocols, "notes": list(notes)}
    listed = "\n".join(f"- {note}" for note in notes)
    contents = {
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "json": json.dumps(without_nan(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "md": about + "\n\n" + markdown(table, *marked) + (f"\n## Notes\n\n{listed}\n" if notes else ""),
        "tex": "".join(f"% {' '.join(line.split())}\n" for line in (about, *notes)) + latex(table, *marked),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in contents.items():
        with replacing(folder / f"quality.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _about(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields]) -> str:
    """One line: N, reference, extractor, and what ± and bold mean."""
    spelled = [protocols[name] for name in dict.fromkeys(frame["protocol"]) if name in protocols]
    parts = [f"N = {_numbers(frame['num_samples'])} samples per cell" if len(frame) else "no cell has been scored"]
    for key in ("reference", "extractor"):
        values = list(dict.fromkeys(_spell(protocol[key]) for protocol in spelled if protocol.get(key) is not None))
        parts += [f"{key}: {' or '.join(values)}"] if values else []
    parts.append(
        "± beside FID is one standard error of sampling at this N (neither its bias nor the spread of trainings)"
    )
    parts.append("bold is the best of its column")
    line = "; ".join(parts) + "."
    return line[0].upper() + line[1:]


def _spell(value: object) -> str:
    """A protocol's value for people: mappings in a line, hashes cut to ten digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spell(item)}" for key, item in value.items())
    return shortened(str(value))
