"""A run directory and its cells as Python objects: tables as DataFrames, images as arrays, figures, notebook pages."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import UserError
from taugrid.eval.pages.report import run_html
from taugrid.eval.tables.quality import QualityTable
from taugrid.images import decode_png, to_pictures
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import PARTS, Listing
from taugrid.orchestrator.selection import find_cell, whole_numbers
from taugrid.orchestrator.view.inspection import describe_status
from taugrid.storage.objects import ObjectStorage
from taugrid.storage.requests import file_system
from taugrid.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CellView:
    """One cell of a run. Its images and features are read when they are asked for."""

    def __init__(self, cell: Cell, rundir: RunDir) -> None:
        self._cell = cell
        self._rundir = rundir

    def __repr__(self) -> str:
        return f"<cell {self.label}: {len(self):,} images>"

    def __len__(self) -> int:
        return self._cell.settings.num_samples

    @property
    def id(self) -> str:
        """The id, as in the column `cell` of tables and samples."""
        return self._cell.id

    @property
    def name(self) -> str:
        """The name of its folder in samples/."""
        return self._cell.name

    @property
    def label(self) -> str:
        """What messages, tables and figures call it."""
        return self._cell.label

    @property
    def model(self) -> str:
        """The id of its model."""
        return self._cell.model.id

    @property
    def settings(self) -> Mapping[str, Any]:
        """The keys of `sample` with which it is sampled, and the grid's other keys."""
        return {**self._cell.settings.model_dump(mode="json"), **self._cell.values}

    def images(self, indices: Iterable[int] | None = None) -> NDArray[np.uint8]:
        """Images by index, as (n, H, W) if they are grey, else (n, H, W, 3), in the order asked for; None: all.

        Raises:
            UserError: if there is no image of that index, it is not sampled yet, or an index is not a whole number.
            taugrid.errors.DamagedFile: if a file can't be read.
        """
        wanted = list(range(len(self))) if indices is None else whole_numbers(indices)
        if not wanted:
            raise UserError("no indices were given; leave them out for all images")
        if beyond := [index for index in wanted if not 0 <= index < len(self)]:
            raise UserError(f"{self.label} has the images 0 to {len(self) - 1}, so not {beyond[0]}")
        found: dict[int, bytes] = {}
        for shard in self._cell.shards:
            inside = [index for index in wanted if shard.start <= index < shard.stop]
            path = self._rundir.sample_part(self._cell, shard)
            if inside:
                found |= parquet.read_png(self._require(path), inside, self._rundir.storage)
        if lacking := [index for index in wanted if index not in found]:
            raise UserError(f"image {lacking[0]} of {self.label} is not sampled yet; `taugrid run` makes it")
        return to_pictures([decode_png(found[index]) for index in wanted])

    def dataset(self) -> ds.Dataset:
        """The files of its images as one pyarrow data set, with all their columns.

        Raises:
            UserError: if it has no images yet.
        """
        planned = {self._rundir.sample_part(self._cell, shard) for shard in self._cell.shards}
        there = self._rundir.storage.list(self._rundir.samples / self.name, PARTS)
        paths = [path for path in there if path in planned]
        if not paths:
            self._require(self._rundir.sample_part(self._cell, self._cell.first_shard))
        storage = self._rundir.storage
        if isinstance(storage, ObjectStorage):
            keys = [str(Path(*path.parts[1:])) for path in paths]
            found = ds.dataset(keys, format="parquet", filesystem=file_system(storage.bucket))
        else:
            found = ds.dataset([str(path) for path in paths], format="parquet")
        return found.filter(ds.field("index") < len(self))  # a file may hold more, from when N was larger

    def features(self, extractor: str | None = None) -> NDArray[np.float32]:
        """The features that its score was computed from, (N, d), in the order of the images.

        Args:
            extractor: the name of a folder in features/; None: the only one that has this cell's features.

        Raises:
            UserError: if they are missing or incomplete, or several extractors have some.
        """
        pattern = f"{extractor or '*'}/{self.name}/part-*.parquet"
        paths = self._rundir.storage.list(self._rundir.features, pattern)
        folders = sorted({path.parent.parent.name for path in paths})
        if len(folders) > 1:
            raise UserError(f"{self.label} has features of {' and '.join(folders)}; name one of them")
        chunks = [
            values[index < len(self)]  # a file may hold more, from when N was larger
            for path in paths
            for index, values in parquet.read_features(path, "features", self._rundir.storage)
        ]
        found = sum(map(len, chunks))
        if found < len(self):
            self._require(self._rundir.sample_part(self._cell, self._cell.first_shard))
            raise UserError(
                f"{self.label} has the features of {found} of {len(self)} images; delete "
                f"{self._rundir.relative(self._rundir.score(self._cell, '*'))} and run `taugrid evaluate "
                f"{self._rundir.shown} --set evaluate.keep_features=true`, which extracts them and computes the same "
                "score again"
            )
        return np.concatenate(chunks)

    def _require(self, path: Path) -> Path:
        """`path`, if it is there; `UserError` saying why it is not."""
        if Listing(self._rundir).has_removed_images(self._cell):
            record = self._rundir.relative(self._rundir.removal_record(self._cell))
            raise UserError(f"the images of {self.label} were removed; delete {record} and run again")
        if not self._rundir.storage.exists(path):
            raise UserError(f"{self._rundir.relative(path)} is not there yet; `taugrid run` makes it")
        return path


class RunView:
    """A run directory, read only: no method starts a run or runs code that the config names."""

    def __init__(self, run: Run) -> None:
        self._run = run

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
        """tables/differences.csv: paired differences of metrics; `UserError` if it is not written yet."""
        return self.table("differences")

    @property
    def tables(self) -> list[str]:
        """The names of the tables, for `table`."""
        return self._run.tables

    def table(self, name: str = "quality") -> pd.DataFrame:
        """tables/`name`.csv, with its columns; `UserError` if there is none."""
        return self._run.table(name)

    @property
    def protocols(self) -> dict[str, Any]:
        """How each row was measured, by the short hash in the column `protocol`."""
        return dict(self._run.document.get("protocols", {}))

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
        document = self._run.document
        state = f"{len(document.get('rows', []))} of {counted(len(self.cells), 'cell')} in its table"
        layout = requested.layout(self._run.config, self._run.plan)
        return run_html(self.name, self._short_directory, state, QualityTable.read(document, layout))
