"""Commands around runs: `init`, `completion` and `selfcheck` to begin with, `doctor` and `clean` for machines."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from taugrid.errors import Exit, RunFailed, UserError
from taugrid.orchestrator.cli.options import (
    Command,
    RunOptions,
    Whole,
    cluster_options,
    echo,
    json_option,
    print_value,
    reader_may_leave,
)
from taugrid.words import counted, in_columns, printable

if TYPE_CHECKING:
    from taugrid.orchestrator.clean import Removable


@click.command(cls=Command)
@click.option("--checkpoint", metavar="DIR | ID", help="The network: a diffusers folder, or an id on the hub.")
@click.option(
    "--data",
    metavar="NAME[:ROOT]",
    help="The images: a data set, with the folder where it is; folder:DIR for PNG or JPEG, parquet:DIR, lsun/bedroom.  "
    "[default: of the checkpoint's shape, or digits]",
)
@click.option("--unet", is_flag=True, help="Train a U-Net also where the data's best network is known (gaussian).")
@click.option("--name", metavar="NAME", help="Name of the experiment.  [default: the checkpoint's or the data's]")
@click.option(
    "--to", "target", type=click.Path(path_type=Path), metavar="FILE", help="Write it there.  [default: print]"
)
def init(checkpoint: str | None, data: str | None, unet: bool, name: str | None, target: Path | None) -> None:
    """Print a config with a comment on each key, for a checkpoint or images that you have.

    Without --checkpoint, it trains a small U-Net. The checkpoint's files say which shape, classes, VAE and process it
    has; nothing is downloaded. An existing FILE is never replaced.

    Examples:
        taugrid init  # the demo: a small U-Net of digits, in minutes
        taugrid init --data fashion-mnist --to fashion.yaml  # a U-Net for these images
        taugrid init --data folder:pngs --name mine --to pngs.yaml  # for your own
        taugrid init --checkpoint facebook/DiT-XL-2-256  # for a network on the hub
    """
    if unet and checkpoint is not None:
        raise click.UsageError("--unet trains a network, and --checkpoint has one; give one of them")
    if target is not None and target.suffix not in (".yaml", ".yml"):
        raise UserError(f"--to {target}: a config is YAML; give FILE.yaml")
    from taugrid.orchestrator.cli.new_config import new_config
    from taugrid.orchestrator.exports.target import put_file

    text = new_config(checkpoint, data, unet, name)
    if target is None:
        echo(text, nl=False)
        return
    put_file(target, "this config", lambda path: path.read_text() == text, lambda path: path.write_text(text))
    echo(f"{target} is written; next: taugrid plan {target}", err=True)


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands, options and files.

    Examples:
        taugrid completion bash > ~/.local/share/bash-completion/completions/taugrid  # bash
        taugrid completion zsh > ~/.zfunc/_taugrid  # zsh, where fpath has ~/.zfunc
        taugrid completion fish > ~/.config/fish/completions/taugrid.fish  # fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "the choices are the shells that click has"
    echo(kind(ctx.find_root().command, {}, "taugrid", "_TAUGRID_COMPLETE").source())


@click.command(cls=Command)
@click.option("--out", metavar="DIR", help="Keep the run here.  [default: a temporary folder]")
@click.option("--sampler", metavar="NAME", help="Check this sampler against the solution of the ODE.")
@click.option("--sampler-options", metavar="YAML", help="Its options, as in '{solver_order: 3}'.")
@cluster_options
def selfcheck(sampler: str | None, sampler_options: str | None, **given: Any) -> None:
    """Check an installation against closed forms.

    Samples images whose pixels are known. Exits with 1 if an image differs from a float64 loop of the paper, or the
    table's FID from that of the images. With --sampler, if its images do not approach the solution of the ODE or,
    where it adds noise, their distribution is wider than the data's.

    Examples:
        taugrid selfcheck  # this installation, in some minutes
        taugrid selfcheck --sampler dpm++2m  # a sampler against the solution of the ODE
    """
    from taugrid.orchestrator.dispatch.cluster import check_form

    requested = RunOptions(**given)
    check_form(requested.address)
    if requested.out is not None:
        _selfcheck(requested, sampler, sampler_options)
        return
    if requested.address != "local":
        raise UserError(f"with --address {requested.address}, give --out: an absolute path that every node sees")
    with TemporaryDirectory(prefix="taugrid-selfcheck-") as out:
        _selfcheck(replace(requested, out=out), sampler, sampler_options)


def _selfcheck(requested: RunOptions, sampler: str | None, sampler_options: str | None) -> None:
    from taugrid.orchestrator import selfcheck
    from taugrid.orchestrator.cli.text import selfcheck_text
    from taugrid.orchestrator.opened import open_config, require_shared
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.session import Session

    require_shared(str(requested.out), requested.address)
    changes = (*requested.overrides, *selfcheck.overrides(sampler, sampler_options))
    run = open_config("selfcheck", changes, requested.out)
    with Progress() as progress:
        missing = Session(run, requested.address, progress).do(("sample", "evaluate"), requested.break_lock).missing
        if missing:
            name, reason = next(iter(missing.items()))
            lost = counted(len(missing), "cell")
            raise RunFailed(f"{lost} could not be finished, so nothing was checked; {name}: {reason}")
        judged = selfcheck.judge_run(run, progress, sampler)
    document = selfcheck.as_json(judged, run.rundir)
    print_value(document, requested.as_json, lambda checked: selfcheck_text(checked, sampler))
    for problem in document["problems"]:
        echo(f"wrong: {problem}", err=True)
    if document["problems"]:
        raise RunFailed(f"selfcheck found {counted(len(document['problems']), 'problem')}")
    what = "the paper" if sampler is None else "the closed form"
    echo(f"selfcheck: all {counted(len(judged), 'cell')} agree with {what}", err=True)


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
"""The flags of `clean`: names in `clean.CATEGORIES`."""


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
    from taugrid.orchestrator.clean import Cleaning, document

    as_json: bool = given["as_json"]
    wanted = [*(name for name in CHOICES if given[name]), *(["images"] if keep_nights is not None else [])]
    if yes and not wanted:
        raise UserError(f"--yes deletes only what is named: give --{', --'.join(CHOICES)} or --keep-nights")
    wanted = wanted or list(CHOICES)
    cleaning = Cleaning(directory, keep_nights)
    found = cleaning.listed(wanted)
    if not as_json:
        rows = [(each.name, counted(each.files, "file"), each.size, each.about) for each in found]
        echo("\n".join(in_columns(rows, right=(1, 2))) if rows else "there is nothing to delete")
    agreed = {each.name for each in found} if yes or not found else _agreed(found, as_json)
    left = found
    if agreed:
        cleaning.remove(agreed, lambda line: echo(line, err=True))
        left = cleaning.listed(wanted)
    if as_json:
        print_value(document(cleaning, found, left), True, lambda _: "")
    elif agreed:
        echo(f"{sum(each.bytes for each in found) - sum(each.bytes for each in left):,} bytes freed")


def _agreed(found: "Sequence[Removable]", as_json: bool) -> set[str]:
    """The names of the categories that the user wants to lose; asks at a terminal."""
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
