"""The command `export`: images, data sets and tables of a run for other tools."""

import sys
from pathlib import Path
from typing import Any

import click

from taugrid.errors import Exit, UserError
from taugrid.orchestrator.cli.options import Command, echo, json_option, print_value
from taugrid.words import counted, listed

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
    from taugrid.orchestrator.exports.export import TEXTS, export_images, export_text
    from taugrid.orchestrator.opened import open_existing
    from taugrid.orchestrator.progress import Progress
    from taugrid.storage import is_url

    if reference and (cell is not None or form != "png" or by_label or as_json):
        raise click.UsageError("--reference takes DIR and --to alone")
    if by_label and form != "png":
        raise click.UsageError(f"--by-label makes folders of PNG files, and --format {form} has none; leave one out")
    if is_url(target):
        raise click.UsageError(f"--to {target}: exports go to a folder of this machine; copy it from there")
    if Path(target).resolve().is_relative_to(Path(directory).resolve()):
        raise UserError(f"--to {target} is in the run directory, which stays as it is; give another place")
    if reference:
        from taugrid.orchestrator.exports.reference import export_reference

        echo(f"{export_reference(open_existing(directory), Path(target))} in {target}")
        return
    run = open_existing(directory, dry=True)
    if form in TEXTS:
        export_text(run, form, Path(target), cell)
        print_value({"format": form, "to": target}, as_json, lambda _: f"{target} is written")
        return
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
