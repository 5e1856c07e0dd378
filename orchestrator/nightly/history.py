"""history.parquet: a row for each cell of each complete night. pandas and duckdb read it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from taugrid.orchestrator.baseline.others import OTHER_COLUMNS
from taugrid.storage import Storage, replacing

COLUMNS_ABOUT = (
    ("night", pa.string(), "the night's id"),
    ("time", pa.string(), "when its verdict was reached, UTC, ISO 8601"),
    ("night_result", pa.string(), "the verdict on the night: the worst of its cells', or 'no baseline'"),
    ("label", pa.string(), "the cell's name, the same every night, such as S0010-eta0.2"),
    ("cell", pa.string(), "the cell's id in tonight's run directory"),
    ("steps", pa.int64(), "S"),
    ("eta", pa.string(), "eta as a number, or sigma_hat"),
    ("num_samples", pa.int64(), "N"),
    ("settings", pa.string(), "all settings of `sample`, as JSON"),
    ("weights_sha256", pa.string(), "of the network"),
    ("fid", pa.float64(), "FID"),
    ("fid_se", pa.float64(), "one standard error of sampling at this N"),
    ("baseline", pa.string(), "SHA-256 of the baseline's Parquet file, or the path of a run directory"),
    ("baseline_fid", pa.float64(), "the baseline's FID, as recorded"),
    ("situation", pa.string(), "same weights and setup, same weights, other setup, or new weights"),
    ("result", pa.string(), "the verdict on the cell: changed pixels, worse, undecided, not worse, identical, ..."),
    ("difference", pa.float64(), "the judged difference of FID: with a fresh seed after a second look"),
    ("difference_se", pa.float64(), "its paired standard error"),
    ("margin", pa.float64(), "the loss that is accepted, in FID"),
    ("t", pa.float64(), "(difference - margin) / difference_se"),
    ("upper", pa.float64(), "the upper end of the difference's interval"),
    ("detectable", pa.float64(), "the change that would be called worse in 4 of 5 nights"),
    ("seeds", pa.string(), "the samples that the difference is of: usual, fresh (a second look) or grown"),
    *((column.name, pa.float64(), f"{column.title}; null if not asked for") for column in OTHER_COLUMNS),
)
"""Name, type and meaning of each column; those of metrics beside FID are the registry's."""

SCHEMA = pa.schema([pa.field(name, kind, metadata={b"about": about.encode()}) for name, kind, about in COLUMNS_ABOUT])


def history_rows(verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all nights, in their order."""
    return [row for verdict in verdicts for row in _night_rows(verdict)]


def _night_rows(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    compared = {cell["cell"]: cell for cell in (verdict["comparison"] or {"cells": []})["cells"]}
    baseline = verdict["baseline"] or {}
    rows = []
    for score in verdict["scores"]:
        found, settings, metrics = compared.get(score["cell"], {}), score["settings"], score["metrics"]
        row = {name: metrics.get(name) for name in ("fid", "fid_se", *(column.name for column in OTHER_COLUMNS))}
        names = ("baseline_fid", "situation", "result", "difference", "margin", "t", "upper", "detectable", "seeds")
        row |= {name: found.get(name) for name in names}
        row |= {name: score[name] for name in ("label", "cell", "weights_sha256")}
        eta = settings["eta"]
        row |= {
            "night": verdict["night"],
            "time": verdict["time"],
            "night_result": verdict["result"],
            "steps": settings["steps"],
            "eta": eta if eta == "sigma_hat" else f"{eta:g}",
            "num_samples": settings["num_samples"],
            "settings": json.dumps(settings, sort_keys=True),
            "baseline": baseline.get("id") or baseline.get("place"),
            "difference_se": found.get("se"),
        }
        rows.append(row)
    return rows


def history_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as a table of `SCHEMA`."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def nights_in(path: Path, storage: Storage) -> set[str]:
    """The ids of the nights in a history file; empty if there is none, or it can't be read."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read(path)), columns=["night"])
    except (FileNotFoundError, pa.ArrowException):
        return set()
    return set(table["night"].to_pylist())


def write_parquet(path: Path, table: pa.Table, storage: Storage) -> None:
    """Write a table, whole or not at all."""
    with replacing(path, storage) as temporary:
        pq.write_table(table, temporary, compression="zstd")
