"""The board as one JSON document, which the page shows: columns, a row for each scored cell, and what may be compared.

Its format is part of the page (eval/pages/templates/board*.js): both are of one version.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from taugrid import __version__
from taugrid.eval.tables.long_form import shown_columns
from taugrid.grids import SHOWN
from taugrid.orchestrator.board.entry import NightEntry
from taugrid.orchestrator.board.find import FoundFolder, Place, shown
from taugrid.orchestrator.board.index import Board, RunOnBoard, key_of
from taugrid.registry.metrics import COLUMNS, settings_of

PER_CELL = 16  # the images of a strip

SIGMA_HAT = "σ̂"
HEADINGS = SHOWN | {"eta": "η", "network_evaluations": "evaluations", "fid_exact": "FID in closed form"}
NUMBERS = ("network_evaluations", "seconds", "fid_exact")
TEXTS = ("cell", "protocol")
SETTINGS = ("model", "sampler", "steps", "eta", "sigma", "spacing", "clip", "num_samples")
ERRORS = {error for name, column in COLUMNS.items() for error in column.names if error != name}


class BoardRow(NamedTuple):
    """Where a row of the document comes from."""

    run: RunOnBoard
    at: int  # the number of the row in its run

    def of(self, part: str) -> Any:
        return self.run.entry[part][self.at]

    @property
    def values(self) -> dict[str, Any]:
        """The row of quality.csv, without what is null."""
        pairs = zip(self.run.entry["columns"], self.of("rows"), strict=True)
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True)
class BoardDocument:
    runs: Sequence[RunOnBoard]
    rows: Sequence[BoardRow]
    value: Mapping[str, Any]

    @cached_property
    def by_cell(self) -> Mapping[tuple[str, str], BoardRow]:
        """Rows by the key of their run, and the id of their cell."""
        return {(row.run.key, str(row.values["cell"])): row for row in self.rows}

    @property
    def etag(self) -> str:
        return str(self.value["etag"])


def document_of(board: Board, places: Sequence[Place]) -> BoardDocument:
    """The document of what a look found."""
    rows = [BoardRow(run, at) for run in board.runs for at in range(len(run.entry["rows"]))]
    columns = _columns(board.runs)
    names = [column["name"] for column in columns]
    numbers = {run.key: number for number, run in enumerate(board.runs)}
    histories = _histories(board)
    of_night = {night["run"]: history["key"] for history in histories for night in history["nights"]}
    places_of: dict[tuple[int, int], int] = {(numbers[row.run.key], row.at): n for n, row in enumerate(rows)}
    value = {
        "version": __version__,
        "places": [shown(place.text) for place in places],
        "notes": list(board.notes),
        "runs": [
            _run(run) | {"history": of_night.get(run.key), "settings": run.entry["settings"]} for run in board.runs
        ],
        "columns": columns,
        "rows": [[numbers[row.run.key], *map(_shown(row.values).get, names)] for row in rows],
        "cells": [row.of("labels") for row in rows],
        "groups": [row.of("groups") for row in rows],
        "noise": [row.of("noise") for row in rows],
        "protocols": {name: fields for run in board.runs for name, fields in run.entry["protocols"].items()},
        "images": {"per_cell": PER_CELL, "rows": [row.of("folders") is not None for row in rows]},
        "differences": [
            [places_of[number, a], places_of[number, b], *rest]
            for number, run in enumerate(board.runs) for a, b, *rest in run.entry["differences"]
        ],
        "histories": histories,
    }  # fmt: skip
    etag = hashlib.sha256(as_json(value).encode()).hexdigest()[:16]
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return BoardDocument(board.runs, rows, value | {"etag": etag, "made": made})


def records(board: Board) -> dict[str, Any]:
    """The board for programs: `--json`. A record for each cell, with all columns of its run's quality.csv."""
    cells = [
        {"run": run.found.title, **dict(zip(run.entry["columns"], values, strict=True))}
        for run in board.runs for values in run.entry["rows"]
    ]  # fmt: skip
    runs = [
        {name: value for name, value in _run(run).items() if name != "key"}
        | {"report": f"{run.found.directory}/report.html" if run.entry["report"] else None}
        for run in board.runs
    ]
    return {"runs": runs, "cells": cells, "notes": list(board.notes)}


def _run(run: RunOnBoard) -> dict[str, Any]:
    entry = run.entry
    same = ("name", "note", "began", "ended", "taugrid", "devices", "models")
    return {
        "key": run.key,
        "title": run.found.title,
        "directory": run.found.directory,
        "state": "running" if run.progress else entry["state"],
        "progress": run.progress,
        **{name: entry[name] for name in same},
        **({"note": "", "ended": None} if run.progress else {}),
        "report": f"runs/{run.key}/report.html" if entry["report"] else None,
    }


def _shown(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row as people filter it: sigma-hat is a value of eta."""
    return values if values.get("sigma") != "sigma_hat" else {**values, "eta": SIGMA_HAT}


def _columns(runs: Iterable[RunOnBoard]) -> list[dict[str, Any]]:
    """The columns of all runs that have a value in some row, in the order of the tables."""
    entries = [run.entry for run in runs]
    of_grids = {key for entry in entries for key in entry["keys"]}
    names: dict[str, bool] = {}  # whether some value is a text
    for entry in entries:
        for name, values in zip(entry["columns"], zip(*entry["rows"], strict=True), strict=entry["rows"] != []):
            if any(value is not None for value in values):
                names[name] = names.get(name, False) or any(isinstance(value, str) for value in values)
    shorts = [name.rpartition(".")[2] for name in names]
    unique = {name: short for name, short in zip(names, shorts, strict=True) if shorts.count(short) == 1}
    tables = {column.name for column in shown_columns(names)}
    return [_column(name, unique.get(name, name), name in of_grids or names[name], name in tables) for name in names]


def _column(name: str, short: str, is_setting: bool, is_shown: bool) -> dict[str, Any]:
    metric = COLUMNS.get(name)
    kind = (
        "metric" if is_shown else "number" if metric or name in NUMBERS else "error" if name in ERRORS
        else "text" if name in TEXTS else "setting" if name in SETTINGS or is_setting else "number"
    )  # fmt: skip
    return {
        "name": name,
        "heading": metric.title if metric else HEADINGS.get(name, short),
        "kind": kind,
        "better": None if metric is None else "higher" if metric.higher_is_better else "lower",
        "error": metric and metric.error,
        "error_means": metric and metric.error_means,
        "se": metric and metric.sampling_error,
        "settings": settings_of((name,)),
    }


def _histories(board: Board) -> list[dict[str, Any]]:
    """The histories of nights, each with its nights in the order of their verdicts; unfinished ones come last."""
    by_history: dict[str, list[tuple[FoundFolder, NightEntry]]] = {}
    for found, entry in sorted(board.nights, key=lambda night: night[1]["time"] or "~"):
        by_history.setdefault(shown(str(found.history)), []).append((found, entry))
    runs = {run.found.root: run.key for run in board.runs}
    return [
        {"key": f"h{key_of(directory)[1:]}", "title": _title(nights[0][0]), "nights": [
            {name: entry[name] for name in ("id", "time", "verdict", "light")} | {"run": runs.get(found.root / "run")}
            for found, entry in nights
        ]}
        for directory, nights in by_history.items()
    ]  # fmt: skip


def _title(night: FoundFolder) -> str:
    """The path of a night's history below its place, or the place's name."""
    assert night.history is not None
    below = night.history.relative_to(night.place.root)
    return shown(str(below) if below.parts else night.place.root.name)


def as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
