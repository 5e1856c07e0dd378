"""Options of several commands, and the printing of values.

Slow modules are imported when a command is called, so that `--help` is fast.
"""

import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from taugrid.words import printable


class Word(click.types.StringParamType):
    """Text that a shell completes as the name of a file."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, "file")]


class Command(click.Command):
    """A command whose docstring ends with "Examples:", lines such as "taugrid run digits  # what it does", which help
    shows last."""

    def __init__(self, name: str | None, help: str = "", **kwargs: Any) -> None:
        text, _, examples = inspect.cleandoc(help).partition("\n\nExamples:\n")
        super().__init__(name, help=text, **kwargs)
        self.examples = [line.strip() for line in examples.splitlines()]
        for param in self.params:
            if type(param.type) is click.types.StringParamType:
                param.type = Word()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each below what it does, as kubectl's help has them."""
        with formatter.section("Examples"):
            for line in self.examples:
                command, _, comment = line.partition("  # ")
                formatter.write(f"  # {comment}\n  {command}\n")


class Group(click.Group):
    """A group of `Command`s."""

    command_class = Command


@dataclass(frozen=True)
class RunOptions:
    """The options of the commands that plan or do work, each of which has some of them."""

    as_json: bool
    config: str = ""
    out: str | None = None
    assignments: tuple[str, ...] = ()
    workers: int | None = None
    address: str = "local"
    break_lock: bool = False
    trust_code: bool = False
    only: tuple[str, ...] = ()
    rows: str | None = None
    columns: str | None = None
    x: str | None = None
    until: str | None = None
    most: int | None = None
    dry_run: bool = False

    @property
    def overrides(self) -> tuple[str, ...]:
        """The values of --set, and those that other options are short for."""
        short = {"report.columns": self.columns, "report.x": self.x}
        changes = with_workers(self.assignments, self.workers)
        if self.rows is not None:  # none: the usual table
            changes = (*changes, f"report.rows=[{self.rows}]")
        return (*changes, *(f"{key}={value}" for key, value in short.items() if value))


def with_workers(assignments: tuple[str, ...], workers: int | None) -> tuple[str, ...]:
    """The values of --set, and that of --workers."""
    return assignments if workers is None else (*assignments, f"cluster.workers={workers}")


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(*parts: Decorator) -> Decorator:
    """Options that are added together; help lists them in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for part in reversed(parts):
            command = part(command)
        return command

    return add


class Whole(click.IntRange):
    """A range of whole numbers, which messages and help call so."""

    name = "whole number"


class Finite(click.FloatRange):
    """A range of numbers without nan and infinity."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error if it is not one, or out of the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that can be compared", param, ctx)
        return number


def names_in(ctx: click.Context, param: click.Parameter, given: str | None) -> tuple[str, ...]:
    """The names in a list with commas; none if it is not given."""
    return () if given is None else tuple(name.strip() for name in given.split(","))


set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key; VALUE is YAML.",
)

SHARE = Finite(0, min_open=True)

only_option = click.option(
    "--only",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="Work on these cells alone, as in schedule=cosine,steps=50; may be repeated. Tables show all cells.",
)

dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what `taugrid plan` shows, and begin nothing.")

until_options = options(
    click.option(
        "--until",
        metavar="told-apart[=KEY]",
        help="Double N of the cells alone whose order is undecided: against the best of their column, or against their "
        "neighbours along KEY.",
    ),
    click.option("--max", "most", type=Whole(1), metavar="N", help="The largest N of --until."),
)

OF_IMAGES = ("reference", "extractor", "weights", "metrics", "pair_by")
"""The names of `images_options`, which are the fields of `baseline.snapshot.ImagesRequest`."""

images_options = options(
    click.option(
        "--reference", metavar="PATH | RUN | NAME", help="Images: what they are scored against, as in evaluate."
    ),
    click.option("--extractor", metavar="NAME", help="Images: as in evaluate.  [default: the reference's, if any]"),
    click.option("--weights", metavar="FILE", help="Images: the extractor's weights."),
    click.option(
        "--metrics", callback=names_in, metavar="LIST", help="Images: what judges.  [default: fid or kid, as N allows]"
    ),
    click.option("--pair-by", metavar="COLUMN", help="Images: the Parquet column with their names."),
)

trust_option = click.option(
    "--trust-code",
    is_flag=True,
    help="Run the custom code that a run directory's config names, even if you did not write it.",
)

cells_options = options(trust_option, only_option, dry_run_option)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else there."
)


config_options = options(
    click.argument("config"),
    click.option("--out", metavar="DIR", help="Run directory.  [default: runs/<name>]"),
    set_option,
)

break_lock_option = click.option(
    "--break-lock", is_flag=True, help="Take the run directory from a driver that seems to be running."
)

workers_option = click.option("--workers", type=Whole(1), help="Sets cluster.workers.")

cluster_options = options(
    click.option(
        "--address", default="local", show_default=True, help="local (a private cluster), auto, or HOST:PORT."
    ),
    workers_option,
    json_option,
    break_lock_option,
)

pivot_options = options(
    click.option("--rows", metavar="KEY,...", help="The keys of a table's rows, as report.rows: schedule,eta."),
    click.option("--columns", metavar="KEY", help="The key of a table's columns, as report.columns.  [default: steps]"),
    click.option(
        "--x", type=click.Choice(["steps", "evaluations", "seconds"]), help="What figures are over: report.x."
    ),
)


def echo(text: str, err: bool = False, nl: bool = True) -> None:
    """`click.echo`, with control characters as escapes."""
    click.echo(printable(text), err=err, nl=nl)


def print_value(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print `value` as one JSON document, or as the lines that `text` makes of it."""
    with reader_may_leave():
        echo(json.dumps(value, indent=2, allow_nan=False) if as_json else text(value))


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print something whose reader may end first, as `head` does: then the work is done all the same.

    rich catches the error itself, and exits with 1.
    """
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        discard_output()


def discard_output() -> None:
    """Write what is still printed to nowhere: Python flushes stdout at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
