"""A run directory as a Python object: tables as DataFrames, cells, figures, and an HTML page for notebooks."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from taugrid.eval.pages.report import run_html
from taugrid.eval.tables.quality import QualityTable
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.selection import find_cell
from taugrid.orchestrator.view.cell import CellView
from taugrid.orchestrator.view.inspection import describe_status
from taugrid.orchestrator.view.tables import Tables
from taugrid.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunView:
    """A run directory, read only: no method starts a run or runs code that the config names."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tables = Tables(run.rundir)

    @classmethod
    def of(cls, directory: str) -> "RunView":
        """The run in `directory`, which `taugrid run` has made; `UserError` if there is none."""
        return cls(open_existing(directory))

    def __repr__(self) -> str:
        return f"<run {self.name} in {self._short_directory}: {counted(len(self.cells), 'cell')}>"

    @property
    def _short_directory(self) -> str:
        """`directory` relative to the working directory, if it is inside that."""
        root, working = self._run.rundir.root, Path.cwd()
        return str(root.relative_to(working)) if root.is_relative_to(working) else self.directory

    @property
    def name(self) -> str:
        """The `name` in the config."""
        return self._run.config.name

    @property
    def directory(self) -> str:
        """The path or URL of the run directory."""
        return self._run.rundir.shown

    @property
    def config(self) -> dict[str, Any]:
        """The whole config, with defaults filled in."""
        return self._run.config.model_dump(mode="json")

    def status(self) -> dict[str, Any]:
        """The progress of the run, as `taugrid status --json` prints it."""
        return describe_status(self._run)

    @property
    def quality(self) -> pd.DataFrame:
        """tables/quality.csv: a row for each scored cell; `UserError` if it is not written yet."""
        return self.table("quality")

    @property
    def differences(self) -> pd.DataFrame:
        """tables/differences.csv: paired differences in FID; `UserError` if it is not written yet."""
        return self.table("differences")

    @property
    def tables(self) -> list[str]:
        """The names of the tables, for `table`."""
        return self._tables.names

    def table(self, name: str = "quality") -> pd.DataFrame:
        """tables/`name`.csv, with its columns; `UserError` if there is none."""
        return self._tables.frame(name)

    @property
    def protocols(self) -> dict[str, Any]:
        """How each row was measured, by the short hash in the column `protocol`."""
        return dict(self._tables.document().get("protocols", {}))

    @cached_property
    def cells(self) -> Sequence[CellView]:
        """The cells, in the order of the grid."""
        return tuple(CellView(cell, self._run.rundir) for cell in self._run.plan.cells)

    def cell(self, name: str) -> CellView:
        """A cell by settings (steps=50,eta=0), id, label or folder name; `UserError` unless exactly one matches."""
        return CellView(find_cell(self._run.plan, name), self._run.rundir)

    def figure(self, name: str = "quality") -> "Figure":
        """A matplotlib figure.

        Args:
            name: quality, loss or reconstruction, drawn from the data; or the name of a picture in figures/, such as
                samples.

        Raises:
            UserError: if there is no such figure, or not yet.
        """
        from taugrid.orchestrator.view.figures import figure

        return figure(self._run, name)

    def _repr_html_(self) -> str:
        scored = len(self._tables.document().get("rows", []))
        state = f"{scored} of {counted(len(self.cells), 'cell')} in its table"
        return run_html(self.name, self._short_directory, state, QualityTable.read(self._tables.document()))
