"""The output of commands: plans and outcomes as text for people, outcomes as JSON for scripts."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from taugrid.orchestrator.plan.devices import weights_in_words
from taugrid.orchestrator.progress.console import Console
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.registry.samplers import DEFAULT
from taugrid.words import counted, duration, in_columns, listed, quantity, with_urls

if TYPE_CHECKING:
    from taugrid.eval.tables.quality import QualityTable
    from taugrid.orchestrator.selfcheck import Findings
    from taugrid.orchestrator.session import SessionResult


def plan_text(plan: dict[str, Any]) -> str:
    """A plan or a status, from `inspection.describe`, as lines."""
    lines = [f"{plan['name']} in {plan['dir']}", *_driver(plan), ""]
    for model in plan["models"]:
        state = _training_state(model) if model["train_steps"] else model["source"]
        called = f"{model['label']} ({model['id']})" if model["label"] else model["id"]
        lines.append(f"model {called}: {state}{_sums(model) if len(plan['models']) > 1 else ''}")
    lines += ["", *_cell_table(plan["cells"])]
    remaining = plan["network_evaluations_remaining"]
    numbers = len(plan["models"]), len(plan["cells"]), plan["shards"], plan["images"]
    counts = ", ".join(map(counted, numbers, ("model", "cell", "shard", "image")))
    lines += [
        "",
        f"{counts}, at most {quantity(plan['bytes_at_most'])}B of images",
        f"network evaluations: {plan['network_evaluations']:,}, {remaining:,} of them still to do",
        f"scores against {plan['reference']}: {len(plan['cells']):,}, {plan['cells_to_score']:,} of them still to do",
        *_training(plan),
        f"expected sampling time: {_expected(plan)}",
        *_longest_shard(plan),
        *_weights(plan),
        *(f"warning: {remark}" for remark in plan["remarks"]),
    ]
    return "\n".join(lines)


def _cell_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A heading and a line for each cell."""
    rows = [("cell", "id", "images", "shards", "evals", "scored")]
    for cell in cells:
        images = "removed" if cell["images_removed"] else f"{cell['images_done']}/{cell['num_samples']}"
        shards = f"{cell['shards_done']}/{cell['shards']}"
        evaluations, scored = quantity(cell["network_evaluations"]), "yes" if cell["scored"] else "no"
        rows.append((cell["label"], cell["cell"], images, shards, evaluations, scored))
    return in_columns(rows, right=range(2, 6))


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


def _sums(model: dict[str, Any]) -> str:
    images = f"{model['images_done']:,} of {model['images']:,} images"
    return f"; {images}, {model['cells_scored']} of {counted(model['cells'], 'cell')} scored"


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
        some = any(cell["shards_done"] for cell in plan["cells"])
        return f"unknown (no {'shard of this run has been sampled' if not some else 'driver has timed a shard'} yet)"
    time = duration(seconds) if seconds >= 1 else "less than 1 s"
    workers = plan.get("workers_at_a_time") or 1  # `status` does not know the number of workers
    on_all = f", {duration(plan['seconds_remaining'])} on {workers}" if workers > 1 and seconds >= workers else ""
    return f"{time} on one worker{on_all}, at {quantity(rate)} network evaluations/s as measured here"


def _driver(plan: dict[str, Any]) -> list[str]:
    """A line on the driver of the run; a plan does not have it."""
    if "driver" not in plan:
        return []
    driver = plan["driver"]
    who = "none is running here" if driver is None else "process {process} on {host} is running".format(**driver)
    if (killed := plan["killed_driver"]) is not None:
        who += f"; the last one was killed, or lost this directory ({killed})"
    return [f"driver: {who}"]


def _longest_shard(plan: dict[str, Any]) -> list[str]:
    """A line on the longest shard, while there is something to sample."""
    if not plan["network_evaluations_remaining"]:
        return []
    evaluations, rate = plan["longest_shard_evaluations"], plan["evaluations_per_second_and_worker"]
    time = f", {duration(evaluations / rate)} at that rate" if rate and evaluations >= rate else ""
    return [f"longest shard: {evaluations:,} network evaluations{time}"]


def _weights(plan: dict[str, Any]) -> list[str]:
    """A line on the weights that a worker holds, if some are known."""
    known = plan.get("worker_weights_bytes")  # `status` does not say
    return [f"weights on each worker: {weights_in_words(known)}, beside what a batch takes"] if known else []


SELFCHECK_WIDTH = 75
"""Width of the table in characters if every entry is long."""


def selfcheck_table(findings: "Findings") -> RenderableType:
    """The pixels that are off and the table's FID of every cell; those of two points and of classes have no FID."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("data")
    for heading in ("S", "η", "off", "FID"):
        table.add_column(heading, justify="right")
    for column in table.columns:
        column.no_wrap = True
    for cell, verdict in findings.judgements:
        settings = cell.settings
        apart = list(filter(None, [cell.model.diffusion.process]))
        apart += [settings.sampler] if settings.sampler not in (DEFAULT, findings.sampler) else []
        apart += [settings.spacing_name] if settings.spacing != "linear" else []
        apart += [str(settings.clip)] if settings.clip != "none" else []
        eta = "–" if cell.eta is None else "σ̂" if cell.eta == "sigma_hat" else f"{settings.eta_number:g}"
        apart += [f"guidance {settings.guidance:g}"] if settings.is_guided else []
        fid = "–" if verdict.fid is None else f"{verdict.fid.measured:.4f}"
        name = " ".join([cell.model.data.name, *apart])
        off = f"{verdict.differing_share * 1e6:.0f}"
        if findings.sampler is not None:
            off = "–" if verdict.mean_difference is None else f"{verdict.mean_difference:.5f}"
        table.add_row("WRONG" if verdict.problems else "ok", name, str(settings.steps), eta, off, fid)
    return table


def print_selfcheck(findings: "Findings") -> None:
    """Print the table on stdout, and the problems and the meaning of the columns on stderr."""
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    stdout = Console(highlight=False)
    stdout.print(selfcheck_table(findings), width=max(SELFCHECK_WIDTH, stdout.width))
    off = "pixels per million that differ from a float64 loop (by one grey level if all is well)"
    if findings.sampler is not None:
        off = "mean difference from the solution of the ODE in grey levels, – if the sampler adds noise"
    stderr.print(f"off: {off}")
    for problem in findings.problems:
        stderr.print(f"wrong: {problem}", markup=False)


def result_json(rundir: RunDir, outcome: "SessionResult") -> dict[str, Any]:
    """The document that `--json` prints after work."""
    return {
        "dir": rundir.shown,
        "status": "incomplete" if outcome.missing else "done",
        "cells": outcome.rows,
        "missing": [{"cell": cell, "reason": with_urls(reason)} for cell, reason in outcome.missing.items()],
        **({} if outcome.growth is None else {"told_apart": outcome.growth.as_dict()}),
    }


def without_error(rows: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason why FIDs have no ±, with the number of cells; `reasons` is cell -> reason."""
    scored = [row for row in rows if row["fid"] is not None]
    counts = Counter(reasons[row["cell"]] for row in scored if row["fid_se"] is None and row["cell"] in reasons)
    return [
        f"no sampling error for {'any FID' if count == len(scored) else f'{count} of {len(scored)} FIDs'}: {reason}"
        for reason, count in counts.items()
    ]


MAX_REASONS, MAX_CELLS = 10, 4
"""The number of reasons or warnings that are printed, and of cells that a line names. The rest are counted."""


def missing_lines(missing: Mapping[str, str], labels: Mapping[str, str]) -> list[str]:
    """A line for each reason in `missing` (cell -> reason), with its cells: a training that failed has many."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for cell, reason in missing.items():
        by_reason[reason].append(labels.get(cell, cell))
    lines = [
        with_urls(f"missing: {listed(cells, MAX_CELLS, 'cell', '; ')}: {reason}") for reason, cells in by_reason.items()
    ][:MAX_REASONS]
    others = sum(len(cells) for cells in list(by_reason.values())[MAX_REASONS:])
    return [*lines, f"... and {counted(others, 'more cell')}"] if others else lines


def _advice(outcome: "SessionResult", again: str) -> str:
    """Advice on missing cells; `again` is the command that completes them."""
    permanent = set(outcome.missing) & set(outcome.permanent_failures)
    if not permanent:
        return f"{again} to finish what is missing" if outcome.missing else ""
    advice = "what failed as above fails again with the same command: first change what its line names"
    rest = len(outcome.missing) - len(permanent)
    return advice + (f"; {again} to finish the other {counted(rest, 'cell')}" if rest else "")


def _other_warnings(outcome: "SessionResult") -> list[str]:
    """A line for each warning of report.html that was not printed before."""
    no_errors = outcome.quality.evidence.reasons.values() if outcome.rows and outcome.quality is not None else ()
    printed = {*outcome.warned, *outcome.missing.values(), *no_errors}
    lines = [f"warning: {text}" for text in outcome.warnings if not any(line in text for line in printed)]
    if (more := len(lines) - MAX_REASONS) <= 0:
        return lines
    return [*lines[:MAX_REASONS], f"... and {counted(more, 'more warning')}"]


def _print_quality(quality: "QualityTable") -> None:
    """Print the tables of all metrics with their protocol on stdout, and on stderr why FIDs have no ±."""
    from taugrid.eval.tables.render import to_console

    console = Console(highlight=False)
    console.print(to_console(quality))
    console.print(quality.scored_as, markup=False, soft_wrap=True)
    for remark in without_error(quality.rows, quality.evidence.reasons):
        Console(stderr=True, highlight=False, soft_wrap=True).print(remark, markup=False)


def print_result(rundir: RunDir, outcome: "SessionResult", again: str = "run the same command again") -> None:
    """Print the table on stdout, and on stderr missing cells and where the results are.

    `again` is the command that completes missing cells.
    """
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    if outcome.rows and outcome.quality is not None:
        _print_quality(outcome.quality)
        for table in outcome.larger:
            cells, n = counted(len(table.rows), "cell"), table.rows[0]["num_samples"]
            Console(highlight=False).print(f"\nThe {cells} that grew to N = {n:,} or more:\n")
            _print_quality(table)
    elif outcome.rows and outcome.text:
        is_text = isinstance(outcome.text, str)
        Console(highlight=False, soft_wrap=is_text).print(outcome.text, markup=False)
    for line in missing_lines(outcome.missing, outcome.labels):
        stderr.print(line, markup=False)
    if advice := _advice(outcome, again):
        stderr.print(advice, markup=False)
    for line in _other_warnings(outcome):
        stderr.print(with_urls(line), markup=False)
    for name in ("report", "models", "samples", "tables", "figures"):
        if rundir.storage.exists(path := getattr(rundir, name)):
            warned = f" ({counted(len(outcome.warnings), 'warning')} at its end)" if outcome.warnings else ""
            line = f"{name + ':':9}{path}{warned if path == rundir.report else ''}"
            stderr.print(with_urls(line), markup=False)
