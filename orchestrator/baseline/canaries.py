"""The canaries of a comparison: they check that today's code still samples and scores as the baseline's did.

New weights change every image and every score, so a broken sampler could hide behind them. The canary of the sampler is
the baseline's own network, sampled with today's code: its first batch must have the baseline's pixels. The canary of
the scorer is the reference, scored against itself (`scorer`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.snapshot import Snapshot, SnapshotCell, pair_key
from taugrid.orchestrator.work.scorer import changes
from taugrid.words import counted

MAX_DISTANCE_RATIO = 2.0
"""On a different device or software, images may differ from the baseline's by up to this many times the distance that
was accepted for the same pair of environments."""

CheckResult = Literal["clean", "changed", "unknown", "not applicable"]


@dataclass(frozen=True)
class Check:
    """`distance` is in grey levels between images of two environments (`pair`, a `pair_key`); None in the same one."""

    result: CheckResult
    reason: str = ""
    distance: float | None = None
    pair: str | None = None


UNCHECKED = Check("unknown", "it was not checked")
NOT_SAMPLED = Check("unknown", "no night has sampled the baseline's network with this code")
NOT_OURS = Check(
    "not applicable", "the images come from elsewhere: no sampler, weights or fresh seed to check, only their scores"
)


Canaries = Mapping[str, SnapshotCell | Check]
"""Id of a cell of the baseline -> it, or its first batch, sampled with today's code, or why there is none."""


def batch_of(cell: SnapshotCell) -> int:
    """The number of images of a cell's canary: one batch, so that batches have the shape that the baseline's had."""
    return min(int(cell.settings["batch_size"]), cell.num_samples)


def check_sampler(old: SnapshotCell, again: SnapshotCell) -> Check:
    """Whether the baseline's network still makes the images of `old`, by the first batch of `again`."""
    before, after = old.load_digests(), again.load_digests()
    if before is None or after is None:
        return Check("unknown", "the images, or their hashes, are gone")
    count = batch_of(again)
    differing = int((after[:count] != before[:count]).sum())
    if not differing:
        return Check("clean")
    one, other, distance = old.load_first(), again.load_first(), None
    if one is not None and other is not None:
        n = min(len(one), len(other))
        distance = float(np.abs(one[:n].astype(np.int16) - other[:n].astype(np.int16)).mean())
    by = "" if distance is None else f", by {distance:.2g} grey levels on average"
    message = f"{differing} of the first {counted(count, 'image')} of the baseline's network differ{by}"
    differences = again.first_setup.differences(old.first_setup)
    if not differences:
        return Check("changed", f"{message}, on the same device and software")
    pair = pair_key(again.first_setup, old.first_setup)
    accepted = old.distances.get(pair)
    if accepted is None or distance is None:
        return Check("unknown", f"other software or device ({', '.join(differences)})", distance, pair)
    if distance > MAX_DISTANCE_RATIO * accepted:
        return Check("changed", f"{message}; {accepted:.2g} were accepted for this software and device", distance, pair)
    return Check("clean", f"{message}, no more than was accepted for this software and device", distance, pair)


def check_scorer(new: Snapshot, baseline: Snapshot) -> Check:
    """Whether today's scorer gives for the reference what the baseline's gave."""
    now, before = new.scorer, baseline.scorer
    if isinstance(before, str):
        return Check("unknown", f"the baseline has no canary of the scorer: {before}")
    if isinstance(now, str):
        return Check("unknown", f"there is no canary of the scorer: {now}")
    if not now.is_comparable(before):
        return Check("unknown", "the canaries of the scorer are of other references or extractors")
    if before.mixed:
        return Check("unknown", f"the baseline's scorer changed between its sessions: {'; '.join(before.mixed)}")
    differences = [*(f"between sessions, {difference}" for difference in now.mixed), *changes(now, before)]
    return Check("changed", "; ".join(differences)) if differences else Check("clean")


def worst_check(checks: Iterable[Check]) -> Check:
    """The worst of the checks of all cells; clean if there are none."""
    order: tuple[CheckResult, ...] = ("changed", "unknown", "not applicable", "clean")
    worst = min(checks, key=lambda check: order.index(check.result), default=Check("clean"))
    return replace(worst, distance=None, pair=None)


def sampling_key(cell: SnapshotCell, **other: object) -> str:
    """The key of a sampled cell, from its networks and its settings, some of which `other` replaces. The protocol's
    blocks on conditions and decoder have the hashes of further files."""
    settings = {key: value for key, value in {**cell.settings, **other}.items() if key != "labels"}  # maybe a path
    blocks = cell.protocol.get("conditions"), cell.protocol.get("decoder")
    return json_sha256([cell.network.weights_sha256, cell.network.diffusion, settings, *blocks])
