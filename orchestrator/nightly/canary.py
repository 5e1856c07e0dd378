"""The canary of the sampler: the first batch of each cell of the baseline, from its network and with today's code.

It is a run directory of its own, beside tonight's, with one shard for each cell and without scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import Check, Sampled, batch_of, place, place_of
from taugrid.orchestrator.baseline.comparison import Canaries, not_sampled
from taugrid.orchestrator.baseline.pixels import first_images, pixel_digests
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell, setup_of
from taugrid.orchestrator.nightly.loadable import point_of, why_not_again
from taugrid.orchestrator.nightly.places import CANARY, Night
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.origins import Origin, codes, origins
from taugrid.storage import read_json
from taugrid.words import with_urls

NO_IMAGES = "the canary's images are missing"

OTHER_SESSION = "taugrid's code changed between the sessions of this night"


def points(cells: Sequence[SnapshotCell]) -> list[dict[str, Any]]:
    """The grid of the canary of `cells`, which are the baseline's."""
    return [point_of(cell, num_samples=batch_of(cell)) for cell in cells]


def impossible(pairs: Sequence[tuple[SnapshotCell, SnapshotCell]], trust_code: bool) -> dict[str, Check]:
    """Cell id of the baseline -> why its network can't be sampled again, for the cells of which that is so."""
    known: dict[str, str | None] = {}
    found = {}
    for new, old in pairs:
        key = json_sha256([old.network.keys, old.network.weights_sha256, old.settings["weights"]])
        if key not in known:
            known[key] = why_not_again(new.network, old.network, str(old.settings["weights"]), trust_code)
        if (reason := known[key]) is not None:
            found[old.cell] = Check("unknown", f"the baseline's network can't be sampled: {reason}")
    return found


def folder_of(night: Night, grid: Sequence[Mapping[str, Any]]) -> Path:
    """The folder of a night's canaries: of its own for each grid, since a baseline may be replaced meanwhile."""
    return night.folder / f"{CANARY}-{json_sha256(list(grid))[:8]}"


def canaries_in(opened: Run, tonight: Snapshot, failed: Mapping[str, str] = {}) -> Canaries:
    """What a run of canaries has for each cell of the baseline.

    Args:
        opened: that run.
        tonight: whose sampler they check.
        failed: name -> why a cell never will be there.
    """
    rundir = opened.rundir
    events = list(read_events(rundir))
    made, other = origins(events), len(tonight.codes | codes(events, "sample")) > 1
    weights = (read_json(rundir.provenance, rundir.storage) or {}).get("models") or {}
    found: dict[str, Sampled | Check] = {}
    for cell in opened.plan.cells:
        known = weights.get(cell.model.id, {}).get(cell.settings.weights)
        at = place(known, cell.model.diffusion.model_dump(mode="json"), cell.settings.recorded)
        if other:
            found[at] = Check("unknown", OTHER_SESSION)
        elif cell.name in failed:
            found[at] = Check("changed", f"the baseline's network fails with today's code: {failed[cell.name]}")
        elif (digests := pixel_digests(rundir, cell)) is not None:
            setup = setup_of(made.get(cell.id, Origin()), 1, cell.settings.batch_size)
            found[at] = Sampled(digests, first_images(rundir, cell), setup)

    def canary(old: SnapshotCell) -> Sampled | Check:
        return found.get(place_of(old, num_samples=batch_of(old)), Check("unknown", NO_IMAGES))

    return canary


def canaries_beside(opened: Run, tonight: Snapshot) -> Canaries:
    """The canaries that a night left beside its run; of other runs there are none."""
    folder, storage = opened.rundir.root.parent, opened.rundir.storage
    files = storage.list(folder, f"{CANARY}-*/config.json")
    found = [canaries_in(open_existing(with_urls(str(path.parent))), tonight) for path in files]

    def canary(old: SnapshotCell) -> Sampled | Check:
        seen = [one(old) for one in found]
        return next((one for one in seen if isinstance(one, Sampled)), seen[0] if seen else not_sampled(old))

    return canary
