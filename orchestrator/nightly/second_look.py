"""The second look of a night: cells that the usual seeds single out are sampled anew, both networks, with a fresh seed.

The usual seeds are the same every night, so an unlucky block of noise would raise the same false alarm every night. The
fresh seed follows from the night's id: it differs from night to night, and a resumed night has the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.eval.gate.rule import Change, Scored
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import place_of
from taugrid.orchestrator.baseline.snapshot import SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.nightly.loadable import Pair, config_of, point_of
from taugrid.orchestrator.opened import Opened

SampleBoth = Callable[[Config, Path], Opened | None]
"""Runs a config in a folder; None if some cells could not be finished."""


class Resampled(NamedTuple):
    """A cell's change with other samples than the usual ones."""

    change: Change
    fid: float
    """Tonight's network's."""
    baseline_fid: float


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

    def changes(self, pairs: Sequence[Pair], look: Look, margin: float) -> list[Resampled] | None:
        """Sample both networks of `pairs` with a fresh seed, and return what the rule needs; None if unfinished.

        Args:
            pairs: the cells; `loadable.why_not` has nothing against them.
            look: fresh or grown.
            margin: as a share of the baseline's recorded FID.
        """
        points = [point_of(cell, **self._anew(cell, look)) for pair in pairs for cell in pair]
        opened = self.sample_both(config_of(self.config, look.name, points), look.folder)
        if opened is None:
            return None
        scored = {place_of(cell): cell for cell in snapshot_of_opened(opened).cells}
        return [self._change(pair, look, scored, margin) for pair in pairs]

    def _anew(self, cell: SnapshotCell, look: Look) -> dict[str, Any]:
        """The settings in which a cell's second look differs from the cell."""
        seed = fresh_seed(self.night, look.name, cell.settings["seed"])
        return {"seed": seed, "num_samples": look.num_samples or cell.num_samples}

    def _change(self, pair: Pair, look: Look, scored: Mapping[str, SnapshotCell], margin: float) -> Resampled:
        new, old = (scored[place_of(cell, **self._anew(cell, look))] for cell in pair)
        if new.influence is None or old.influence is None:
            raise UserError(f"{new.name} has no standard error with a fresh seed: {new.reason or old.reason}")
        recorded = margin * float(pair[1].metrics["fid"])
        fids = float(new.metrics["fid"]), float(old.metrics["fid"])
        sides = Scored(fids[0], new.influence), [Scored(fids[1], old.influence)]
        return Resampled(Change.between(pair[0].name, *sides, recorded, new.block), *fids)
