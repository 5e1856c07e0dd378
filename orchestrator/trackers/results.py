"""What of a run is tracked, read from its directory: the same for every tracker."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from taugrid.eval.tables.long_form import EXACT, SCORES, appended_columns
from taugrid.hashing import json_sha256
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.progress.summary import position
from taugrid.orchestrator.report.collect import exact_fid, row_of
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.protocol import ProtocolFields, dotted, short_name
from taugrid.registry.metrics import METRICS
from taugrid.storage import read_json, read_sealed
from taugrid.workers.training.log import SCALARS, whole_lines

LONGEST_TEXT = 500  # the longest text of a setting or a field of a protocol: a list may have a thousand numbers

Losses = Mapping[int, Mapping[str, float]]
"""Step -> those of `SCALARS` that were logged and are finite, in the order of the steps."""


@dataclass(frozen=True)
class TrackedCell:
    """A scored cell."""

    id: str
    label: str
    row: str  # its settings but S; they name a curve over S
    settings: Mapping[str, Any]  # by the columns of quality.csv, S and the number of network evaluations among them
    metrics: Mapping[str, float]  # all metrics, and their errors, by the columns of quality.csv
    protocol: ProtocolFields

    @property
    def digest(self) -> str:
        """Equal for equal scores. Without the closed form, whose last digits depend on the machine."""
        scores = {name: value for name, value in self.metrics.items() if name != EXACT}
        return json_sha256([self.row, self.settings, scores])[:16]


class RunResults:
    """The results in a run directory, whose session this process follows. Reads only what the driver has recorded."""

    def __init__(self, directory: str) -> None:
        self._run = open_existing(directory)
        self.directory, self.rundir = directory, self._run.rundir
        self.config = {key: value for key, value in self._run.config.recorded.items() if key != "track"}
        self.id = str((read_json(self.rundir.root / "run.json", self.rundir.storage) or {})["run"])
        self._cells = {cell.id: cell for cell in self._run.configured.cells}
        self._scoring = self.rundir.recorded_scoring(self._run.config)
        listing, reported = Listing(self.rundir), {row["cell"] for row in self.document["rows"]}
        self._seen = {id: listing.scores(cell) for id, cell in self._cells.items() if id in reported}

    @property
    def name(self) -> str:
        """The config's name and, unless it is the same, that of the directory, or of a night for its run."""
        name, parts = self._run.config.name, PurePosixPath(self.directory).parts
        place = next((part for part in reversed(parts) if part != "run"), name)
        return name if place == name else f"{name} ({place})"

    def newly_scored(self) -> list[TrackedCell]:
        """The cells with a score since the last call or, at the first, that was not in the table at the start."""
        listing, before = Listing(self.rundir), self._seen
        self._seen = {id: listing.scores(cell) for id, cell in self._cells.items()}
        new = [cell for id, cell in self._cells.items() if self._seen[id] != before.get(id, {})]
        return list(filter(None, map(self._scored, new)))

    def all_scored(self) -> list[TrackedCell]:
        """The cells that have a score on disk, in a table or not."""
        return list(filter(None, map(self._scored, self._cells.values())))

    def _scored(self, cell: Cell) -> TrackedCell | None:
        """A cell with its score; None if it has none."""
        if self._scoring is None:
            return None
        score = read_sealed(self.rundir.score(cell, self._scoring.id(cell)), self.rundir.storage)
        if score is None:
            return None
        row = row_of(cell, score["metrics"], short_name(score["protocol"]), None)
        exact = exact_fid(cell, self._scoring.extractor.name, self._run.config.reference)
        return self._tracked(cell, row | {EXACT: exact}, score["protocol"])

    @property
    def document(self) -> Mapping[str, Any]:
        """tables/quality.json; empty if there is none."""
        return {"rows": [], "protocols": {}, **self._run.document}

    def cells(self) -> list[TrackedCell]:
        """The cells of the quality table, in its order."""
        document = self.document
        rows, protocols = [row for row in document["rows"] if row["cell"] in self._cells], document["protocols"]
        return [self._tracked(self._cells[row["cell"]], row, protocols.get(row["protocol"], {})) for row in rows]

    def _tracked(self, cell: Cell, row: Mapping[str, Any], protocol: ProtocolFields) -> TrackedCell:
        scores = {*SCORES, EXACT, *appended_columns()}
        settings = {key: row[key] for key in row if key not in {*scores, "cell", "seconds", "protocol"}}
        wanted = [name for metric in METRICS.values() for column in metric.columns for name in column.names]
        metrics = _finite({name: row.get(name) for name in [*wanted, EXACT]})
        label = position(cell, "steps")[0] or "cells"
        return TrackedCell(cell.id, cell.label, label, settings, metrics, protocol)

    @property
    def protocol(self) -> dict[str, str]:
        """The fields that the protocols of all cells share, by their dotted names, as text."""
        protocols = [flat(protocol) for protocol in self.document["protocols"].values()]
        first = protocols[0] if protocols else {}
        return {key: text for key, text in first.items() if all(other.get(key) == text for other in protocols)}

    def losses(self) -> dict[str, Losses]:
        """The logs of trainings by the ids of their models, whose labels change with the grid."""
        found: dict[str, Losses] = {}
        for model, _ in self._run.plan.trained_here:
            if self.rundir.storage.exists(log := self.rundir.training_log(model)):
                lines = whole_lines(log, self.rundir.storage)
                found[model.id] = {line["step"]: _finite({name: line.get(name) for name in SCALARS}) for line in lines}
        return found

    def files(self) -> dict[str, bytes]:
        """The tables, the config, the report and the PNG files of figures/, by their paths in the run directory."""
        own, storage = self.rundir, self.rundir.storage
        found = [*storage.list(own.tables, "*"), *storage.list(own.figures, "*.png"), own.config, own.report]
        return {
            own.relative(path): storage.read(path) for path in found if path.name[0] != "." and storage.exists(path)
        }


class Tracker(ABC):
    """Tracks a run, however many sessions work on it: what it has tracked before is not tracked again."""

    def __init__(self, results: RunResults) -> None:
        self.results = results

    @abstractmethod
    def start(self) -> str:
        """Find the tracked run or begin one. Returns where it is, in words."""

    @abstractmethod
    def cell(self, cell: TrackedCell) -> None:
        """Track a cell."""

    @abstractmethod
    def losses(self, model: str, losses: Losses) -> None:
        """Track the losses of a training, by the id of its model."""

    @abstractmethod
    def shared(self, files: Mapping[str, bytes]) -> None:
        """Track what cells share: the protocol, and `RunResults.files`."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Leave the tracked run, as finished or failed."""


def write(files: Mapping[str, bytes], folder: str) -> dict[str, str]:
    """Write the files below a folder of this machine. Returns their paths by name."""
    paths = {name: Path(folder) / name for name in files}
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
    return {name: str(path) for name, path in paths.items()}


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested fields by their dotted names, as short texts."""
    texts = {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in dotted(fields, prefix)
    }
    return {name: text[:LONGEST_TEXT] for name, text in texts.items()}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among `values` that are finite."""
    return {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
