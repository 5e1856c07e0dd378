"""The second look of a night: cells that the usual seeds single out are sampled anew, both networks, with a fresh seed.

The usual seeds are the same every night, so an unlucky block of noise would raise the same false alarm every night. The
fresh seed follows from the night's id: it differs from night to night, and a resumed night has the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taugrid.config import Config, validate
from taugrid.errors import UserError
from taugrid.eval.gate.rule import Change
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.snapshot import Network, SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.opened import Opened
from taugrid.workers.network.checkpoint import read_checkpoint, weights_file, weights_sha256

Pair = tuple[SnapshotCell, SnapshotCell]
"""(new, baseline)."""

SampleBoth = Callable[[Config, Path], Opened | None]
"""Runs a config in a folder; None if some cells could not be finished."""


class Unfinished(Exception):
    """Some cells of a second look could not be sampled."""


def why_not(pairs: Sequence[Pair]) -> str | None:
    """Why a second look is impossible; None if both networks of every pair can still be sampled."""
    for new, old in pairs:
        if new.network.is_same(old.network):
            return "the weights are the baseline's, so a fresh seed would compare them with themselves"
        for side, cell in (("tonight's", new), ("the baseline's", old)):
            if (reason := _cannot_be_loaded(cell.network, cell.settings["weights"])) is not None:
                return f"{side} weights can't be sampled: {reason}"
    return None


def _cannot_be_loaded(network: Network, weights: str) -> str | None:
    if network.folder is None:
        return "they are not in a folder that diffusers reads"
    try:
        found = read_checkpoint(network.folder)
        folder = found.unet_folder if weights == "ema" else found.raw_folder
        digest = None if folder is None else weights_sha256(weights_file(Path(folder)))
    except UserError as error:
        return str(error)
    if digest != network.weights_sha256:
        return f"{network.folder} holds other weights now"
    return None


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

    def changes(self, pairs: Sequence[Pair], look: str, folder: Path, margin: float, n: int | None) -> list[Change]:
        """Sample both networks of `pairs` with a fresh seed, and return what the rule needs.

        Args:
            pairs: the cells; `why_not` has nothing against them.
            look: `fresh` or `grown`.
            folder: the run directory of the look.
            margin: as a share of the baseline's recorded FID.
            n: the number of samples; None: as tonight.

        Raises:
            Unfinished: if some cells could not be finished.
        """
        points = [self._point(cell, look, n) for pair in pairs for cell in pair]
        opened = self.sample_both(_second_config(self.config, look, points), folder)
        if opened is None:
            raise Unfinished
        scored = {_place(cell, {}): cell for cell in snapshot_of_opened(opened).cells}
        return [self._change(pair, look, n, scored, margin) for pair in pairs]

    def _anew(self, cell: SnapshotCell, look: str, n: int | None) -> dict[str, Any]:
        """The settings in which a cell's second look differs from the cell."""
        return {"seed": fresh_seed(self.night, look, cell.settings["seed"]), "num_samples": n or cell.num_samples}

    def _point(self, cell: SnapshotCell, look: str, n: int | None) -> dict[str, Any]:
        """The cell as a point of a grid: with all its settings, and a fresh seed."""
        sample = {**cell.settings, **self._anew(cell, look, n)}
        diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
        return {"model.checkpoint": cell.network.folder, **diffusion, **sample}

    def _change(
        self, pair: Pair, look: str, n: int | None, scored: Mapping[str, SnapshotCell], margin: float
    ) -> Change:
        new, old = (scored[_place(cell, self._anew(cell, look, n))] for cell in pair)
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
