"""`taugrid compare`: a run with a baseline, two cells of a run, or two sets of images."""

import sys
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

OF_THE_GATE = ("margin", "alpha", "sharpness")


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
