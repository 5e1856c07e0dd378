"""A training that fails leaves the other models of a grid, and its cells are missing with the reason."""

import pytest
from in_process import small_run
from test_reconstruct_work import save_network

from taugrid.orchestrator import session
from taugrid.orchestrator.cli.text import missing_lines, plan_text
from taugrid.orchestrator.inspection import describe
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.session import Run
from taugrid.orchestrator.training import TrainingFailed

CONFIG = """
name: failing
data: {name: gaussian, shape: [1, 8, 8]}
model:
  unet: {block_out_channels: [8, 8], layers_per_block: 1, norm_num_groups: 4, add_attention: false,
         down_block_types: [DownBlock2D, DownBlock2D], up_block_types: [UpBlock2D, UpBlock2D]}
sample: {num_samples: 8, batch_size: 8}
grid: {diffusion.schedule: [linear, cosine], train.seed: [0, 1], steps: [1]}
evaluate: {extractor: pixels, metrics: [fid], keep_features: true}
cluster: {workers: 1}
"""


@pytest.fixture
def failing(monkeypatch):
    """Trainings give random weights; those whose labels are in the set fail."""
    labels = set()

    class Training(session.Training):
        def run(self, log):
            if self.model.label in labels:
                raise TrainingFailed(f"training of model {self.model.label} failed: the loss is nan")
            save_network(self.rundir.models / self.model.id, self.model.source.unet, self.model.image_shape)

    monkeypatch.setattr(session, "Training", Training)
    return labels


def test_the_other_models_are_sampled_and_scored(tmp_path, failing):
    failing |= {"schedule=cosine train.seed=1"}
    with small_run(tmp_path, CONFIG) as opened:
        run = Run(opened.config, opened.plan, opened.rundir, "local", Progress())
        outcome = run.do(("train", "sample", "evaluate", "report"))
        assert len(outcome.rows) == 3
        assert set(outcome.missing) == {opened.plan.cells[3].name}
        assert "the loss is nan" in outcome.missing[opened.plan.cells[3].name]
        [line] = missing_lines(outcome.missing, outcome.labels)
        assert line.startswith("missing: schedule=cosine train.seed=1 · S=1 eta=0: training of model schedule=cosine")
        quality = (opened.rundir.tables / "quality.md").read_text()
        assert "fewer than 2 scored replicates" in quality
        assert "schedule=cosine · S=1 eta=0 (1)" in quality
        status = describe(opened.config, opened.plan, opened.rundir)
        assert [(model["cells_scored"], model["images_done"]) for model in status["models"]] == [(1, 8)] * 3 + [(0, 0)]
        assert "0 of 8 images, 0 of 1 cell scored" in plan_text(status)
        failing.clear()
        assert run.do(("train", "sample", "evaluate", "report")).missing == {}


def test_if_nothing_else_can_go_on_the_run_fails(tmp_path, failing):
    with small_run(tmp_path, CONFIG) as opened:
        failing |= {model.label for model in opened.plan.models}
        with pytest.raises(TrainingFailed, match="the loss is nan"):
            Run(opened.config, opened.plan, opened.rundir, "local", Progress()).do(("train", "sample"))
