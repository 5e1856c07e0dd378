"""Baseline files: a JSON file meant for git, and a Parquet file beside it with what pairing needs.

The JSON (`Baseline`) has the SHA-256 of the Parquet file, which has a row for each image of each cell: `cell`, `index`,
`influence` (how far the image moves FID; null where FID has no standard error), `pixels` (8 bytes of the SHA-256 of the
decoded image), for the first images of a cell, `image` (their bytes, C x H x W), and the influences of each other
metric that has them, under its name (`kid`).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from taugrid.errors import NOT_WRITABLE, UserError
from taugrid.eval.gate.verdict import REGRESSIONS
from taugrid.eval.score_cell import INFLUENCE_COLUMNS
from taugrid.orchestrator.baseline.compared import DEFAULT_METRICS, VERDICT, GateSettings, NightVerdict, gate_of
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.images import snapshot_of_images
from taugrid.orchestrator.baseline.matching import ACCEPT, matched
from taugrid.orchestrator.baseline.snapshot import (
    MISSING_INFLUENCES,
    Baseline,
    Digests,
    ImagePixels,
    ImagesRequest,
    Snapshot,
    SnapshotCell,
    images_of,
    pixel_digests,
    snapshot_of_run,
)
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.work.scorer import FILE
from taugrid.registry.metrics import METRICS, SAMPLED
from taugrid.storage import LOCAL, Storage, is_url, open_place, read_sealed, replacing, write_sealed
from taugrid.words import counted, with_urls

FORMAT = "taugrid baseline 3"
ANY_FORMAT = re.compile(rb'"format":\s*"taugrid baseline ')  # in the JSON of any version, also of a damaged one

SCHEMA = pa.schema([
    ("cell", pa.string()), ("index", pa.int64()), ("influence", pa.float64()), ("pixels", pa.int64()),
    ("image", pa.binary()),
])  # fmt: skip


def snapshot_of(name: str) -> Snapshot:
    """The snapshot of a run directory or a baseline file, each a path or a URL; `UserError` if it is neither."""
    if name.endswith((".json", ".parquet")):
        return read_baseline(*open_baseline(name, "BASELINE"))
    return snapshot_of_run(name)


def open_baseline(name: str, named: str) -> tuple[Path, Storage]:
    """The path of a baseline file and its storage; `named` is the option or argument that names it."""
    if not name.endswith(".json"):
        raise UserError(f"{named} {name}: a baseline file ends in .json")
    if not is_url(name):
        return Path(name), LOCAL
    folder, storage = open_place(name.rpartition("/")[0], named)
    storage.require(folder)
    return folder / name.rpartition("/")[2], storage


def read_baseline(path: Path, storage: Storage = LOCAL) -> Snapshot:
    """The snapshot in a baseline file; `UserError` if it is not one, or one of its two files has changed."""
    baseline, beside = read_json_of_baseline(path, storage), path.with_suffix(".parquet")
    try:
        data = storage.read(beside)
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != baseline.parquet_sha256:
        torn = f"{with_urls(str(beside))} is missing, or not that of {path.name}"
        raise UserError(f"{torn}; restore both, or accept a run: {ACCEPT}")
    table = pq.read_table(pa.BufferReader(data))
    cells = tuple(_read_cell(cell, table, baseline.run) for cell in baseline.cells)
    return Snapshot(
        with_urls(str(path)), baseline.name, baseline.software, cells, accepted=baseline, scorer=baseline.scorer
    )


def read_json_of_baseline(path: Path, storage: Storage = LOCAL) -> Baseline:
    """The content of a baseline file's JSON; `UserError` if it is not one, or has changed."""
    value, shown = read_sealed(path, storage), with_urls(str(path))
    if value is None:
        raise UserError(f"{shown} is missing, changed, or no baseline file; restore it, or accept a run: {ACCEPT}")
    if value.get("format") == FORMAT:
        with suppress(ValidationError):
            return Baseline.model_validate(value)
    raise UserError(f"{shown} is not a baseline file of this version ({FORMAT}); accept the baseline again")


def _read_cell(cell: SnapshotCell, table: pa.Table, run: str) -> SnapshotCell:
    rows = table.filter(pa.compute.equal(table["cell"], cell.cell))
    digests = None if rows["pixels"].null_count else rows["pixels"].to_numpy()
    images = rows["image"].drop_null().to_pylist()
    first = np.frombuffer(b"".join(images), np.uint8).reshape(len(images), *cell.image_shape) if images else None
    stored = {column.name: INFLUENCE_COLUMNS.get(column.name, column.name) for column in SAMPLED}
    known = {name: rows[column] for name, column in stored.items() if column in rows.column_names}
    return replace(
        cell,
        influences={name: values.to_numpy() for name, values in known.items() if not values.null_count},
        load_digests=lambda: digests,
        load_images=partial(_images_of_run, run, cell.cell, digests),
        load_first=lambda: first,
    )


def _images_of_run(directory: str, cell_id: str, digests: Digests | None) -> Iterable[ImagePixels]:
    """The images that a baseline was accepted with; none if they no longer have `digests`."""
    try:
        run = open_existing(directory)
    except UserError:
        return ()
    for cell in run.configured.cells:
        if cell.id == cell_id and digests is not None:
            found = pixel_digests(run.rundir, cell)
            return images_of(run.rundir, cell) if found is not None and np.array_equal(found, digests) else ()
    return ()


def accept(directory: str, file: str, reason: str, force: bool = False) -> Baseline:
    """Write a run as the baseline file `file`, a path or a URL, and return the content of its JSON.

    An existing baseline is replaced; if the run is worse than it, or can't be compared with it, the file has a remark.
    It can't be compared with a baseline that is damaged, or that another version wrote.
    `force` accepts the run of a night that was judged a regression, with a remark too. Raises `UserError` if it is not
    a run directory, has unscored cells, or was judged worse; or if the existing file is not a baseline."""
    open_baseline(file, "--to")
    run = open_existing(directory)
    snapshot, remarks = _after_its_night(snapshot_of_run(run), run, force)
    if snapshot.unscored:
        count, first = counted(len(snapshot.unscored), "cell"), next(iter(snapshot.unscored.values()))
        raise UserError(f"{snapshot.source} has {count} without a score ({first}); `taugrid run` completes it")
    if run.rundir.is_changed(FILE):
        raise UserError(f"{snapshot.source}: {FILE} was changed or is damaged; `taugrid run` makes it again")
    for cell in snapshot.cells:
        if cell.lacking:
            raise UserError(f"{snapshot.source}: {cell.name}: {MISSING_INFLUENCES}")
    remarks += _require_judgeable(snapshot, run.config.gate.metrics or DEFAULT_METRICS)
    return _accept(snapshot, remarks, file, reason, gate_of(run.config))


def accept_images(place: str, request: ImagesRequest, file: str, reason: str, progress: Progress) -> Baseline:
    """As `accept` for external images, which are scored in this process. Raises `UserError` if they can't be scored as
    requested, or no metric has a standard error."""
    open_baseline(file, "--to")
    snapshot = snapshot_of_images(place, request, progress)
    remarks = _require_judgeable(snapshot, request.metrics or DEFAULT_METRICS)
    return _accept(snapshot, remarks, file, reason, GateSettings(metrics=request.metrics or None), request)


def _accept(
    snapshot: Snapshot,
    remarks: list[str],
    file: str,
    reason: str,
    gate: GateSettings,
    images: ImagesRequest | None = None,
) -> Baseline:
    """Write the baseline file, with remarks on the one that it replaces."""
    path, storage = open_baseline(file, "--to")
    replaces, beside = None, path.with_suffix(".parquet")
    if storage.exists(path):
        if not _is_baseline_file(path, storage):
            raise UserError(f"--to {file}: it is no baseline file; remove it, or give another --to")
        try:
            before = read_baseline(path, storage)
            replaces = before.accepted.parquet_sha256 if before.accepted else None
            comparison = compare_snapshots(snapshot, before, gate)
        except UserError as error:
            remarks.append(f"it could not be compared with the baseline that it replaces: {error}")
        else:
            # The distances between environments that the previous baseline had accepted stay accepted.
            accepted = {new.cell: old.distances for new, old in matched(snapshot, before).pairs}
            snapshot = _with_distances(snapshot, accepted)
            worse = [cell.label for cell in comparison.cells if cell.result in REGRESSIONS]
            if worse:
                remarks.append(f"accepted although worse than the baseline that it replaces: {', '.join(worse)}")
    elif storage.exists(beside):
        raise UserError(f"--to {file}: {beside.name} exists without it; remove that, or give another --to")
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
        scorer=snapshot.scorer,
        cells=snapshot.cells,
    )
    try:
        # The Parquet file first: the JSON, which names its hash, makes the baseline complete.
        with replacing(beside, storage) as temporary:
            _write_parquet(snapshot, temporary)
            sha256 = hashlib.sha256(temporary.read_bytes()).hexdigest()
        baseline = baseline.model_copy(update={"parquet_sha256": sha256})
        write_sealed(path, baseline.as_dict(), storage)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(f"--to {file}: can't write to {path.parent} ({error.strerror}); give another folder") from None
    return baseline


def _is_baseline_file(path: Path, storage: Storage) -> bool:
    """Whether a file is a baseline's JSON, of any version and maybe damaged."""
    try:
        return ANY_FORMAT.search(storage.read(path)) is not None
    except (FileNotFoundError, IsADirectoryError):
        return False


def _write_parquet(snapshot: Snapshot, path: Path) -> None:
    others = [column.name for column in SAMPLED if column.name not in INFLUENCE_COLUMNS
              and any(column.name in cell.influences for cell in snapshot.cells)]  # fmt: skip
    schema = pa.schema([*SCHEMA, *((name, pa.float64()) for name in others)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for cell in snapshot.cells:
            n, first = cell.num_samples, cell.load_first()
            images = [] if first is None else [image.tobytes() for image in first]
            given: dict[str, Any] = {
                INFLUENCE_COLUMNS.get(name, name): values for name, values in cell.influences.items()
            }
            given |= {"cell": [cell.cell] * n, "index": np.arange(n), "pixels": cell.load_digests()}
            given["image"] = images + [None] * (n - len(images))
            columns = [pa.nulls(n, field.type) if (values := given.get(field.name)) is None else
                       pa.array(values, field.type) for field in schema]  # fmt: skip
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _with_distances(snapshot: Snapshot, accepted: Mapping[str, Mapping[str, float]]) -> Snapshot:
    """The snapshot with further accepted distances of its cells, by their ids; its own are kept."""
    cells = (replace(cell, distances={**accepted.get(cell.cell, {}), **cell.distances}) for cell in snapshot.cells)
    return replace(snapshot, cells=tuple(cells))


def _require_judgeable(snapshot: Snapshot, names: Sequence[str]) -> list[str]:
    """Raise `UserError` for cells without any of the metrics `names`; a remark if no cell has an error of one."""
    columns = [column for name in names for column in METRICS[name].columns if column.sampling_error]
    if not all(any(column.name in cell.metrics for column in columns) for cell in snapshot.cells):
        raise UserError(f"{snapshot.source} has cells without {' or '.join(names)}, by which later runs are judged; "
                        "add it to evaluate.metrics")  # fmt: skip
    if any(cell.scored(column.name) for cell in snapshot.cells for column in columns):
        return []
    titles = " or ".join(column.title for column in columns if column.name in snapshot.cells[0].metrics)
    why = f" ({reason})" if (reason := snapshot.cells[0].reason) else ""
    return [f"no cell has a standard error of {titles}{why}, so nothing can be judged against it"]


def _after_its_night(snapshot: Snapshot, run: Run, force: bool) -> tuple[Snapshot, list[str]]:
    """The snapshot of a night's run with the distances that its canaries measured, and remarks on its verdict.
    Accepting the night accepts these distances between images of different software or devices."""
    folder, storage = run.rundir.around
    value = read_sealed(folder / VERDICT, storage)
    if value is None:
        if folder.parent.name != "nights" or force:
            return snapshot, []
        raise UserError(
            f"night {folder.name} has no intact {VERDICT}; `taugrid nightly` finishes it, --force accepts it"
        )
    verdict, remarks = NightVerdict.read(value, folder), list[str]()
    if verdict.result in REGRESSIONS:
        if not force:
            raise UserError(f"night {verdict.night} was judged {verdict.result}; to accept it, add --force")
        remarks.append(f"accepted although night {verdict.night} was judged {verdict.result}")
    cells = verdict.comparison.cells if verdict.comparison else ()
    checks = [(cell.cell, cell.sampler.pair, cell.sampler.distance) for cell in cells]
    measured = {cell: {pair: far} for cell, pair, far in checks if pair is not None and far is not None}
    if measured:
        largest = max(far for distances in measured.values() for far in distances.values())
        remarks.append(
            f"its software or device was new: images up to {largest:.2g} grey levels from the last baseline's, on "
            "average, are accepted for this change, and twice that is allowed later"
        )
    return _with_distances(snapshot, measured), remarks
