"""What is read of a cell once somebody asks: its first images, and its paired difference to another one."""

import threading
from typing import Any

import numpy as np

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.differences import Evidence, pair, parts_by_metric
from taugrid.eval.tables.long_form import COLUMNS
from taugrid.images import decode_png, encode_png, to_pictures
from taugrid.orchestrator.board.document import PER_CELL, BoardRow
from taugrid.orchestrator.board.files import UNREADABLE
from taugrid.orchestrator.rundir.evidence import read_influences
from taugrid.parquet import first_pngs
from taugrid.registry.metrics import SAMPLED
from taugrid.storage import read_json, read_sealed

MAX_PIXELS = 2**20  # of an image in a strip: 1024 x 1024

_decoding = threading.Lock()  # a strip may take 200 MB, so they are made one at a time


def paired(first: BoardRow, second: BoardRow) -> dict[str, tuple[float, float]]:
    """Metric -> second minus first, and its paired standard error, of each metric that has one: as `taugrid compare`.
    Raises `UserError` if the two can't be compared; `OSError` if their files can't be read now."""
    try:
        return _paired(first, second)
    except UNREADABLE as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # perhaps it can be read later
        raise UserError(f"what their runs recorded can't be compared: {error}") from None


def _paired(first: BoardRow, second: BoardRow) -> dict[str, tuple[float, float]]:
    rows, protocols, noise = {}, {}, {}
    influences: dict[str, dict[str, Array]] = {column.name: {} for column in SAMPLED}
    for name, row in (("a", first), ("b", second)):  # the same cell of two runs has one id
        values = row.values
        rows[name] = dict.fromkeys(COLUMNS) | values | {"cell": name, "protocol": name}
        protocols[name] = _protocol(row, values)
        noise[name] = row.of("noise") or f"{name}: not known"
        for metric, given in _influences(row, values).items():
            influences[metric][name] = given
    if noise["a"] != noise["b"]:
        raise UserError("they share no noise (their seeds or shapes of images differ)")
    difference = pair(rows["a"], rows["b"], Evidence(influences.pop("fid"), noise, protocols, others=influences))
    found: dict[str, tuple[float, float]] = {}
    for metric, parts in parts_by_metric(difference).items():
        if parts["difference"] is not None and parts["se"] is not None:
            found[metric] = (parts["difference"], parts["se"])
    if not found:
        raise UserError(difference["note"] or "no metric of both has a standard error")
    return found


def _protocol(row: BoardRow, values: dict[str, Any]) -> dict[str, Any]:
    found = row.run.found
    quality = read_json(found.root / "tables" / "quality.json", found.storage)
    protocol = quality.get("protocols", {}).get(values.get("protocol")) if isinstance(quality, dict) else None
    if not isinstance(protocol, dict):
        raise UserError(f"{found.title} does not record the protocol of {row.of('labels')}")
    return protocol


def _influences(row: BoardRow, values: dict[str, Any]) -> dict[str, Array]:
    """Metric -> (N,), from the file beside the score that a row shows; empty if there is none."""
    root, storage = row.run.found.root / "scores", row.run.found.storage
    cell, n = str(values["cell"]), int(values["num_samples"])
    for name in sorted(storage.level(root).files):  # no id of theirs becomes a path
        if not (name.startswith(f"{cell}-") and name.endswith(".json")):
            continue
        score = read_sealed(root / name, storage) or {}
        metrics = {key: value for key, value in score.get("metrics", {}).items() if key in values}
        if not metrics or any(values[key] != value for key, value in metrics.items()):
            continue
        path = (root / name).with_suffix(".parquet")
        try:
            part = parquet.inspect(path, storage=storage)
        except (FileNotFoundError, DamagedFile):
            continue
        if part.start == 0 and part.stop >= n and part.metadata.get("cell") == cell:
            wanted = [column.name for column in SAMPLED if values.get(column.sampling_error or "") is not None]
            return read_influences(path, n, wanted, storage)
    return {}


def strip(row: BoardRow) -> bytes:
    """The images 0 to `PER_CELL` - 1 of a cell in native size, as one PNG; missing ones are black. Raises `UserError`
    if it has no images, or they can't be read."""
    found, folder = row.run.found, row.of("folders")
    if folder is None:
        raise UserError("there are no images of this cell")
    try:
        names = sorted(name for name in found.storage.level(found.root / "samples" / folder).files)
        parts = [found.root / "samples" / folder / name for name in names if name.endswith(".parquet")]
        if not parts:
            raise UserError("there are no images of this cell")
        pngs = first_pngs(parts, PER_CELL, found.storage)
        with _decoding:
            pictures = to_pictures([decode_png(png, MAX_PIXELS) for png in pngs])
            blank = np.zeros((PER_CELL - len(pictures), *pictures.shape[1:]), np.uint8)
            side_by_side = np.concatenate([*pictures, *blank], axis=1)
            return encode_png(side_by_side[None] if side_by_side.ndim == 2 else side_by_side.transpose(2, 0, 1))
    except UNREADABLE:
        raise UserError("the images of this cell can't be read") from None
