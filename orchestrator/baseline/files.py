"""Baseline files: a JSON file meant for git, and a Parquet file beside it with what pairing needs.

The JSON holds scores, protocols, settings, versions, why it was accepted, the canary of the scorer and the SHA-256 of
the Parquet file. The
Parquet file has a row for each image of each cell: `cell`, `index`, `influence` (how far the image moves FID; null
where FID has no standard error), `pixels` (8 bytes of the SHA-256 of the decoded image), for the first images of a
cell, `image` (their bytes, C x H x W), and the influences of each other metric that has them, under its name (`kid`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid.errors import UserError
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.score_cell import INFLUENCE_COLUMNS
from taugrid.orchestrator.baseline.snapshot import (
    Network,
    SamplingEnvironment,
    Snapshot,
    SnapshotCell,
    images_of_run,
    snapshot_of_run,
)
from taugrid.orchestrator.work.scorer import ScorerRecord
from taugrid.registry.metrics import SAMPLED
from taugrid.storage import LOCAL, Storage, is_url, open_place, read_sealed, replacing, write_sealed
from taugrid.words import with_urls

FORMAT = "taugrid baseline 3"

ACCEPT = "`taugrid baseline accept DIR --to FILE --reason TEXT`"

SCHEMA = pa.schema([
    ("cell", pa.string()), ("index", pa.int64()), ("influence", pa.float64()), ("pixels", pa.int64()),
    ("image", pa.binary()),
])  # fmt: skip


def snapshot_of(name: str) -> Snapshot:
    """The snapshot of a run directory or a baseline file, each a path or a URL; `UserError` if it is neither."""
    if is_baseline_file(name) or name.endswith(".parquet"):
        return read_baseline(*open_baseline(name, "BASELINE"))
    if not is_url(name) and not Path(name).is_dir():
        raise UserError(f"BASELINE {name}: no such run directory; a baseline file ends in .json")
    return snapshot_of_run(name)


def is_baseline_file(name: str) -> bool:
    return name.endswith(".json")


def open_baseline(name: str, named: str) -> tuple[Path, Storage]:
    """The path of a baseline file and its storage; `named` is the option or argument that names it."""
    if not is_baseline_file(name):
        stem = name.removesuffix(".parquet")
        hint = f"; give {stem}.json, which it belongs to" if stem != name else ""
        raise UserError(f"{named} {name}: a baseline file ends in .json{hint}")
    if not is_url(name):
        return Path(name), LOCAL
    folder, storage = open_place(name.rpartition("/")[0], named)
    storage.require(folder)
    return folder / name.rpartition("/")[2], storage


def parquet_beside(path: Path) -> Path:
    return path.with_suffix(".parquet")


def write_baseline(
    snapshot: Snapshot, path: Path, storage: Storage, reason: str, remarks: list[str], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a snapshot as a baseline file and return the content of its JSON, which has the keys of `more` too."""
    value = {
        "format": FORMAT,
        "run": snapshot.source,
        "name": snapshot.name,
        "accepted": datetime.now(UTC).isoformat(timespec="seconds"),
        "reason": reason,
        "remarks": remarks,
        **more,
        "software": dict(snapshot.software),
        "cells": [_cell_dict(cell) for cell in snapshot.cells],
    }
    others = [name for name in (column.name for column in SAMPLED) if name not in INFLUENCE_COLUMNS
              and any(name in cell.influences for cell in snapshot.cells)]  # fmt: skip
    scorer = snapshot.load_scorer()
    value["scorer"] = scorer if isinstance(scorer, str) else scorer.model_dump(mode="json")
    schema = pa.schema([*SCHEMA, *((name, pa.float64()) for name in others)])
    # The Parquet file first: the JSON, which names its hash, makes the baseline complete.
    with replacing(parquet_beside(path), storage) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for table in _tables(snapshot, schema):
                writer.write_table(table)
        value["parquet_sha256"] = hashlib.sha256(temporary.read_bytes()).hexdigest()
    write_sealed(path, value, storage)
    return value


def _cell_dict(cell: SnapshotCell) -> dict[str, Any]:
    names = ("cell", "name", "settings", "axes", "image_shape", "metrics", "protocol", "reason", "reasons")
    plain = {name: getattr(cell, name) for name in names}
    made = {
        "setup": asdict(cell.environment),
        "first_setup": asdict(cell.first_environment),
    }
    if cell.images is not None:
        plain["images"] = cell.images
    return plain | {"network": asdict(cell.network), **made, "distances": dict(cell.distances)}


def _tables(snapshot: Snapshot, schema: pa.Schema) -> Iterator[pa.Table]:
    for cell in snapshot.cells:
        n, digests, first = cell.num_samples, cell.load_digests(), cell.load_first()
        images = [] if first is None else [image.tobytes() for image in first]
        influences = {INFLUENCE_COLUMNS.get(name, name): values for name, values in cell.influences.items()}
        of_images = {"pixels": digests, "image": images + [None] * (n - len(images))}
        given = {"cell": [cell.cell] * n, "index": np.arange(n), **influences, **of_images}
        columns = (pa.nulls(n, field.type) if (values := given.get(field.name)) is None else
                   pa.array(values, field.type) for field in schema)  # fmt: skip
        yield pa.Table.from_arrays(list(columns), schema=schema)


def read_baseline(path: Path, storage: Storage = LOCAL) -> Snapshot:
    """The snapshot in a baseline file; `UserError` if it is not one, or one of its two files has changed."""
    value = read_json_of_baseline(path, storage)
    beside = parquet_beside(path)
    try:
        data = storage.read(beside)
    except FileNotFoundError:
        raise UserError(
            f"{_shown(path)} has lost {beside.name}, which belongs beside it; restore both from git"
        ) from None
    if hashlib.sha256(data).hexdigest() != value["parquet_sha256"]:
        raise UserError(f"{_shown(beside)} is not the file that {path.name} was written with; restore both from git")
    table = pq.read_table(pa.BufferReader(data))
    cells = tuple(_read_cell(cell, table, value["run"]) for cell in value["cells"])
    scorer = value["scorer"] if isinstance(value["scorer"], str) else ScorerRecord.model_validate(value["scorer"])

    return Snapshot(
        _shown(path),
        value["name"],
        value["software"],
        cells,
        accepted=value,
        load_scorer=lambda: scorer,
    )


def read_json_of_baseline(path: Path, storage: Storage = LOCAL) -> dict[str, Any]:
    """The content of a baseline file's JSON; `UserError` if it is not one, or has changed."""
    value = read_sealed(path, storage)
    if value is None:
        if storage.exists(path):
            raise UserError(
                f"{_shown(path)} was changed by hand, or is not a baseline file; restore it from git, or remove it and "
                f"accept a run again: {ACCEPT}"
            )
        raise UserError(f"{_shown(path)} does not exist; {ACCEPT} writes one")
    if value.get("format") != FORMAT:
        raise UserError(f"{_shown(path)} is not a baseline file of this version ({FORMAT}); accept the baseline again")
    return value


def _shown(path: Path) -> str:
    return with_urls(str(path))


def _read_cell(value: Mapping[str, Any], table: pa.Table, run: str) -> SnapshotCell:
    rows = _rows_of(table, value["cell"])
    digests = None if rows["pixels"].null_count else rows["pixels"].to_numpy()
    shape = tuple(value["image_shape"])

    def first_images() -> NDArray[np.uint8] | None:
        images = rows["image"].drop_null().to_pylist()
        return np.frombuffer(b"".join(images), np.uint8).reshape(len(images), *shape) if images else None

    return SnapshotCell(
        cell=value["cell"],
        name=value["name"],
        settings=value["settings"],
        axes=value["axes"],
        image_shape=shape,
        metrics=value["metrics"],
        protocol=value["protocol"],
        network=Network(**value["network"]),
        environment=_read_environment(value["setup"]),
        influences=_influences(rows),
        reasons=value["reasons"],
        load_digests=lambda: digests,
        load_images=lambda: images_of_run(run, value["cell"], digests),
        first=_read_environment(value["first_setup"]),
        load_first=first_images,
        distances=value["distances"],
        images=value.get("images"),
    )


def _influences(rows: pa.Table) -> dict[str, Array]:
    stored = {column.name: INFLUENCE_COLUMNS.get(column.name, column.name) for column in SAMPLED}
    found = {name: rows[stored] for name, stored in stored.items() if stored in rows.column_names}
    return {name: values.to_numpy() for name, values in found.items() if not values.null_count}


def _rows_of(table: pa.Table, cell: str) -> pa.Table:
    return table.filter(pa.compute.equal(table["cell"], cell))


def _read_environment(value: Mapping[str, Any]) -> SamplingEnvironment:
    return SamplingEnvironment(tuple(value["devices"]), value["versions"], str(value["threads"]), value["batch_size"])
