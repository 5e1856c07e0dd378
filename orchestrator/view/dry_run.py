"""The output of `taugrid plan`: what a run would do, lack and replace. It starts and downloads nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taugrid.config import Config, Data
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.reference import Reference, reference_of_moments, resolve_reference
from taugrid.eval.sources import nothing_there
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.plan.cells import Model, Plan
from taugrid.orchestrator.plan.conditions import weights_bytes
from taugrid.orchestrator.plan.scoring import (
    foreseen,
    problems,
)
from taugrid.orchestrator.report.replicates import ONE_TRAINING, compared_trainings, unequal
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.shard_sizes import longest_shard, too_few_shards
from taugrid.orchestrator.view.inspection import describe
from taugrid.orchestrator.work.sample import require_inputs
from taugrid.storage import read_json
from taugrid.workers.accelerator.hardware import has_gpus
from taugrid.workers.data.load import MissingImages, require_files


def describe_plan(run: Run) -> dict[str, Any]:
    """The description by `describe`, with remarks on missing files, missing error bars and replaced tables. Raises
    `UserError` if there is no such extractor."""
    described = describe(run)
    described |= _on_workers(run.config, run.plan, described)
    described["worker_weights_bytes"] = weights_bytes(run.plan, run.rundir.weights_file)
    return described | {"remarks": [*described["remarks"], *_remarks(run, described)]}


def _remarks(run: Run, described: Mapping[str, Any]) -> Iterator[str]:
    config, plan, rundir = run.config, run.plan, run.rundir
    untrained = [model for model, _ in plan.trained_here if model.lacks is None and not rundir.is_ready(model)]
    reference, fault = _reference(config)
    for line in filter(None, [fault, *_missing_images(config, reference, untrained)]):
        if not any(line in remark for remark in described["remarks"]):
            yield line
    yield from (problem.line for problem in problems(config, plan, foreseen(config, rundir.extractor), reference))
    yield from _replaced_tables(run)
    if described["network_evaluations_remaining"]:
        yield from _gone(run, described)
        yield from _fit(run, described)
    yield from unequal(plan.cells)
    if compared_trainings(plan):
        yield ONE_TRAINING


def _gone(run: Run, described: Mapping[str, Any]) -> Iterable[str]:
    """Lines on networks and labels that a run has recorded, but that are gone although images are to be sampled."""
    lines: dict[str, None] = {}
    for cell, about in zip(run.plan.cells, described["cells"], strict=True):
        here = all(model.lacks is None and run.rundir.is_ready(model) for model in cell.networks)
        if here and about["shards_done"] < about["shards"]:
            try:
                require_inputs(cell, run.rundir)
            except UserError as error:
                lines[str(error)] = None
    return lines


def _fit(run: Run, described: Mapping[str, Any]) -> list[str]:
    """Warnings of shards that are too long or too few for the workers, as far as known without a cluster."""
    plan, workers = run.plan, _workers(run.config)
    cells = zip(plan.cells, described["cells"], strict=True)
    left = replace(plan, cells=tuple(cell for cell, about in cells if about["shards_done"] < about["shards"]))
    warnings = [longest_shard(left, described["evaluations_per_second_and_worker"])]
    if workers is not None:
        warnings.append(too_few_shards(plan, workers))
    return [warning for warning in warnings if warning is not None]


def _workers(config: Config) -> int | None:
    """The number of workers, as far as known without Ray: as configured, else as many as fit this machine. None: one
    for each GPU, and the number of usable GPUs is unknown without torch."""
    if config.cluster.workers or has_gpus():
        return config.cluster.workers
    return int(capacity.available_cpus() // config.cluster.cpus_per_worker)


def _on_workers(config: Config, plan: Plan, described: Mapping[str, Any]) -> dict[str, Any]:
    """The number of workers that would sample at a time, and the time they would need; None if unknown."""
    rate, workers = described["evaluations_per_second_and_worker"], _workers(config)
    cells = zip(plan.cells, described["cells"], strict=True)
    open_cells = [(cell, about) for cell, about in cells if about["shards_done"] < about["shards"]]
    busy = min(workers or 0, sum(about["shards"] - about["shards_done"] for _, about in open_cells)) if rate else 0
    if not rate or not busy:
        return {"workers_at_a_time": None, "seconds_remaining": None}
    longest = max(min(cell.first_shard.total_nfe, _left(about)) for cell, about in open_cells)
    seconds = max(longest, sum(_left(about) for _, about in open_cells) / busy) / rate
    return {"workers_at_a_time": busy, "seconds_remaining": round(seconds, 1)}


def _left(about: Mapping[str, Any]) -> int:
    """The network evaluations that a cell lacks."""
    return int(about["network_evaluations"] - about["network_evaluations_done"])


def _reference(config: Config) -> tuple[Data | Reference | None, str | None]:
    """The reference as far as it is known without its images, and what is wrong with it."""
    given = config.reference
    try:
        given = resolve_reference(given).given if isinstance(given, str) else given
        if isinstance(given, Data):
            return given, None
        if not Path(given).exists():
            return None, f"evaluate.reference: {nothing_there(given)}"
        return reference_of_moments(given), None
    except (UserError, ValueError, DamagedFile) as error:
        return None, f"evaluate.reference: {error}"


def _missing_images(config: Config, reference: Data | Reference | None, untrained: list[Model]) -> Iterator[str]:
    """One line for each missing data set or reference, with the labels for training. Nothing is downloaded or decoded.

    Args:
        config: of the run.
        reference: it is checked if it is a data set.
        untrained: the models that the run would train, whose data are checked.
    """
    sections = dict.fromkeys((model.data for model in untrained), "data")
    labelled = {model.data for model in untrained if model.source.conditions is not None}
    if isinstance(reference, Data):
        sections.setdefault(reference, "data" if reference == config.data else "evaluate.reference")
    for data, section in sections.items():
        try:
            require_files(data, has_labels=data in labelled)
        except MissingImages as error:
            yield str(error.for_section(section))
        except UserError as error:
            yield str(error)


def _replaced_tables(run: Run) -> Iterator[str]:
    """Lines if a run would replace tables/ by those of another N or another evaluation."""
    tables = read_json(run.rundir.tables / "quality.json", run.rundir.storage)
    if not isinstance(tables, dict) or not tables.get("rows"):
        return
    if run.rundir.recorded_scoring(run.config) is None:
        yield "evaluate: this replaces tables of another reference, extractor or metrics; images are kept"
    scored = {row["cell"]: row["num_samples"] for row in tables["rows"]}
    sizes = {(scored[cell.id], cell.settings.num_samples) for cell in run.configured.cells if cell.id in scored}
    if sizes := {(old, now) for old, now in sizes if old != now}:
        old, now = (", ".join(f"{n:,}" for n in sorted(set(side))) for side in zip(*sizes, strict=True))
        yield f"sample.num_samples: this replaces tables of N = {old} with tables of N = {now}; images are kept"
