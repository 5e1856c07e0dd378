"""Cells of earlier runs, sampled again: whether their networks are still what they were, and how that is done.

The canary of the sampler is the first batch of each cell of the baseline, from its network and with today's code. It is
a run directory of its own, beside tonight's, with one shard for each cell and without scores. Second looks sample both
networks (`second_look`). The baseline's files may have gone or been replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from taugrid.config import Config, validate
from taugrid.config.load import CONFIG_NAME
from taugrid.errors import UserError
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import Check, Sampled, batch_of, place, place_of
from taugrid.orchestrator.baseline.comparison import Canaries, not_sampled
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.pixels import first_images, pixel_digests
from taugrid.orchestrator.baseline.snapshot import Network, Snapshot, SnapshotCell, setup_of
from taugrid.orchestrator.nightly.places import CANARY, Night
from taugrid.orchestrator.opened import open_existing, open_to_run
from taugrid.orchestrator.plan.trust import Code, require_trusted
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.origins import Origin, codes, origins
from taugrid.orchestrator.session import Session
from taugrid.storage import read_json
from taugrid.words import counted, with_urls
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import read_checkpoint, weights_file, weights_sha256

Pair = tuple[SnapshotCell, SnapshotCell]
"""(new, baseline)."""

OTHER_CODE = "the custom network's code has changed, and the baseline's is gone"


class Ran(NamedTuple):
    """A run of cells that were sampled again."""

    run: Run
    failed: Mapping[str, str]
    """Name -> why the cell can never be sampled or scored."""
    is_complete: bool
    """Whether no cell is left that could still be finished."""


@dataclass(frozen=True)
class Again:
    """Samples cells again in a night, for canaries and second looks."""

    config: Config
    """Tonight's."""
    night: Night
    address: str
    trust_code: bool
    """A custom network may be given a file of weights that no config of the user's has named."""
    progress: Progress
    missing: dict[str, str]
    """Cells that could not be finished, and still can, are added to it."""

    def run(self, name: str, points: Sequence[Mapping[str, Any]], folder: Path, stages: Sequence[str]) -> Ran:
        """Run tonight's config with `points` as its grid, in a folder of its own."""
        run = _opened(config_of(self.config, name, points), folder, self.address)
        outcome = Session(run, self.address, self.progress).do(stages)
        failed = {name: why for name, why in outcome.missing.items() if name in outcome.lasting}
        lacking = sorted(outcome.missing.keys() - failed.keys())
        self.missing.update({f"{folder.name}/{name}": outcome.missing[name] for name in lacking})
        return Ran(run, failed, not lacking)

    def canaries(self, tonight: Snapshot, baseline: Snapshot) -> Canaries:
        """The first batch of each cell of the baseline that tonight has with new weights."""
        pairs = [pair for pair in matched(tonight, baseline).pairs if not pair[0].network.is_same(pair[1].network)]
        gone = self._impossible(pairs)
        cells = [old for _, old in pairs if old.cell not in gone]
        if not cells:
            return lambda old: gone.get(old.cell, not_sampled(old))
        self.progress.say(f"canary: one batch of {counted(len(cells), 'cell')}, of the baseline's network")
        grid = [point_of(cell, num_samples=batch_of(cell)) for cell in cells]
        # A folder of its own for each grid, since a baseline may be replaced meanwhile.
        folder = self.night.folder / f"{CANARY}-{json_sha256(grid)[:8]}"
        ran = self.run(CANARY, grid, folder, ("sample",))
        sampled = _canaries_in(ran.run, tonight, ran.failed)
        return lambda old: gone[old.cell] if old.cell in gone else sampled(old)

    def _impossible(self, pairs: Sequence[Pair]) -> dict[str, Check]:
        """Cell id of the baseline -> why its network can't be sampled again, for the cells of which that is so."""
        known: dict[str, str | None] = {}
        found = {}
        for new, old in pairs:
            key = _key(old.network, old)
            if key not in known:
                known[key] = _reason(old.network, old, self.trust_code) if _same_code(new, old) else OTHER_CODE
            if (reason := known[key]) is not None:
                found[old.cell] = Check("unknown", f"the baseline's network can't be sampled: {reason}")
        return found


def _opened(config: Config, folder: Path, address: str) -> Run:
    """Its custom code is tonight's, which ran already, with files of weights that are trusted."""
    with TemporaryDirectory() as place:
        path = Path(place) / CONFIG_NAME
        path.write_text(dumps(config.model_dump(mode="json")))
        return open_to_run(str(path), (), with_urls(str(folder)), address, trust_code=True)


def point_of(cell: SnapshotCell, **other: Any) -> dict[str, Any]:
    """The cell as a point of a grid, with `other` settings in place of some."""
    diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
    return {**cell.network.keys, **diffusion, **cell.settings, **other}


def config_of(config: Config, name: str, points: Sequence[Mapping[str, Any]]) -> Config:
    """Tonight's config with `points` as its grid, each once; `name` is appended to its name."""
    values = config.model_dump(mode="json")
    unique = {json_sha256(point): {key: [value] for key, value in point.items()} for point in points}
    values |= {"name": f"{config.name}-{name}", "model": {}, "grid": list(unique.values())}
    return validate(Config, values, name)


def _canaries_in(run: Run, tonight: Snapshot, failed: Mapping[str, str] = {}) -> Canaries:
    """The canaries in a run of them, which check the sampler of `tonight`; `failed` are as in `Ran`."""
    rundir = run.rundir
    events = list(read_events(rundir))
    made, other = origins(events), len(tonight.codes | codes(events, "sample")) > 1
    weights = (read_json(rundir.provenance, rundir.storage) or {}).get("models") or {}
    found: dict[str, Sampled | Check] = {}
    for cell in run.plan.cells:
        known = weights.get(cell.model.id, {}).get(cell.settings.weights)
        at = place(known, cell.model.diffusion.recorded, cell.settings.recorded)
        if other:
            found[at] = Check("unknown", "taugrid's code changed between the sessions of this night")
        elif cell.name in failed:
            found[at] = Check("changed", f"the baseline's network fails with today's code: {failed[cell.name]}")
        elif (digests := pixel_digests(rundir, cell)) is not None:
            setup = setup_of(made.get(cell.id, Origin()), 1, cell.settings.batch_size)
            found[at] = Sampled(digests, first_images(rundir, cell), setup)

    def canary(old: SnapshotCell) -> Sampled | Check:
        lacking = Check("unknown", "the canary's images are missing")
        return found.get(place_of(old, num_samples=batch_of(old)), lacking)

    return canary


def canaries_beside(run: Run, tonight: Snapshot) -> Canaries:
    """The canaries that a night left beside its run; other runs have none."""
    folder, storage = run.rundir.root.parent, run.rundir.storage
    files = storage.list(folder, f"{CANARY}-*/config.json")
    found = [_canaries_in(open_existing(with_urls(str(path.parent))), tonight) for path in files]

    def canary(old: SnapshotCell) -> Sampled | Check:
        seen = [one(old) for one in found]
        return next((one for one in seen if isinstance(one, Sampled)), seen[0] if seen else not_sampled(old))

    return canary


def why_not(pairs: Sequence[Pair], trust_code: bool) -> str | None:
    """Why a second look is impossible; None if both networks of every pair can still be sampled."""
    for new, old in pairs:
        if new.network.is_same(old.network):
            return "the weights are the baseline's, so a fresh seed would compare them with themselves"
        if not _same_code(new, old):
            return OTHER_CODE
    seen: set[str] = set()
    for new, old in pairs:
        for side, cell in (("tonight's", new), ("the baseline's", old)):
            key = _key(cell.network, new)
            if key not in seen and (reason := _reason(cell.network, new, trust_code)) is not None:
                return f"{side} weights can't be sampled: {reason}"
            seen.add(key)
    return None


def _same_code(new: SnapshotCell, old: SnapshotCell) -> bool:
    one, other = new.network, old.network
    return (one.callable, one.source_sha256) == (other.callable, other.source_sha256)


def _key(network: Network, cell: SnapshotCell) -> str:
    return json_sha256([network.keys, network.weights_sha256, cell.settings["weights"]])


def _reason(network: Network, cell: SnapshotCell, trust_code: bool) -> str | None:
    """Why a network can't be loaded with the weights, `ema` or `raw`, that a cell asks for; None if it can."""
    try:
        if network.callable is not None:
            return _not_callable(network, network.callable, trust_code)
        if network.folder is None:
            return "they are in no folder on a disk that diffusers reads"
        found = read_checkpoint(network.folder)
    except UserError as error:
        return str(error)
    folder = found.unet_folder if cell.settings["weights"] == "ema" else found.raw_folder
    digest = None if folder is None else weights_sha256(weights_file(Path(folder)))
    return None if digest == network.weights_sha256 else f"{network.folder} holds other weights now"


def _not_callable(network: Network, function: str, trust_code: bool) -> str | None:
    if network.weights_file is None:
        return "the function of the custom network is given no file (model.weights), so there is nothing to tell apart"
    if custom_process.weights_sha256(Path(network.weights_file)) != network.weights_sha256:
        return f"{network.weights_file} holds other weights now"
    if not trust_code:  # a baseline file may come from others, and a file of weights may be a pickle
        require_trusted([Code("model.callable", function, network.weights_file)], Path(network.weights_file))
    return None
