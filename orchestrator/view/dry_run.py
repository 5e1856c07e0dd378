"""The output of `taugrid plan`: what a run would do, lack and replace. It starts and downloads nothing."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taugrid.config import Config, Data
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.reference import reference_of_moments
from taugrid.eval.reference_names import images_in_words, resolve_reference
from taugrid.eval.sources import nothing_there
from taugrid.grids.names import in_yaml
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.plan.cells import Model, Plan
from taugrid.orchestrator.plan.devices import too_large, weights_bytes
from taugrid.orchestrator.plan.scoring import (
    NO_LABELS,
    Foreseen,
    classes_of,
    foreseen,
    impossible_agreement,
    name_and_dimensions,
    singular_samples,
    too_few_samples,
)
from taugrid.orchestrator.plan.sections import NOT_IDENTITY
from taugrid.orchestrator.rates import Waiting, seconds_left
from taugrid.orchestrator.report.replicates import compared_trainings, suggestion, unequal
from taugrid.orchestrator.report.up_to_date import RequestedScores
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.shard_sizes import longest_shard, too_few_shards
from taugrid.orchestrator.view.inspection import describe
from taugrid.orchestrator.work.sample import require_inputs
from taugrid.storage import read_json
from taugrid.workers.accelerator.hardware import has_gpus
from taugrid.workers.data.load import MissingImages, require_files


def describe_plan(run: Run) -> dict[str, Any]:
    """The description by `describe`, with remarks on missing files, missing error bars and replaced tables.

    Raises:
        UserError: if there is no such extractor.
    """
    described = describe(run)
    described |= _on_workers(run.config, run.plan, described)
    described["worker_weights_bytes"] = weights_bytes(run.plan, run.rundir.weights_file)
    return described | {"remarks": [*described["remarks"], *_remarks(run, described)]}


def _remarks(run: Run, described: Mapping[str, Any]) -> Iterator[str]:
    config, plan, rundir = run.config, run.plan, run.rundir
    extractor = foreseen(config, rundir.extractor)
    untrained = [model for model, _ in plan.trained_here if model.lacks is None and not rundir.is_ready(model)]
    for line in _missing_images(config, untrained):
        if not any(line in remark for remark in described["remarks"]):
            yield line
    yield from _about_extractor(config, plan, extractor)
    yield from _other_shapes(config, plan)
    yield from _other_features(config, extractor)
    yield from _replaced_tables(run)
    if described["network_evaluations_remaining"]:
        yield from _gone(run, described)
        yield from _fit(run, described)
        workers, memory = _workers(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if not has_gpus() and workers:
            yield from filter(None, [too_large(described["worker_weights_bytes"], [(workers, memory)])])
    yield from unequal(plan.cells)
    if models := compared_trainings(plan):
        ids = {model.id for model in models}
        evaluations = sum(cell.total_nfe for cell in plan.cells if cell.model.id in ids)
        rate = described["evaluations_per_second_and_worker"]
        yield suggestion(models, described["worker_seconds_a_train_step"], evaluations, rate)


def _about_extractor(config: Config, plan: Plan, extractor: Foreseen) -> Iterator[str]:
    """Remarks if its weights are missing, or N is too small for error bars with this many features."""
    name, dimensions, lacks, spec = extractor
    if config.report.by is not None and all(classes_of(cell) is None for cell in plan.cells):
        yield NO_LABELS
    if spec is not None:
        yield from sorted(impossible_agreement(config, plan, spec))
    if lacks is not None:
        yield lacks
    if dimensions is None or "fid" not in config.evaluate.metrics:
        return
    yield from singular_samples(plan, dimensions)
    small, minimum = too_few_samples(plan, dimensions)
    if small:
        more = f" (and {len(small) - 1} larger)" if len(small) > 1 else ""
        yield (
            f"sample.num_samples: {small[0]}{more} may be too few for FID's ±, which needs at least N = {minimum} if "
            f"all {dimensions} features of {name} vary"
        )


def _other_shapes(config: Config, plan: Plan) -> list[str]:
    """Remarks on models whose images have a different shape than the reference's, so that they can't be scored."""
    reference = config.reference
    if not isinstance(reference, Data):
        return []
    others = [m for m in plan.models if m.lacks is None and m.image_shape != reference.image_shape]
    return [
        f"{model.called} makes images of {model.image_shape} (channels, height, width), but the reference, "
        f"{reference.full_name}, has {reference.image_shape}; choose data or evaluate.reference, or only sample"
        for model in others
    ]


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
        warnings.append(too_few_shards(plan, workers, any(run.rundir.committed_cells())))
    return [warning for warning in warnings if warning is not None]


def _workers(config: Config) -> int | None:
    """The number of workers, as far as known without Ray: as configured, else as many as fit this machine.

    None: one for each GPU, and the number of usable GPUs is unknown without torch.
    """
    if config.cluster.workers or has_gpus():
        return config.cluster.workers
    return int(capacity.available_cpus() // config.cluster.cpus_per_worker)


def _on_workers(config: Config, plan: Plan, described: Mapping[str, Any]) -> dict[str, Any]:
    """The number of workers that would sample at a time, and the time they would need; None if unknown."""
    rate, workers = described["evaluations_per_second_and_worker"], _workers(config)
    waiting = list(_waiting(plan, described["cells"], rate)) if rate else []
    busy = min(workers or 0, sum(group.number for group in waiting))
    return {
        "workers_at_a_time": busy or None,
        "seconds_remaining": round(seconds_left(waiting, busy), 1) if busy else None,
    }


def _waiting(plan: Plan, cells: Iterable[Mapping[str, Any]], rate: float) -> Iterator[Waiting]:
    """The shards that are left; those of a cell that is partly done count as equally long."""
    for cell, about in zip(plan.cells, cells, strict=True):
        left, done = about["shards"] - about["shards_done"], about["network_evaluations_done"]
        if not done:
            longest = cell.first_shard.total_nfe
            yield Waiting(full := about["network_evaluations"] // longest, longest / rate)
            if rest := about["network_evaluations"] - full * longest:
                yield Waiting(1, rest / rate)
        elif left:
            yield Waiting(left, (about["network_evaluations"] - done) / left / rate)


def _missing_images(config: Config, untrained: list[Model]) -> Iterator[str]:
    """One line for each missing data set or reference, with the labels for training. Nothing is downloaded or decoded.

    Args:
        config: its reference is checked.
        untrained: the models that the run would train, whose data are checked.
    """
    reference = config.reference
    if isinstance(reference, str):
        try:
            reference = resolve_reference(reference).given
        except UserError as error:
            yield f"evaluate.reference: {error}"
            return
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
    if isinstance(reference, str) and not Path(reference).exists():
        yield f"evaluate.reference: {nothing_there(reference)}"


def _other_features(config: Config, extractor: Foreseen) -> Iterator[str]:
    """A line if a run would refuse its file of moments, in the words of the run."""
    given = config.evaluate.reference
    try:
        given = resolve_reference(given).given if isinstance(given, str) else None
    except UserError:
        return  # `_missing_images` reports it
    try:
        if isinstance(given, str) and (reference := reference_of_moments(given)) is not None:
            reference.require_same_features(extractor.name, extractor.dimensions, config.evaluate.precision)
    except (ValueError, DamagedFile) as error:
        yield f"evaluate.reference: {error}"


def _replaced_tables(run: Run) -> Iterator[str]:
    """A line for each reason why tables/ would be replaced; none if there are none yet, or nothing changes.

    A reference whose files have changed is not noticed: that would mean reading them.
    """
    config, rundir = run.config, run.rundir
    tables, before = (read_json(path, rundir.storage) for path in (rundir.tables / "quality.json", rundir.config))
    if not isinstance(tables, dict) or not tables.get("protocols") or not isinstance(before, dict):
        return
    *_, protocol = tables["protocols"].values()
    if changed := _changed_reference(config, before):
        against = images_in_words(protocol["reference"])
        yield f"{', '.join(changed)}: this replaces tables scored against {against}"
    name, used = name_and_dimensions(config)[0], protocol["extractor"]["name"]
    if name != used:
        yield f"evaluate.extractor: this replaces tables scored with {used}; the new ones use {name}"
    scored = {row["cell"]: row["num_samples"] for row in tables["rows"]}
    sizes = {(scored[cell.id], cell.settings.num_samples) for cell in run.configured.cells if cell.id in scored}
    if sizes := {(old, now) for old, now in sizes if old != now}:
        old, now = (", ".join(f"{n:,}" for n in sorted(set(side))) for side in zip(*sizes, strict=True))
        yield f"sample.num_samples: this replaces tables of N = {old} with tables of N = {now}; images are kept"
    metrics = RequestedScores(config, rundir).changed_metrics(protocol, protocol["num_samples"])
    if changes := [f"evaluate.{key}: {in_yaml(old)} -> {in_yaml(now)}" for key, (old, now) in metrics.items()]:
        yield f"{', '.join(changes)}: this replaces the scores in the tables; images are kept"


def _changed_reference(config: Config, before: Mapping[str, Any]) -> list[str]:
    """The differences between the reference and that of an earlier config, as "key: old -> new"."""
    given = config.reference
    evaluate = before.get("evaluate") or {}
    old = evaluate.get("reference") or before.get("data")
    now = given.model_dump(mode="json") if isinstance(given, Data) else given
    section = "data" if config.evaluate.reference is None and not evaluate.get("reference") else "evaluate.reference"
    if not isinstance(old, Mapping) or not isinstance(now, Mapping):
        return [] if old == now else [f"{section}: {_called(old)} -> {_called(now)}"]
    keys = [key for key in now if key not in NOT_IDENTITY["data"] and old.get(key) != now[key]]
    return [f"{section}.{key}: {in_yaml(old.get(key))} -> {in_yaml(now[key])}" for key in keys]


def _called(reference: Any) -> str:
    """A short name of a reference: a data set and its split, or the value in the config."""
    return f"{reference.get('name')}/{reference.get('split')}" if isinstance(reference, Mapping) else in_yaml(reference)
