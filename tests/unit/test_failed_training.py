"""A training that fails leaves the other models of a grid, and its cells are missing with the reason."""

import pytest
from in_process import SMALL_UNET, small_run
from nights import taugrid
from snapshots import raises, recorded
from test_reconstruct_work import save_network

from taugrid.errors import UserError
from taugrid.jobs import running_folder
from taugrid.orchestrator import session
from taugrid.orchestrator.cli.text import missing_lines, plan_text, print_result
from taugrid.orchestrator.dispatch.capacity import Trainers
from taugrid.orchestrator.dispatch.training import TrainingFailed
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report.collect import row_of
from taugrid.orchestrator.report.write import no_effects
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.inspection import describe
from taugrid.workers.training.fit import remove_leftovers

pytestmark = pytest.mark.usefixtures("sketched")

CONFIG = f"""
name: failing
data: {{name: gaussian, shape: [1, 8, 8]}}
model:
  unet: {SMALL_UNET}
sample: {{num_samples: 8, batch_size: 8}}
grid: {{diffusion.schedule: [linear, cosine], train.seed: [0, 1], steps: [1]}}
evaluate: {{extractor: pixels, metrics: [fid], keep_features: true}}
cluster: {{workers: 1, trainings: 1}}
"""

PASSES = "another time it may not"
"""Among the labels of failing trainings: what failed would not fail again."""
AFTER_TRAINING = ("sample", "evaluate", "report")


@pytest.fixture
def failing(monkeypatch):
    """Trainings give random weights; those whose labels are in the set fail."""
    labels = set()

    class Training(session.Training):
        def begin(self, ended):
            ended.put(self)

        def check_log(self):
            pass

        def end(self, log):
            if self.model.label in labels:
                raise TrainingFailed(self.model.label, "the loss is nan; lower it", "logs/x.txt", PASSES not in labels)
            save_network(self._rundir.models / self.model.id, self.model.source.unet, self.model.image_shape)

    monkeypatch.setattr(session, "Training", Training)
    return labels


@pytest.mark.long
def test_the_other_models_are_sampled_and_scored(tmp_path, failing):
    failing |= {"schedule=cosine train.seed=1"}
    with small_run(tmp_path, CONFIG) as opened:
        run = Session(opened, "local", Progress())
        outcome = run.do(("train", "sample", "evaluate", "report"))
        failed = opened.plan.cells[3].name
        assert len(outcome.rows) == 3
        assert set(outcome.missing) == outcome.permanent_failures == {failed}
        recorded(outcome.missing[failed], "loss")
        [line] = missing_lines(outcome.missing, outcome.labels)
        recorded(line, "schedule")
        quality = (opened.rundir.tables / "quality.md").read_text()
        recorded(quality, "replicates")
        assert "S=1 eta=0 (1)" in quality
        failure = {"reason": "nan; lower it", "log": "logs/x.txt", "fails_again": True}
        Events(opened.rundir).add("training failed", model=opened.plan.models[3].id, **failure)
        status = describe(opened)
        assert [model["train_failed"] for model in status["models"]] == [None] * 3 + [failure]
        recorded(plan_text(status), "(details")
        assert [(model["cells_scored"], model["images_done"]) for model in status["models"]] == [(1, 8)] * 3 + [(0, 0)]
        assert "0 of 8" in plan_text(status)
        recorded(run.do(("report",)).missing[failed], "lower")
        failing.clear()
        assert run.do(("train", "sample", "evaluate", "report")).missing == {}


def test_the_only_scored_value_of_a_key_keeps_its_column(tmp_path, failing, capsys):
    """Names come from the grid: a table of what is left must say of what it is, and that more was planned."""
    failing |= {f"schedule=cosine train.seed={seed}" for seed in (0, 1)}
    with small_run(tmp_path, CONFIG) as opened:
        outcome = Session(opened, "local", Progress()).do(("train", *AFTER_TRAINING))
        print_result(opened.rundir, outcome)
        shown = capsys.readouterr()
        assert [line.split()[0] for line in shown.out.splitlines() if " 0.0 " in line] == ["linear", "cosine"]
        recorded(shown.err, "command")
        assert "to finish" not in shown.err
        quality = (opened.rundir.tables / "quality.md").read_text()
        assert "| cosine | 0.0 | – |" in quality
        assert "n = " not in quality
        recorded(quality, "no effects")
        assert (opened.rundir.tables / "cost.md").exists() is False
        assert "Of 1 scored" in opened.rundir.report.read_text()


@pytest.mark.parametrize("metric", ["fid", "kid"])
def test_a_key_with_one_scored_value_has_no_effects_whatever_it_was_scored_by(tmp_path, metric):
    with small_run(tmp_path, CONFIG) as opened:
        rows = [row_of(cell, {metric: 1.0}, "", None) for cell in opened.plan.cells]
        assert no_effects(opened.config, opened.plan, rows) == []
        linear = [row for row in rows if row["diffusion.schedule"] == "linear"]
        [note] = no_effects(opened.config, opened.plan, linear)
        assert "schedule" in note
        assert no_effects(opened.config, opened.plan, [row | {metric: None} for row in linear]) == []


def test_if_nothing_else_can_go_on_the_run_fails(tmp_path, failing):
    with small_run(tmp_path, CONFIG) as opened:
        failing |= {model.label for model in opened.plan.models}
        with raises(TrainingFailed):
            Session(opened, "local", Progress()).do(("train", "sample"))


@pytest.mark.parametrize(("again", "code"), [(True, 1), (False, 4)])
def test_the_exit_code_says_whether_all_that_is_missing_would_fail_again(tmp_path, failing, again, code):
    failing |= {"schedule=cosine train.seed=1", *(() if again else (PASSES,))}
    (tmp_path / "c.yaml").write_text(CONFIG)
    taugrid("train", tmp_path / "c.yaml", "--out", tmp_path / "run", code=code)


def test_tf32_is_refused_before_a_training_without_a_gpu_starts(tmp_path):
    """Defect 15. Patch: `specified` without `lacks`."""
    with small_run(tmp_path, CONFIG + "train: {precision: tf32}\n") as opened:
        opened.rundir.root.mkdir()
        given = opened.rundir, opened.config.cluster, print, Events(opened.rundir)
        training = session.Training(*opened.plan.trained_here[0], *given)
        with raises(UserError):
            training.specified(Trainers(1, 1, 0))
        assert training.specified(Trainers(1, 1, 1)).train.precision == "tf32"


def test_the_checkpoints_of_a_training_stay_until_its_model_is_in_place(tmp_path):
    running = running_folder(tmp_path, "m")
    running.mkdir()
    remove_leftovers(tmp_path, "m")
    assert running.is_dir()
    (tmp_path / "m").mkdir()
    remove_leftovers(tmp_path, "m")
    assert not running.exists()
