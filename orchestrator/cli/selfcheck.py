"""`taugrid selfcheck`: runs the whole system on samples whose values are known, and checks them."""

import json
from tempfile import TemporaryDirectory
from typing import Any

import click

from taugrid.errors import RunFailed, UserError
from taugrid.orchestrator.cli.options import Command, RunOptions, cluster_options
from taugrid.words import counted


@click.command(cls=Command)
@click.option("--out", metavar="DIR", help="Keep the run here.  [default: a temporary folder]")
@click.option("--sampler", metavar="NAME", help="Check this sampler against the solution of the ODE.")
@click.option("--sampler-options", metavar="YAML", help="Its options, as in '{solver_order: 3}'.")
@cluster_options
def selfcheck(sampler: str | None, sampler_options: str | None, **given: Any) -> None:
    """Check an installation against closed forms.

    Samples images whose pixels and distribution are known. Exits with 1 if an image differs from a float64 loop of the
    paper, or a number from its closed form. With --sampler, if its images do not approach the solution of the ODE or,
    where it adds noise, their distribution is not the data's.

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
    if there is not None and there.get("name") != run.config.name:
        raise UserError(f"--out {out} holds another run; give an empty folder, or that of an earlier selfcheck")
    with Progress() as progress:
        missing = Session(run, requested.address, progress).do(("sample", "evaluate"), requested.break_lock).missing
        if missing:
            name, reason = next(iter(missing.items()))
            lost = counted(len(missing), "cell")
            raise RunFailed(f"{lost} could not be finished, so nothing was checked; {name}: {reason}")
        findings = selfcheck.judge_run(run, progress, sampler)
    if requested.as_json:
        click.echo(json.dumps(selfcheck.as_json(findings, run.rundir), indent=2, allow_nan=False))
    else:
        print_selfcheck(findings)
    if findings.problems:
        raise RunFailed(f"selfcheck found {counted(len(findings.problems), 'problem')}")
    what = "the paper" if sampler is None else "the closed form"
    click.echo(f"selfcheck: all {counted(len(findings.judgements), 'cell')} agree with {what}", err=True)
