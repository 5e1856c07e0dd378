"""Commands that do work: run, its single stages, reconstruct and interpolate."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from taugrid.api import STAGES
from taugrid.errors import Exit
from taugrid.orchestrator.cli.options import (
    Command,
    cluster_options,
    config_options,
    only_option,
    pivot_options,
    print_value,
    trust_option,
)

if TYPE_CHECKING:
    from taugrid.orchestrator.run import Run


def _stage(
    name: str, stages: tuple[str, ...], text: str, takes_only: bool = False, takes_pivot: bool = False
) -> click.Command:
    """The command `name`, which does `stages`.

    `takes_only`: of some cells alone, if the user wishes; `takes_pivot`: with other rows and columns.
    """

    @config_options
    @cluster_options
    def command(
        config: str,
        out: str | None,
        assignments: tuple[str, ...],
        address: str,
        workers: int | None,
        as_json: bool,
        break_lock: bool,
        trust_code: bool = False,
        only: tuple[str, ...] = (),
        rows: str | None = None,
        columns: str | None = None,
    ) -> None:
        if stages == ("report",):
            given = {"--out": out, "--set": assignments, "--workers": workers, "--rows": rows, "--columns": columns}
            if _report_history(config, [name for name, value in given.items() if value], as_json, break_lock):
                return
        assignments += () if rows is None else (f"report.rows=[{rows}]",)
        assignments += (f"report.columns={columns}",) if columns else ()
        run_stages(config, out, assignments, address, workers, stages, as_json, break_lock, trust_code, only)

    command.__doc__ = text
    found = only_option(command) if takes_only else pivot_options(command) if takes_pivot else command
    return click.command(name, cls=Command)(found if stages == ("report",) else trust_option(found))


run = _stage("run", STAGES, "Do everything that is missing: train, sample, score, report.", takes_only=True)
train = _stage("train", ("train",), "Train the models of the config.", takes_only=True)
sample = _stage("sample", ("sample",), "Sample every cell; models must be trained already.", takes_only=True)
report = _stage(
    "report",
    ("report",),
    """Write tables and figures from existing scores.

    If CONFIG is a history of nights, write its history.parquet, trend figure and index.html.""",
    takes_pivot=True,
)
reconstruct = _stage(
    "reconstruct",
    ("train", "reconstruct"),
    """Encode held-out images to x_T, and decode them again.

    That is the paper's table 2, with the grid's S steps each way. Models that are missing are trained.""",
)
interpolate = _stage(
    "interpolate",
    ("train", "interpolate"),
    """Interpolate between the x_T of samples.

    That is the paper's figure 6, with the grid's S steps. Models that are missing are trained.""",
)


def run_stages(
    config: str,
    out: str | None,
    assignments: tuple[str, ...],
    address: str,
    workers: int | None,
    stages: tuple[str, ...],
    as_json: bool,
    break_lock: bool,
    trust_code: bool,
    only: tuple[str, ...] = (),
) -> None:
    """Do `stages`, print the outcome, and exit with 4 if anything is missing."""
    from taugrid.orchestrator.opened import open_to_run

    if workers is not None:
        assignments = (*assignments, f"cluster.workers={workers}")
    runs_code = stages != ("report",)
    opened = open_to_run(config, assignments, out, address, runs_code, trust_code)
    _work(opened, stages, address, as_json, break_lock, only)


def _report_history(place: str, given: Sequence[str], as_json: bool, break_lock: bool) -> bool:
    """Write the files of a history again, and print where its page is; False if `place` is no history.

    `given` are options that have no meaning for one.
    """
    from taugrid.orchestrator.nightly.places import find_history
    from taugrid.orchestrator.nightly.shown.nights import history_as_dict, nights_of
    from taugrid.orchestrator.nightly.write import write_history
    from taugrid.orchestrator.rundir.lock import sole_driver
    from taugrid.words import with_urls

    if (history := find_history(place)) is None:
        return False
    if given:
        raise click.UsageError(f"{given[0]} has no meaning for {place}, which is a history of nights; leave it out")
    with sole_driver(history, break_lock, lambda text: click.echo(text, err=True)):
        write_history(history)
    found = history_as_dict(history, nights_of(history)) | {"page": with_urls(str(history.index))}
    print_value(found, as_json, lambda shown: f"page: {shown['page']}")
    return True


def _work(
    opened: "Run", stages: tuple[str, ...], address: str, as_json: bool, break_lock: bool, only: tuple[str, ...]
) -> None:
    from taugrid.orchestrator.cli.text import outcome_json, print_outcome
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.selection import select
    from taugrid.orchestrator.session import Session

    part = select(opened.plan, only)
    with Progress() as progress:
        outcome = Session(opened, address, progress, part).do(stages, break_lock)
    if as_json:
        click.echo(json.dumps(outcome_json(opened.rundir, outcome), indent=2, allow_nan=False))
    else:
        makes_images = "sample" in stages or "train" in stages
        again = "run the same command again" if makes_images else f"run `taugrid run {opened.rundir.shown}`"
        print_outcome(opened.rundir, outcome, again)
    if outcome.missing:
        sys.exit(Exit.INCOMPLETE)
