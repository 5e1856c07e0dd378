"""The gate: `compare`, `nightly`, `baseline accept` and `baseline show`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from taugrid.errors import Exit, UserError
from taugrid.orchestrator.cli.options import (
    OF_IMAGES,
    SHARE,
    Command,
    Finite,
    Group,
    RunOptions,
    Whole,
    cluster_options,
    dry_run_option,
    echo,
    images_options,
    json_option,
    print_value,
    set_option,
    trust_option,
    with_workers,
)
from taugrid.words import with_urls

OF_THE_GATE = ("margin", "alpha", "sharpness")


@click.command(cls=Command)
@click.argument("directory", metavar="DIR | A")
@click.argument("others", metavar="BASELINE | CELL CELL | B", nargs=-1, required=True)
@click.option("--join", is_flag=True, help="Two cells: compare even if protocols differ.")
@click.option(
    "--margin",
    type=Finite(0),
    help="The accepted regression, as a share of the old side's value. 0: no margin, nor KID's floor.  [default: 0.02]",
)
@click.option(
    "--alpha",
    type=Finite(0, 0.5, min_open=True),
    help="The share of comparisons without a regression that may be called worse.  [default: 0.01]",
)
@click.option("--allow-missing", is_flag=True, help="Baseline: cells of it may be missing in DIR.")
@click.option("--sharpness", type=SHARE, help="Baseline: the regression / baseline that half of the cells must detect.")
@images_options
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Images: write the worst pairs as a picture, and all as CSV.",
)
@trust_option
@json_option
def compare(directory: str, others: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Compare a run with a baseline, two cells of a run, or two sets of images.

    DIR BASELINE: DIR is the new side, and differences are DIR - BASELINE, a run directory or a file of `taugrid
    baseline accept`. Cells are matched by their settings. Exits with 3 if a cell got worse by more than the margin, or
    if the same weights, software and device made other images, and with 5 if something could not be judged.

    DIR CELL CELL shows the difference between two cells' FIDs, and of each other metric that has a standard error,
    second minus first, with its paired standard error. CELL is settings that fit one cell only
    (steps=50,schedule=cosine), its id, or the name of its folder, of which the first characters are enough if they fit
    no other.

    A B --reference R: B is the new side, and differences are B - A. A and B are folders of PNG or JPEG, .npz or
    Parquet. Images with the same names are paired. Features are extracted in this process. Exits as with a baseline.

    DIR BASELINE may also be images and a file of `taugrid baseline accept DIR --reference R`.

    Examples:
        taugrid compare runs/tonight runs/mine  # each cell, with a verdict: exits with 3 if worse
        taugrid compare runs/mine eta=0,steps=10 eta=1,steps=10  # two cells, paired
        taugrid compare old-pngs new-pngs --reference runs/mine  # images
    """
    from taugrid.orchestrator.opened import are_images

    if len(others) > 2:
        raise click.UsageError("give DIR and a BASELINE, DIR and two cells, or two sets of images")
    given = {key: value for key, value in given.items() if value is not None and value is not False and value != ()}
    of_images = (*OF_IMAGES, "target")
    is_of_images = are_images(directory) or are_images(others[0]) or bool(given.keys() & {*of_images})
    fitting: tuple[str, ...]
    if len(others) == 2:
        kind, fitting = "two cells", ("join",)
    elif is_of_images and others[0].endswith(".json"):
        kind, fitting = "images and a baseline file, which says how they are scored", (*OF_THE_GATE, "trust_code")
    elif is_of_images:
        kind, fitting = "two sets of images", (*of_images, "trust_code", "margin", "alpha")
    else:
        kind, fitting = "a run and a baseline", (*OF_THE_GATE, "allow_missing")
    if unfit := sorted(given.keys() - {*fitting}):
        name = {"target": "to"}.get(unfit[0], unfit[0]).replace("_", "-")
        raise UserError(f"--{name} has no meaning for {kind}; leave it out")
    if len(others) == 2:
        from taugrid.orchestrator.opened import open_existing
        from taugrid.orchestrator.view.inspection import compare as compare_cells

        print_value(compare_cells(open_existing(directory), *others, bool(given)), as_json, _compared_text)
    elif is_of_images:
        from taugrid.orchestrator.cli import images

        trusts = given.get("trust_code", False)
        judging = {key: given[key] for key in OF_THE_GATE if key in given}
        scoring = {key: value for key, value in given.items() if key not in judging}
        if others[0].endswith(".json"):
            images.compare_with_baseline(directory, others[0], judging, trusts, as_json)
        else:
            images.compare(directory, others[0], scoring, judging, as_json)
    else:
        _compare_with_baseline(directory, others[0], given, as_json)


def _compare_with_baseline(directory: str, baseline: str, gate: dict[str, Any], as_json: bool) -> None:
    """Print the comparison of a run with a baseline, and exit with its code."""
    from taugrid.orchestrator.baseline.compared import gate_of
    from taugrid.orchestrator.baseline.comparison import compare_snapshots
    from taugrid.orchestrator.baseline.files import snapshot_of
    from taugrid.orchestrator.baseline.snapshot import snapshot_of_run
    from taugrid.orchestrator.baseline.text import comparison_text
    from taugrid.orchestrator.nightly.judging import canaries_beside
    from taugrid.orchestrator.opened import open_existing

    run = open_existing(directory)
    new, before = snapshot_of_run(run), snapshot_of(baseline)
    canaries = canaries_beside(run, new, before)
    comparison = compare_snapshots(new, before, gate_of(run.config, **gate), canaries)
    print_value(comparison.as_dict(), as_json, lambda _: comparison_text(comparison))
    if comparison.exit is not Exit.DONE:
        sys.exit(comparison.exit)


def _compared_text(row: dict[str, Any]) -> str:
    from taugrid.eval.tables.differences import difference_line
    from taugrid.eval.tables.table import INDISTINGUISHABLE, Z_95
    from taugrid.registry.metrics import COLUMNS

    lines = []
    for name, its in row["metrics"].items():
        is_better = (its["difference"] > 0) == COLUMNS[name].higher_is_better
        verdict = f", {'better' if is_better else 'worse'}" if abs(its["z"] or 0) >= Z_95 else ""
        lines.append(f"{COLUMNS[name].title}, {difference_line({**row, **its})}{verdict}")
    is_marked = any(INDISTINGUISHABLE in line for line in lines)
    meaning = f"{INDISTINGUISHABLE} sampling alone can explain it" if is_marked else ""
    return "\n".join(filter(None, [*lines, meaning, row["note"]]))


OF_A_RUN = ("config", "assignments", "keep_images", "grow_to", "allow_missing", "workers", "address", "dry_run")
"""The options of a night that have no meaning for images from elsewhere."""


@click.command(cls=Command)
@click.argument("config", required=False)
@set_option
@click.option("--samples", metavar="DIR", help="In place of CONFIG: judge these images, which another server made.")
@images_options
@click.option("--history", required=True, metavar="DIR", help="Where all nights are kept.")
@click.option("--baseline", metavar="FILE", help="A baseline file or run.  [default: HISTORY/baseline.json, if there]")
@click.option("--id", "night", metavar="NAME", help="The night's name.  [default: an unfinished night's, or the date]")
@click.option("--keep-images", type=Whole(0), metavar="N", help="Remove the images of all but N nights.")
@click.option("--margin", type=Finite(0), default=0.02, show_default=True, help="Accepted regression / baseline.")
@click.option(
    "--alpha",
    type=Finite(0, 0.5, min_open=True),
    default=0.01,
    show_default=True,
    help="The share of nights without a regression that may be called worse.",
)
@click.option("--grow-to", type=Whole(1), metavar="N", help="Sample undecided cells again, with N images.")
@click.option("--allow-missing", is_flag=True, help="Cells of the baseline may be missing tonight.")
@click.option(
    "--sharpness", type=SHARE, help="The regression / baseline that half of the cells must detect, or exit with 5."
)
@cluster_options
@dry_run_option
@trust_option
def nightly(**given: Any) -> None:
    """Evaluate tonight's model against a baseline.

    Runs or resumes a night, compares it with the baseline, and adds it to the history. Exits with 3 if a cell got
    worse, or the sampler or the scorer changed; with 4 if some cells could not be finished (the same command goes on);
    and with 5 if something could not be judged.

    With --samples, another server made tonight's images: a folder of PNG or JPEG, .npz or Parquet. They are scored in
    this process, as the baseline's were (`taugrid baseline accept DIR --reference R`), and paired with them by name.

    Examples:
        taugrid nightly my.yaml --history history  # run, judge and keep tonight's model
        taugrid nightly my.yaml --history history --baseline mine.json --sharpness 0.1  # 5 if it sees too little
        taugrid nightly --samples pngs --history served --baseline images.json  # images of another server
    """
    from taugrid.orchestrator.baseline.compared import GateSettings
    from taugrid.orchestrator.nightly.night import NightRequest, run_night, run_night_of_images
    from taugrid.orchestrator.nightly.summary import summary
    from taugrid.orchestrator.progress import Progress

    is_of_images = given["samples"] is not None
    if not is_of_images and given["config"] is None:
        raise UserError("give CONFIG, whose model is sampled tonight, or --samples DIR with images that there are")
    meaningless = OF_A_RUN if is_of_images else OF_IMAGES
    if unfit := [name for name in meaningless if given[name] not in (None, (), False, "local")]:
        kind = "nights of --samples, which are not sampled" if is_of_images else "nights without --samples"
        raise UserError(f"{_flag(unfit[0])} has no meaning for {kind}; leave it out")
    if given["dry_run"]:
        _show_night(given)
        return
    gate = GateSettings(**{name: given[name] for name in ("margin", "alpha", "allow_missing", "sharpness")})
    both = ("history", "baseline", "night", "break_lock", "trust_code", "address", "keep_images", "grow_to")
    request = NightRequest(
        config=given["config"] or "",
        assignments=with_workers(given["assignments"], given["workers"]),
        samples=given["samples"] or "",
        gate=gate,
        scoring={name: given[name] for name in OF_IMAGES if given[name]},
        **{name: given[name] for name in both},
    )
    with Progress() as progress:
        night, verdict = (run_night_of_images if is_of_images else run_night)(request, progress)
    print_value(verdict.as_dict(), given["as_json"], lambda _: summary(verdict).rstrip())
    echo(f"summary: {with_urls(str(night.summary))}", err=True)
    if (code := verdict.exit) != Exit.DONE:
        sys.exit(code)


def _show_night(given: Mapping[str, Any]) -> None:
    """Print what `taugrid plan` prints about the night, in the folder that it would have."""
    from taugrid.orchestrator.cli.look import show_plan
    from taugrid.orchestrator.nightly.night import today
    from taugrid.orchestrator.nightly.places import open_history

    history = open_history(given["history"])
    unfinished = [night.id for night in history.read().unfinished]
    night = history.night(given["night"] or (unfinished or [today()])[-1])
    there = history.storage.exists(history.default_baseline)
    baseline = given["baseline"] or (with_urls(str(history.default_baseline)) if there else None)
    same = {name: given[name] for name in ("config", "assignments", "workers", "as_json")}
    show_plan(RunOptions(out=night.run_name, **same), given["history"], baseline)


def _flag(name: str) -> str:
    return {"config": "CONFIG", "assignments": "--set"}.get(name) or f"--{name.replace('_', '-')}"


@click.group(cls=Group)
def baseline() -> None:
    """Accept a run as the baseline of later ones, or show one."""


@baseline.command()
@click.argument("directory", metavar="DIR")
@click.option("--to", "file", required=True, metavar="FILE", help="A .json file; a .parquet file is written beside it.")
@click.option("--reason", required=True, metavar="TEXT", help="Why this run is the new measure; kept in FILE.")
@click.option("--force", is_flag=True, help="Accept a night's run although the night was judged worse or changed.")
@images_options
@trust_option
@json_option
def accept(directory: str, file: str, reason: str, force: bool, as_json: bool, trust_code: bool, **images: Any) -> None:
    """Write a run's scores, and what pairing with them needs, to FILE and a Parquet file beside it; both are for git.

    With --reference, DIR holds images from elsewhere: a folder of PNG or JPEG, .npz or Parquet. `compare DIR FILE`
    scores later images in the same way, and pairs them by name.

    If FILE is a baseline already, the run is compared with it first, and FILE says if it is worse.

    Examples:
        taugrid baseline accept runs/mine --to mine.json --reason "first release"  # the measure of later runs
        taugrid baseline accept pngs --reference runs/mine --to pngs.json --reason v1  # of later images
    """
    from taugrid.orchestrator.baseline.files import accept as accept_run
    from taugrid.orchestrator.baseline.files import accept_images
    from taugrid.orchestrator.baseline.snapshot import ImagesRequest
    from taugrid.orchestrator.baseline.text import baseline_text
    from taugrid.orchestrator.opened import are_images
    from taugrid.orchestrator.progress import Progress

    if not reason.strip():
        raise UserError("--reason is empty; say why this run becomes the baseline")
    given = {name: value for name, value in images.items() if value}
    if "reference" in given:
        if force:
            raise UserError("--force is for a run; --reference says that DIR holds images")
        with Progress() as progress:
            accepted = accept_images(directory, ImagesRequest(**given, trust_code=trust_code), file, reason, progress)
    elif given or are_images(directory):
        what = f"{_flag(next(iter(given)))} is for images" if given else f"{directory} is no run directory"
        raise UserError(f"{what}; give --reference R if DIR holds images, or the directory of a run")
    else:
        accepted = accept_run(directory, file, reason, force)
    print_value(accepted.as_dict(), as_json, lambda _: baseline_text(accepted))


@baseline.command()
@click.argument("file", metavar="FILE")
@json_option
def show(file: str, as_json: bool) -> None:
    """Show what a baseline file holds: when and why it was accepted, its cells and their scores.

    Examples:
        taugrid baseline show mine.json  # when and why it was accepted, and its scores
    """
    from taugrid.orchestrator.baseline.files import open_baseline, read_json_of_baseline
    from taugrid.orchestrator.baseline.text import baseline_text

    found = read_json_of_baseline(*open_baseline(file, "FILE"))
    print_value(found.as_dict(), as_json, lambda _: baseline_text(found))
