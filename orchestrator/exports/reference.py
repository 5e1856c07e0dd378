"""`taugrid export --reference`: what a run was scored against, for other tools."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from taugrid.errors import UserError
from taugrid.eval.metrics.reference_statistics import PRECISION, MomentsFile, read_all, read_moments
from taugrid.eval.metrics.statistics import Moments, moments
from taugrid.eval.sources import batches
from taugrid.images import encode_png
from taugrid.orchestrator.exports.target import make_folder, put_file, require_new_folder
from taugrid.orchestrator.plan.scoring import Scoring, scoring_of
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.words import counted

IMAGES_AT_ONCE = 1024  # how many images are in memory at a time


def export_reference(run: Run, target: Path) -> str:
    """Write what a run is scored against, and say in a few words what was written.

    Args:
        run: the run.
        target: an `.npz` for the mean and covariance of its features, under pytorch-fid's names `mu` and `sigma`; else
            a new or empty folder for its images, as PNG files named by their index.

    Raises:
        UserError: if the reference can't be read, has no images, or its features are not there.
    """
    scoring = scoring_of(run.config, run.plan, run.rundir.extractor)
    if target.suffix == ".npz":
        return _export_moments(scoring, run.rundir, target)
    return _export_images(scoring, target)


def _export_images(scoring: Scoring, folder: Path) -> str:
    given = scoring.reference.given
    if isinstance(given, MomentsFile):
        raise UserError(f"the reference is the mean and covariance in {given.path}; give --to FILE.npz for these")
    require_new_folder(folder)
    make_folder(folder)
    index = 0
    for batch in batches(given, IMAGES_AT_ONCE):
        for image in batch.images:
            (folder / f"{index:07d}.png").write_bytes(encode_png(image))
            index += 1
    return counted(index, "image")


def _export_moments(scoring: Scoring, rundir: RunDir, file: Path) -> str:
    found = _moments(scoring, rundir)
    arrays: dict[str, Any] = {"mu": found.mean, "sigma": found.covariance}
    if scoring.extractor.precision != "float32":
        arrays[PRECISION] = scoring.extractor.precision

    archive = io.BytesIO()
    np.savez(archive, **arrays)  # the same arrays give the same bytes
    data = archive.getvalue()
    put_file(file, "this reference", lambda path: path.read_bytes() == data, partial(Path.write_bytes, data=data))
    return f"mean and covariance of {counted(len(found.mean), 'feature')} of {scoring.extractor.name}"


def _moments(scoring: Scoring, rundir: RunDir) -> Moments:
    reference = scoring.reference
    if isinstance(reference.given, MomentsFile):
        return read_moments(reference.given)
    assert reference.num_images is not None, "only of moments it is unknown"
    paths = rundir.reference_parts(rundir.extractor_folder(scoring.extractor), reference)
    if missing := [path for path in paths if not rundir.storage.exists(path)]:
        raise UserError(f"{rundir.relative(missing[0])} is not there yet; `taugrid evaluate` extracts the reference")
    return moments(read_all(paths, rundir.storage), reference.num_images)
