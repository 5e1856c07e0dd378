"""What people do around runs: `doctor` checks machines, `clean` frees space in a directory."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from taugrid.errors import Exit, UserError
from taugrid.orchestrator.cli.options import Command, Whole, echo, json_option, print_value, reader_may_leave
from taugrid.words import counted, printable

if TYPE_CHECKING:
    from taugrid.orchestrator.clean import Cleaning, Removable

MARKS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(cls=Command)
@click.argument("config", required=False)
@click.option("--address", default="local", show_default=True, help="local (this machine), auto, or HOST:PORT.")
@click.option("--out", metavar="DIR", help="The run directory to come: a folder, or a URL.")
@json_option
def doctor(config: str | None, address: str, out: str | None, as_json: bool) -> None:
    """Check whether a run could start: on this machine and, with --address, on every node of a Ray cluster.

    Each red line has its fix. Exits with 1 if a run could not start; warnings do not count.

    Examples:
        taugrid doctor  # this machine
        taugrid doctor my.yaml --out runs/mine --json  # its extractor and its disk too
        taugrid doctor --address auto --out /shared/runs/mine  # every node
    """
    from taugrid.orchestrator.doctor import examination, is_ready

    if address != "local":
        echo(f"connecting to {address}", err=True)
    document = examination(config, address, out)
    if as_json:
        print_value(document, as_json, str)
    else:
        with reader_may_leave():
            click.echo(_lines(document))
    if not is_ready(document):
        sys.exit(Exit.FAILED)


def _lines(document: dict[str, Any]) -> str:
    """A line for each check; of the nodes of a cluster only those that are not in order."""
    lines = []
    for number, node in enumerate(document["nodes"]):
        shown = [check for check in node["checks"] if not number or check["state"] != "ok"]
        fine = f", {counted(len(node['checks']) - len(shown), 'check')} ok" if number else " (this machine)"
        lines.append(f"{node['node']}{fine}")
        for check in shown:
            mark = click.style(f"{check['state']:8}", fg=MARKS[check["state"]])
            lines.append(f"  {mark} {check['name']}: {printable(check['found'])}")
            if check["fix"]:
                lines.append(f"{'':11}fix: {check['fix']}")
    return "\n".join(lines)


CHOICES = ("features", "damaged", "leftovers", "logs")
"""The flags of `clean`: names in `clean.files.CATEGORIES`."""


@click.command(cls=Command)
@click.argument("directory", metavar="DIR | HISTORY")
@click.option("--features", is_flag=True, help="Features of scored cells.")
@click.option("--damaged", is_flag=True, help="Damaged files that were set aside.")
@click.option("--leftovers", is_flag=True, help="What killed processes and finished trainings left.")
@click.option("--logs", is_flag=True, help="Errors of tasks and workers.")
@click.option("--keep-nights", type=Whole(0), metavar="N", help="Images of all nights but the newest N.")
@click.option("--yes", is_flag=True, help="Delete without a question what the other options name.")
@json_option
def clean(directory: str, keep_nights: int | None, yes: bool, **given: Any) -> None:
    """Show what may be deleted and how much that frees, and delete it after a question.

    No table changes, and a run goes on as before. Without a terminal, nothing is deleted without --yes. For a
    history, it cleans the runs of complete nights.

    Examples:
        taugrid clean runs/mine  # what may go, and then a question for each
        taugrid clean runs/mine --features --leftovers --yes  # without a question, for scripts
        taugrid clean history --keep-nights 14  # images of nights older than the newest 14
    """
    from taugrid.orchestrator.clean import Cleaning, document, text

    as_json: bool = given["as_json"]
    wanted = [*(name for name in CHOICES if given[name]), *(["images"] if keep_nights is not None else [])]
    if yes and not wanted:
        raise UserError(f"--yes deletes only what is named: give --{', --'.join(CHOICES)} or --keep-nights")
    wanted = wanted or list(CHOICES)
    cleaning = Cleaning(directory, keep_nights)
    found = cleaning.listed(wanted)
    if not as_json:
        echo(text(found) if found else "there is nothing to delete")
    agreed = _agreed(cleaning, found, yes, as_json)
    left = found
    if agreed:
        cleaning.remove(agreed, lambda line: echo(line, err=True))
        left = cleaning.listed(wanted)
    if as_json:
        print_value(document(cleaning, found, left), True, lambda _: "")
    elif agreed:
        echo(f"{sum(each.bytes for each in found) - sum(each.bytes for each in left):,} bytes freed")


def _agreed(cleaning: "Cleaning", found: "Sequence[Removable]", yes: bool, as_json: bool) -> set[str]:
    """The names of the categories that the user wants to lose; asks at a terminal."""
    if yes or not found:
        return {each.name for each in found}
    if as_json or not is_asked():
        echo("nothing was deleted; name what may go and give --yes", err=True)
        return set()
    return {
        each.name
        for each in found
        if click.confirm(f"delete {each.name} ({counted(each.files, 'file')}, {each.size})?", default=False, err=True)
    }


def is_asked() -> bool:
    """Whether a user is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()
