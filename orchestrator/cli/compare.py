"""`taugrid compare`: a run with a baseline, two cells of a run, or two sets of images."""

import operator
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
    images_options,
    json_option,
    print_value,
    trust_option,
)

NO_REFERENCE = (
    "--reference is missing; give what A and B are scored against: images, a data set with its split "
    "(fashion-mnist/train), or a run directory, whose reference and extractor are then used"
)


@click.command(cls=Command)
@click.argument("directory", metavar="DIR | A")
@click.argument("others", metavar="BASELINE | CELL CELL | B", nargs=-1, required=True)
@click.option("--join", is_flag=True, help="Two cells: compare even if protocols differ or no noise is shared.")
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
def compare(directory: str, others: tuple[str, ...], join: bool, as_json: bool, **given: Any) -> None:
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

    requested = {key: value for key, value in given.items() if value is not None and value is not False and value != ()}
    of_images = {key: requested.pop(key) for key in (*OF_IMAGES, "target", "trust_code") if key in requested}
    if len(others) == 1 and others[0].endswith(".json") and are_images(directory):
        from taugrid.orchestrator.cli.nightly import compare_images_with_baseline

        trusts = bool(of_images.pop("trust_code", False))
        if join or of_images:
            raise UserError(f"{others[0]} says how its images are scored; give only --margin, --alpha and --sharpness")
        compare_images_with_baseline(directory, others[0], requested, trusts, as_json)
        return
    if len(others) == 1 and _are_images(directory, others[0], bool(of_images)):
        if join or requested.keys() - {"margin", "alpha"}:
            raise click.UsageError("--join is for two cells, --allow-missing and --sharpness are for a baseline")
        _compare_images(directory, others[0], of_images, requested, as_json)
        return
    if of_images:
        raise click.UsageError(f"--{next(iter(of_images)).replace('_', '-')} is for two sets of images (compare A B)")
    _require_runs(directory, *others[: len(others) == 1])  # a cell may have the name of a folder
    if len(others) == 1:
        from taugrid.orchestrator.cli.nightly import compare_with_baseline

        if join:
            raise click.UsageError("--join is for two cells")
        compare_with_baseline(directory, others[0], requested, as_json)
        return
    if len(others) != 2 or requested:
        raise click.UsageError("give DIR and a BASELINE, with --margin and --alpha, or DIR and two cells, with --join")
    from taugrid.orchestrator.opened import open_existing
    from taugrid.orchestrator.view.inspection import compare as compare_cells

    run = open_existing(directory)
    cell_a, cell_b = others
    compared = compare_cells(run, cell_a, cell_b, join)
    print_value(compared, as_json, _compared_text)


def _are_images(a: str, b: str, asked: bool) -> bool:
    """Whether two places are compared as images: `asked` for by an option, or because neither is a run.

    Raises:
        UserError: if one is a run where images are compared.
    """
    from taugrid.orchestrator.opened import are_images
    from taugrid.storage import is_url

    sides = {"A": a, "B": b}
    images = [are_images(place) for place in sides.values()]
    absent = [not is_url(place) and not Path(place).expanduser().exists() for place in sides.values()]
    if not asked and not (any(images) and all(map(operator.or_, images, absent))):
        return False
    for (called, place), *can_be_images in zip(sides.items(), images, absent, strict=True):
        if not any(can_be_images):
            raise UserError(
                f"{called}: {place} is a run or a baseline, and images are compared with images: write those of a cell "
                "with `taugrid export RUN CELL --to FOLDER`, and give FOLDER"
            )
    return True


def _require_runs(*given: str) -> None:
    """Raise `UserError` for folders without a run, and say what compares what."""
    if given[0].endswith(".json"):
        raise UserError(f"{given[0]} is a baseline file: give the run first (compare DIR BASELINE)")
    from taugrid.orchestrator.opened import is_other_folder

    if others := [folder for folder in given if is_other_folder(folder)]:
        raise UserError(
            f"{others[0]} is not a run directory (it has no config.json); compare two cells of a run (compare DIR CELL "
            "CELL), a run with a baseline or another run (compare DIR BASELINE), or images with images "
            "(compare A B --reference R; a run's are written by export)"
        )


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


def _compare_images(a: str, b: str, scoring: dict[str, Any], judging: Mapping[str, float], as_json: bool) -> None:
    """Print the comparison of two sets of images, and exit with its code."""
    if "reference" not in scoring:
        raise UserError(NO_REFERENCE)
    from taugrid.eval.gate.verdict import exit_of
    from taugrid.orchestrator.baseline.snapshot import ImagesRequest
    from taugrid.orchestrator.cli.text.images import comparison_text
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.view.images import compare_images

    target = scoring.pop("target", None)
    with Progress() as progress:
        compared = compare_images(a, b, ImagesRequest(**scoring), progress, target, **judging)
    print_value(compared, as_json, comparison_text)
    if (code := exit_of(compared["result"], (), compared["not_judged"])) is not Exit.DONE:
        sys.exit(code)
