"""Checks the sizes of a plan's shards: enough for all workers, and none so long that losing it is costly. Pure."""

from taugrid.config import Sample
from taugrid.orchestrator.plan.cells import Plan
from taugrid.words import duration

LONG_SECONDS = 150.0
"""A shard is done again as a whole if its worker is lost, and the last one keeps the others waiting. The rest of a grid
may be slower than the part that was measured: on two busy cores, 32,000 evaluations took 330 s where the rate of 6,400
predicted 220 s."""

GOOD_SECONDS = 60.0
"""The recommended time of a shard: long compared to the milliseconds it costs the driver, short compared to a cell."""

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


def longest_shard(plan: Plan, rate: float | None) -> str | None:
    """A warning if the costliest shard of a plan takes long at `rate` network evaluations a second, else None.

    None without a rate, too.
    """
    if not rate or not plan.cells:
        return None
    cell = plan.longest
    seconds = cell.first_shard.total_nfe / rate
    if seconds <= LONG_SECONDS:
        return None
    advice = smaller_shards(cell.settings, cell.nfe, rate * GOOD_SECONDS, has_samples=True)
    return f"a shard takes about {duration(seconds)}, which a lost worker has to do again; {advice}"


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
