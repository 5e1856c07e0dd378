"""Commands that do work: run, its single stages, reconstruct, interpolate, evaluate and, elsewhere, submit."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from taugrid.errors import Exit, UserError
from taugrid.orchestrator import STAGES, ending
from taugrid.orchestrator.cli.look import show_plan
from taugrid.orchestrator.cli.options import (
    Command,
    Decorator,
    RunOptions,
    break_lock_option,
    cells_options,
    cluster_options,
    config_options,
    dry_run_option,
    echo,
    json_option,
    names_in,
    only_option,
    options,
    pivot_options,
    print_value,
    reader_may_leave,
    set_option,
    trust_option,
    until_options,
    workers_option,
)
from taugrid.registry.metrics import DEFAULT_METRICS, METRICS


def _stage(name: str, stages: tuple[str, ...], text: str, *more: Decorator) -> click.Command:
    """The command `name`, which does `stages`; `more` are its options besides those that all have."""

    @options(*more, config_options, cluster_options)
    def command(**given: Any) -> None:
        run_stages(RunOptions(**given), stages)

    command.__doc__ = text
    return click.command(name, cls=Command)(command)


run = _stage(
    "run",
    STAGES,
    """Do everything that is missing: train, sample, score, report.

    Examples:
        taugrid run digits  # the demo: minutes on 2 cores
        taugrid run my.yaml --set sample.num_samples=20000  # more images of each cell
        taugrid run my.yaml --only steps=10 --dry-run  # what is left of these cells
        taugrid run my.yaml --until told-apart --max 16000  # until the order is clear
    """,
    cells_options,
    until_options,
)
train = _stage(
    "train",
    ("train",),
    """Train the models of the config.

    Examples:
        taugrid train my.yaml --set train.steps=20000  # goes on from what is trained
    """,
    cells_options,
)
sample = _stage(
    "sample",
    ("sample",),
    """Sample every cell; models must be trained already.

    Examples:
        taugrid sample my.yaml --only eta=0  # the images alone, without scores
    """,
    cells_options,
)
report = _stage(
    "report",
    ("report",),
    """Write tables and figures from existing scores.

    If CONFIG is a history of nights, write its history.parquet, trend figure and index.html.

    Examples:
        taugrid report runs/mine --rows eta --x evaluations  # other rows, another axis
        taugrid report history  # the pages of a history of nights
    """,
    pivot_options,
)
reconstruct = _stage(
    "reconstruct",
    ("train", "reconstruct"),
    """Encode held-out images to x_T, and decode them again.

    That is the paper's table 2, with the grid's S steps each way. Models that are missing are trained.

    Examples:
        taugrid reconstruct my.yaml  # the error over S, in tables/reconstruction.csv
    """,
    trust_option,
)
interpolate = _stage(
    "interpolate",
    ("train", "interpolate"),
    """Interpolate between the x_T of samples.

    That is the paper's figure 6, with the grid's S steps. Models that are missing are trained.

    Examples:
        taugrid interpolate my.yaml  # figures/interpolation_*.png
    """,
    trust_option,
)


def run_stages(requested: RunOptions, stages: tuple[str, ...]) -> None:
    """Do `stages`, print the outcome, and exit with 4 if anything is missing, or 1 if all of that would fail again."""
    from taugrid.orchestrator.cli.text import print_result, result_json
    from taugrid.orchestrator.opened import open_to_run
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.selection import select
    from taugrid.orchestrator.session import Session
    from taugrid.orchestrator.work.growing import Until

    until = Until.of(requested.until, requested.most)
    if requested.dry_run:
        show_plan(requested, until=until)
        return
    only_reports = stages == ("report",)
    if only_reports and _report_history(requested):
        return
    config, overrides, address = requested.config, requested.overrides, requested.address
    run = open_to_run(config, overrides, requested.out, address, not only_reports, requested.trust_code)
    selected = select(run.plan, requested.only)
    with Progress() as progress:
        outcome = Session(run, address, progress, selected, until).do(stages, requested.break_lock)
    with reader_may_leave():
        if requested.as_json:
            echo(json.dumps(result_json(run.rundir, outcome), indent=2, allow_nan=False))
        else:
            makes_images = "sample" in stages or "train" in stages
            again = "run the same command again" if makes_images else f"run `taugrid run {run.rundir.shown}`"
            print_result(run.rundir, outcome, again)
    if outcome.missing:
        fails_again = outcome.missing.keys() <= set(outcome.permanent_failures)
        sys.exit(Exit.FAILED if fails_again else Exit.INCOMPLETE)


def _report_history(requested: RunOptions) -> bool:
    """Write the files of a history again, and print where its page is; False if CONFIG is not a history."""
    from taugrid.orchestrator.nightly.history import history_as_dict, nights_of, write_history
    from taugrid.orchestrator.nightly.places import find_history
    from taugrid.orchestrator.rundir.lease import sole_driver
    from taugrid.words import with_urls

    if (history := find_history(requested.config)) is None:
        return False
    meaningless = ("out", "assignments", "workers", "rows", "columns", "x")
    if unwanted := [name.replace("assignments", "set") for name in meaningless if getattr(requested, name)]:
        raise click.UsageError(
            f"--{unwanted[0]} has no meaning for {requested.config}, which is a history of nights; leave it out"
        )
    with sole_driver(history, requested.break_lock, lambda text: echo(text, err=True)):
        write_history(history)
    found = history_as_dict(history, nights_of(history)) | {"page": with_urls(str(history.index))}
    print_value(found, requested.as_json, lambda shown: f"page: {shown['page']}")
    return True


METRICS_HELP = f"Some of {','.join(METRICS)}.  [default: {','.join(DEFAULT_METRICS)}]"


@click.command(cls=Command)
@click.argument("config", required=False)
@click.option("--out", metavar="DIR", help="Run directory.  [default: runs/<name>]")
@set_option
@click.option(
    "--samples",
    multiple=True,
    metavar="PATH",
    help="Score these images instead: a folder, an .npz, Parquet; may be repeated, for a column each.",
)
@click.option(
    "--reference",
    metavar="PATH",
    help="Compare --samples with this: images as above, an .npz of mu and sigma, a data set with its split "
    "(fashion-mnist/train), a folder with Fashion-MNIST's IDX files and a split (DIR/train), or a run directory: what "
    "that was scored against.",
)
@click.option(
    "--extractor",
    metavar="NAME",
    help="For --samples.  [default: that of the reference's run or data set, else inception-v3-compat]",
)
@click.option("--weights", metavar="FILE", help="For --samples: the extractor's weights.")
@click.option("--metrics", callback=names_in, metavar="LIST", help=METRICS_HELP)
@cluster_options
@only_option
@dry_run_option
@trust_option
def evaluate(**given: Any) -> None:
    """Score CONFIG's cells or, with --samples, any images.

    Examples:
        taugrid evaluate my.yaml  # score what is sampled, again or with other metrics
        taugrid evaluate --samples pngs --reference runs/mine  # images from elsewhere
        taugrid evaluate --samples pngs --reference digits/train --metrics fid,kid  # a data set
    """
    names = ("samples", "reference", "extractor", "weights", "metrics")
    external = {name: value for name in names if (value := given.pop(name)) not in (None, ())}
    requested = RunOptions(**given)
    if given["config"] is not None:
        if external:
            raise UserError(f"--{next(iter(external))} is for external images; a CONFIG's section evaluate says it")
        run_stages(requested, ("evaluate",))
        return
    if not {"samples", "reference"} <= external.keys():
        raise UserError("give a CONFIG, or --samples PATH and --reference PATH for external images")
    of_a_run = ("out", "workers", "only", "dry_run", "address")
    if unfit := [name for name in of_a_run if given[name] not in (None, (), False, "local")]:
        raise UserError(f"--{unfit[0].replace('_', '-')} is for a run; external images are scored here")
    from taugrid.orchestrator.cli import images

    images.score(external, requested)


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
    from taugrid.grids import is_selector, parse
    from taugrid.orchestrator.jobs.client import Jobs, described, exit_code, follow, ways

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
        print_value(about | described(state), requested.as_json, lambda _: job)
    if follows:
        code = exit_code(state)
        if code == Exit.INTERRUPTED:
            echo(f"taugrid: job {job} was stopped; submit it again to continue", err=True)
        sys.exit(code)


def _read(requested: RunOptions) -> tuple[Any, str]:
    """The config to send, and its run directory; `UserError` if a cluster could not use them."""
    from taugrid.config.load import CONFIG_NAME, find, load
    from taugrid.orchestrator.opened import run_folder
    from taugrid.orchestrator.plan.trust import custom_code, require_trusted
    from taugrid.storage import is_url, open_place

    name, out = requested.config, requested.out
    config = load(name, requested.overrides)
    out = run_folder(name, out, config.name)
    if not (Path(out).is_absolute() or is_url(out)):
        raise UserError(
            "--out must be an absolute path that every node sees, or a URL: the cluster can't see folders that are "
            f"relative to this one, as {out!r} is"
        )
    open_place(out, "--out")  # refuses a URL with a password, which would stand in the job's record
    if find(name).name == CONFIG_NAME and not requested.trust_code:
        named = custom_code(load(name))
        require_trusted([code for code in custom_code(config) if code in named], find(name))
    return config, out
