"""The quality-versus-steps table, computed once: render.py writes it, and eval/pages shows it in HTML."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from taugrid.eval.metrics.floor import Floor
from taugrid.eval.reference import reference_in_words
from taugrid.eval.tables.ablation.alike import indistinguishable
from taugrid.eval.tables.ablation.seeds import Averaged, averaged, varying_seeds
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.entries import INDISTINGUISHABLE, JOINED, MEANINGS
from taugrid.eval.tables.long_form import FID, STAND_INS, Row, has_values, in_grid_order, long_form, shown_columns
from taugrid.eval.tables.pivots import Arrangement, Floors, Table, with_floors
from taugrid.grids import EVALUATIONS, USUAL, Layout
from taugrid.protocol import ProtocolFields, extractor_in_words, shortened
from taugrid.registry.metrics import METRICS, MetricColumn


@dataclass(frozen=True)
class QualityTable:
    """The quality table of a grid. What is computed of it is computed once, when it is first asked for."""

    rows: Sequence[Row]
    """The rows of quality.csv, in the order of the grid."""
    evidence: Evidence
    """Covers the cells and protocols of all rows."""
    notes: Sequence[str] = ()
    """Lines below the table."""
    joined: Set[str] = frozenset()
    """Cells that share tables although their comparability key is not the usual one (`long_form.joined_rows`). If there
    are any, protocols keep no cells apart."""
    layout: Layout = USUAL
    shown: Sequence[Row] = ()
    """`rows`, and in between rows without scores for the settings that have none; empty: `rows` alone."""
    recorded: Mapping[str, Set[str]] | None = None
    """The value of `MetricTables.alike` of metrics when the table was written; of others, the influences decide."""
    floors: Floors = field(default_factory=dict)

    @classmethod
    def read(cls, document: Mapping[str, Any], layout: Layout = USUAL, shown: Sequence[Row] = ()) -> "QualityTable":
        """The table of a quality.json, without influences."""
        evidence = Evidence({}, {}, document.get("protocols", {}))
        alike = document.get("indistinguishable_in", {}) | {FID.name: document.get("indistinguishable", ())}
        rows, notes, joined = document.get("rows", []), document.get("notes", ()), document.get("joined", ())
        recorded = {name: frozenset(cells) for name, cells in alike.items()}
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
        unmarked = dict.fromkeys((metric.name for metric in self.metrics), frozenset[str]())
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

    @property
    def sections(self) -> "list[MetricTables]":
        return [self.section(metric) for metric in self.metrics]

    @cached_property
    def _sections(self) -> "dict[str, MetricTables]":
        return {}

    def section(self, metric: MetricColumn) -> "MetricTables":
        """The tables of a metric with marks and floors."""
        if metric.name in self._sections:
            return self._sections[metric.name]
        tables = with_floors(self._arranged.tables(metric), self.floors)
        for i, table in enumerate(tables):
            if table.floor is not None:
                value = f"{metric.title} {table.floor_value}"
                about = f"floor: {value} of {table.floor.in_words} ± their standard deviation"
                tables[i] = replace(table, notes=(*table.notes, about))
        by_cell, evidence = {row["cell"]: row for row in self.rows}, self.evidence.of(metric.name)
        if self.recorded is not None and metric.name in self.recorded:
            alike = self.recorded[metric.name]
        else:
            found = (indistinguishable(table, self.means, by_cell, evidence) for table in tables if by_cell)
            alike = frozenset().union(*found)
        marks: dict[str, str] = dict.fromkeys(alike, INDISTINGUISHABLE)
        if self.joined:
            groups = self.means.members.items()
            mixed = [cell for cell, members in groups if any(member.cell in self.joined for member in members)]
            marks |= {cell: marks.get(cell, "") + JOINED for cell in mixed}
        error_means = f"± is {metric.error_means}." if has_values(self.frame, metric.error) else ""
        caption = "" if self.frame.empty else self.means.caption()
        marked = [replace(table, marks=marks) for table in tables]
        self._sections[metric.name] = MetricTables(metric, marked, caption, error_means, alike)
        return self._sections[metric.name]

    def arranged(self, layout: Layout) -> Arrangement:
        return self._arranged if layout == self.layout else Arrangement(self.means, self.used_protocols, layout)

    @cached_property
    def _arranged(self) -> Arrangement:
        return Arrangement(self.means, self.used_protocols, self.layout)

    def _spelled(self, frame: pd.DataFrame) -> list[ProtocolFields]:
        return [self.protocols[name] for name in dict.fromkeys(frame["protocol"]) if name in self.protocols]

    @property
    def scored_as(self) -> str:
        """A line with N, the reference and the extractor."""
        parts, spelled = [f"N = {sizes(self.frame)} images a cell"], self._spelled(self.frame)
        for key, title, in_words in (
            ("reference", "reference", reference_in_words),
            ("extractor", "features", extractor_in_words),
        ):
            values = dict.fromkeys(in_words(protocol[key]) for protocol in spelled if key in protocol)
            parts += [f"{title}: {' or '.join(values)}"] if values else []
        return "; ".join(parts)

    @cached_property
    def about(self) -> str:
        """One line with N, reference, extractor, a clip that all cells share, and the meaning of ± and bold."""
        parts = [f"N = {sizes(self.long)} samples per cell" if self.rows else "no cell has been scored"]
        spelled = self._spelled(self.long)
        for key in ("reference", "extractor"):
            values = dict.fromkeys(_spell(protocol[key]) for protocol in spelled if protocol.get(key) is not None)
            parts += [f"{key}: {' or '.join(values)}"] if values else []
        clips = {protocol.get("clip") for protocol in spelled}  # if they differ, the tables say where
        parts += [f"clip: {clip}" for clip in clips if len(clips) == 1 and clip not in (None, "none")]
        if not varying_seeds(self.long):
            shown = [metric for metric in self.metrics if metric.error == metric.sampling_error]
            known = [metric.title for metric in shown if has_values(self.frame, metric.error)] or [FID.title]
            parts.append(
                f"± beside {' and '.join(known)} is one standard error of sampling at this N (neither its bias nor the "
                "spread between trainings)"
            )
        parts += ["bold is the best of its column"] if any(section.has_best for section in self.sections) else []
        parts += filter(None, [self.about_judge])
        line = "; ".join(parts) + "."
        return line[0].upper() + line[1:]


@dataclass(frozen=True)
class MetricTables:
    """The tables of one metric, one unless cells can't be compared or the layout keeps them apart."""

    metric: MetricColumn
    tables: Sequence[Table]
    caption: str
    """Explains the values if they are means over replicates; else empty."""
    error_means: str
    """Explains ±; empty if there is none."""
    alike: Set[str]
    """Cells that can't be distinguished from the best of their column."""

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


def legend(tables: Sequence[Table]) -> list[str]:
    """A line for each meaning of each mark that some entry has."""
    lines = dict.fromkeys(f"{mark} {meaning}." for table in tables for mark, meaning in table.legend.items())
    return sorted(lines, key=lambda line: list(MEANINGS).index(line[0]))


def sizes(frame: pd.DataFrame) -> str:
    """Every N in the table, such as "1000 or 5000"."""
    return " or ".join(str(size) for size in sorted(set(frame["num_samples"])))


def _spell(value: object) -> str:
    """A value of a protocol for people: mappings in one line, hashes cut to ten digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spell(item)}" for key, item in value.items())
    return shortened(str(value))
