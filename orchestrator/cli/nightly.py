"""The command `nightly`."""

import sys
from typing import Any

import click

from taugrid.errors import Exit
from taugrid.orchestrator.cli.options import (
    SHARE,
    Command,
    Finite,
    RunOptions,
    cluster_options,
    print_value,
    set_option,
    trust_option,
)
from taugrid.words import with_urls


@click.command(cls=Command)
@click.argument("config")
@set_option
@click.option("--history", required=True, metavar="DIR", help="Where all nights are kept.")
@click.option("--baseline", metavar="FILE", help="A baseline file or run.  [default: HISTORY/baseline.json, if there]")
@click.option("--id", "night", metavar="NAME", help="The night's name.  [default: an unfinished night's, or the date]")
@click.option("--keep-images", type=click.IntRange(0), metavar="N", help="Remove the images of all but N nights.")
@click.option("--margin", type=Finite(0), default=0.02, show_default=True, help="Accepted loss / FID.")
@click.option(
    "--alpha",
    type=Finite(0, 0.5, min_open=True),
    default=0.01,
    show_default=True,
    help="The share of nights without a loss that may be called worse.",
)
@click.option("--grow-to", type=click.IntRange(1), metavar="N", help="Sample undecided cells again, with N images.")
@click.option("--allow-missing", is_flag=True, help="Cells of the baseline may be missing tonight.")
@click.option("--sharpness", type=SHARE, help="The loss / FID that must be seen in half of the cells, or exit with 5.")
@cluster_options
@trust_option
def nightly(**given: Any) -> None:
    """Evaluate tonight's model against a baseline.

    Runs or resumes a night, compares it with the baseline, and adds it to the history. Exits with 3 if a cell got
    worse, or the sampler or the scorer changed; with 4 if some cells could not be finished (the same command goes on);
    and with 5 if something could not be judged.
    """
    from taugrid.orchestrator.baseline.compared import GateSettings
    from taugrid.orchestrator.nightly.judging import Terms
    from taugrid.orchestrator.nightly.night import NightRequest, run_night
    from taugrid.orchestrator.nightly.summary import summary
    from taugrid.orchestrator.progress import Progress

    names = ("history", "baseline", "night", "keep_images", "grow_to", *GateSettings._fields)
    own = {name: given.pop(name) for name in names}
    requested = RunOptions(**given)
    gate = GateSettings(**{name: own.pop(name) for name in GateSettings._fields})
    request = NightRequest(
        config=requested.config,
        assignments=requested.overrides,
        terms=Terms(gate, own.pop("grow_to")),
        address=requested.address,
        break_lock=requested.break_lock,
        trust_code=requested.trust_code,
        **own,
    )
    with Progress() as progress:
        outcome = run_night(request, progress)

    print_value(outcome.verdict, requested.as_json, lambda verdict: summary(verdict).rstrip())
    click.echo(f"summary: {with_urls(str(outcome.night.summary))}", err=True)
    if outcome.exit != Exit.DONE:
        sys.exit(outcome.exit)
