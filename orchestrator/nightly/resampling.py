"""Samples cells of earlier runs again, for canaries and second looks, if their networks still exist unchanged.

The canary of the sampler is the first batch of each cell of the baseline, from its network and with today's code. It is
a run directory of its own, beside tonight's, with one shard for each cell and without scores. Second looks sample both
networks (`second_look`). The files of the baseline's networks may have been removed or replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from taugrid.config import Config, validate
from taugrid.config.load import CONFIG_NAME
from taugrid.errors import UserError
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import Check, Sampled, batch_of, sampling_key, sampling_key_of
from taugrid.orchestrator.baseline.comparison import Canaries, not_sampled
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.pixels import first_images, pixel_digests
from taugrid.orchestrator.baseline.snapshot import Network, Snapshot, SnapshotCell, sampling_environment
from taugrid.orchestrator.dispatch.cluster import Connection
from taugrid.orchestrator.nightly.places import CANARY, Night
from taugrid.orchestrator.opened import open_existing, open_to_run
from taugrid.orchestrator.plan.trust import Code, require_trusted
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.session import Session
from taugrid.words import counted, with_urls
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import read_checkpoint, weights_file, weights_sha256

Pair = tuple[SnapshotCell, SnapshotCell]
"""(new, baseline)."""

OTHER_CODE = "the custom network's code has changed, and the baseline's is gone"


class ResamplingRun(NamedTuple):
    """A run of cells that were sampled again."""

    run: Run
    failed: Mapping[str, str]
    """Cell name -> the reason why it can never be sampled or scored."""
    is_complete: bool
    """Whether all other cells are sampled and scored."""


@dataclass(frozen=True)
class Resampler:
    """Samples cells again in a night, for canaries and second looks."""

    config: Config
    """Tonight's config."""
    night: Night
    ray: Connection
    """Tonight's, which all of its sessions share."""
    trust_code: bool
    """Whether a custom network may load weights that only the baseline names, not the user's config."""
    progress: Progress
    missing: dict[str, str]
    """Cells that could not be finished this time are added to it: name -> reason."""

    def run(self, name: str, points: Sequence[Mapping[str, Any]], folder: Path, stages: Sequence[str]) -> ResamplingRun:
        """Run tonight's config with `points` as its grid, in a folder of its own."""
        run = _opened(config_of(self.config, name, points), folder, self.ray.address)
        outcome = Session(run, self.ray, self.progress).do(stages)
        failed = {name: reason for name, reason in outcome.missing.items() if name in outcome.permanent_failures}
        unfinished = sorted(outcome.missing.keys() - failed.keys())
        self.missing.update({f"{folder.name}/{name}": outcome.missing[name] for name in unfinished})
        return ResamplingRun(run, failed, not unfinished)

    def canaries(self, tonight: Snapshot, baseline: Snapshot) -> Canaries:
        """The first batch of each cell of the baseline that tonight has with new weights."""
        pairs = [pair for pair in matched(tonight, baseline).pairs if not pair[0].network.is_same(pair[1].network)]
        unavailable = self._unavailable(pairs)
        cells = [old for _, old in pairs if old.cell not in unavailable]
        if not cells:
            return lambda old: unavailable.get(old.cell, not_sampled(old))
        self.progress.say(f"canary: one batch of {counted(len(cells), 'cell')}, of the baseline's network")
        # Of other files, tonight's are known to be there; they have the baseline's content, or nothing is compared.
        grid = [point_of(old, **new.files, num_samples=batch_of(old)) for new, old in pairs if old in cells]
        # A folder of its own for each grid, since a baseline may be replaced meanwhile.
        folder = self.night.folder / f"{CANARY}-{json_sha256(grid)[:8]}"
        canary = self.run(CANARY, grid, folder, ("sample",))
        sampled = _canaries_in(canary.run, tonight, canary.failed)
        return lambda old: unavailable[old.cell] if old.cell in unavailable else sampled(old)

    def _unavailable(self, pairs: Sequence[Pair]) -> dict[str, Check]:
        """Cell id of the baseline -> a check with the reason, for the cells whose network can't be sampled again."""
        reasons: dict[str, str | None] = {}
        checks = {}
        for new, old in pairs:
            key = _key(old.network, old)
            if key not in reasons:
                reasons[key] = unloadable(old.network, old, self.trust_code) if _same_code(new, old) else OTHER_CODE
            if (reason := reasons[key]) is not None:
                checks[old.cell] = Check("unknown", f"the baseline's network can't be sampled: {reason}")
        return checks


def _opened(config: Config, folder: Path, address: str) -> Run:
    """Open a run of `config`, without notes: its grid is not the user's.

    Its custom code is trusted: tonight's run has loaded it already.
    """
    with TemporaryDirectory() as place:
        path = Path(place) / CONFIG_NAME
        path.write_text(dumps(config.model_dump(mode="json")))
        run = open_to_run(str(path), (), with_urls(str(folder)), address, trust_code=True)
    return replace(run, configured=replace(run.configured, notes=()))


def point_of(cell: SnapshotCell, **other: Any) -> dict[str, Any]:
    """The cell as a point of a grid, with `other` settings in place of some."""
    diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
    return {**cell.network.keys, **diffusion, **cell.settings, **other}


def config_of(config: Config, name: str, points: Sequence[Mapping[str, Any]]) -> Config:
    """Tonight's config with the distinct `points` as its grid; `name` is appended to its name."""
    values = config.model_dump(mode="json")
    unique = {json_sha256(point): {key: [value] for key, value in point.items()} for point in points}
    values |= {"name": f"{config.name}-{name}", "model": {}, "grid": list(unique.values()), "track": []}
    return validate(Config, values, name)


def _canaries_in(run: Run, tonight: Snapshot, failed: Mapping[str, str] = {}) -> Canaries:
    """The canaries in a run directory, which check the sampler of `tonight`; `failed` is as in `ResamplingRun`."""
    rundir = run.rundir
    history = RunHistory.read(rundir)
    code_changed = len(tonight.codes | history.codes) > 1
    weights = rundir.read_provenance().get("models") or {}
    canaries: dict[str, Sampled | Check] = {}
    for cell in run.plan.cells:
        weights_sha256 = weights.get(cell.model.id, {}).get(cell.settings.weights)
        blocks = cell.conditions_block, cell.decoder_block
        key = sampling_key(weights_sha256, cell.model.diffusion.recorded, cell.settings.recorded, *blocks)
        if code_changed:
            canaries[key] = Check("unknown", "taugrid's code changed between the sessions of this night")
        elif cell.name in failed:
            canaries[key] = Check("changed", f"the baseline's network fails with today's code: {failed[cell.name]}")
        elif (digests := pixel_digests(rundir, cell)) is not None:
            origin = history.origin(cell.id).if_known(cell.settings.num_samples)
            environment = sampling_environment(origin, 1, cell.settings.batch_size)
            canaries[key] = Sampled(digests, first_images(rundir, cell), environment)

    def canary(old: SnapshotCell) -> Sampled | Check:
        missing = Check("unknown", "the canary's images are missing")
        return canaries.get(sampling_key_of(old, num_samples=batch_of(old)), missing)

    return canary


def canaries_beside(run: Run, tonight: Snapshot) -> Canaries:
    """The canaries in the folders that a night left beside its run; other runs have none."""
    folder, storage = run.rundir.around
    files = storage.list(folder, f"{CANARY}-*/config.json")
    sources = [_canaries_in(open_existing(with_urls(str(path.parent))), tonight) for path in files]

    def canary(old: SnapshotCell) -> Sampled | Check:
        canaries = [canary_of(old) for canary_of in sources]
        sampled = (canary for canary in canaries if isinstance(canary, Sampled))
        return next(sampled, canaries[0] if canaries else not_sampled(old))

    return canary


def why_no_second_look(pairs: Sequence[Pair], trust_code: bool) -> str | None:
    """The reason why a second look is impossible; None if both networks of every pair can still be sampled."""
    for new, old in pairs:
        if new.network.is_same(old.network):
            return "the weights are the baseline's, so a fresh seed would compare them with themselves"
        if not _same_code(new, old):
            return OTHER_CODE
    checked: set[str] = set()
    for new, old in pairs:
        for side, cell in (("tonight's", new), ("the baseline's", old)):
            key = _key(cell.network, new)
            if key not in checked and (reason := unloadable(cell.network, new, trust_code)) is not None:
                return f"{side} weights can't be sampled: {reason}"
            checked.add(key)
    return None


def _same_code(new: SnapshotCell, old: SnapshotCell) -> bool:
    one, other = new.network, old.network
    return (one.callable, one.source_sha256) == (other.callable, other.source_sha256)


def _key(network: Network, cell: SnapshotCell) -> str:
    return json_sha256([network.keys, network.weights_sha256, cell.settings["weights"]])


def unloadable(network: Network, cell: SnapshotCell, trust_code: bool) -> str | None:
    """The reason why a network can't be loaded with a cell's kind of weights, `ema` or `raw`; None if it can."""
    try:
        if network.callable is not None:
            return _custom_reason(network, network.callable, trust_code)
        if network.folder is None:
            return "only a folder on a disk or a hub id can be loaded again, not an oracle or a run in a bucket"
        checkpoint = read_checkpoint(network.folder)
    except UserError as error:
        return str(error)
    folder = checkpoint.unet_folder if cell.settings["weights"] == "ema" else checkpoint.raw_folder
    digest = None if folder is None else weights_sha256(weights_file(Path(folder)))
    return None if digest == network.weights_sha256 else f"{network.folder} holds different weights now"


def _custom_reason(network: Network, function: str, trust_code: bool) -> str | None:
    if network.weights_file is None:
        return "the custom network has no file (model.weights), so its weights can't be identified"
    if custom_process.weights_sha256(Path(network.weights_file)) != network.weights_sha256:
        return f"{network.weights_file} holds different weights now"
    if not trust_code:  # a baseline file may come from others, and a file of weights may be a pickle
        require_trusted([Code("model.callable", function, network.weights_file)], Path(network.weights_file))
    return None
