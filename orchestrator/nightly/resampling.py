"""Samples cells of earlier runs again, for canaries and second looks, if their networks still exist unchanged.

Each is a run directory beside tonight's; that of canaries has one shard for each cell, and no scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taugrid.config import Config, validate
from taugrid.config.load import CONFIG_NAME
from taugrid.errors import UserError
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import Canaries, Check, batch_of, sampling_key
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import Network, Snapshot, SnapshotCell, snapshot_of_opened
from taugrid.orchestrator.dispatch.cluster import Connection
from taugrid.orchestrator.nightly.places import CANARY, Night
from taugrid.orchestrator.opened import open_existing, open_to_run
from taugrid.orchestrator.plan.trust import Code, require_trusted
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.session import Session
from taugrid.words import counted, with_urls
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import read_checkpoint, weights_file, weights_sha256

Pair = tuple[SnapshotCell, SnapshotCell]  # (new, baseline)


@dataclass(frozen=True)
class Resampler:
    """Samples cells again in a night, for canaries and second looks."""

    config: Config  # tonight's
    night: Night
    ray: Connection  # tonight's, which all of its sessions share
    trust_code: bool  # a custom network may load weights that only the baseline names, not the user's config
    progress: Progress
    missing: dict[str, str]  # cells that could not be finished this time are added to it: name -> reason

    def run(
        self, name: str, points: Sequence[Mapping[str, Any]], folder: Path, stages: Sequence[str]
    ) -> tuple[Run, Mapping[str, str], bool]:
        """Run tonight's config with the distinct `points` as its grid, in a folder of its own.

        Returns the run, the cells that can never be sampled or scored (name -> why), and whether all others are done.
        """
        values = self.config.model_dump(mode="json")
        grid = {json_sha256(point): {key: [value] for key, value in point.items()} for point in points}
        values |= {"name": f"{self.config.name}-{name}", "model": {}, "grid": list(grid.values()), "track": []}
        config = validate(Config, values, name)
        with TemporaryDirectory() as place:
            path = Path(place) / CONFIG_NAME
            path.write_text(dumps(config.model_dump(mode="json")))
            # Its custom code is trusted: tonight's run has loaded it already.
            run = open_to_run(str(path), (), with_urls(str(folder)), self.ray.address, trust_code=True)
        run = replace(run, configured=replace(run.configured, notes=()))  # on a grid that is not the user's
        outcome = Session(run, self.ray, self.progress).do(stages)
        failed = {name: reason for name, reason in outcome.missing.items() if name in outcome.permanent_failures}
        unfinished = sorted(outcome.missing.keys() - failed.keys())
        self.missing.update({f"{folder.name}/{name}": outcome.missing[name] for name in unfinished})
        return run, failed, not unfinished

    def canaries(self, tonight: Snapshot, baseline: Snapshot) -> Canaries:
        """The first batch of each cell of the baseline that tonight has with new weights."""
        pairs = [pair for pair in matched(tonight, baseline).pairs if not pair[0].network.is_same(pair[1].network)]
        unavailable, reasons = dict[str, SnapshotCell | Check](), dict[str, str | None]()
        for new, old in pairs:
            key = _key(old.network, old)
            if key not in reasons:
                reasons[key] = _other_code(new, old) or unloadable(old.network, old, self.trust_code)
            if (reason := reasons[key]) is not None:
                unavailable[old.cell] = Check("unknown", f"the baseline's network can't be sampled: {reason}")
        available = [pair for pair in pairs if pair[1].cell not in unavailable]
        if not available:
            return unavailable
        self.progress.say(f"canary: one batch of {counted(len(available), 'cell')}, of the baseline's network")
        # Of other files, tonight's are known to be there; they have the baseline's content, or nothing is compared.
        grid = [point_of(old, **new.files, num_samples=batch_of(old)) for new, old in available]
        # A folder of its own for each grid, since a baseline may be replaced meanwhile.
        folder = self.night.folder / f"{CANARY}-{json_sha256(grid)[:8]}"
        run, failed, _ = self.run(CANARY, grid, folder, ("sample",))
        return {**_canaries_in(run, tonight, [old for _, old in available], failed), **unavailable}


def point_of(cell: SnapshotCell, **other: Any) -> dict[str, Any]:
    """The cell as a point of a grid, with `other` settings in place of some."""
    diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
    return {**cell.network.keys, **diffusion, **cell.settings, **other}


def _canaries_in(
    run: Run, tonight: Snapshot, cells: Sequence[SnapshotCell], failed: Mapping[str, str] = {}
) -> dict[str, SnapshotCell | Check]:
    """The canaries of `cells` in a run directory, which check the sampler of `tonight`; `failed` is as in `run`."""
    found = snapshot_of_opened(run, with_scores=False)
    by_key = {sampling_key(cell): cell for cell in found.cells}
    canaries: dict[str, SnapshotCell | Check] = {}
    for old in cells:
        again = by_key.get(sampling_key(old, num_samples=batch_of(old)))
        if again is None:
            canaries[old.cell] = Check("unknown", "the canary's images are missing")
        elif len(tonight.codes | found.codes) > 1:
            canaries[old.cell] = Check("unknown", "taugrid's code changed between the sessions of this night")
        elif again.name in failed:
            reason = f"the baseline's network fails with today's code: {failed[again.name]}"
            canaries[old.cell] = Check("changed", reason)
        else:
            canaries[old.cell] = again
    return canaries


def canaries_beside(run: Run, tonight: Snapshot, baseline: Snapshot) -> Canaries:
    """The canaries of the baseline's cells that a night left beside its run; other runs have none."""
    folder, storage = run.rundir.around
    canaries: dict[str, SnapshotCell | Check] = {}
    for path in storage.list(folder, f"{CANARY}-*/config.json"):
        found = _canaries_in(open_existing(with_urls(str(path.parent))), tonight, baseline.cells)
        for cell, again in found.items():  # the first that was sampled, else the first reason
            if cell not in canaries or (isinstance(again, SnapshotCell) and isinstance(canaries[cell], Check)):
                canaries[cell] = again
    return canaries


def why_no_second_look(pairs: Sequence[Pair], trust_code: bool) -> str | None:
    """The reason why a second look is impossible; None if both networks of every pair can still be sampled."""
    checked: set[str] = set()
    for new, old in pairs:
        if new.network.is_same(old.network):
            return "the weights are the baseline's, so a fresh seed would compare them with themselves"
        if (reason := _other_code(new, old)) is not None:
            return reason
    for new, old in pairs:
        for side, cell in (("tonight's", new), ("the baseline's", old)):
            key = _key(cell.network, new)
            if key not in checked and (reason := unloadable(cell.network, new, trust_code)) is not None:
                return f"{side} weights can't be sampled: {reason}"
            checked.add(key)
    return None


def _other_code(new: SnapshotCell, old: SnapshotCell) -> str | None:
    one, other = new.network, old.network
    is_same = (one.callable, one.source_sha256) == (other.callable, other.source_sha256)
    return None if is_same else "the custom network's code has changed, and the baseline's is gone"


def _key(network: Network, cell: SnapshotCell) -> str:
    return json_sha256([network.keys, network.weights_sha256, cell.settings["weights"]])


def unloadable(network: Network, cell: SnapshotCell, trust_code: bool) -> str | None:
    """The reason why a network can't be loaded with a cell's kind of weights, `ema` or `raw`; None if it can."""
    path = network.folder if network.callable is None else network.weights_file
    if path is None and network.callable is None:
        return "only a folder on a disk or a hub id can be loaded again, not an oracle or a run in a bucket"
    if path is None:
        return "the custom network has no file (model.weights), so its weights can't be identified"
    digest: str | None
    try:
        if network.callable is not None:
            digest = custom_process.weights_sha256(Path(path))
        else:
            checkpoint = read_checkpoint(path)
            folder = checkpoint.unet_folder if cell.settings["weights"] == "ema" else checkpoint.raw_folder
            digest = None if folder is None else weights_sha256(weights_file(Path(folder)))
        if digest != network.weights_sha256:
            return f"{path} holds different weights now"
        if network.callable is not None and not trust_code:
            # A baseline file may come from others, and a file of weights may be a pickle.
            require_trusted([Code("model.callable", network.callable, path)], Path(path))
    except UserError as error:
        return str(error)
    return None
