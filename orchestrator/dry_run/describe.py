"""What a run would do, lack and replace. Nothing is started or downloaded."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taugrid.config import Config, Data
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.dry_run.missing import missing_images, other_features
from taugrid.orchestrator.dry_run.replaced import replaced_tables
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.evaluation import singular_samples, too_few_samples
from taugrid.orchestrator.plan.extractor import Foreseen, foreseen
from taugrid.orchestrator.rates import Waiting, seconds_left
from taugrid.orchestrator.report.replicates import compared_trainings, suggestion, unequal
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.shard_sizes import longest_shard, too_few_shards
from taugrid.orchestrator.view.inspection import describe


def describe_plan(run: Run) -> dict[str, Any]:
    """What `describe` says, with remarks on what a run would lack, leave without error bars, or replace.

    Raises:
        UserError: if there is no such extractor.
    """
    config, plan, rundir = run.config, run.plan, run.rundir
    described = describe(run)
    described |= _on_workers(config, plan, described)
    told, extractor = described["remarks"], foreseen(config, rundir.extractor)
    untrained = [model for model, _ in plan.trained_here if model.lacks is None and not rundir.is_ready(model)]
    return described | {
        "remarks": [
            *told,
            *(line for line in missing_images(config, untrained) if not any(line in said for said in told)),
            *_about_extractor(config, plan, extractor),
            *_other_shapes(config, plan),
            *other_features(config, extractor),
            *replaced_tables(run),
            *(_fit(run, described) if described["network_evaluations_remaining"] else []),
            *_about_replicates(plan, described),
        ]
    }


def _about_extractor(config: Config, plan: Plan, extractor: Foreseen) -> list[str]:
    """That its weights are missing, and that N is too small for error bars with as many features."""
    name, dimensions, lacks = extractor
    said = [] if lacks is None else [lacks]
    if dimensions is None or "fid" not in config.evaluate.metrics:
        return said
    said += singular_samples(plan, dimensions)
    small, least = too_few_samples(plan, dimensions)
    if small:
        more = f" (and {len(small) - 1} larger)" if len(small) > 1 else ""
        said.append(
            f"sample.num_samples: {small[0]}{more} may be too few for FID's ±, which needs at least N = {least} if "
            f"all {dimensions} features of {name} vary"
        )
    return said


def _other_shapes(config: Config, plan: Plan) -> list[str]:
    """That a model makes images of another shape than the reference's, so that they could not be scored."""
    reference = config.data if config.evaluate.reference is None else config.evaluate.reference
    if not isinstance(reference, Data):
        return []
    others = [m for m in plan.models if m.lacks is None and m.image_shape != reference.image_shape]
    return [
        f"{model.called} makes images of {model.image_shape} (channels, height, width), but the reference, "
        f"{reference.full_name}, has {reference.image_shape}; choose data or evaluate.reference, or only sample"
        for model in others
    ]


def _fit(run: Run, described: Mapping[str, Any]) -> list[str]:
    """How a plan's shards fit its workers, as far as that is known without a cluster."""
    plan, workers = run.plan, _workers(run.config)
    cells = zip(plan.cells, described["cells"], strict=True)
    left = replace(plan, cells=tuple(cell for cell, about in cells if about["shards_done"] < about["shards"]))
    told = [longest_shard(left, described["evaluations_per_second_and_worker"])]
    if workers is not None:
        told.append(too_few_shards(plan, workers, bool(run.rundir.committed_cells())))
    return [said for said in told if said is not None]


def _workers(config: Config) -> int | None:
    """How many workers a run has, as far as that is known without Ray: those configured, or else as many as fit here.

    None: it has a worker for each GPU, and how many torch can use is not known here.
    """
    if config.cluster.workers or Path("/proc/driver/nvidia").exists():
        return config.cluster.workers
    return int(capacity.available_cpus() // config.cluster.cpus_per_worker)


def _on_workers(config: Config, plan: Plan, described: Mapping[str, Any]) -> dict[str, Any]:
    """How many workers would sample at a time, and the time that they would need; None if that is not known."""
    rate, workers = described["evaluations_per_second_and_worker"], _workers(config)
    waiting = list(_waiting(plan, described["cells"], rate)) if rate else []
    busy = min(workers or 0, sum(group.number for group in waiting))
    return {
        "workers_at_a_time": busy or None,
        "seconds_remaining": round(seconds_left([], waiting, busy), 1) if busy else None,
    }


def _waiting(plan: Plan, cells: Iterable[Mapping[str, Any]], rate: float) -> Iterator[Waiting]:
    """The shards that are left; of a cell that is done in part, they count as equally long."""
    for cell, about in zip(plan.cells, cells, strict=True):
        left, done = about["shards"] - about["shards_done"], about["network_evaluations_done"]
        if not done:
            yield from (Waiting(1, shard.evaluations / rate) for shard in cell.shards)
        elif left:
            yield Waiting(left, (about["network_evaluations"] - done) / left / rate)


def _about_replicates(plan: Plan, described: Mapping[str, Any]) -> list[str]:
    """That settings were trained once, or have unequal numbers of replicates."""
    said = unequal(plan.cells)
    if models := compared_trainings(plan):
        ids = {model.id for model in models}
        evaluations = sum(cell.network_evaluations for cell in plan.cells if cell.model.id in ids)
        rate = described["evaluations_per_second_and_worker"]
        said.append(suggestion(models, described["worker_seconds_a_train_step"], evaluations, rate))
    return said
