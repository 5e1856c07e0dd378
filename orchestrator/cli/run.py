"""Commands that do work: run, its single stages, reconstruct and interpolate."""

import json
import sys
from typing import Any

import click

from taugrid.api import STAGES
from taugrid.errors import Exit
from taugrid.orchestrator.cli.look import show_plan
from taugrid.orchestrator.cli.options import (
    Command,
    Decorator,
    RunOptions,
    cells_options,
    cluster_options,
    config_options,
    echo,
    options,
    pivot_options,
    print_value,
    reader_may_leave,
    trust_option,
    until_options,
)


def _stage(name: str, stages: tuple[str, ...], text: str, *more: Decorator) -> click.Command:
    """The command `name`, which does `stages`; `more` are its options besides those that all have."""

    @options(*more, config_options, cluster_options)
    def command(**given: Any) -> None:
        run_stages(RunOptions(**given), stages)

    command.__doc__ = text
    return click.command(name, cls=Command)(command)


run = _stage(
    "run",
    STAGES,
    """Do everything that is missing: train, sample, score, report.

    Examples:
        taugrid run digits  # the demo: minutes on 2 cores
        taugrid run my.yaml --set sample.num_samples=20000  # more images of each cell
        taugrid run my.yaml --only steps=10 --dry-run  # what is left of these cells
        taugrid run my.yaml --until told-apart --max 16000  # until the order is clear
    """,
    cells_options,
    until_options,
)
train = _stage(
    "train",
    ("train",),
    """Train the models of the config.

    Examples:
        taugrid train my.yaml --set train.steps=20000  # goes on from what is trained
    """,
    cells_options,
)
sample = _stage(
    "sample",
    ("sample",),
    """Sample every cell; models must be trained already.

    Examples:
        taugrid sample my.yaml --only eta=0  # the images alone, without scores
    """,
    cells_options,
)
report = _stage(
    "report",
    ("report",),
    """Write tables and figures from existing scores.

    If CONFIG is a history of nights, write its history.parquet, trend figure and index.html.

    Examples:
        taugrid report runs/mine --rows eta --x evaluations  # other rows, another axis
        taugrid report history  # the pages of a history of nights
    """,
    pivot_options,
)
reconstruct = _stage(
    "reconstruct",
    ("train", "reconstruct"),
    """Encode held-out images to x_T, and decode them again.

    That is the paper's table 2, with the grid's S steps each way. Models that are missing are trained.

    Examples:
        taugrid reconstruct my.yaml  # the error over S, in tables/reconstruction.csv
    """,
    trust_option,
)
interpolate = _stage(
    "interpolate",
    ("train", "interpolate"),
    """Interpolate between the x_T of samples.

    That is the paper's figure 6, with the grid's S steps. Models that are missing are trained.

    Examples:
        taugrid interpolate my.yaml  # figures/interpolation_*.png
    """,
    trust_option,
)


def run_stages(requested: RunOptions, stages: tuple[str, ...]) -> None:
    """Do `stages`, print the outcome, and exit with 4 if anything is missing, or 1 if all of that would fail again."""
    from taugrid.orchestrator.cli.text.runs import print_result, result_json
    from taugrid.orchestrator.opened import open_to_run
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.selection import select
    from taugrid.orchestrator.session import Session
    from taugrid.orchestrator.work.growing import Until

    until = Until.of(requested.until, requested.most)
    if requested.dry_run:
        show_plan(requested, until=until)
        return
    only_reports = stages == ("report",)
    if only_reports and _report_history(requested):
        return
    config, overrides, address = requested.config, requested.overrides, requested.address
    run = open_to_run(config, overrides, requested.out, address, not only_reports, requested.trust_code)
    selected = select(run.plan, requested.only)
    with Progress() as progress:
        outcome = Session(run, address, progress, selected, until).do(stages, requested.break_lock)
    with reader_may_leave():
        if requested.as_json:
            echo(json.dumps(result_json(run.rundir, outcome), indent=2, allow_nan=False))
        else:
            makes_images = "sample" in stages or "train" in stages
            again = "run the same command again" if makes_images else f"run `taugrid run {run.rundir.shown}`"
            print_result(run.rundir, outcome, again)
    if outcome.missing:
        fails_again = outcome.missing.keys() <= set(outcome.permanent_failures)
        sys.exit(Exit.FAILED if fails_again else Exit.INCOMPLETE)


def _report_history(requested: RunOptions) -> bool:
    """Write the files of a history again, and print where its page is; False if CONFIG is not a history."""
    from taugrid.orchestrator.nightly.nights import history_as_dict, nights_of
    from taugrid.orchestrator.nightly.places import find_history
    from taugrid.orchestrator.nightly.write import write_history
    from taugrid.orchestrator.rundir.lease import sole_driver
    from taugrid.words import with_urls

    if (history := find_history(requested.config)) is None:
        return False
    meaningless = ("out", "assignments", "workers", "rows", "columns", "x")
    if unwanted := [name.replace("assignments", "set") for name in meaningless if getattr(requested, name)]:
        raise click.UsageError(
            f"--{unwanted[0]} has no meaning for {requested.config}, which is a history of nights; leave it out"
        )
    with sole_driver(history, requested.break_lock, lambda text: echo(text, err=True)):
        write_history(history)
    found = history_as_dict(history, nights_of(history)) | {"page": with_urls(str(history.index))}
    print_value(found, requested.as_json, lambda shown: f"page: {shown['page']}")
    return True
