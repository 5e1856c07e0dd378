"""Read-only commands: plan, status, verify and config."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from taugrid.errors import Exit
from taugrid.orchestrator.cli.options import (
    Command,
    Group,
    RunOptions,
    config_options,
    echo,
    json_option,
    print_value,
    reader_may_leave,
    set_option,
    workers_option,
)
from taugrid.words import counted
from taugrid.workers.importing import uncollected

if TYPE_CHECKING:
    from taugrid.orchestrator.work.growing import Until


@click.command(cls=Command)
@config_options
@click.option("--history", metavar="DIR", help="Also show what a night costs, as measured in DIR's last night.")
@click.option("--baseline", metavar="FILE", help="Also show which cells a night would compare with FILE, file or run.")
@click.option("--strict", is_flag=True, help="Exit with 2 if there is any warning.")
@workers_option
@json_option
def plan(history: str | None, baseline: str | None, strict: bool, **given: Any) -> None:
    """Show what a run would do, what is done, and what is missing. Starts and downloads nothing.

    With --baseline, fail wherever a night would refuse to begin.

    Examples:
        taugrid plan digits  # cells, images and network evaluations of the demo
        taugrid plan my.yaml --workers 8 --strict  # exits with 2 if there is a warning
        taugrid plan my.yaml --history history --baseline runs/mine  # of a night
    """
    described = show_plan(RunOptions(**given), history, baseline)
    if strict and (remarks := described["remarks"]):
        echo(f"taugrid: --strict: {counted(len(remarks), 'warning')}", err=True)
        sys.exit(Exit.USAGE)


def show_plan(
    requested: RunOptions, history: str | None = None, baseline: str | None = None, until: "Until | None" = None
) -> dict[str, Any]:
    """Print what `taugrid plan` prints, of the cells alone that are `requested`; returns the document.

    `until` is checked as far as a plan tells.
    """
    with uncollected():
        from taugrid.orchestrator.cli.text.runs import plan_text
        from taugrid.orchestrator.opened import open_to_plan
        from taugrid.orchestrator.rundir.grown import resized
        from taugrid.orchestrator.selection import select
        from taugrid.orchestrator.view.dry_run import describe_plan

    run, only = open_to_plan(requested.config, requested.overrides, requested.out), requested.only
    described = describe_plan(run)
    if only:
        selected = replace(run, configured=select(run.configured, only))
        described = describe_plan(selected) | {"remarks": described["remarks"]}
    texts: list[Callable[[dict[str, Any]], str]] = [plan_text]
    if until is not None:
        part = select(run.configured, only)
        until.smallest(part)
        until.along(run.configured)
        largest = resized(part, {cell.id: until.most for cell in part.cells})
        left = describe_plan(replace(run, configured=largest))["network_evaluations_remaining"]
        described["until"] = {"max": until.most, "network_evaluations_remaining_at_most": left}
        line = f"with N = {until.most:,} for all: at most {left:,} network evaluations still to do"
        texts.append(lambda _: line)
    if history is not None:
        from taugrid.orchestrator.nightly.before import expected_standard_error_problem, price, price_text

        if (problem := expected_standard_error_problem(run)) is not None:
            described["remarks"].append(problem)
        described["night"] = price(described, run.plan, history)
        texts.append(lambda shown: price_text(shown["night"]))
    if baseline is not None:
        from taugrid.orchestrator.nightly.before import coverage_text, expected_coverage

        described["baseline"] = expected_coverage(run, baseline)
        if count := len(described["baseline"]["only_baseline"]):
            cells = f"{counted(count, 'cell')} of the baseline"
            described["remarks"].append(
                f"{cells} would be missing: a night exits with 5 unless --allow-missing is given"
            )
        texts.append(lambda shown: coverage_text(shown["baseline"]))
    print_value(described, requested.as_json, lambda shown: "\n".join(text(shown) for text in texts))
    return described


@click.command(cls=Command)
@click.argument("directory", metavar="DIR | CONFIG | HISTORY")
@click.option("--watch", "watches", is_flag=True, help="Keep showing progress while a driver is running.")
@json_option
def status(directory: str, watches: bool, as_json: bool) -> None:
    """Show the progress of a run, from its directory alone: DIR, or the one that CONFIG's runs have without --out.

    Of a history of nights, show a line for each night: id, time, verdict, cells, checkpoint.

    With --watch, show bars and the table while `taugrid run` works, wherever it does; in a log, a line every 10 s.
    Ctrl-C ends the view, not the run.

    Examples:
        taugrid status runs/mine  # what is done, and what is missing
        taugrid status my.yaml --watch  # the same, live
        taugrid status history  # a line for each night
    """
    if watches and as_json:
        raise click.UsageError("--watch keeps showing progress, and --json prints one document; give only one of them")
    with uncollected():
        from taugrid.orchestrator.cli.text.runs import plan_text
        from taugrid.orchestrator.nightly.places import find_history
        from taugrid.orchestrator.opened import directory_of, open_existing
        from taugrid.orchestrator.view.inspection import describe_status

    if (history := find_history(directory)) is not None:
        from taugrid.orchestrator.nightly.nights import history_as_dict, nights_of, nights_text

        if watches:
            raise click.UsageError("--watch shows a run, not a history; give the run of a night, HISTORY/nights/ID/run")
        nights = nights_of(history)
        print_value(history_as_dict(history, nights), as_json, lambda _: nights_text(nights))
        return
    run = open_existing(directory_of(directory), dry=True)
    if watches:
        from taugrid.orchestrator.progress.watch import watch

        echo(watch(run))
        return
    print_value(describe_status(run), as_json, plan_text)


@click.command(cls=Command)
@click.argument("directory", metavar="DIR | CONFIG")
@json_option
def verify(directory: str, as_json: bool) -> None:
    """Re-read every file of a run, and say what to do about damage.

    Every image is decoded too. The run is in DIR, or in the directory that CONFIG's runs have without --out.

    Examples:
        taugrid verify runs/mine  # reads and decodes every file
    """
    from taugrid.orchestrator.opened import directory_of, open_existing
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.view.verify import Diagnosis
    from taugrid.orchestrator.view.verify import verify as verify_files

    run = open_existing(directory_of(directory))
    run.rundir.downloads = False  # verification downloads nothing
    total = sum(cell.settings.num_samples for cell in run.plan.cells)
    with Progress() as progress:
        progress.begin("verifying", total, "images")
        seen = 0

        def tick(count: int) -> None:
            nonlocal seen
            progress.update(seen := seen + count)

        verified = verify_files(run, tick)
    diagnosis = Diagnosis(run, seen, verified)
    with reader_may_leave():
        if as_json:
            echo(json.dumps(diagnosis.document, indent=2))
        else:
            for line in diagnosis.problems:
                echo(line)
            echo(diagnosis.verdict, err=bool(verified.damages))
            for line in diagnosis.advice:
                echo(line, err=True)
    if verified.damages or verified.unfinished:
        sys.exit(Exit.FAILED if verified.damages else Exit.INCOMPLETE)


@click.group(cls=Group)
def config() -> None:
    """Show or check a config."""


@config.command()
@click.argument("config")
@set_option
@json_option
def show(config: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Print the whole config, with defaults filled in.

    Examples:
        taugrid config show digits --set seed=1  # every key, with its value
    """
    import yaml

    from taugrid.config.load import load

    values = load(config, assignments).model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100).rstrip()
    print_value(values, as_json, lambda _: text)


@config.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors.

    Examples:
        taugrid config schema > schema.json  # for the YAML extension of an editor
    """
    from taugrid.config import schema as config_schema

    echo(json.dumps(config_schema(), indent=1, sort_keys=True))


@config.command()
@click.argument("config")
@set_option
def validate(config: str, assignments: tuple[str, ...]) -> None:
    """Check a config, including its grid.

    Examples:
        taugrid config validate my.yaml  # names each mistake in one line
    """
    from taugrid.orchestrator.opened import open_config

    run = open_config(config, assignments, None)
    models, cells = counted(len(run.plan.models), "model"), counted(len(run.plan.cells), "cell")
    echo(f"{config} is valid: {models}, {cells}", err=True)
