"""Whether a config may run in a directory with earlier work: it may add cells, but not orphan any."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from taugrid.config import GRID_SECTIONS, Config, Data, Diffusion, Sample, Train
from taugrid.errors import UserError
from taugrid.grids import in_yaml
from taugrid.hashing import json_sha256
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.sections import NOT_IDENTITY
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.run_id import is_run_directory
from taugrid.storage import read_json
from taugrid.words import listed

CHANGED_FILES = "the files of its checkpoint, custom code or data, its config.json by hand, or taugrid itself"
"""The explanation if a cell is not in the plan although no key is known to have changed."""

MAX_DIFFERENCES = 4
"""The number of differing keys that are named. With more, it is a different experiment, and a list would not help."""


def check_is_run_directory(rundir: RunDir) -> None:
    """Raise `UserError` if a folder holds other files, or a damaged config: they would be overwritten."""
    if is_run_directory(rundir.root, rundir.storage):
        if rundir.storage.exists(rundir.config) and not isinstance(read_json(rundir.config, rundir.storage), dict):
            raise UserError(
                f"{rundir.config} can't be read as JSON; remove it to go on with this config, or give another --out"
            )
        return
    # A driver that was killed as it began left these; the last is the trial of a bucket, maybe by one that begins now.
    own = (rundir.lease.name, f".{rundir.lease.name}.", ".run.json.", ".conditions-")
    names = [path.name for path in rundir.storage.list(rundir.root, "*") if not path.name.startswith(own)]
    if names and not is_run_directory(rundir.root, rundir.storage):  # another driver may have begun in between
        raise UserError(
            f"--out {rundir.root} is not empty and no run directory (it holds {listed(names, 3)}); give a new folder"
        )


def check_extends(config: Config, plan: Plan, rundir: RunDir) -> None:
    """Raise `UserError`, with the difference, if a cell with images in the directory is not in the plan."""
    if (orphans := orphans_in_words(config, plan, rundir)) is not None:
        raise UserError(
            f"{orphans}; undo that, give another --out, go on with the directory's own config (`taugrid run "
            f"{rundir.shown}`, with --only for a part of it), or remove those folders under {rundir.samples}"
        )


def orphans_in_words(config: Config, plan: Plan, rundir: RunDir) -> str | None:
    """A message on cells that have images in the directory but are not in the plan; None if there are none."""
    orphans = list(rundir.committed_cells({cell.id for cell in plan.cells}))
    if not orphans:
        return None
    labels = labels_begun(rundir)
    named = listed([f"{labels[name]} ({name})" if name in labels else name for name in orphans], 2)
    if plan.pending:
        return f"{rundir.root} holds {named}; whether this config has them is not known while an id is pending"
    before = read_json(rundir.config, rundir.storage)
    differences = _differences(before, config.model_dump(mode="json")) if isinstance(before, dict) else []
    shown = listed(differences, MAX_DIFFERENCES, between="; ") or CHANGED_FILES
    return f"{rundir.root} holds {named}, which this config does not have (changed: {shown})"


def config_sha256(config: Mapping[str, Any]) -> str:
    """The hash of a config.json without `track`, which sessions may change."""
    return json_sha256({key: value for key, value in config.items() if key != "track"})


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The differences between two configs that affect cells, as "key: old -> new"."""
    later = {kind.__name__.lower(): kind.later_keys for kind in (Data, Diffusion, Sample, Train)}
    filled = {name: {**later[name], **before[name]} for name in later if isinstance(before.get(name), dict)}
    old, new = _flat(before | filled), _flat(after)
    harmless = {f"{section}.{key}" for section, keys in NOT_IDENTITY.items() for key in keys}
    sections = (*(f"{section}." for section in (*GRID_SECTIONS, "sample", "grid")), "grid[")
    keys = [key for key in dict.fromkeys([*old, *new]) if key.startswith(sections) and key not in harmless]
    changed = [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
    return [f"{key}: {in_yaml(was)} -> {in_yaml(now)}" for key, was, now in changed]


def labels_begun(rundir: RunDir) -> dict[str, str]:
    """Folder name -> label of the cells that the directory's last session knew (tables/cells.csv)."""
    try:
        text = rundir.storage.read(rundir.tables / "cells.csv").decode()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    rows = csv.DictReader(io.StringIO(text))
    return {row["folder"]: row["name"] for row in rows if row.get("folder") and row.get("name")}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if prefix == "grid." and isinstance(value, list):  # of mappings: nearly always one
        parts = [_flat(part, "grid." if len(value) == 1 else f"grid[{n}].") for n, part in enumerate(value)]
        return {key: inner for part in parts for key, inner in part.items()}
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
