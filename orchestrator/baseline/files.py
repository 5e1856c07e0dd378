"""Baseline files: a JSON file meant for git, and a Parquet file beside it with what pairing needs.

The JSON (`Baseline`) holds scores, protocols, settings, versions, why it was accepted, the canary of the scorer and the
SHA-256 of the Parquet file, which has a row for each image of each cell: `cell`, `index`, `influence` (how far the
image moves FID; null where FID has no standard error), `pixels` (8 bytes of the SHA-256 of the decoded image), for the
first images of a cell, `image` (their bytes, C x H x W), and the influences of each other metric that has them, under
its name (`kid`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from taugrid.errors import UserError
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.score_cell import INFLUENCE_COLUMNS
from taugrid.orchestrator.baseline.pixels import ImageBatch
from taugrid.orchestrator.baseline.snapshot import (
    Acceptance,
    ImagesRequest,
    Network,
    SamplingEnvironment,
    Snapshot,
    SnapshotCell,
    images_of_run,
    snapshot_of_run,
)
from taugrid.registry.metrics import SAMPLED
from taugrid.storage import LOCAL, Storage, is_url, open_place, read_sealed, replacing, write_sealed
from taugrid.words import with_urls

FORMAT = "taugrid baseline 3"

ACCEPT = "`taugrid baseline accept DIR --to FILE --reason TEXT`"

SCHEMA = pa.schema([
    ("cell", pa.string()), ("index", pa.int64()), ("influence", pa.float64()), ("pixels", pa.int64()),
    ("image", pa.binary()),
])  # fmt: skip


class BaselineCell(BaseModel):
    """A cell in the JSON of a baseline file: the fields of `SnapshotCell` that are no arrays."""

    model_config = ConfigDict(from_attributes=True)

    cell: str
    name: str
    settings: dict[str, Any]
    axes: dict[str, Any]
    image_shape: tuple[int, int, int]
    metrics: dict[str, float]
    protocol: dict[str, Any]
    network: Network
    setup: SamplingEnvironment
    first_setup: SamplingEnvironment
    distances: dict[str, float]
    scored_with: str | None = None
    images: str | None
    reason: str | None
    """Why FID has no influences, for readers; `reasons` has it too."""
    reasons: dict[str, str]


class Baseline(Acceptance):
    """The JSON of a baseline file."""

    cells: tuple[BaselineCell, ...]


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
    snapshot: Snapshot,
    path: Path,
    storage: Storage,
    reason: str,
    remarks: Sequence[str],
    replaces: str | None,
    images: ImagesRequest | None,
) -> Baseline:
    """Write a snapshot as a baseline file and return the content of its JSON."""
    baseline = Baseline(
        format=FORMAT,
        run=snapshot.source,
        name=snapshot.name,
        accepted=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=reason,
        remarks=tuple(remarks),
        replaces=replaces,
        images=images,
        software=snapshot.software,
        scorer=snapshot.load_scorer(),
        cells=tuple(map(BaselineCell.model_validate, snapshot.cells)),
    )
    others = [name for name in (column.name for column in SAMPLED) if name not in INFLUENCE_COLUMNS
              and any(name in cell.influences for cell in snapshot.cells)]  # fmt: skip
    schema = pa.schema([*SCHEMA, *((name, pa.float64()) for name in others)])
    # The Parquet file first: the JSON, which names its hash, makes the baseline complete.
    with replacing(parquet_beside(path), storage) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for table in _tables(snapshot, schema):
                writer.write_table(table)
        baseline = baseline.model_copy(update={"parquet_sha256": hashlib.sha256(temporary.read_bytes()).hexdigest()})
    write_sealed(path, baseline.model_dump(mode="json"), storage)
    return baseline


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
    baseline, beside, shown = read_json_of_baseline(path, storage), parquet_beside(path), with_urls(str(path))
    try:
        data = storage.read(beside)
    except FileNotFoundError:
        raise UserError(f"{shown} has lost {beside.name}, which belongs beside it; restore both from git") from None
    if hashlib.sha256(data).hexdigest() != baseline.parquet_sha256:
        raise UserError(
            f"{with_urls(str(beside))} is not the file that {path.name} was written with; restore both from git"
        )
    table = pq.read_table(pa.BufferReader(data))
    return Snapshot(
        shown,
        baseline.name,
        baseline.software,
        tuple(_read_cell(cell, table, baseline.run) for cell in baseline.cells),
        accepted=baseline,
        load_scorer=lambda: baseline.scorer,
    )


def read_json_of_baseline(path: Path, storage: Storage = LOCAL) -> Baseline:
    """The content of a baseline file's JSON; `UserError` if it is not one, or has changed."""
    value, shown = read_sealed(path, storage), with_urls(str(path))
    if value is None:
        if storage.exists(path):
            raise UserError(
                f"{shown} was changed by hand, or is not a baseline file; restore it from git, or remove it and "
                f"accept a run again: {ACCEPT}"
            )
        raise UserError(f"{shown} does not exist; {ACCEPT} writes one")
    try:
        baseline = Baseline.model_validate(value)
    except ValidationError:
        baseline = None
    if baseline is None or baseline.format != FORMAT:
        raise UserError(f"{shown} is not a baseline file of this version ({FORMAT}); accept the baseline again")
    return baseline


def _read_cell(cell: BaselineCell, table: pa.Table, run: str) -> SnapshotCell:
    rows = table.filter(pa.compute.equal(table["cell"], cell.cell))
    digests = None if rows["pixels"].null_count else rows["pixels"].to_numpy()

    def first_images() -> ImageBatch | None:
        images = rows["image"].drop_null().to_pylist()
        return np.frombuffer(b"".join(images), np.uint8).reshape(len(images), *cell.image_shape) if images else None

    plain = {name: getattr(cell, name) for name in BaselineCell.model_fields if name != "reason"}
    return SnapshotCell(
        **plain,
        influences=_influences(rows),
        load_digests=lambda: digests,
        load_images=partial(images_of_run, run, cell.cell, digests),
        load_first=first_images,
    )


def _influences(rows: pa.Table) -> dict[str, Array]:
    stored = {column.name: INFLUENCE_COLUMNS.get(column.name, column.name) for column in SAMPLED}
    found = {name: rows[stored] for name, stored in stored.items() if stored in rows.column_names}
    return {name: values.to_numpy() for name, values in found.items() if not values.null_count}
