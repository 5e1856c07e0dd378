"""Runs on a Ray cluster elsewhere: `submit` starts and follows one; `jobs`, `logs` and `stop` manage it later."""

import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import click

from taugrid.errors import Exit, UserError
from taugrid.orchestrator import ending
from taugrid.orchestrator.cli.options import (
    Command,
    RunOptions,
    break_lock_option,
    echo,
    json_option,
    only_option,
    print_value,
    set_option,
    trust_option,
    workers_option,
)
from taugrid.words import duration, in_columns

if TYPE_CHECKING:
    from taugrid.orchestrator.jobs.client import Jobs, Submission

address_option = click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    show_envvar=True,
    help="The job server on the cluster's head: its dashboard.",
)


class Terminated(KeyboardInterrupt):
    """SIGTERM: a batch system ends the command, and no user can answer a question."""


@click.command(cls=Command)
@click.argument("config")
@set_option
@click.option("--out", metavar="DIR", help="Run directory: an absolute path that every node sees, or a URL.")
@address_option
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show the log, and exit as the run does.")
@workers_option
@click.option("--ship", is_flag=True, help="Send this taugrid along, in place of the one that the cluster has.")
@break_lock_option
@only_option
@trust_option
@json_option
def submit(follow: bool, ship: bool, **given: Any) -> None:
    """Run CONFIG as a job of a Ray cluster elsewhere.

    The config and the modules that it names are sent there. Everything else, such as data and the run directory, must
    have the same absolute path on every node, or be a URL.

    Examples:
        taugrid submit my.yaml --out s3://bucket/run  # as a job on the cluster of --address
        taugrid submit my.yaml --out /shared/run --no-follow --ship  # with this taugrid
    """
    from taugrid.grids.selectors import is_selector, parse
    from taugrid.orchestrator.jobs.client import Jobs

    requested = RunOptions(**given)
    config, directory = _read(requested)
    for selector in filter(is_selector, requested.only):
        parse(selector)  # what it fits is known where the checkpoints are
    jobs = Jobs(requested.address)
    job = jobs.submit(config, directory, ship, requested.break_lock, requested.only)
    echo(f"job {job}: submitted to {jobs.address}, results in {directory}", err=True)
    if follow:
        _follow(jobs, job, requested.as_json)
    print_value(_as_json(jobs, jobs.one(job)), requested.as_json, lambda _: job)


@click.command(cls=Command)
@address_option
@json_option
def jobs(address: str, as_json: bool) -> None:
    """List the jobs that taugrid submitted, the latest first.

    Examples:
        taugrid jobs --address http://head:8265  # what taugrid has submitted there
    """
    from taugrid.orchestrator.jobs.client import Jobs

    server = Jobs(address)
    print_value([_as_json(server, job) for job in server.all()], as_json, _table)


@click.command(cls=Command)
@click.argument("job", metavar="ID")
@address_option
@click.option("--follow", is_flag=True, help="Go on until the job has ended, and exit as its run does.")
def logs(job: str, address: str, follow: bool) -> None:
    """Show what a job has printed.

    Examples:
        taugrid logs mine-1 --follow  # until the job has ended
    """
    from taugrid.orchestrator.jobs.client import Jobs

    server = Jobs(address)
    if follow:
        server.one(job)
        _follow(server, job, as_json=False)
    echo(server.log(job), nl=False)


@click.command(cls=Command)
@click.argument("job", metavar="ID")
@address_option
def stop(job: str, address: str) -> None:
    """Stop a job. What it has done is kept: submit it again to continue.

    Examples:
        taugrid stop mine-1  # what is done stays
    """
    from taugrid.orchestrator.jobs.client import Jobs

    _stop(Jobs(address), job)


def _read(requested: RunOptions) -> tuple[Any, str]:
    """The config to send, and its run directory; `UserError` if a cluster could not use them."""
    from pathlib import Path

    from taugrid.config.load import CONFIG_NAME, find, load
    from taugrid.orchestrator.plan.trust import custom_code, require_trusted
    from taugrid.storage import is_url, open_place

    name, out = requested.config, requested.out
    config = load(name, requested.overrides)
    if out is None and (is_url(name) or Path(name).is_dir()):
        out = name
    if out is None or not (Path(out).is_absolute() or is_url(out)):
        raise UserError(
            "--out must be an absolute path that every node sees, or a URL: the cluster can't see folders that are "
            f"relative to this one{'' if out is None else f', as {out!r} is'}"
        )
    open_place(out, "--out")  # refuses a URL with a password, which would stand in the job's record
    if find(name).name == CONFIG_NAME and not requested.trust_code:
        named = custom_code(load(name))
        require_trusted([code for code in custom_code(config) if code in named], find(name))
    return config, out


def _follow(jobs: "Jobs", job: str, as_json: bool) -> NoReturn:
    """Show a job's log until it ends, and exit as its run does. Ctrl-C asks whether to stop it."""
    from taugrid.orchestrator.jobs.follow import exit_code, follow

    def terminated(*_: object) -> NoReturn:
        raise Terminated

    ending.hurries = False
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        ended = follow(jobs, job, lambda text: echo(text, nl=False, err=as_json))
    except KeyboardInterrupt as heard:
        _interrupted(jobs, job, asks=not isinstance(heard, Terminated))
    finally:
        signal.signal(signal.SIGTERM, before)
        ending.hurries = True
    if as_json:
        print_value(_as_json(jobs, ended), as_json, str)
    code = exit_code(ended)
    if ended.status == "STOPPED":
        echo(f"taugrid: job {job} was stopped; submit it again to continue", err=True)
    sys.exit(code)


def _interrupted(jobs: "Jobs", job: str, asks: bool) -> NoReturn:
    """Ctrl-C while a job is followed. Asks at a terminal; a second Ctrl-C, like anything but yes, stops nothing."""
    from taugrid.orchestrator.jobs.follow import again

    try:
        if asks and sys.stdin.isatty() and sys.stderr.isatty():
            echo("", err=True)
            if click.confirm(f"Job {job} runs on. Stop it?", default=False, err=True):
                _stop(jobs, job)
                sys.exit(Exit.INTERRUPTED)
    except (KeyboardInterrupt, click.Abort):
        echo("", err=True)
    echo(f"taugrid: job {job} runs on; `{again(jobs, job)}` follows it again", err=True)
    echo(f"taugrid: `taugrid stop {job} --address {jobs.address}` stops it", err=True)
    sys.exit(Exit.INTERRUPTED)


def _stop(jobs: "Jobs", job: str) -> None:
    from taugrid.orchestrator.jobs.follow import until_ended

    if jobs.stop(job):
        until_ended(jobs, job)
        echo(f"job {job} is stopped; submit it again to continue", err=True)
    else:
        echo(f"job {job} had ended before ({jobs.one(job).status})", err=True)


def _as_json(jobs: "Jobs", job: "Submission") -> dict[str, Any]:
    times = {"started": job.started, "ended": job.ended}
    return {"id": job.id, "address": jobs.address, "run": job.run, "dir": job.out, "status": job.status} | {
        "exit_code": int(Exit.INTERRUPTED) if job.status == "STOPPED" else job.exit_code,
        **{name: at and datetime.fromtimestamp(at).astimezone().isoformat() for name, at in times.items()},
    }


def _table(found: list[dict[str, Any]]) -> str:
    """A line for each job; when it started, how long it took, how it ended, and where its results are."""
    if not found:
        return "no jobs"
    rows = [("job", "status", "exit", "started", "took", "results")]
    for job in found:
        started, ended = (job[at] and datetime.fromisoformat(job[at]) for at in ("started", "ended"))
        took = duration((ended - started).total_seconds()) if started and ended else ""
        code = "" if job["exit_code"] is None else str(job["exit_code"])
        began = f"{started:%Y-%m-%d %H:%M}" if started else ""
        rows.append((job["id"], job["status"].lower(), code, began, took, job["dir"]))
    return "\n".join(in_columns(rows))
