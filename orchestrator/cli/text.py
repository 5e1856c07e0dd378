"""The output of commands: plans and outcomes as text for people, outcomes as JSON for scripts."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taugrid.orchestrator.progress.display import Console
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.words import counted, duration, in_columns, listed, quantity, with_urls

if TYPE_CHECKING:
    from taugrid.eval.tables.quality import QualityTable
    from taugrid.orchestrator.session import SessionResult


def plan_text(plan: dict[str, Any]) -> str:
    """A plan or a status, from `inspection.describe`, as lines."""
    lines = [f"{plan['name']} in {plan['dir']}"]
    if "driver" in plan:  # only a status has it
        driver, killed = plan["driver"], plan["killed_driver"]
        who = "none is running here" if driver is None else "process {process} on {host} is running".format(**driver)
        lost = "" if killed is None else f"; the last one was killed, or lost this directory ({killed})"
        lines.append(f"driver: {who}{lost}")
    lines.append("")
    for model in plan["models"]:
        state = _training_state(model) if model["train_steps"] else model["source"]
        if len(plan["models"]) > 1:
            images = f"{model['images_done']:,} of {model['images']:,} images"
            state += f"; {images}, {model['cells_scored']} of {counted(model['cells'], 'cell')} scored"
        called = f"{model['label']} ({model['id']})" if model["label"] else model["id"]
        lines.append(f"model {called}: {state}")
    rows = [("cell", "id", "images", "shards", "evals", "scored")]
    for cell in plan["cells"]:
        images = "removed" if cell["images_removed"] else f"{cell['images_done']}/{cell['num_samples']}"
        shards = f"{cell['shards_done']}/{cell['shards']}"
        evaluations, scored = quantity(cell["network_evaluations"]), "yes" if cell["scored"] else "no"
        rows.append((cell["label"], cell["cell"], images, shards, evaluations, scored))
    remaining, rate = plan["network_evaluations_remaining"], plan["evaluations_per_second_and_worker"]
    numbers = len(plan["models"]), len(plan["cells"]), plan["shards"], plan["images"]
    counts = ", ".join(map(counted, numbers, ("model", "cell", "shard", "image")))
    lines += [
        "",
        *in_columns(rows, right=range(2, 6)),
        "",
        f"{counts}, at most {quantity(plan['bytes_at_most'])}B of images",
        f"network evaluations: {plan['network_evaluations']:,}, {remaining:,} of them still to do",
        f"scores against {plan['reference']}: {len(plan['cells']):,}, {plan['cells_to_score']:,} of them still to do",
        *_training(plan),
        f"expected sampling time: {_expected(plan)}",
    ]
    if remaining:
        longest = plan["longest_shard_evaluations"]
        time = f", {duration(longest / rate)} at that rate" if rate and longest >= rate else ""
        lines.append(f"longest shard: {longest:,} network evaluations{time}")
    if weights := plan.get("worker_weights_bytes"):  # `status` does not say
        parts = ", ".join(f"{name} {quantity(size)}B" for name, size in weights.items())
        sums = f"{quantity(sum(weights.values()))}B{f' ({parts})' if len(weights) > 1 else ''}"
        lines.append(f"weights on each worker: {sums}, beside what a batch takes")
    return "\n".join([*lines, *(f"warning: {remark}" for remark in plan["remarks"])])


def _training_state(model: dict[str, Any]) -> str:
    if model["ready"]:
        return "trained"
    steps, done, reached = model["train_steps"], model["train_steps_done"], model["train_steps_reached"]
    if (failure := model["train_failed"]) is not None:
        return f"training failed at {reached:,} of {steps:,} steps: {failure['reason']} (details: {failure['log']})"
    size = f"{quantity(model['parameters'])} parameters " if model["parameters"] else ""
    text = f"{size}to be trained for {steps:,} steps on {model['data']}"
    if not done:
        return f"{text} ({reached:,} done, but there is no checkpoint yet)" if reached else text
    since = f", and {reached - done:,} since its last checkpoint" if reached > done else ""
    return f"{text} ({done:,} done{since})"


def _training(plan: dict[str, Any]) -> list[str]:
    """A line on what is left to train, if the plan trains anything."""
    total, left = sum(model["train_steps"] for model in plan["models"]), plan["train_steps_remaining"]
    if not total:
        return []
    line, seconds = f"training steps: {total:,}, {left:,} of them still to do", plan["train_worker_seconds_remaining"]
    if not left:
        return [line]
    if seconds is None:
        return [f"{line}; expected training time: unknown (no step of this run has been timed yet)"]
    rate = quantity(1 / plan["worker_seconds_a_train_step"])
    return [f"{line}; expected training time: {duration(seconds)} of one worker, at {rate} steps/s as measured here"]


def _expected(plan: dict[str, Any]) -> str:
    seconds, rate = plan["worker_seconds_remaining"], plan["evaluations_per_second_and_worker"]
    if not plan["network_evaluations_remaining"]:
        return "none, all these images are there"
    if seconds is None:
        return "unknown (no shard of this run has been timed yet)"
    time = duration(seconds) if seconds >= 1 else "less than 1 s"
    workers = plan.get("workers_at_a_time") or 1  # `status` does not know the number of workers
    on_all = f", {duration(plan['seconds_remaining'])} on {workers}" if workers > 1 and seconds >= workers else ""
    return f"{time} on one worker{on_all}, at {quantity(rate)} network evaluations/s as measured here"


def selfcheck_text(checked: Mapping[str, Any], sampler: str | None) -> str:
    """The pixels that are off and the table's FID of every cell, from `selfcheck.as_json`; `sampler` as asked for."""
    rows = [("", "data", "cell", "off", "FID")]
    for cell in checked["cells"]:
        off = f"{cell['differing_share'] * 1e6:.0f}"
        if sampler is not None:
            off = "–" if cell["mean_difference"] is None else f"{cell['mean_difference']:.5f}"
        fid = "–" if cell["fid"] is None else f"{cell['fid']['measured']:.4f}"
        rows.append(("WRONG" if cell["problems"] else "ok", cell["data"], cell["name"], off, fid))
    meaning = "pixels per million that differ from a float64 loop (by one grey level if all is well)"
    if sampler is not None:
        meaning = "mean difference from the solution of the ODE in grey levels, – if the sampler adds noise"
    return "\n".join([*in_columns(rows, right=(3, 4)), f"off: {meaning}"])


def result_json(rundir: RunDir, outcome: "SessionResult") -> dict[str, Any]:
    """The document that `--json` prints after work."""
    return {
        "dir": rundir.shown,
        "status": "incomplete" if outcome.missing else "done",
        "cells": outcome.rows,
        "missing": [{"cell": cell, "reason": with_urls(reason)} for cell, reason in outcome.missing.items()],
        **({} if outcome.growth is None else {"told_apart": outcome.growth.as_dict()}),
    }


MAX_REASONS, MAX_CELLS = 10, 4
"""The number of reasons or warnings that are printed, and of cells that a line names. The rest are counted."""


def missing_lines(missing: Mapping[str, str], labels: Mapping[str, str]) -> list[str]:
    """A line for each reason in `missing` (cell -> reason), with its cells: a training that failed has many."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for cell, reason in missing.items():
        by_reason[reason].append(labels.get(cell, cell))
    shown, others = [*by_reason.items()][:MAX_REASONS], [*by_reason.values()][MAX_REASONS:]
    lines = [f"missing: {listed(cells, MAX_CELLS, 'cell', '; ')}: {reason}" for reason, cells in shown]
    return [*lines, f"... and {counted(sum(map(len, others)), 'more cell')}"] if others else lines


def _print_quality(quality: "QualityTable") -> None:
    """Print the tables of all metrics with their protocol on stdout, and on stderr why FIDs have no ±."""
    console = Console(highlight=False)
    console.print(quality.console)
    console.print(quality.scored_as, markup=False, soft_wrap=True)
    reasons, scored = quality.evidence.reasons, [row for row in quality.rows if row["fid"] is not None]
    counts = Counter(reasons[row["cell"]] for row in scored if row["fid_se"] is None and row["cell"] in reasons)
    for reason, count in counts.items():
        which = "any FID" if count == len(scored) else f"{count} of {len(scored)} FIDs"
        line = f"no sampling error for {which}: {reason}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def print_result(rundir: RunDir, outcome: "SessionResult", again: str = "run the same command again") -> None:
    """Print the table on stdout, and on stderr missing cells and where the results are.

    `again` is the command that completes missing cells.
    """
    reasons: list[str] = []
    if outcome.rows and outcome.quality is not None:
        reasons = list(outcome.quality.evidence.reasons.values())
        _print_quality(outcome.quality)
        for table in outcome.larger:
            cells, n = counted(len(table.rows), "cell"), table.rows[0]["num_samples"]
            Console(highlight=False).print(f"\nThe {cells} that grew to N = {n:,} or more:\n")
            _print_quality(table)
    elif outcome.rows and outcome.text:
        is_text = isinstance(outcome.text, str)
        Console(highlight=False, soft_wrap=is_text).print(outcome.text, markup=False)
    lines = missing_lines(outcome.missing, outcome.labels)
    permanent = set(outcome.missing) & set(outcome.permanent_failures)
    rest = len(outcome.missing) - len(permanent)
    if permanent:
        also = f"; {again} to finish the other {counted(rest, 'cell')}" if rest else ""
        lines.append(f"what failed as above fails again with the same command: first change what its line names{also}")
    elif rest:
        lines.append(f"{again} to finish what is missing")
    # The warnings of report.html that were not printed before.
    printed = {*outcome.warned, *outcome.missing.values(), *reasons}
    warnings = [f"warning: {text}" for text in outcome.warnings if not any(line in text for line in printed)]
    lines += warnings[:MAX_REASONS]
    if (more := len(warnings) - MAX_REASONS) > 0:
        lines.append(f"... and {counted(more, 'more warning')}")
    for name in ("report", "models", "samples", "tables", "figures"):
        if rundir.storage.exists(path := getattr(rundir, name)):
            is_warned = name == "report" and outcome.warnings
            about = f" ({counted(len(outcome.warnings), 'warning')} at its end)" if is_warned else ""
            lines.append(f"{name + ':':9}{path}{about}")
    for line in lines:
        Console(stderr=True, highlight=False, soft_wrap=True).print(with_urls(line), markup=False)
