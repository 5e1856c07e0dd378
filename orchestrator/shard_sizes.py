"""Checks the sizes of a plan's shards: enough for all workers, and none so long that losing it is costly. Pure."""

from taugrid.orchestrator.plan.cells import Plan
from taugrid.words import duration

LONG_SECONDS = 150.0
"""`taugrid plan` warns of shards that take longer: one is done again as a whole if its worker is lost, and the last one
keeps the others waiting. The rest of a grid may be slower than the part that was measured."""

ADVICE = (
    "set a smaller sample.shard_evaluations, and sample.batch_size if a shard is one batch, before the first image is "
    "sampled: it makes other cells"
)


def too_few_shards(plan: Plan, workers: int) -> str | None:
    """A warning if the longest shard takes more than a worker's share of all work; else None."""
    evaluations, total = plan.longest.first_shard.total_nfe, sum(cell.total_nfe for cell in plan.cells)
    if evaluations * workers <= total:
        return None
    return (
        f"the longest shard is {evaluations:,} of all {total:,} network evaluations, for {workers} workers: some will "
        f"be idle; {ADVICE}"
    )


def longest_shard(plan: Plan, rate: float | None) -> str | None:
    """A warning if the costliest shard takes long at `rate` network evaluations a second; None without a rate."""
    if not rate or not plan.cells or (seconds := plan.longest.first_shard.total_nfe / rate) <= LONG_SECONDS:
        return None
    return f"a shard takes about {duration(seconds)}, which a lost worker has to do again; {ADVICE}"
