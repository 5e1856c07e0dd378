"""The figures of a run as matplotlib's, drawn from its tables and logs."""

import io
from collections.abc import Callable, Mapping
from functools import partial

import matplotlib.image
from matplotlib.figure import Figure

from taugrid.errors import UserError
from taugrid.eval.figures.lines import losses_figure, quality_figure, reconstruction_figure
from taugrid.eval.tables.quality import QualityTable
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.report.write import loss_curves
from taugrid.orchestrator.run import Run

INCHES_WIDE = 8.0  # of a picture that is shown as it is


def figure(run: Run, name: str) -> Figure:
    """The figure of this name: drawn if it is in `DRAWN`, else the picture figures/`name`.png. A notebook shows it at
    the end of a cell, whether or not pyplot is loaded. Raises `UserError` if there is neither, or a table that it is
    drawn from is missing."""
    found = DRAWN[name](run) if name in DRAWN else _picture(run, name)
    vars(found)["_repr_png_"] = partial(_as_png, found)
    return found


def _as_png(shown: Figure) -> bytes:
    buffer = io.BytesIO()
    shown.savefig(buffer, format="png")
    return buffer.getvalue()


def _picture(run: Run, name: str) -> Figure:
    rundir = run.rundir
    path = rundir.figures / f"{name}.png"
    if not rundir.storage.exists(path):
        known = [path.stem for path in rundir.storage.list(rundir.figures, "*.png")]
        there = f"there are {', '.join(known)}" if known else "there are none yet"
        raise UserError(f"there is no figure {name!r} ({there})")
    with rundir.storage.local_path(path) as local:
        pixels = matplotlib.image.imread(local)
    height, width = pixels.shape[:2]
    picture = Figure(figsize=(INCHES_WIDE, INCHES_WIDE * height / width))
    axes = picture.add_axes((0, 0, 1, 1))
    axes.imshow(pixels, cmap="gray", interpolation="none")
    axes.set_axis_off()
    return picture


def _quality(run: Run) -> Figure:
    if not (document := run.document):
        raise run.lacks("quality")
    positions = {cell.id: i for i, cell in enumerate(run.plan.cells)}
    rows = sorted(document["rows"], key=lambda row: positions.get(row["cell"], len(positions)))
    quality = QualityTable.read(document | {"rows": rows}, requested.layout(run.config, run.plan))
    frame, protocols, x = quality.means.frame, quality.used_protocols, quality.layout.x
    return quality_figure(frame, protocols, x=x, metric=quality.judged_by, floors=quality.floors)


def _loss(run: Run) -> Figure:
    curves = loss_curves(run.plan, run.rundir)
    if not curves:
        raise UserError("no model of this run was trained here, so there is no loss")
    return losses_figure(curves)


DRAWN: Mapping[str, Callable[[Run], Figure]] = {
    "quality": _quality,
    "reconstruction": lambda run: reconstruction_figure(run.table("reconstruction")),
    "loss": _loss,
}
