"""Cells of earlier runs, sampled again: as points of a grid that has all of their settings, and their network."""

from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.config import Config, validate
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.snapshot import SnapshotCell


def point_of(cell: SnapshotCell, **anew: Any) -> dict[str, Any]:
    """The cell as a point of a grid; `anew` are the settings in which it differs."""
    diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
    return {**cell.network.keys, **diffusion, **cell.settings, **anew}


def config_of(config: Config, name: str, points: Sequence[Mapping[str, Any]]) -> Config:
    """Tonight's config with `points` as its grid, each once; `name` is appended to its name."""
    values = config.model_dump(mode="json")
    unique = {json_sha256(point): {key: [value] for key, value in point.items()} for point in points}
    values |= {"name": f"{config.name}-{name}", "model": {}, "grid": list(unique.values())}
    return validate(Config, values, name)
