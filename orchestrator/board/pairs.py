"""The paired difference of two rows of the board, by the code of `taugrid compare`, in one run or across two."""

from typing import Any, NamedTuple

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.differences import Evidence, pair
from taugrid.eval.tables.differences_files import parts_by_metric
from taugrid.eval.tables.long_form import COLUMNS
from taugrid.orchestrator.board.document import BoardRow
from taugrid.orchestrator.rundir.evidence import read_influences
from taugrid.registry.metrics import SAMPLED
from taugrid.storage import read_json, read_sealed


class _Side(NamedTuple):
    row: dict[str, Any]
    protocol: dict[str, Any]
    influences: dict[str, Array]


def paired(first: BoardRow, second: BoardRow) -> dict[str, tuple[float, float]]:
    """Metric -> second minus first, and its paired standard error, of each metric that has one.

    Raises:
        UserError: if the two can't be compared, or not any more.
    """
    sides = {"a": _side("a", first), "b": _side("b", second)}
    noise = {name: row.of("noise") or f"{name}: not known" for name, row in (("a", first), ("b", second))}
    influences: dict[str, dict[str, Array]] = {column.name: {} for column in SAMPLED}
    for name, side in sides.items():
        for metric, values in side.influences.items():
            influences[metric][name] = values
    protocols = {name: side.protocol for name, side in sides.items()}
    evidence = Evidence(influences.pop("fid"), noise, protocols, others=influences)
    try:
        row = pair(sides["a"].row, sides["b"].row, evidence)
    except ValueError as error:
        raise UserError(str(error)) from None
    found: dict[str, tuple[float, float]] = {}
    for metric, parts in parts_by_metric(row).items():
        if parts["difference"] is not None and parts["se"] is not None:
            found[metric] = (parts["difference"], parts["se"])
    if not found:
        raise UserError(row["note"] or "no metric of both has a standard error")
    return found


def _side(name: str, row: BoardRow) -> _Side:
    """A row as `pair` takes it, by a name that tells it from the same cell in another run."""
    found, values = row.run.found, row.values
    quality = read_json(found.root / "tables" / "quality.json", found.storage)
    protocol = quality.get("protocols", {}).get(values.get("protocol")) if isinstance(quality, dict) else None
    if not isinstance(protocol, dict):
        raise UserError(f"{found.title} does not record the protocol of {row.of('labels')}")
    known = dict.fromkeys(COLUMNS) | values | {"cell": name, "protocol": name}
    return _Side(known, protocol, _influences(row, values))


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
