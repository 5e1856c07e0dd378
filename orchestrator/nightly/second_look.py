"""The second look of a night: cells that the usual seeds single out are sampled anew, both networks, with a fresh seed.

The usual seeds are the same every night, so an unlucky block of noise would raise the same false alarm every night. The
fresh seed follows from the night's id: it differs from night to night, and a resumed night has the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.config import Config
from taugrid.eval.gate.rule import BEYOND_CHANCE, Change, Scored
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import check_scorer, place_of
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.nightly.loadable import Pair, config_of, point_of
from taugrid.orchestrator.run import Run

Unscorable = Mapping[str, str]
"""Name -> why the cell can never be scored."""

SampleBoth = Callable[[Config, Path], tuple[Run, Unscorable] | None]
"""Runs a config in a folder; None if some cells could not be finished and still can."""


class Resampled(NamedTuple):
    """A cell with other samples than the usual ones."""

    name: str
    """The night's."""
    change: Change | None
    """None: tonight's network fails with these samples."""
    fids: tuple[float, float] | None = None
    """Tonight's network's FID, and the baseline's."""
    num_samples: int = 0
    failed: str = ""
    """How tonight's network fails."""


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
    tonight: Snapshot
    sample_both: SampleBoth

    def changes(self, pairs: Sequence[Pair], look: Look, margin: float) -> list[Resampled] | str | None:
        """Sample both networks of `pairs` with a fresh seed, and return what the rule needs; None if unfinished.

        A text says why this look does not count: the baseline's network fails, or taugrid has changed since tonight's
        cells were sampled and scored.

        Args:
            pairs: the cells; `loadable.why_not` has nothing against them.
            look: fresh or grown.
            margin: as a share of the baseline's recorded FID.
        """
        points = [point_of(cell, **self._anew(cell, look)) for pair in pairs for cell in pair]
        done = self.sample_both(config_of(self.config, look.name, points), look.folder)
        if done is None:
            return None
        snapshot = snapshot_of_opened(*done)
        if (changed := other_code(self.tonight, snapshot)) is not None:
            return changed
        scored = {place_of(cell): cell for cell in snapshot.cells}
        found = []
        for pair in pairs:
            new, old = (scored[place_of(cell, **self._anew(cell, look))] for cell in pair)
            if old.influence is None:
                return f"the baseline's network has no FID with an error for these samples ({old.failed or old.reason})"
            if (denied := _denied(old, pair[1])) is not None:
                return denied
            found.append(self._resampled(pair, new, old, margin))
        return found

    def _anew(self, cell: SnapshotCell, look: Look) -> dict[str, Any]:
        """The settings in which a cell's second look differs from the cell."""
        seed = fresh_seed(self.night, look.name, cell.settings["seed"])
        return {"seed": seed, "num_samples": look.num_samples or cell.num_samples}

    def _resampled(self, pair: Pair, new: SnapshotCell, old: SnapshotCell, margin: float) -> Resampled:
        name = pair[0].name
        if new.influence is None:
            return Resampled(name, None, failed=new.failed or new.reason or "FID has no error")
        assert old.influence is not None
        recorded = margin * float(pair[1].metrics["fid"])
        fids = float(new.metrics["fid"]), float(old.metrics["fid"])
        sides = Scored(fids[0], new.influence), [Scored(fids[1], old.influence)]
        return Resampled(name, Change.between(name, *sides, recorded, new.block), fids, new.num_samples)


def _denied(again: SnapshotCell, recorded: SnapshotCell) -> str | None:
    """How the baseline's network, sampled and scored today, is not what was recorded of it; None within chance.

    The samples differ, so each FID has an error of its own. At another N, their biases differ as well.
    """
    fids = [float(cell.metrics["fid"]) for cell in (again, recorded)]
    error = math.hypot(*(float(cell.metrics["fid_se"]) for cell in (again, recorded)))
    if again.num_samples != recorded.num_samples or abs(fids[0] - fids[1]) <= BEYOND_CHANCE * error:
        return None
    return (
        f"the baseline's network has FID {fids[0]:.4g} with a fresh seed, where {fids[1]:.4g} was recorded, which is "
        "no chance: today's code samples or scores it differently, although no canary shows it"
    )


def other_code(tonight: Snapshot, again: Snapshot) -> str | None:
    """How the code that sampled or scored `again` is not that of tonight's run; None if it is, as far as known.

    A night may be interrupted, and go on with other code.
    """
    if len(tonight.codes | again.codes) > 1:
        return "taugrid's code has changed since tonight's cells were sampled"
    if (check := check_scorer(again, tonight)).result == "changed":
        return f"the scorer has changed since tonight's cells were scored ({check.reason})"
    return None
