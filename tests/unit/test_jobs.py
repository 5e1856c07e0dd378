"""What jobs accept and refuse: files of another cell, another run directory, numbers that are not finite."""

from pathlib import Path
from pkgutil import resolve_name

import pytest

from taugrid.config import Config, validate
from taugrid.errors import DamagedFile
from taugrid.orchestrator.plan.evaluation import evaluation
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers.device import Device

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLES = {
    "name": "x",
    "model": {"oracle": "gaussian"},
    "data": {"name": "gaussian", "shape": [1, 4, 4], "limit": 40},
    "evaluate": {"extractor": "pixels", "metrics": ["fid"]},
    "sample": {"seed": 0, "steps": 2, "num_samples": 20, "batch_size": 4, "shard_evaluations": 16},
    "grid": {"eta": [0.0, 1.0]},
}


class Here:
    """A run whose jobs are done in this process, with no Ray and no session."""

    def __init__(self, root, **sample):
        self.config = validate(Config, ORACLES | {"sample": ORACLES["sample"] | sample}, "test")
        self.plan, self.rundir = plan(self.config), RunDir(root)
        root.mkdir(exist_ok=True)
        self.evaluation = evaluation(self.config, self.plan)
        self.damages = []

    def survey(self):
        stages = frozenset({"sample", "evaluate"})
        return Survey(self.config, self.plan, self.rundir, self.evaluation, stages, self.set_aside)

    def set_aside(self, damage):
        self.damages.append(damage.reason)
        self.rundir.set_aside(damage)

    def pieces(self, *kinds):
        survey = self.survey()
        return [piece for kind in work_kinds() if kind.name in kinds for piece in kind(survey).pieces()]

    def do(self, *kinds):
        for piece in self.pieces(*kinds):
            do(piece.job)


def do(job):
    return resolve_name(job.runs)(job, Device("cpu"))


def test_features_of_another_cell_are_not_scored(tmp_path):
    """Their indices are the same, so nothing but the metadata tells."""
    run = Here(tmp_path / "run")
    run.do("sample", "extract")
    one, other = run.plan.cells
    features = [run.rundir.feature_part(run.rundir.extractor_folder(run.evaluation.extractor), cell, cell.shards[0])
                for cell in (one, other)]  # fmt: skip
    own = features[0].read_bytes()
    features[0].write_bytes(features[1].read_bytes())
    scoring = next(piece.job for piece in Here(tmp_path / "run").pieces("score") if piece.cell.id == one.id)
    features[0].write_bytes(features[1].read_bytes())  # after the survey, which would have moved it away
    with pytest.raises(DamagedFile, match=other.id):
        do(scoring)
    again = Here(tmp_path / "run")
    [piece] = again.pieces("extract")
    assert (piece.job.path, len(again.damages)) == (str(features[0]), 1)
    do(piece.job)
    assert features[0].read_bytes() == own
    again.do("score")


def test_images_of_another_cell_are_not_extracted(tmp_path):
    run = Here(tmp_path / "run")
    run.do("sample")
    job = run.pieces("extract")[-1].job
    other = next(p for p in run.rundir.samples.glob("*/*.parquet") if p.parent != Path(job.images).parent)
    Path(job.images).write_bytes(other.read_bytes())
    with pytest.raises(DamagedFile, match="images of cell"):
        do(job)
    assert not Path(job.path).exists()
