"""What a run with another reference, extractor or N would do to the tables in a directory."""

from collections.abc import Mapping
from typing import Any

from taugrid.config import Config, Data
from taugrid.eval.reference_names import images_in_words
from taugrid.grids.names import in_yaml
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.extractor import name_and_dimensions
from taugrid.orchestrator.report.up_to_date import Asked
from taugrid.orchestrator.run import Run
from taugrid.storage import read_json

NOT_CONTENT = {"root", "download"}
"""Keys of `data` that say where images are, not which."""


def replaced_tables(run: Run) -> list[str]:
    """A line for each reason why tables/ would be replaced; empty if there are none yet, or nothing changes.

    A reference whose files have changed is not noticed: that would mean reading them.
    """
    config, rundir = run.config, run.rundir
    tables, before = (read_json(path, rundir.storage) for path in (rundir.tables / "quality.json", rundir.config))
    if not isinstance(tables, dict) or not tables.get("protocols") or not isinstance(before, dict):
        return []
    *_, protocol = tables["protocols"].values()
    told = [
        _reference(config, before, protocol["reference"]),
        _extractor(config, protocol["extractor"]["name"]),
        _num_samples(run.plan, tables["rows"]),
        _metrics(Asked(config, rundir), protocol),
    ]
    return [line for line in told if line is not None]


def _reference(config: Config, before: Mapping[str, Any], scored_against: Mapping[str, Any]) -> str | None:
    given = config.data if config.evaluate.reference is None else config.evaluate.reference
    evaluate = before.get("evaluate") or {}
    old = evaluate.get("reference") or before.get("data")
    now = given.model_dump(mode="json") if isinstance(given, Data) else given
    section = "data" if config.evaluate.reference is None and not evaluate.get("reference") else "evaluate.reference"
    changed = _changed(section, old, now)
    if not changed:
        return None
    return f"{', '.join(changed)}: this replaces tables scored against {images_in_words(scored_against)}"


def _changed(section: str, old: Any, now: Any) -> list[str]:
    """What differs between two references, as "key: old -> new"."""
    if not isinstance(old, Mapping) or not isinstance(now, Mapping):
        return [] if old == now else [f"{section}: {_called(old)} -> {_called(now)}"]
    keys = [key for key in now if key not in NOT_CONTENT and old.get(key) != now[key]]
    return [f"{section}.{key}: {in_yaml(old.get(key))} -> {in_yaml(now[key])}" for key in keys]


def _called(reference: Any) -> str:
    """A reference in short: a data set and its split, or what the config has."""
    return f"{reference.get('name')}/{reference.get('split')}" if isinstance(reference, Mapping) else in_yaml(reference)


def _extractor(config: Config, before: str) -> str | None:
    name, _ = name_and_dimensions(config)
    if name == before:
        return None
    return f"evaluate.extractor: this replaces tables scored with {before}; the new ones use {name}"


def _metrics(asked: Asked, protocol: Mapping[str, Any]) -> str | None:
    changed = asked.changed_metrics(protocol, protocol["num_samples"])
    if not changed:
        return None
    said = ", ".join(f"evaluate.{key}: {in_yaml(old)} -> {in_yaml(now)}" for key, (old, now) in changed.items())
    return f"{said}: this replaces the scores in the tables; images are kept"


def _num_samples(plan: Plan, rows: list[Mapping[str, Any]]) -> str | None:
    scored = {row["cell"]: row["num_samples"] for row in rows}
    pairs = [(scored[cell.id], cell.settings.num_samples) for cell in plan.cells if cell.id in scored]
    changed = sorted({before for before, now in pairs if before != now})
    if not changed:
        return None
    now = ", ".join(f"{n:,}" for n in sorted({now for before, now in pairs if before != now}))
    before = ", ".join(f"{n:,}" for n in changed)
    return f"sample.num_samples: this replaces tables of N = {before} with tables of N = {now}; images are kept"
