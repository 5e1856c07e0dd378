"""Before a night begins: its preconditions, its cost, and the cells that it would compare."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from taugrid.errors import MissingInput, UserError
from taugrid.eval.gate.rule import POWER
from taugrid.eval.gate.verdict import REGRESSIONS
from taugrid.orchestrator.baseline.compared import DEFAULT_METRICS, NightVerdict, gate_of, shares_in_words
from taugrid.orchestrator.baseline.comparison import judged_columns
from taugrid.orchestrator.baseline.files import snapshot_of
from taugrid.orchestrator.baseline.matching import Matched, changed_code, matched
from taugrid.orchestrator.baseline.snapshot import Snapshot, planned_snapshot
from taugrid.orchestrator.baseline.text import unmatched
from taugrid.orchestrator.nightly.places import Night, open_history
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.scoring import foreseen, too_few_samples
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.registry.metrics import COLUMNS
from taugrid.words import counted, duration, quantity


def standard_error_problem(run: Run, is_planned: bool = False) -> str | None:
    """The reason why no metric that a night is judged by can have a standard error with some cell's N. With
    `is_planned`, as far as it is known without the extractor's weights."""
    extractor = foreseen(run.config, run.rundir.extractor) if is_planned else run.rundir.extractor(run.config)
    named, computed = run.config.gate.metrics, run.config.evaluate.metrics
    if named is not None and (lacking := [name for name in named if name not in computed]):
        return f"gate.metrics: {lacking[0]} is not among evaluate.metrics ({', '.join(computed)}); add it there"
    metrics = [name for name in named or DEFAULT_METRICS if name in computed]
    if not metrics:
        return "evaluate.metrics lacks fid and kid, one of which a night is judged by; add one, or set gate.metrics"
    small, minimum = too_few_samples(run.plan, extractor.dimensions or 0)
    if not small or metrics != ["fid"]:
        return None
    return (
        f"sample.num_samples: {small[0]} gives FID no standard error with {extractor.name}, whose features have "
        f"{extractor.dimensions} dimensions; a night needs at least {minimum}, or kid in evaluate.metrics"
        f"{'' if named is None else ' and gate.metrics'}"
    )


def check_comparable(new: Snapshot, baseline: Snapshot, run: Run) -> Matched:
    """The matched cells; `UserError` if they can't be compared, or share no metric that a night is judged by."""
    found = matched(new, baseline)
    computed = [column.name for metric in run.config.evaluate.metric_settings.chosen for column in metric.columns]
    for tonight, old in found.pairs:
        judged_columns(replace(tonight, metrics=dict.fromkeys(computed, 0.0)), old, gate_of(run.config))
    return found


def check_same_night(run: Run, night: Night, verdict: NightVerdict) -> None:
    """Raise `UserError` if a complete night lacks a cell of the plan, or has a different N for it."""
    judged = {score.cell: score.settings["num_samples"] for score in verdict.scores}
    for cell in run.plan.cells:
        n, had = cell.settings.num_samples, judged.get(cell.id)
        if n != had:
            state = f"has no {cell.label}" if had is None else f"with N = {had}, not N = {n}"
            raise night.other(f"is complete, but {state}: the checkpoint or the config has changed since")


def price(described: Mapping[str, Any], plan: Plan, history: str) -> dict[str, Any]:
    """The price of a night of `plan`, which `describe_plan` described. Seconds are None before the first night
    of a run: one of images tells nothing about it."""
    nights = [(night, verdict) for night, verdict in open_history(history).read().judged if verdict.images is None]
    last = nights[-1][0] if nights else None
    rate = None if last is None else RunHistory.read(RunDir(last.run, last.storage)).evaluations_per_second
    evaluations, size = described["network_evaluations"], described["bytes_at_most"]
    canary_evaluations = sum(min(cell.settings.batch_size, cell.settings.num_samples) * cell.nfe for cell in plan.cells)
    seconds = None if rate is None else round(evaluations / rate, 1)
    sharpness = expected_sharpness([verdict for _, verdict in nights], plan)
    return {
        "measured_in": None if last is None else last.id,
        "worker_seconds": seconds,
        "worker_seconds_of_the_canary_at_most": None if rate is None else round(canary_evaluations / rate, 1),
        "network_evaluations_of_the_canary_at_most": canary_evaluations,
        "smallest_loss_seen": sharpness.get("fid"),
        "smallest_losses_seen": sharpness,
        "worker_seconds_of_a_second_look_at_most": None if seconds is None else round(2 * seconds, 1),
        "bytes_at_most": size,
        "bytes_of_a_second_look_at_most": 2 * size,
    }


def expected_sharpness(verdicts: Sequence[NightVerdict], plan: Plan) -> dict[str, float]:
    """Column -> the smallest regression, as a share of a metric, that half of the cells of a night of `plan` detect.

    It is extrapolated from the last night that judged a cell and is not red, because errors of broken networks are not
    the gate's: the part beyond the margin shrinks with the root of N. At another N it is unknown for a metric whose
    margin may be standard errors. Empty if there was no such night."""
    for verdict in reversed(verdicts):
        comparison = verdict.comparison
        if comparison and (found := comparison.sharpnesses) and comparison.result not in REGRESSIONS:
            n_before = np.median([score.settings["num_samples"] for score in verdict.scores])
            n_now = np.median([cell.settings.num_samples for cell in plan.cells])
            margin, shrunk = comparison.gate.margin, float(np.sqrt(n_before / n_now))
            known = (name for name in found if shrunk == 1 or not COLUMNS[name].may_be_zero)
            return {name: margin + (found[name].loss - margin) * shrunk for name in known}
    return {}


def price_text(night: Mapping[str, Any]) -> str:
    """`price` as text."""
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
    Unknown while a checkpoint, the reference or the extractor's weights are missing: a plan downloads nothing. Raises
    `UserError` if `file` is not a baseline, or a night would refuse to begin."""
    if (problem := standard_error_problem(run, is_planned=True)) is not None:
        raise UserError(problem)
    baseline = snapshot_of(file)
    coverage: dict[str, Any] = {"place": baseline.source, "cells": len(baseline.cells), "compared": None}
    coverage |= {"unknown": None, "only_new": [], "only_baseline": [], "notes": []}
    if run.plan.pending:
        return coverage | {"unknown": "a model is not here yet"}
    try:
        new = planned_snapshot(run, downloads=False)
    except MissingInput as error:
        return coverage | {"unknown": str(error)}
    found = check_comparable(new, baseline, run)
    only_new, only_baseline = list(found.only_new.values()), list(found.only_baseline.values())
    coverage |= {"compared": len(found.pairs), "only_new": only_new, "only_baseline": only_baseline}
    return coverage | {"notes": changed_code(new, baseline)}


def coverage_text(coverage: Mapping[str, Any]) -> str:
    """`expected_coverage` as text."""
    if coverage["compared"] is None:
        return f"against {coverage['place']}: which cells can be compared is unknown ({coverage['unknown']})"
    cells = counted(coverage["cells"], "cell")
    lines = [f"against {coverage['place']}: {coverage['compared']} of its {cells} would be compared"]
    alone = unmatched(coverage["only_new"], coverage["only_baseline"])
    lines += [f"{title}, so not compared: {names}" for title, names in alone.items()]
    return "\n".join([*lines, *coverage["notes"]])
