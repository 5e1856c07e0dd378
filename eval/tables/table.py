"""One table of a metric: its numbers, their errors and marks as entries of text, which all renderers share."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from taugrid.eval.metrics.floor import Floor
from taugrid.eval.tables.entries import MEANINGS, Entry, shown_number, write_mean
from taugrid.eval.tables.labels import short_columns
from taugrid.registry.metrics import MetricColumn
from taugrid.words import markdown_table


@dataclass(frozen=True)
class Table:
    """A table of one metric. The index has the row labels, with a level for each setting."""

    metric: MetricColumn
    settings: Mapping[str, str]
    """The settings that distinguish this table from others, checkpoints by short names. Empty if it is the only one."""
    values: pd.DataFrame
    """float64 with NaN where a value is missing."""
    errors: pd.DataFrame
    """Shaped like `values`."""
    notes: tuple[str, ...]
    """Lines on other differences between rows."""
    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The ids of cells, NaN where there is none; shaped like `values`."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Cell id -> the mark after its value."""
    row_keys: tuple[str, ...] = ("η",)
    """The short names of the settings in the levels of the index."""
    column_key: str = "S"
    """The short name of the setting in the columns."""
    spreads: pd.DataFrame | None = None
    """Standard deviations between replicates, shaped like `values`; None without replicates."""
    fewer: Mapping[str, int] = field(default_factory=dict)
    """Cell id -> its number of replicates, for cells that have fewer than others."""
    num_samples: int = 0
    """N of its cells."""
    floor: Floor | None = None
    """The metric of real images against real images at this N, if it is known."""

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """The index: for each row, its label at each level."""
        return [label if isinstance(label, tuple) else (label,) for label in self.values.index]

    @property
    def columns(self) -> list[str]:
        return [str(column) for column in self.values.columns]

    @property
    def row_headings(self) -> list[str]:
        """The headings of the columns of row labels; the last also has the columns' key: "η \\ S"."""
        *others, last = self.row_keys
        return [*others, f"{last} \\ {self.column_key}" if last else self.column_key]

    @property
    def _best(self) -> "pd.Series[Any]":
        """The best value of each column; NaN where nothing competes: one value, or one of several samplers alone."""
        best, competing = self.values.max() if self.metric.higher_is_better else self.values.min(), self.values.count()
        if "sampler" in self.row_keys:
            samplers = self.values.index.get_level_values(self.row_keys.index("sampler"))
            if samplers.nunique() > 1:
                competing = self.values.notna().groupby(samplers).any().sum()
        return best.where(competing > 1)

    @cached_property
    def entries(self) -> list[list[Entry]]:
        """Each row as text."""
        scale, empty = self.metric.scale, self.values * math.nan
        values, errors = self.values * scale, self.errors * scale
        spreads = empty if self.spreads is None else self.spreads * scale
        cells = self.cells.reindex(index=values.index, columns=values.columns)
        best_values = self._best * scale
        numbers = (part.to_numpy().tolist() for part in (values, errors, spreads, cells))
        return [
            [
                Entry(
                    *write_mean(value, error, spread, self.fewer.get(cell)),
                    best=value == best_value,
                    mark=self.marks.get(cell, "") if math.isfinite(value) else "",
                    number=value,
                    cell=cell if isinstance(cell, str) else "",
                )
                for value, error, spread, cell, best_value in zip(*row, best_values, strict=True)
            ]
            for row in zip(*numbers, strict=True)
        ]

    @property
    def has_best(self) -> bool:
        return any(entry.best for row in self.entries for entry in row)

    @property
    def floor_value(self) -> str:
        """The floor with its standard deviation over draws, as text; empty if none is known."""
        scale, floor = self.metric.scale, self.floor
        return shown_number(scale * floor.mean, scale * floor.spread) if floor else ""

    @property
    def about_floor(self) -> list[str]:
        """A note with the floor, if it is known."""
        if self.floor is None:
            return []
        value = f"{self.metric.title} {self.floor_value}"
        return [f"floor: {value} of {self.floor.in_words} ± their standard deviation"]

    @property
    def legend(self) -> dict[str, str]:
        """Explains each mark of its entries."""
        test, untested = f"the paired difference of {self.metric.title}", ""
        if self.spreads is not None:
            test = "Student's t for differences paired by seed"
        if self.spreads is not None or self.metric.sampling_error == self.metric.error:
            untested = " (values without ± are not tested)"
        seen = {mark for row in self.entries for entry in row for mark in entry.mark}
        return {mark: m.format(test=test, untested=untested) for mark, m in MEANINGS.items() if mark in seen}

    @property
    def markdown(self) -> str:
        lines = [
            [*labels, *(f"{f'**{e.shown}**' if e.best else e.shown} {e.mark}".rstrip() for e in row)]
            for labels, row in zip(self.labels, self.entries, strict=True)
        ]
        columns = "l" * len(self.row_keys) + "r" * len(self.columns)
        return markdown_table([*self.row_headings, *self.columns], columns, lines)

    @property
    def label(self) -> str:
        """The settings as names write them, such as "schedule=linear clip=x0"."""
        return " ".join(f"{name}={value}" for name, value in self.short_settings.items())

    @property
    def short_settings(self) -> dict[str, str]:
        names = short_columns(self.settings)
        return {names[column]: value for column, value in self.settings.items()}

    @property
    def heading(self) -> str:
        """The settings under their full names, such as "diffusion.schedule = linear, clip = x0"."""
        return self.heading_without()

    def heading_without(self, *left_out: str) -> str:
        """The heading without the settings `left_out`, common to tables that differ in nothing else."""
        return ", ".join(f"{setting} = {value}" for setting, value in self.settings.items() if setting not in left_out)

    def against_best(self) -> Iterator[tuple[str, list[str]]]:
        """The best cell of each column with all others that are not as good, if there are any."""
        for (_, column), (_, cells), best in zip(self.values.items(), self.cells.items(), self._best, strict=True):
            if math.isfinite(best) and (others := list(cells[column.notna() & (column != best)])):
                yield cells[column == best].iloc[0], others
