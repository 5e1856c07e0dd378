"""Checks the sizes of a plan's shards: enough for all workers, and none so long that losing it is costly. Pure."""

from typing import NamedTuple

from taugrid.config import Sample
from taugrid.orchestrator.plan.cells import Plan
from taugrid.words import duration
from taugrid.workers.sample import SampleJob

LONG_SECONDS = 300.0
"""A shard is done again as a whole if its worker is lost, and the last one keeps the others waiting."""

PREDICTED_LONG_SECONDS = 0.5 * LONG_SECONDS
"""`taugrid plan` warns of shards as long as this: they can still be changed, and the rest of a grid may be slower than
the part that was measured: on two busy cores, 32,000 evaluations took 330 s where the rate of 6,400 predicted 220 s."""

GOOD_SECONDS = 60.0
"""The recommended time of a shard: long compared to the milliseconds it costs the driver, short compared to a cell."""

PREDICTION_SECONDS = 10.0
"""The minimum time between the two heartbeats of a job from which its total time is predicted."""

SHARDS_A_WORKER = 4
"""The recommended number, so that a slow worker can do fewer than a fast one."""


def too_few_shards(plan: Plan, workers: int, has_samples: bool) -> str | None:
    """A warning if the longest shard takes more than a worker's share of all work; else None.

    `has_samples` is as for `smaller_shards`.
    """
    cell, total = plan.longest, sum(cell.total_nfe for cell in plan.cells)
    evaluations = cell.first_shard.total_nfe
    if evaluations * workers <= total:
        return None
    advice = smaller_shards(cell.settings, cell.nfe, total / (SHARDS_A_WORKER * workers), has_samples)
    return (
        f"the longest shard is {evaluations:,} of all {total:,} network evaluations, for {workers} workers: some will "
        f"be idle; {advice}"
    )


def too_long(settings: Sample, steps: int, evaluations: int, seconds: float, limit: float = LONG_SECONDS) -> str | None:
    """A warning if a shard of `evaluations` takes `seconds`; None if that is not more than `limit`."""
    if seconds <= limit:
        return None
    advice = smaller_shards(settings, steps, evaluations * GOOD_SECONDS / seconds, has_samples=True)
    return f"a shard takes about {duration(seconds)}, which a lost worker has to do again; {advice}"


def longest_shard(plan: Plan, rate: float | None) -> str | None:
    """`too_long` for the costliest shard of a plan, at `rate` network evaluations a second; None without a rate."""
    if not rate or not plan.cells:
        return None
    cell, evaluations = plan.longest, plan.longest.first_shard.total_nfe
    return too_long(cell.settings, cell.nfe, evaluations, evaluations / rate, PREDICTED_LONG_SECONDS)


class Heartbeat(NamedTuple):
    """The first heartbeat of a job."""

    job: SampleJob
    time: float
    fraction: float


class LongShards:
    """Predicts from heartbeats how long a run's shards take, and warns once if that is too long."""

    def __init__(self) -> None:
        self._first: dict[str, Heartbeat] = {}  # by worker
        self._has_warned = False

    def warning(self, worker: str, job: object, fraction: float, now: float) -> str | None:
        """A warning, now that a worker's job is done to `fraction`; None if there is none, or not yet."""
        if self._has_warned or not isinstance(job, SampleJob):
            return None
        first = self._first.get(worker)
        if first is None or first.job is not job:
            self._first[worker] = Heartbeat(job, now, fraction)
            return None
        if now - first.time < PREDICTION_SECONDS or fraction <= first.fraction:
            return None
        steps, seconds = job.nfe, (now - first.time) / (fraction - first.fraction)
        warning = too_long(job.settings, steps, (job.stop - job.start - job.kept) * steps, seconds)
        self._has_warned = warning is not None
        return warning


def smaller_shards(settings: Sample, steps: int, evaluations: float, has_samples: bool) -> str:
    """The advice on settings for shards of about this many `evaluations`.

    A batch is never split, so a shard that must be smaller than a batch needs both keys. `has_samples` is
    whether the run directory holds images, which different settings would orphan.
    """
    smaller = _rounded(max(1, int(evaluations)))
    if evaluations >= settings.batch_size * steps:
        advice = f"sample.shard_evaluations: {smaller}"
    else:
        images = _rounded(max(1, int(evaluations // steps)))
        both = settings.shard_evaluations >= 2 * images * steps  # else such a shard is one batch already
        advice = f"sample.batch_size: {images}" + (f" and sample.shard_evaluations: {smaller}" if both else "")
    when = "in a new directory (it makes other cells)" if has_samples else "if set before the first image is sampled"
    return f"{advice} would help, {when}"


def _rounded(number: int) -> int:
    """A number rounded down to one digit and zeros, as people write it."""
    digits: int = 10 ** (len(str(number)) - 1)
    return number // digits * digits
