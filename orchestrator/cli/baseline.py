"""Commands about baselines: `compare DIR BASELINE`, `baseline accept` and `baseline show`."""

import sys
from collections.abc import Mapping
from typing import Any

import click

from taugrid.errors import Exit, UserError
from taugrid.orchestrator.cli.options import Group, json_option, print_value


def compare_with_baseline(directory: str, baseline: str, requested: Mapping[str, Any], as_json: bool) -> None:
    """Print the comparison of a run with a baseline, and exit as it says; `requested` has fields of `GateSettings`."""
    from taugrid.orchestrator.baseline.compared import GateSettings
    from taugrid.orchestrator.baseline.comparison import compare_snapshots
    from taugrid.orchestrator.baseline.files import snapshot_of
    from taugrid.orchestrator.baseline.snapshot import require_scores, snapshot_of_opened
    from taugrid.orchestrator.baseline.text import comparison_text
    from taugrid.orchestrator.nightly.again import canaries_beside
    from taugrid.orchestrator.opened import open_existing

    run = open_existing(directory)
    new = require_scores(snapshot_of_opened(run))
    canaries = canaries_beside(run, new)
    found = compare_snapshots(new, snapshot_of(baseline), GateSettings(**requested), canaries)
    print_value(found.as_dict(), as_json, comparison_text)
    if found.exit is not Exit.DONE:
        sys.exit(found.exit)


@click.group(cls=Group)
def baseline() -> None:
    """Accept a run as the baseline of later ones, or show one."""


@baseline.command()
@click.argument("directories", metavar="DIR...", nargs=-1, required=True)
@click.option("--to", "file", required=True, metavar="FILE", help="A .json file; a .parquet file is written beside it.")
@click.option("--reason", required=True, metavar="TEXT", help="Why this run is the new measure; kept in FILE.")
@click.option("--force", is_flag=True, help="Accept a night's run although the night was judged worse or changed.")
@json_option
def accept(directories: tuple[str, ...], file: str, reason: str, force: bool, as_json: bool) -> None:
    """Write a run's scores, and what pairing with them needs, to FILE and a Parquet file beside it; both are for git.

    Three DIRs or more are trainings of one recipe, with seeds of their own: later nights are compared with their mean.

    If FILE is a baseline already, the run is compared with it first, and FILE says if it is worse.
    """
    from taugrid.orchestrator.baseline.accept import accept as accept_run
    from taugrid.orchestrator.baseline.text import baseline_text

    if not reason.strip():
        raise UserError("--reason is empty; say why this run becomes the baseline")
    print_value(accept_run(directories, file, reason, force), as_json, baseline_text)


@baseline.command()
@click.argument("file", metavar="FILE")
@json_option
def show(file: str, as_json: bool) -> None:
    """Show what a baseline file holds: when and why it was accepted, its cells and their scores."""
    from taugrid.orchestrator.baseline.files import open_baseline, read_json_of_baseline
    from taugrid.orchestrator.baseline.text import baseline_text

    print_value(read_json_of_baseline(*open_baseline(file, "FILE")), as_json, baseline_text)
