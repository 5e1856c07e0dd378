"""`taugrid submit`: a run as a job of a Ray cluster elsewhere."""

import sys
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


@click.command(cls=Command)
@click.argument("config")
@set_option
@click.option("--out", metavar="DIR", help="Run directory: an absolute path that every node sees, or a URL.")
@click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    show_envvar=True,
    help="The job server on the cluster's head: its dashboard.",
)
@click.option(
    "--follow/--no-follow", "follows", default=True, show_default=True, help="Show the log, and exit as the run does."
)
@workers_option
@click.option("--ship", is_flag=True, help="Send this taugrid along, in place of the one that the cluster has.")
@break_lock_option
@only_option
@trust_option
@json_option
def submit(follows: bool, ship: bool, **given: Any) -> None:
    """Run CONFIG as a job of a Ray cluster elsewhere.

    The config and the modules that it names are sent there. Everything else, such as data and the run directory, must
    have the same absolute path on every node, or be a URL.

    Examples:
        taugrid submit my.yaml --out s3://bucket/run  # as a job on the cluster of --address
        taugrid submit my.yaml --out /shared/run --no-follow --ship  # with this taugrid
    """
    from taugrid.grids.selectors import is_selector, parse
    from taugrid.orchestrator.jobs.client import Jobs, exit_code, follow, ways

    requested = RunOptions(**given)
    config, directory = _read(requested)
    for selector in filter(is_selector, requested.only):
        parse(selector)  # what it fits is known where the checkpoints are
    jobs = Jobs(requested.address)
    job = jobs.submit(config, directory, ship, requested.break_lock, requested.only)
    echo(f"job {job}: submitted to {jobs.address}, results in {directory}", err=True)
    try:
        state = follow(jobs, job, partial(echo, nl=False, err=requested.as_json)) if follows else jobs.state(job)
    except KeyboardInterrupt:
        ending.end(f"job {job} runs on: {ways(jobs, job)}", Exit.INTERRUPTED)
    if requested.as_json or not follows:
        about = {"id": job, "address": jobs.address, "run": config.name, "dir": directory}
        print_value(about | _as_json(state), requested.as_json, lambda _: job)
    if follows:
        code = exit_code(state)
        if code == Exit.INTERRUPTED:
            echo(f"taugrid: job {job} was stopped; submit it again to continue", err=True)
        sys.exit(code)


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


def _as_json(state: "JobDetails") -> dict[str, Any]:
    times = {"started": state.start_time, "ended": state.end_time}
    return {
        "status": state.status.value,
        "exit_code": int(Exit.INTERRUPTED) if state.status == "STOPPED" else state.driver_exit_code,
        **{name: at and datetime.fromtimestamp(at / 1000).astimezone().isoformat() for name, at in times.items()},
    }
