"""What the board knows of a run or a night: plain data from what it recorded, which the index keeps.

It never raises: a run that is half written, damaged or of another version has an entry with a note.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from taugrid import __version__
from taugrid.config import Config, validate
from taugrid.errors import UserError
from taugrid.hashing import json_sha256
from taugrid.orchestrator.board.files import UNREADABLE, RecordedFiles, listing, mapping, number, plain, text
from taugrid.orchestrator.board.find import FoundFolder
from taugrid.protocol import agreed_fields, comparability_key, metric_settings
from taugrid.registry.datasets import DATASETS
from taugrid.registry.metrics import SAMPLED
from taugrid.registry.samplers import unchecked
from taugrid.storage import read_sealed
from taugrid.words import counted

RunEntry = dict[str, Any]
NightEntry = dict[str, Any]

DIFFERENCES = {"fid": ("difference", "se")} | {
    column.name: (f"{column.name}_difference", f"{column.name}_se") for column in SAMPLED if column.name != "fid"
}
"""Metric -> its columns in differences.csv."""


def read_entry(files: RecordedFiles) -> RunEntry:
    """The entry of a run; one with a note if nothing of it can be read."""
    entry: RunEntry = {"versions": files.versions, **_EMPTY}
    try:
        entry |= _read(files)
    except UNREADABLE as error:
        reason = text(f"{type(error).__name__}: {error}".replace("\n", " "))
        entry |= {**_EMPTY, "state": "unreadable", "note": f"what it recorded can't be read ({reason})"}
    return entry


_EMPTY: RunEntry = {
    "name": "", "state": "empty", "note": "", "began": None, "ended": None, "taugrid": None, "devices": [],
    "models": [], "report": False, "planned": {}, "keys": [], "columns": [], "rows": [], "labels": [], "folders": [],
    "noise": [], "groups": [], "protocols": {}, "settings": {}, "differences": [],
}  # fmt: skip


def _read(files: RecordedFiles) -> RunEntry:
    config, plan, provenance = (files.json(f"{name}.json") for name in ("config", "plan", "provenance"))
    first, last = files.first_and_last_event()
    written_by = mapping(provenance.get("versions") or first.get("versions")).get("taugrid")
    cells = [cell for cell in listing(plan.get("cells")) if isinstance(cell, dict)]
    entry = {
        "name": text(config.get("name") or ""),
        "began": _time(first),
        "ended": _time(last),
        "taugrid": None if written_by is None else text(written_by),
        "devices": sorted({text(m["device"]) for m in listing(provenance.get("machines")) if "device" in mapping(m)}),
        "models": _models(plan, config),
        "report": "report.html" in files.stats,
        "planned": {
            cell["id"]: images if isinstance(images := mapping(cell.get("settings")).get("num_samples"), int) else 0
            for cell in cells
            if isinstance(cell.get("id"), str)
        },
        "keys": list(dict.fromkeys(text(key) for cell in cells for key in mapping(cell.get("values")))),
    }
    entry |= _table(files, config, plan)
    state, note = _state(files, config, entry, last)
    other = entry["taugrid"] not in (None, __version__)
    version = f"taugrid {entry['taugrid']} wrote it, and this is {__version__}" if other else ""
    return entry | {"state": state, "note": "; ".join(filter(None, [note, version, *files.notes]))}


def _table(files: RecordedFiles, config: Mapping[str, Any], plan: Mapping[str, Any]) -> RunEntry:
    """The rows of quality.csv, and what is known of each: label, folder of images, noise, comparability. `settings` are
    those of metrics, by the rows' `protocol`."""
    quality = files.json("tables/quality.json")
    rows = [{text(k): plain(v) for k, v in row.items()} for row in listing(quality.get("rows")) if mapping(row)]
    rows = [row for row in rows if isinstance(row.get("cell"), str)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    settings = {row.get("cell"): row for row in files.csv("tables/cells.csv")} if rows else {}
    protocols = {text(k): p for k, p in mapping(quality.get("protocols")).items() if isinstance(p, dict)}
    keys = {name: comparability_key(protocol) for name, protocol in protocols.items()}
    seed = mapping(config.get("sample")).get("seed", 0)
    shapes = {mapping(model).get("id"): _shape(mapping(model)) for model in listing(plan.get("models"))}
    names = [name for name in files.level("samples").folders if name not in files.removed] if rows else []
    folders = {name.rpartition("-")[2]: name for name in names}
    own = [settings.get(row["cell"], {}) for row in rows]
    return {
        "columns": columns,
        "rows": [[row.get(column) for column in columns] for row in rows],
        "labels": [
            text(known.get("name") or f"S={row.get('steps')} eta={row.get('eta')}")
            for known, row in zip(own, rows, strict=True)
        ],
        "folders": [folders.get(row["cell"]) for row in rows],
        "groups": [keys.get(str(row.get("protocol"))) for row in rows],
        "noise": [
            _noise(known.get("seed", seed), shapes.get(row.get("model")), protocols.get(str(row.get("protocol")), {}))
            for known, row in zip(own, rows, strict=True)
        ],
        "protocols": {keys[name]: _agreed(protocol) for name, protocol in protocols.items()},
        "settings": {name: _texts(metric_settings(protocol)) for name, protocol in protocols.items()},
        "differences": _differences(files, {row["cell"]: at for at, row in enumerate(rows)}) if rows else [],
    }


def _agreed(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The fields that must agree, the reference's images first: by the name of their data set, and their hash."""
    fields = _texts(agreed_fields(protocol))
    reference = mapping(protocol.get("reference"))
    name = "/".join(str(reference[key]) for key in ("dataset", "split") if reference.get(key))
    return {"data": text(f"{name} ({fields.pop('reference.sha256', 'hash not set')})".lstrip()), **fields}


def _texts(fields: Mapping[str, str]) -> dict[str, str]:
    return {text(name): text(value) for name, value in fields.items()}


def _state(files: RecordedFiles, config: dict[str, Any], entry: RunEntry, last: Mapping[str, Any]) -> tuple[str, str]:
    """The state of a run that no driver works on, and a note on what it lacks."""
    if not config:
        return "unreadable", "it has no readable config.json"
    if entry["taugrid"] == __version__ and (fault := _fault(config)):
        return "unreadable", fault
    scored = {row[entry["columns"].index("cell")] for row in entry["rows"]}
    missing = mapping(last.get("missing"))
    if missing:
        name, reason = next(iter(missing.items()))
        return "incomplete", text(f"{counted(len(missing), 'cell')} could not be finished; {name}: {reason}")
    if scored:
        planned = entry["planned"].keys()
        if not planned:
            return "finished", "no plan.json says which cells it was to have"
        return ("incomplete", f"{len(scored)} of {len(planned)} cells scored") if planned - scored else ("finished", "")
    return ("sampled", "no cell is scored yet") if files.level("samples").folders else ("empty", "")


@unchecked()
def _fault(config: dict[str, Any]) -> str:
    """What is wrong with a config.json of this version; empty if nothing is."""
    try:
        validate(Config, config, "config.json")
    except UserError as error:
        return text(str(error))
    return ""


def _models(plan: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What the models were loaded from, or "trained"."""
    sources = [mapping(mapping(model).get("source")) for model in listing(plan.get("models"))]
    sources = sources or [mapping(config.get("model"))]
    named = ("path", "checkpoint", "callable", "distribution", "oracle")
    found = [next((text(source[key]) for key in named if source.get(key)), "trained") for source in sources if source]
    return list(dict.fromkeys(found))


def _shape(model: Mapping[str, Any]) -> list[int] | None:
    """(channels, height, width) of what a planned model samples; None if it is not known."""
    source = mapping(model.get("source"))
    network, data = mapping(source.get("unet_config")), mapping(source.get("data"))
    if network:
        size = network.get("sample_size")
        return [network.get("in_channels"), *(size if isinstance(size, list) else [size, size])]
    dataset = DATASETS.get(str(data.get("name")))
    shape = source.get("image_shape") or data.get("shape") or (None if dataset is None else dataset.shape)
    return None if shape is None else list(shape)


def _noise(seed: Any, shape: list[int] | None, protocol: Mapping[str, Any]) -> str | None:
    """Equal for cells whose samples start from the same noise; None if that is not known."""
    if shape is None:
        pictures = str(mapping(protocol.get("reference")).get("preprocessing")).rpartition(" ")[2]
        shape = [int(side) for side in pictures.split("x")] if pictures.replace("x", "").isdigit() else None
    return None if shape is None else json_sha256([str(seed), shape, protocol.get("decoder")])[:8]


def _differences(files: RecordedFiles, places: Mapping[str, int]) -> list[list[Any]]:
    """[row a, row b, metric, b - a, its standard error] of each recorded difference that has an error."""
    found = []
    for record in files.csv("tables/differences.csv"):
        a, b = places.get(record.get("cell_a", "")), places.get(record.get("cell_b", ""))
        for metric, (difference, error) in DIFFERENCES.items():
            values = [number(record.get(difference)), number(record.get(error))]
            if None not in (a, b, *values):
                found.append([a, b, metric, *values])
    return found


def _time(event: Mapping[str, Any]) -> str | None:
    """The time of an event as it was recorded; None if it is no time."""
    try:
        return datetime.fromisoformat(event["time"]).isoformat(timespec="seconds")
    except UNREADABLE:
        return None


def read_night(found: FoundFolder, before: NightEntry | None) -> NightEntry:
    """id, time, verdict and light of a night; `before` if its verdict has not changed. Nothing raises."""
    entry: NightEntry = {"id": text(found.root.name), "time": "", "verdict": "unfinished", "light": "grey"}
    if "verdict.json" not in found.level.files:
        return {**entry, "version": ""}
    path = found.root / "verdict.json"
    try:
        version = (found.level.files["verdict.json"] or found.storage.stat(path)).version
        if before is not None and before.get("version") == version:
            return before
        if (verdict := read_sealed(path, found.storage)) is None:
            return {**entry, "version": version, "verdict": "damaged verdict.json"}
        from taugrid.orchestrator.baseline.compared import NightVerdict  # the first night loads what judges
        from taugrid.orchestrator.nightly.history import night_line

        line = night_line(NightVerdict.read(verdict, found.root))
        told = {"time": text(line.time), "verdict": text(line.verdict), "light": line.light}
        return {**entry, "version": version, **told}
    except (*UNREADABLE, UserError) as error:
        return {**entry, "version": "", "verdict": text(f"verdict.json can't be read ({type(error).__name__})")}
