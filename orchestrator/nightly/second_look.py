"""The second look of a night: both networks of some cells are sampled with a fresh seed.

The usual seeds are the same every night, so an unlucky seed set would raise the same false alarm every night. The
fresh seed follows from the night's id: it differs from night to night, and a resumed night has the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taugrid.eval.gate.rule import BEYOND_CHANCE, Change
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import check_scorer, sampling_key_of
from taugrid.orchestrator.baseline.compared import CellComparison
from taugrid.orchestrator.baseline.comparison import changes_of
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.nightly.resampling import Pair, Resampler, point_of
from taugrid.registry.metrics import COLUMNS, MetricColumn
from taugrid.words import counted

WITHOUT_TRAINING = ("sample", "evaluate", "report")


class Resampled(NamedTuple):
    """A cell with fresh samples in place of the usual ones."""

    name: str
    """The name of tonight's cell."""
    changes: Sequence[Change] = ()
    """The changes of its metrics, as the statistical test needs them."""
    values: Mapping[str, tuple[float, float]] = {}
    """Column -> the metric of tonight's network and of the baseline's."""
    num_samples: int = 0
    failed: str = ""
    """The failure of tonight's network with these samples; empty: there is none."""


class Look(NamedTuple):
    name: str
    """`fresh` or `grown`: the name of its run directory, on which the fresh seed depends."""
    num_samples: int | None
    """None: as many as tonight."""


def fresh_seed(night: str, look: str, seed: int) -> int:
    """A seed below 2^32 from the night's id, the look (`fresh` or `grown`) and the usual seed."""
    return int(json_sha256({"night": night, "look": look, "seed": seed})[:8], 16)


@dataclass(frozen=True)
class SecondLook:
    resampler: Resampler
    tonight: Snapshot

    def changes(self, pairs: Sequence[tuple[CellComparison, Pair]], look: Look) -> list[Resampled] | str | None:
        """The changes with fresh samples of both networks; None if they are unfinished.

        Each pair comes with its comparison by the usual seeds, whose metrics and margins are used. Returns the reason
        if this look does not count: the baseline's network fails, or taugrid has changed since tonight's cells were
        sampled and scored.
        """
        points = [point_of(cell, **pair[0].files, **self._fresh(cell, look)) for _, pair in pairs for cell in pair]
        cells = counted(len({json_sha256(point) for point in points}) // 2, "cell")
        self.resampler.progress.say(f"second look: {cells} with a fresh seed, of tonight's network and the baseline's")
        resampling = self.resampler.run(look.name, points, self.resampler.night.folder / look.name, WITHOUT_TRAINING)
        if not resampling.is_complete:
            return None
        snapshot = snapshot_of_opened(resampling.run, resampling.failed)
        if (reason := _code_change(self.tonight, snapshot)) is not None:
            return reason
        scored = {sampling_key_of(cell): cell for cell in snapshot.cells}
        changes = []
        for usual, pair in pairs:
            new, old = (scored[sampling_key_of(cell, **self._fresh(cell, look))] for cell in pair)
            for name in usual.judging:
                if not old.scored(name):
                    what, why = COLUMNS[name].title, old.failed or old.reason or "it is not scored by it"
                    return f"the baseline's network has no {what} with an error for these samples ({why})"
                if (reason := _contradiction(old, pair[1], COLUMNS[name])) is not None:
                    return reason
            changes.append(_resampled(usual, new, old))
        return changes

    def _fresh(self, cell: SnapshotCell, look: Look) -> dict[str, Any]:
        """The seed and the N of a cell in this look."""
        seed = fresh_seed(self.resampler.night.id, look.name, cell.settings["seed"])
        return {"seed": seed, "num_samples": look.num_samples or cell.num_samples}


def _resampled(usual: CellComparison, new: SnapshotCell, old: SnapshotCell) -> Resampled:
    """The fresh samples of a cell; its margins stay shares of what the baseline recorded."""
    lacking = [name for name in usual.judging if new.tested(name) is None]
    if lacking:
        failed = new.failed or new.reason or f"{COLUMNS[lacking[0]].title} has no standard error"
        return Resampled(usual.name, failed=failed)
    values = {name: (float(new.metrics[name]), float(old.metrics[name])) for name in usual.judging}
    return Resampled(usual.name, changes_of(new, old, usual), values, new.num_samples)


def _contradiction(again: SnapshotCell, recorded: SnapshotCell, column: MetricColumn) -> str | None:
    """How the baseline's network, sampled and scored today, differs from its record beyond chance; else None.

    The samples differ, so the values have independent errors. At a different N, their biases differ too: None then.
    """
    values = [float(cell.metrics[column.name]) for cell in (again, recorded)]
    error = math.hypot(*(float(cell.metrics[column.sampling_error or ""]) for cell in (again, recorded)))
    if again.num_samples != recorded.num_samples or abs(values[0] - values[1]) <= BEYOND_CHANCE * error:
        return None
    return (
        f"the baseline's network has {column.title} {values[0]:.4g} with a fresh seed, where {values[1]:.4g} was "
        "recorded, which is no chance: today's code samples or scores it differently, although no canary shows it"
    )


def _code_change(tonight: Snapshot, again: Snapshot) -> str | None:
    """How taugrid's code has changed since tonight's run, as an interrupted night's may; None if it has not."""
    if len(tonight.codes | again.codes) > 1:
        return "taugrid's code has changed since tonight's cells were sampled"
    if (check := check_scorer(again, tonight)).result == "changed":
        return f"the scorer has changed since tonight's cells were scored ({check.reason})"
    return None
