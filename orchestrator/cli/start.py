"""Commands for the first minutes: `init` writes a config, `completion` a shell's script; `selfcheck` checks numbers."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from click.shell_completion import get_completion_class

from taugrid.errors import RunFailed, UserError
from taugrid.orchestrator.cli.options import Command, RunOptions, cluster_options, echo
from taugrid.words import counted


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
    from taugrid.orchestrator.cli.text.new_config import new_config
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
    from taugrid.orchestrator.dispatch.address import check_form

    requested = RunOptions(**given)
    check_form(requested.address)
    if requested.out is not None:
        _selfcheck(requested.out, requested, sampler, sampler_options)
        return
    if requested.address != "local":
        raise UserError(f"with --address {requested.address}, give --out: an absolute path that every node sees")
    with TemporaryDirectory(prefix="taugrid-selfcheck-") as out:
        _selfcheck(out, requested, sampler, sampler_options)


def _selfcheck(out: str, requested: RunOptions, sampler: str | None, sampler_options: str | None) -> None:
    from taugrid.orchestrator import selfcheck
    from taugrid.orchestrator.cli.text.runs import print_selfcheck
    from taugrid.orchestrator.opened import open_config, require_shared
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.session import Session
    from taugrid.storage import read_json

    require_shared(out, requested.address)
    run = open_config("selfcheck", (*requested.overrides, *selfcheck.overrides(sampler, sampler_options)), out)
    there = read_json(run.rundir.config, run.rundir.storage)
    if there is not None and (not isinstance(there, dict) or there.get("name") != run.config.name):
        raise UserError(f"--out {out} holds another run; give an empty folder, or that of an earlier selfcheck")
    with Progress() as progress:
        missing = Session(run, requested.address, progress).do(("sample", "evaluate"), requested.break_lock).missing
        if missing:
            name, reason = next(iter(missing.items()))
            lost = counted(len(missing), "cell")
            raise RunFailed(f"{lost} could not be finished, so nothing was checked; {name}: {reason}")
        findings = selfcheck.judge_run(run, progress, sampler)
    if requested.as_json:
        echo(json.dumps(selfcheck.as_json(findings, run.rundir), indent=2, allow_nan=False))
    else:
        print_selfcheck(findings)
    if findings.problems:
        raise RunFailed(f"selfcheck found {counted(len(findings.problems), 'problem')}")
    what = "the paper" if sampler is None else "the closed form"
    echo(f"selfcheck: all {counted(len(findings.judgements), 'cell')} agree with {what}", err=True)
