"""The second look of a night: cells that the usual seeds single out are sampled anew, both networks, with a fresh seed.

The usual seeds are the same every night, so an unlucky block of noise would raise the same false alarm every night. The
fresh seed follows from the night's id: it differs from night to night, and a resumed night has the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.config import Config, validate
from taugrid.errors import UserError
from taugrid.eval.gate.rule import Change
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.snapshot import SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.nightly.loadable import Pair
from taugrid.orchestrator.opened import Opened

SampleBoth = Callable[[Config, Path], Opened | None]
"""Runs a config in a folder; None if some cells could not be finished."""


class Look(NamedTuple):
    """Which second look it is."""

    name: str
    """`fresh` or `grown`; the fresh seed depends on it."""
    folder: Path
    """Its run directory."""
    num_samples: int | None
    """None: as tonight."""


def fresh_seed(night: str, look: str, seed: int) -> int:
    """A seed below 2^32 from the night's id, the look (`fresh` or `grown`) and the usual seed."""
    return int(json_sha256({"night": night, "look": look, "seed": seed})[:8], 16)


@dataclass(frozen=True)
class SecondLook:
    """How the cells of a night are sampled again."""

    config: Config
    """Tonight's."""
    night: str
    sample_both: SampleBoth

    def changes(self, pairs: Sequence[Pair], look: Look, margin: float) -> list[Change] | None:
        """Sample both networks of `pairs` with a fresh seed, and return what the rule needs; None if unfinished.

        Args:
            pairs: the cells; `loadable.why_not` has nothing against them.
            look: fresh or grown.
            margin: as a share of the baseline's recorded FID.
        """
        points = [self._point(cell, look) for pair in pairs for cell in pair]
        opened = self.sample_both(_second_config(self.config, look.name, points), look.folder)
        if opened is None:
            return None
        scored = {_place(cell, {}): cell for cell in snapshot_of_opened(opened).cells}
        return [self._change(pair, look, scored, margin) for pair in pairs]

    def _anew(self, cell: SnapshotCell, look: Look) -> dict[str, Any]:
        """The settings in which a cell's second look differs from the cell."""
        seed = fresh_seed(self.night, look.name, cell.settings["seed"])
        return {"seed": seed, "num_samples": look.num_samples or cell.num_samples}

    def _point(self, cell: SnapshotCell, look: Look) -> dict[str, Any]:
        """The cell as a point of a grid: with all its settings, and a fresh seed."""
        sample = {**cell.settings, **self._anew(cell, look)}
        diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
        return {**cell.network.keys, **diffusion, **sample}

    def _change(self, pair: Pair, look: Look, scored: Mapping[str, SnapshotCell], margin: float) -> Change:
        new, old = (scored[_place(cell, self._anew(cell, look))] for cell in pair)
        if new.influence is None or old.influence is None:
            raise UserError(f"{new.name} has no standard error with a fresh seed: {new.reason or old.reason}")
        difference = float(new.metrics["fid"]) - float(old.metrics["fid"])
        recorded = margin * float(pair[1].metrics["fid"])
        return Change(pair[0].name, difference, recorded, new.influence - old.influence, new.block)


def _place(cell: SnapshotCell, anew: Mapping[str, Any]) -> str:
    """What tells the cells of a second look apart: network and settings, the new ones in place of the old."""
    return json_sha256([cell.network.weights_sha256, cell.network.diffusion, {**cell.settings, **anew}])


def _second_config(config: Config, look: str, points: Sequence[Mapping[str, Any]]) -> Config:
    values = config.model_dump(mode="json")
    unique = {json_sha256(point): {key: [value] for key, value in point.items()} for point in points}
    values |= {"name": f"{config.name}-{look}", "model": {}, "grid": list(unique.values())}
    return validate(Config, values, look)
