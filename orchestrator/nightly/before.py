"""Before a night begins: its preconditions, its cost, and the cells that it would compare."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from taugrid.errors import MissingInput, UserError
from taugrid.eval.gate.power import POWER
from taugrid.eval.gate.verdict import REGRESSIONS
from taugrid.orchestrator.baseline.compared import DEFAULT_METRICS, gate_of, shares_in_words
from taugrid.orchestrator.baseline.comparison import judged_columns, require_common_metric
from taugrid.orchestrator.baseline.files import snapshot_of
from taugrid.orchestrator.baseline.matching import Matched, changed_code, labels, matched
from taugrid.orchestrator.baseline.snapshot import Snapshot, planned_snapshot
from taugrid.orchestrator.baseline.text import MAX_LISTED, unmatched
from taugrid.orchestrator.nightly.places import Night, open_history
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.scoring import foreseen, too_few_samples
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.registry.metrics import COLUMNS
from taugrid.words import counted, duration, quantity


def check_standard_error(run: Run) -> None:
    """Raise `UserError` if no metric that a night is judged by can have a standard error with some cell's N."""
    spec = run.rundir.extractor(run.config)
    if (problem := _standard_error_problem(run, spec.name, spec.dimensions)) is not None:
        raise UserError(problem)


def expected_standard_error_problem(run: Run) -> str | None:
    """The reason why no cell could be judged, as far as it is known without the extractor's weights."""
    extractor = foreseen(run.config, run.rundir.extractor)
    return _standard_error_problem(run, extractor.name, extractor.dimensions or 0)


def _standard_error_problem(run: Run, extractor: str, dimensions: int) -> str | None:
    named, computed = run.config.gate.metrics, run.config.evaluate.metrics
    if named is not None and (lacking := [name for name in named if name not in computed]):
        return f"gate.metrics: {lacking[0]} is not among evaluate.metrics ({', '.join(computed)}); add it there"
    metrics = [name for name in named or DEFAULT_METRICS if name in computed]
    if not metrics:
        return "evaluate.metrics lacks fid and kid, one of which a night is judged by; add one, or set gate.metrics"
    small, minimum = too_few_samples(run.plan, dimensions)
    if not small or metrics != ["fid"]:
        return None
    return (
        f"sample.num_samples: {small[0]} gives FID no standard error with {extractor}, whose features have "
        f"{dimensions} dimensions; a night needs at least {minimum}, or kid in evaluate.metrics"
        f"{'' if named is None else ' and gate.metrics'}"
    )


def check_comparable(new: Snapshot, baseline: Snapshot, run: Run) -> Matched:
    """The matched cells; `UserError` if they can't be compared, or share no metric that a night is judged by."""
    found = matched(new, baseline)
    computed = [column.name for metric in run.config.evaluate.metric_settings.chosen for column in metric.columns]
    for tonight, old in found.pairs:
        planned = replace(tonight, metrics=dict.fromkeys(computed, 0.0))
        require_common_metric(planned, old, judged_columns(planned, old, gate_of(run.config)))
    return found


def check_grow_to(grow_to: int | None, run: Run) -> None:
    smallest = min(cell.settings.num_samples for cell in run.plan.cells)
    if grow_to is not None and grow_to <= smallest:
        raise UserError(f"--grow-to {grow_to}: every cell has N = {smallest} or more already; give more than that")


def check_same_night(run: Run, night: Night, verdict: Mapping[str, Any]) -> None:
    """Raise `UserError` if a complete night lacks a cell of the plan, or has a different N for it."""
    judged = {score["cell"]: score["settings"]["num_samples"] for score in verdict["scores"]}
    new = [cell.label for cell in run.plan.cells if cell.id not in judged]
    if new:
        others = " and others" if len(new) > 1 else ""
        raise UserError(
            f"night {night.id} is complete, but has no {new[0]}{others}: the checkpoint or the config has changed "
            "since; give --id NAME for another night"
        )
    for cell in run.plan.cells:
        n, had = cell.settings.num_samples, judged[cell.id]
        if n != had:
            raise UserError(
                f"night {night.id} is complete with N = {had}, not N = {n}; give --id NAME for another night"
            )


def price(described: Mapping[str, Any], plan: Plan, history: str) -> dict[str, Any]:
    """The price of a night of `plan`, which `describe_plan` described. Seconds are None before the first night."""
    nights = open_history(history).complete_nights()
    rate = RunHistory.read(RunDir(nights[-1].run, nights[-1].storage)).evaluations_per_second if nights else None
    evaluations = described["network_evaluations"]
    canary_evaluations = sum(min(cell.settings.batch_size, cell.settings.num_samples) * cell.nfe for cell in plan.cells)
    seconds = None if rate is None else round(evaluations / rate, 1)
    return {
        "measured_in": nights[-1].id if nights else None,
        "worker_seconds": seconds,
        "worker_seconds_of_the_canary_at_most": None if rate is None else round(canary_evaluations / rate, 1),
        "network_evaluations_of_the_canary_at_most": canary_evaluations,
        "smallest_loss_seen": (sharpness := expected_sharpness(nights, plan)).get("fid"),
        "smallest_losses_seen": sharpness,
        "worker_seconds_of_a_second_look_at_most": None if seconds is None else round(2 * seconds, 1),
        "bytes_at_most": described["bytes_at_most"],
        "bytes_of_a_second_look_at_most": 2 * described["bytes_at_most"],
    }


def expected_sharpness(nights: Sequence[Night], plan: Plan) -> dict[str, float]:
    """Column -> the smallest regression, as a share of a metric, that half of the cells of a night of `plan` detect.

    It is extrapolated from the last night that judged a cell and is not red, because errors of broken networks are not
    the gate's: the part beyond the margin shrinks with the root of N. At another N it is unknown for a metric whose
    margin may be standard errors. Empty if there was no such night.
    """
    for night in reversed(nights):
        verdict = night.verdict
        comparison = verdict and verdict["comparison"]
        if verdict and comparison and (found := comparison["sharpnesses"]) and comparison["result"] not in REGRESSIONS:
            n_before = np.median([score["settings"]["num_samples"] for score in verdict["scores"]])
            n_now = np.median([cell.settings.num_samples for cell in plan.cells])
            margin = float(comparison["margin"])
            shrunk = float(np.sqrt(n_before / n_now))
            known = (name for name in found if shrunk == 1 or not COLUMNS[name].may_be_zero)
            return {name: margin + (found[name]["loss"] - margin) * shrunk for name in known}
    return {}


def price_text(night: Mapping[str, Any]) -> str:
    size = f"at most {quantity(night['bytes_at_most'])}B of images"
    if night["worker_seconds"] is None:
        cost = f"{size}; its time is unknown before the first night; a second look at all cells: twice as much"
    else:
        time, more = night["worker_seconds"], night["worker_seconds_of_a_second_look_at_most"]
        cost = (
            f"{duration(time)} of sampling on one worker (measured in night {night['measured_in']}) and {size}; "
            f"a second look at all cells: at most {duration(more)} and "
            f"{quantity(night['bytes_of_a_second_look_at_most'])}B"
        )
    canary = quantity(night["network_evaluations_of_the_canary_at_most"])
    lines = [f"a night: {cost}", f"canaries of new weights: at most {canary} network evaluations more"]
    if losses := night["smallest_losses_seen"]:
        lines.append(
            f"judged by the last night that was not red, half of its cells detect regressions of "
            f"{shares_in_words(losses)} with {100 * POWER:g} % probability"
        )
    return "\n".join(lines)


def expected_coverage(run: Run, file: str) -> dict[str, Any]:
    """The cells of the plan that a night would compare with the baseline `file`, a file or a run, as plain data.

    Unknown while a checkpoint, the reference or the extractor's weights are missing: a plan downloads nothing.
    Raises `UserError` if `file` is not a baseline, or a night would refuse to begin.
    """
    if (problem := expected_standard_error_problem(run)) is not None:
        raise UserError(problem)
    baseline = snapshot_of(file)
    coverage: dict[str, Any] = {
        "place": baseline.source,
        "cells": len(baseline.cells),
        "compared": None,
        "unknown": None,
    }
    coverage |= {"only_new": [], "only_baseline": [], "notes": []}
    if run.plan.pending:
        return coverage | {"unknown": "a model is not here yet"}
    try:
        new = planned_snapshot(run, downloads=False)
    except MissingInput as error:
        return coverage | {"unknown": str(error)}
    pairs, only_new, only_baseline = check_comparable(new, baseline, run)
    lists = {"only_new": _labelled(new, only_new), "only_baseline": _labelled(baseline, only_baseline)}
    return coverage | lists | {"compared": len(pairs), "notes": changed_code(new, baseline)}


def _labelled(snapshot: Snapshot, names: Sequence[str]) -> list[str]:
    label_of = labels(snapshot.cells)
    by_name = {cell.name: label_of[cell.cell] for cell in snapshot.cells} | dict(snapshot.unscored)
    return [by_name[name] for name in names]


def coverage_text(coverage: Mapping[str, Any]) -> str:
    if coverage["compared"] is None:
        return f"against {coverage['place']}: which cells can be compared is unknown ({coverage['unknown']})"
    cells = counted(coverage["cells"], "cell")
    lines = [f"against {coverage['place']}: {coverage['compared']} of its {cells} would be compared"]
    lines += [f"{title}, so not compared: {names}" for title, names in unmatched(coverage, MAX_LISTED).items()]
    return "\n".join([*lines, *coverage["notes"]])
