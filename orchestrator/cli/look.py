"""Read-only commands: plan, status, verify, board, export and config."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taugrid.errors import Exit, UserError
from taugrid.orchestrator.cli.options import (
    Command,
    Group,
    RunOptions,
    Whole,
    config_options,
    echo,
    json_option,
    print_value,
    reader_may_leave,
    set_option,
    workers_option,
)
from taugrid.words import counted, listed
from taugrid.workers.importing import uncollected

if TYPE_CHECKING:
    from taugrid.orchestrator.board.index import Index
    from taugrid.orchestrator.run import Run
    from taugrid.orchestrator.work.growing import Until


@click.command(cls=Command)
@config_options
@click.option("--history", metavar="DIR", help="Also show what a night costs, as measured in DIR's last night.")
@click.option("--baseline", metavar="FILE", help="Also show which cells a night would compare with FILE, file or run.")
@click.option("--strict", is_flag=True, help="Exit with 2 if there is any warning.")
@workers_option
@json_option
def plan(history: str | None, baseline: str | None, strict: bool, **given: Any) -> None:
    """Show what a run would do, what is done, and what is missing. Starts and downloads nothing.

    With --baseline, fail wherever a night would refuse to begin.

    Examples:
        taugrid plan digits  # cells, images and network evaluations of the demo
        taugrid plan my.yaml --workers 8 --strict  # exits with 2 if there is a warning
        taugrid plan my.yaml --history history --baseline runs/mine  # of a night
    """
    described = show_plan(RunOptions(**given), history, baseline)
    if strict and (remarks := described["remarks"]):
        echo(f"taugrid: --strict: {counted(len(remarks), 'warning')}", err=True)
        sys.exit(Exit.USAGE)


def show_plan(
    requested: RunOptions, history: str | None = None, baseline: str | None = None, until: "Until | None" = None
) -> dict[str, Any]:
    """Print what `taugrid plan` prints, of the cells alone that are `requested`; returns the document.

    `until` is checked as far as a plan tells.
    """
    with uncollected():
        from taugrid.orchestrator.cli.text import plan_text
        from taugrid.orchestrator.opened import open_to_plan
        from taugrid.orchestrator.rundir.grown import resized
        from taugrid.orchestrator.selection import select
        from taugrid.orchestrator.view.dry_run import describe_plan

    run = open_to_plan(requested.config, requested.overrides, requested.out)
    described, part = describe_plan(run), select(run.configured, requested.only)
    if requested.only:
        described = describe_plan(replace(run, configured=part)) | {"remarks": described["remarks"]}
    texts = []
    if until is not None:
        until.smallest(part)
        until.along(run.configured)
        largest = resized(part, {cell.id: until.most for cell in part.cells})
        left = describe_plan(replace(run, configured=largest))["network_evaluations_remaining"]
        described["until"] = {"max": until.most, "network_evaluations_remaining_at_most": left}
        texts.append(f"with N = {until.most:,} for all: at most {left:,} network evaluations still to do")
    if history is not None:
        from taugrid.orchestrator.nightly.before import price, price_text, standard_error_problem

        if (problem := standard_error_problem(run, is_planned=True)) is not None:
            described["remarks"].append(problem)
        described["night"] = price(described, run.plan, history)
        texts.append(price_text(described["night"]))
    if baseline is not None:
        from taugrid.orchestrator.nightly.before import coverage_text, expected_coverage

        described["baseline"] = expected_coverage(run, baseline)
        if count := len(described["baseline"]["only_baseline"]):
            cells = f"{counted(count, 'cell')} of the baseline"
            remark = f"{cells} would be missing: a night exits with 5 unless --allow-missing is given"
            described["remarks"].append(remark)
        texts.append(coverage_text(described["baseline"]))
    print_value(described, requested.as_json, lambda shown: "\n".join([plan_text(shown), *texts]))
    return described


@click.command(cls=Command)
@click.argument("directory", metavar="DIR | CONFIG | HISTORY")
@click.option("--watch", "watches", is_flag=True, help="Keep showing progress while a driver is running.")
@json_option
def status(directory: str, watches: bool, as_json: bool) -> None:
    """Show the progress of a run, from its directory alone: DIR, or the one that CONFIG's runs have without --out.

    Of a history of nights, show a line for each night: id, time, verdict, cells, checkpoint.

    With --watch, show bars and the table while `taugrid run` works, wherever it does; in a log, a line every 10 s.
    Ctrl-C ends the view, not the run.

    Examples:
        taugrid status runs/mine  # what is done, and what is missing
        taugrid status my.yaml --watch  # the same, live
        taugrid status history  # a line for each night
    """
    if watches and as_json:
        raise click.UsageError("--watch keeps showing progress, and --json prints one document; give only one of them")
    with uncollected():
        from taugrid.orchestrator.cli.text import plan_text
        from taugrid.orchestrator.nightly.places import find_history
        from taugrid.orchestrator.opened import directory_of, open_existing
        from taugrid.orchestrator.view.inspection import describe_status

    if (history := find_history(directory)) is not None:
        from taugrid.orchestrator.nightly.history import history_as_dict, nights_of, nights_text

        if watches:
            raise click.UsageError("--watch shows a run, not a history; give the run of a night, HISTORY/nights/ID/run")
        nights = nights_of(history)
        print_value(history_as_dict(history, nights), as_json, lambda _: nights_text(nights))
        return
    run = open_existing(directory_of(directory), dry=True)
    if watches:
        from taugrid.orchestrator.progress.watch import watch

        echo(watch(run))
        return
    print_value(describe_status(run), as_json, plan_text)


@click.command(cls=Command)
@click.argument("directory", metavar="DIR | CONFIG")
@json_option
def verify(directory: str, as_json: bool) -> None:
    """Re-read every file of a run, and say what to do about damage.

    Every image is decoded too. The run is in DIR, or in the directory that CONFIG's runs have without --out.

    Examples:
        taugrid verify runs/mine  # reads and decodes every file
    """
    from taugrid.orchestrator.opened import directory_of, open_existing
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.view.verify import Diagnosis
    from taugrid.orchestrator.view.verify import verify as verify_files

    run = open_existing(directory_of(directory))
    run.rundir.downloads = False  # verification downloads nothing
    total = sum(cell.settings.num_samples for cell in run.plan.cells)
    seen = 0
    with Progress() as progress:
        progress.begin("verifying", total, "images")

        def tick(count: int) -> None:
            nonlocal seen
            progress.update(seen := seen + count)

        verified = verify_files(run, tick)
    diagnosis = Diagnosis(run, seen, verified)
    with reader_may_leave():
        if as_json:
            echo(json.dumps(diagnosis.document, indent=2))
        else:
            for line in diagnosis.problems:
                echo(line)
            echo(diagnosis.verdict, err=bool(verified.damages))
            for line in diagnosis.advice:
                echo(line, err=True)
    if verified.damages or verified.unfinished:
        sys.exit(Exit.FAILED if verified.damages else Exit.INCOMPLETE)


@click.command(cls=Command)
@click.argument("places", metavar="DIR | URL ...", nargs=-1, required=True)
@click.option("--port", type=Whole(0, 65535), help="The port.  [default: 8000, or the next one that is free]")
@click.option("--to", "target", metavar="FOLDER", help="Write the page as static files, and serve nothing.")
@json_option
def board(places: tuple[str, ...], port: int | None, target: str | None, as_json: bool) -> None:
    """Show all runs below folders and buckets on one page, from what they recorded.

    It is served on this machine alone and follows runs at work, until Ctrl-C. Only those who have the address that is
    printed can read it. Nothing is planned, run or written below the folders.

    Examples:
        taugrid board runs  # on 127.0.0.1, until Ctrl-C
        taugrid board runs --to site  # static files: for a disk, a bucket or GitHub Pages
        taugrid board runs history --json  # all cells of all runs, for programs
    """
    from taugrid.orchestrator.board.document import document_of, records
    from taugrid.orchestrator.board.find import Place
    from taugrid.orchestrator.board.index import Index
    from taugrid.orchestrator.board.site import check_target, write_site

    if target is not None and as_json:
        raise click.UsageError("--to writes a page, and --json prints a document; give only one of them")
    index = Index([Place.of(place) for place in places])
    if target is None and not as_json:
        _serve(index, port)
        return
    folder = None if target is None else check_target(target, index.places)
    found = index.look_or_refuse()
    if folder is None:
        print_value(records(found), as_json, str)
        return
    unread = write_site(document_of(found, index.places), folder)
    for note in found.notes:
        echo(f"taugrid: {note}", err=True)
    lacking = f"; the images of {counted(unread, 'cell')} could not be read" if unread else ""
    echo(f"{counted(len(found.runs), 'run')} in {folder / 'index.html'}{lacking}")


def _serve(index: "Index", port: int | None) -> None:
    """Serve the board until Ctrl-C."""
    try:
        from taugrid.orchestrator.board import server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError("the board needs starlette and uvicorn; pip install 'taugrid[board]'") from None
    listening, token = server.listen(port), server.new_token()
    found = index.look_or_refuse()
    for note in found.notes:
        echo(f"taugrid: {note}", err=True)
    with reader_may_leave():
        echo(f"{counted(len(found.runs), 'run')} on {server.address_of(listening, token)} (Ctrl-C ends it)")
    server.serve(server.application(index, found, token), listening)


FORMATS = ("png", "npz", "hf", "model-card", "latex")


@click.command(cls=Command)
@click.argument("directory", metavar="DIR")
@click.argument("cell", required=False)
@click.option("--format", "form", type=click.Choice(FORMATS), default="png", show_default=True, help="What is written.")
@click.option("--to", "target", required=True, metavar="PATH", help="A new folder or file.")
@click.option("--by-label", is_flag=True, help="png: a folder for each label, as ImageFolder reads them.")
@click.option("--reference", is_flag=True, help="What the run is scored against, in place of a cell.")
@json_option
def export(
    directory: str, cell: str | None, form: str, target: str, by_label: bool, reference: bool, as_json: bool
) -> None:
    """Write images and results of a run in the form that other tools read.

    CELL is settings that fit one cell only (steps=50,schedule=cosine), its id, or the name of its folder, of which the
    first characters are enough if they fit no other. Without CELL, all cells that have all their images are exported;
    the exit code is 4 if others are left out.

    The formats are: png, images named by index, without CELL in a folder for each cell; npz, the arrays arr_0 and, with
    labels, arr_1, as ADM's evaluator reads them; hf, a data set for the Hugging Face Hub, with a split for each cell;
    model-card, the results in the form of the Hub's model-index, as Markdown; latex, tables for a document with
    booktabs and siunitx.

    The same command again writes what is missing. SHA256SUMS in the folder lists the files of a complete export.

    With --reference, write the images that the run is scored against or, if PATH ends in .npz, the mean and covariance
    of their features (mu and sigma, as pytorch-fid names them).

    Examples:
        taugrid export runs/mine eta=0,steps=10 --to images  # the images of a cell as PNG files
        taugrid export runs/mine --format npz --to samples  # an .npz for each cell
        taugrid export runs/mine --format hf --to dataset  # a folder for the Hub
        taugrid export runs/mine --format latex --to table.tex  # the tables for a paper
        taugrid export runs/mine --reference --to reference.npz  # mu and sigma
    """
    from taugrid.orchestrator.exports.export import TEXTS, export_text
    from taugrid.orchestrator.exports.reference import export_reference
    from taugrid.orchestrator.opened import open_existing
    from taugrid.storage import is_url

    if reference and (cell is not None or form != "png" or by_label or as_json):
        raise click.UsageError("--reference takes DIR and --to alone")
    if by_label and form != "png":
        raise click.UsageError(f"--by-label makes folders of PNG files, and --format {form} has none; leave one out")
    if is_url(target):
        raise click.UsageError(f"--to {target}: exports go to a folder of this machine; copy it from there")
    if Path(target).resolve().is_relative_to(Path(directory).resolve()):
        raise UserError(f"--to {target} is in the run directory, which stays as it is; give another place")
    run = open_existing(directory, dry=not reference)
    if reference:
        echo(f"{export_reference(run, Path(target))} in {target}")
    elif form in TEXTS:
        export_text(run, form, Path(target), cell)
        print_value({"format": form, "to": target}, as_json, lambda _: f"{target} is written")
    else:
        _export_images(run, form, target, cell, by_label, as_json)


def _export_images(run: "Run", form: str, target: str, cell: str | None, by_label: bool, as_json: bool) -> None:
    """Write images, and say which cells were left out, with exit code 4."""
    from taugrid.orchestrator.exports.export import export_images
    from taugrid.orchestrator.progress import Progress

    with Progress() as progress:
        cells, left_out = export_images(run, form, Path(target), progress, cell, by_label)
    document: dict[str, Any] = {
        "format": form,
        "to": target,
        "cells": [{"cell": each.id, "label": each.label, "images": each.settings.num_samples} for each in cells],
        "left_out": left_out,
    }
    count = counted(sum(each.settings.num_samples for each in cells), "image")
    of = cells[0].label if cell is not None else counted(len(cells), "cell")
    print_value(document, as_json, lambda _: f"{count} of {of} in {target}")
    if left_out:
        echo(f"taugrid: left out: {listed(left_out, 4, 'cell', '; ')}", err=True)
        sys.exit(Exit.INCOMPLETE)


@click.group(cls=Group)
def config() -> None:
    """Show or check a config."""


@config.command()
@click.argument("config")
@set_option
@json_option
def show(config: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Print the whole config, with defaults filled in.

    Examples:
        taugrid config show digits --set seed=1  # every key, with its value
    """
    from taugrid.config.load import load
    from taugrid.yaml_text import to_yaml

    values = load(config, assignments).model_dump(mode="json")
    text = to_yaml(values, default_flow_style=None, width=100).rstrip()
    print_value(values, as_json, lambda _: text)


@config.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors.

    Examples:
        taugrid config schema > schema.json  # for the YAML extension of an editor
    """
    from taugrid.config import schema as config_schema

    echo(json.dumps(config_schema(), indent=1, sort_keys=True))


@config.command()
@click.argument("config")
@set_option
def validate(config: str, assignments: tuple[str, ...]) -> None:
    """Check a config, including its grid.

    Examples:
        taugrid config validate my.yaml  # names each mistake in one line
    """
    from taugrid.orchestrator.opened import open_config

    run = open_config(config, assignments, None)
    models, cells = counted(len(run.plan.models), "model"), counted(len(run.plan.cells), "cell")
    echo(f"{config} is valid: {models}, {cells}", err=True)
