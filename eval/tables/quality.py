"""The quality-versus-steps table, computed once: for csv, json, Markdown, LaTeX, consoles and pages."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from taugrid.eval.metrics.floor import Floor
from taugrid.eval.reference import reference_in_words
from taugrid.eval.tables.alike import Marks, marks_of
from taugrid.eval.tables.arrangement import Arrangement
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import (
    FID,
    STAND_INS,
    Row,
    as_csv,
    as_json,
    has_values,
    in_grid_order,
    long_form,
    shown_columns,
    with_notes,
    write_files,
)
from taugrid.eval.tables.seeds import Averaged, averaged, varying_seeds
from taugrid.eval.tables.table import (
    BEST,
    INDISTINGUISHABLE,
    JOINED,
    SIUNITX,
    UNTESTED,
    Floors,
    Table,
    legend,
    with_floors,
)
from taugrid.grids import EVALUATIONS, USUAL, Layout
from taugrid.protocol import ProtocolFields, extractor_in_words
from taugrid.registry.metrics import METRICS, MetricColumn

CONSOLE_WIDTH = 80  # the largest width of tables, in characters, which rich also assumes if there is no terminal
MAX_ROWS = 60
"""Rows in all tables of further metrics. With more, they are left out, or the first would scroll off the screen."""


@dataclass(frozen=True)
class QualityTable:
    """The quality table of a grid. What is computed of it is computed once, when it is first asked for."""

    rows: Sequence[Row]  # the rows of quality.csv, in the order of the grid
    evidence: Evidence  # covers the cells and protocols of all rows
    notes: Sequence[str] = ()  # lines below the table
    joined: Set[str] = frozenset()
    """Cells that share tables although their comparability key is not the usual one (`long_form.joined_rows`). If there
    are any, protocols keep no cells apart."""
    layout: Layout = USUAL
    shown: Sequence[Row] = ()
    """`rows`, and in between rows without scores for the settings that have none; empty: `rows` alone."""
    recorded: Mapping[str, Marks] | None = None
    """The marks of metrics when the table was written; of other metrics, the influences decide."""
    floors: Floors = field(default_factory=dict)

    @classmethod
    def read(cls, document: Mapping[str, Any], layout: Layout = USUAL, shown: Sequence[Row] = ()) -> "QualityTable":
        """The table of a quality.json, without influences."""
        evidence = Evidence({}, {}, document.get("protocols", {}))
        alike = document.get("indistinguishable_in", {}) | {FID.name: document.get("indistinguishable", ())}
        rows, notes, joined = document.get("rows", []), document.get("notes", ()), document.get("joined", ())
        untested = document.get("untested", {})
        recorded = {name: Marks(frozenset(cells), frozenset(untested.get(name, ()))) for name, cells in alike.items()}
        floors = {
            int(n): {name: Floor(**floor) for name, floor in by_name.items()}
            for n, by_name in document.get("floors", {}).items()
        }
        return cls(rows, evidence, notes, frozenset(joined), layout, shown, recorded, floors)

    @property
    def protocols(self) -> Mapping[str, ProtocolFields]:
        return self.evidence.protocols

    @property
    def used_protocols(self) -> Mapping[str, ProtocolFields]:
        """The protocols that keep cells apart."""
        return {} if self.joined else self.protocols

    @cached_property
    def long(self) -> pd.DataFrame:
        """The rows in long form, sorted by their settings, as quality.csv has them."""
        return long_form(self.rows)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All that is shown, in the order of the grid."""
        return in_grid_order(self.shown or self.rows)

    @cached_property
    def means(self) -> Averaged:
        """The means of replicates in their place."""
        return averaged(self.frame, self.used_protocols)

    @cached_property
    def scored(self) -> "QualityTable":
        """The table without settings that have no scores."""
        return replace(self, shown=()) if self.shown else self

    @cached_property
    def by_steps(self) -> "QualityTable":
        """The table with the usual rows, and S or evaluations in columns. Marks are those of a column's cells."""
        if not self.layout.rows and self.layout.columns in ("steps", EVALUATIONS):
            return self
        unmarked = dict.fromkeys((metric.name for metric in self.metrics), Marks())
        columns = EVALUATIONS if self.layout.columns == EVALUATIONS else "steps"
        return replace(self, layout=self.layout._replace(rows=(), columns=columns), recorded=unmarked)

    @cached_property
    def metrics(self) -> list[MetricColumn]:
        """The scores that some cell has, `judged_by` first; if no cell has any, FID with only dashes."""
        asked = {name for protocol in self.protocols.values() for name in protocol.get("metrics", ())}
        found = shown_columns(self.frame.dropna(axis="columns", how="all").columns, asked) or [FID]
        order = [column for name in self.layout.metrics for column in METRICS[name].columns]
        ordered = [column for column in dict.fromkeys([*order, *found]) if column in found]
        if FID in found:
            ordered = [FID, *(column for column in ordered if column in STAND_INS)]
        tested = (c for c in ordered if self.means.over or has_values(self.frame, c.sampling_error))
        return list(dict.fromkeys([next(tested, ordered[0]), *found]))

    @property
    def judged_by(self) -> MetricColumn:
        """The metric that decides: FID or, if it has no errors here, the first of `evaluate.metrics` that has."""
        return self.metrics[0]

    @property
    def about_judge(self) -> str:
        """Says which of several metrics decides, and why, if it is not FID; else empty."""
        first, *others = self.metrics
        if first == FID or not others:
            return ""
        tested = " with a standard error" if has_values(self.frame, first.sampling_error) else ""
        why = "FID has no standard error at this N" if FID in others else f"it is the first of evaluate.metrics{tested}"
        return f"{first.title} decides, because {why}"

    @cached_property
    def sections(self) -> "list[MetricTables]":
        return [self._section(metric) for metric in self.metrics]

    def section(self, metric: MetricColumn) -> "MetricTables":
        """The tables of a metric with marks and floors."""
        return next((its for its in self.sections if its.metric == metric), None) or self._section(metric)

    def _section(self, metric: MetricColumn) -> "MetricTables":
        tables = with_floors(self._arranged.tables(metric), self.floors)
        for i, table in enumerate(tables):
            if table.floor is not None:
                about = f"{metric.title} {table.floor_value} of {table.floor.in_words} ± their standard deviation"
                tables[i] = replace(table, notes=(*table.notes, f"floor: {about}"))
        alike, untested = self._marked(metric, tables)
        marks = dict.fromkeys(alike, INDISTINGUISHABLE) | dict.fromkeys(untested, UNTESTED)
        if self.joined:
            groups = self.means.members.items()
            mixed = [cell for cell, members in groups if any(member.cell in self.joined for member in members)]
            marks |= {cell: marks.get(cell, "") + JOINED for cell in mixed}
        caption = "" if self.frame.empty else self.means.caption()
        error_means = f"± is {metric.error_means}." if has_values(self.frame, metric.error) else ""
        tables = [replace(table, marks=marks) for table in tables]
        return MetricTables(metric, tables, caption, error_means, alike, untested)

    def _marked(self, metric: MetricColumn, tables: Sequence[Table]) -> Marks:
        """The marks of a metric's tables. Where no value has a standard error, none is tested, and no mark says so."""
        if self.recorded is not None and metric.name in self.recorded:
            return self.recorded[metric.name]
        rows = {row["cell"]: row for row in self.rows}
        evidence = self.evidence.of(metric.name)
        marks = [marks_of(table, self.means, rows, evidence) for table in tables if rows]
        alike = frozenset[str]().union(*(each.alike for each in marks))
        untested = frozenset[str]().union(*(each.untested for each in marks))
        has_tests = bool(self.means.over) or has_values(self.frame, metric.sampling_error)
        return Marks(alike, untested if has_tests else frozenset())

    def arranged(self, layout: Layout) -> Arrangement:
        return self._arranged if layout == self.layout else Arrangement(self.means, self.used_protocols, layout)

    @cached_property
    def _arranged(self) -> Arrangement:
        return Arrangement(self.means, self.used_protocols, self.layout)

    @property
    def sizes(self) -> str:
        """Every N in the table, such as "1,000 or 5,000"."""
        return " or ".join(f"{size:,}" for size in sorted(set(self.frame["num_samples"])))

    def _spelled(self) -> list[ProtocolFields]:
        return [self.protocols[name] for name in dict.fromkeys(self.frame["protocol"]) if name in self.protocols]

    @property
    def scored_as(self) -> str:
        """A line with N, the reference and the extractor."""
        parts = [f"N = {self.sizes} images a cell"]
        titles = {"reference": ("reference", reference_in_words), "extractor": ("features", extractor_in_words)}
        for key, (title, in_words) in titles.items():
            values = dict.fromkeys(in_words(protocol[key]) for protocol in self._spelled() if key in protocol)
            parts += [f"{title}: {' or '.join(values)}"] if values else []
        return "; ".join(parts)

    @cached_property
    def about(self) -> str:
        """One line with N, reference, extractor, a clip that all cells share, and the meaning of ± and bold."""
        if not self.rows:
            return "No cell has been scored."
        clips = {protocol.get("clip") for protocol in self._spelled()}  # if they differ, the tables say where
        parts = [self.scored_as, *(f"clip: {clip}" for clip in clips if len(clips) == 1 and clip not in (None, "none"))]
        shown = [metric for metric in self.metrics if metric.error == metric.sampling_error]
        known = [metric.title for metric in shown if has_values(self.frame, metric.error)]
        if known and not varying_seeds(self.long):
            parts.append(
                f"± beside {' and '.join(known)} is one standard error of sampling at this N (neither its bias nor the "
                "spread between trainings)"
            )
        parts += ["bold is the best of its column"] if any(section.has_best for section in self.sections) else []
        return "; ".join(filter(None, [*parts, self.about_judge])) + "."

    @property
    def markdown(self) -> str:
        """A section for each metric, in GitHub's Markdown."""
        return "\n".join(section.markdown for section in self.sections)

    def latex(self, siunitx: bool = False) -> str:
        """A `table` environment for each table of each metric; it needs booktabs and, if so, siunitx."""
        before, *after = SIUNITX if siunitx else ["% Needs \\usepackage{booktabs}."]
        return "\n".join([before, *(section.latex(self.sizes, siunitx) for section in self.sections), *after])

    def write(self, folder: Path, stem: str = "quality") -> None:
        """Write quality.{csv,json,md,tex} into `folder`, which is made if it is missing; `stem` is another name."""
        document = {"rows": self.long.to_dict("records"), "protocols": self.protocols, "notes": list(self.notes)}
        alike = {section.metric: sorted(section.alike) for section in self.sections}
        document |= {"indistinguishable": alike.pop(FID, []), "joined": sorted(self.joined)}
        others = {m.name: cells for m, cells in alike.items() if has_values(self.frame, m.sampling_error)}
        document |= {"indistinguishable_in": others} if others else {}
        untested = {section.metric.name: sorted(section.untested) for section in self.sections if section.untested}
        document |= {"untested": untested} if untested else {}
        by_size = {str(n): {name: floor._asdict() for name, floor in its.items()} for n, its in self.floors.items()}
        document |= {"floors": by_size} if by_size else {}
        folder.mkdir(parents=True, exist_ok=True)
        text = with_notes(f"{self.about}\n\n{self.markdown}", self.notes)
        tex = "".join(f"% {' '.join(line.split())}\n" for line in (self.about, *self.notes)) + self.latex()
        write_files(folder, stem, csv=as_csv(self.long), json=as_json(document), md=text, tex=tex)

    @property
    def console(self) -> "LazyRenderable":
        """The tables of every metric, for `rich` to print, with their marks' meanings below them."""

        def parts(bold: bool, width: int) -> Iterator[RenderableType]:
            first, *others = self.sections
            starred = not bold and any(section.has_best for section in self.sections)
            yield from first.console(bold, width, [first.means, f"{BEST} the best of its column." if starred else ""])
            if sum(len(table.labels) for section in others for table in section.tables) > MAX_ROWS:
                yield Text(f"{' and '.join(section.metric.title for section in others)}: see tables/quality.md")
                return
            for section in others:  # means over replicates are the same of all metrics
                yield from section.console(bold, width, [] if section.caption else [section.error_means])

        return LazyRenderable(parts)


@dataclass(frozen=True)
class MetricTables:
    """The tables of one metric, one unless cells can't be compared or the layout keeps them apart."""

    metric: MetricColumn
    tables: Sequence[Table]
    caption: str  # explains the values if they are means over replicates; else empty
    error_means: str  # explains ±; empty if there is none
    alike: Set[str]  # cells that can't be distinguished from the best of their column
    untested: Set[str]  # cells whose difference from it has no standard error

    @property
    def means(self) -> str:
        """Explains the numbers beyond the heading."""
        return self.caption or self.error_means

    @cached_property
    def has_best(self) -> bool:
        return any(table.has_best for table in self.tables)

    @property
    def legend(self) -> list[str]:
        """Explains the marks in its tables."""
        return legend(self.tables)

    @property
    def markdown(self) -> str:
        blocks = [f"## {self.metric.heading}", *filter(None, [self.means])]
        for table in self.tables:
            settings = ", ".join(f"`{key}` = `{value}`" for key, value in table.short_settings.items())
            blocks += [f"### {settings}"] if settings else []
            blocks += [table.markdown, *table.notes]
        return "\n\n".join([*blocks, *self.legend]) + "\n"

    def latex(self, sizes: str, siunitx: bool = False) -> str:
        """Its `table` environments; `sizes` is N."""
        texts = []
        for table in self.tables:
            means, marks = (self.caption or table.error_means).rstrip("."), [line.rstrip(".") for line in table.legend]
            number = f"N = {sizes}" if "num_samples" not in table.settings else ""
            caption = [self.metric.heading, table.label, number, means, *table.notes, *marks]
            texts.append(table.latex(caption, siunitx))
        return "\n".join(texts)

    def console(self, bold: bool, width: int, below: Sequence[str]) -> Iterator[RenderableType]:
        for table in self.tables:
            yield Text(": ".join(filter(None, [self.metric.heading, table.label])))
            yield from table.console(bold, width)
            yield from map(Text, table.notes)
        yield from map(Text, [*filter(None, below), *self.legend, ""])


@dataclass(frozen=True)
class LazyRenderable:
    """Text and tables that are made when `rich` prints them: only then it is known whether the console shows bold."""

    parts: Callable[[bool, int], Iterator[RenderableType]]  # called with (shows_bold, width), the width in characters

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shows_bold = console.color_system is not None and not console.no_color
        yield from self.parts(shows_bold, min(CONSOLE_WIDTH, options.max_width))
