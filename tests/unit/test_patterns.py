"""Checkpoints of a training that goes on elsewhere: patterns in a grid, and what a run directory keeps of them."""

import os
import shutil
import time

import pandas as pd
import pytest
from nights import checkpoint, taugrid, write_config
from snapshots import raises

from taugrid.config.load import load
from taugrid.errors import UserError
from taugrid.eval.figures.lines import training_steps
from taugrid.eval.tables.checkpoints import best_checkpoints
from taugrid.eval.tables.quality import QualityTable
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.plan.patterns import SETTLED_SECONDS, resolve_patterns
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.report.collect import collect

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


def settled(folder):
    """As if nobody had written to the folder for a while."""
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - 2 * SETTLED_SECONDS,) * 2)
    return folder


def config(path, value):
    grid = {"model.checkpoint": [value], "steps": [2], "eta": [0.0, 1.0]}
    written = write_config(path, "unused", grid=grid)
    written.write_text(written.read_text().replace("model:\n  checkpoint: unused\n", ""))
    return written


@pytest.fixture
def training(tmp_path):
    """Three checkpoints whose names do not sort as text."""
    for step, worse in ((90, 0.3), (100, 0.1), (1000, 0.0)):
        settled(checkpoint(tmp_path / f"x/step-{step}", worse))
    return tmp_path


def shown(opened):
    return list(dict.fromkeys(cell.axes["model.checkpoint"].rsplit("/", 1)[1] for cell in opened.plan.cells))


def opened(training, value):
    return open_config(str(config(training / "c.yaml", value)), (), str(training / "run"))


def test_a_pattern_is_all_that_match_in_natural_order(training):
    assert shown(opened(training, str(training / "x/step-*"))) == ["step-90", "step-100", "step-1000"]
    newest = {"newest": 2, "of": str(training / "x/step-*")}
    assert shown(opened(training, newest)) == ["step-100", "step-1000"]


def test_folders_still_being_written_are_passed_over_and_taken_next_time(training):
    checkpoint(training / "x/step-2000")  # written just now
    torn = settled(checkpoint(training / "x/step-3000", 0.2))
    weights = next(torn.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    settled(torn)
    pipeline = training / "x/step-4000"
    shutil.copytree(training / "x/step-90", pipeline / "unet")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    settled(pipeline)  # its index, which is written last, is missing
    found = opened(training, str(training / "x/step-*"))
    assert shown(found) == ["step-90", "step-100", "step-1000"]
    assert "passed over" in found.plan.remarks[0]
    assert all(name in found.plan.remarks[0] for name in ("step-2000", "step-3000", "step-4000"))
    settled(training / "x/step-2000")
    found = opened(training, str(training / "x/step-*"))
    assert shown(found) == ["step-90", "step-100", "step-1000"]
    assert any("same network" in remark for remark in found.plan.remarks)
    shutil.rmtree(training / "x/step-1000")
    assert "step-2000" in shown(opened(training, str(training / "x/step-*")))


@pytest.mark.long
def test_tomorrows_newest_orphan_none_of_todays_and_each_is_evaluated_once(training):
    """The newest two of three; then a fourth, and the oldest is deleted: all that were evaluated stay in the table."""
    value = {"newest": 2, "of": str(training / "x/step-*")}
    path = config(training / "c.yaml", value)
    taugrid("run", path, "--out", training / "run")
    shutil.rmtree(training / "x/step-100")
    settled(checkpoint(training / "x/step-2000", 0.05))
    _, told = taugrid("run", path, "--out", training / "run")
    assert "2 shards" in told or "4 shards" in told
    table = pd.read_csv(training / "run/tables/quality.csv")
    names = [name.rsplit("/", 1)[1] for name in dict.fromkeys(table["model.checkpoint"])]
    assert names == ["step-100", "step-1000", "step-2000"]
    assert table.fid.notna().all()
    _, told = taugrid("run", path, "--out", training / "run")
    assert "to do" not in told
    assert taugrid("status", training / "run", "--json")[0]
    assert (training / "run/figures/checkpoints.png").exists()


@pytest.mark.long
def test_the_figure_names_the_best_and_what_cannot_be_told_from_it(training, rendered):
    path = config(training / "c.yaml", str(training / "x/step-*"))
    taugrid("run", path, "--out", training / "run")
    found = open_config(str(path), (), str(training / "run"))
    collected = collect(found.plan, found.rundir, scoring_of(found.config, found.plan))
    best = best_checkpoints(QualityTable(collected.rows, collected.evidence))
    assert [one.steps for one in best] == [2, 2]
    assert all(one.checkpoint.endswith("step-1000") for one in best)
    assert all("step-90" not in one.alike for one in best)
    svg = (training / "run/figures/checkpoints.svg").read_text()
    assert "S = 2: best 1000" in svg
    assert "training step" in svg


def test_names_without_numbers_have_no_training_steps():
    assert training_steps(["a/step-10", "a/step-20/"]) == [10, 20]
    assert training_steps(["a/step-10", "a/final"]) is None
    assert training_steps(["a/step-10", "b/step-20"]) is None


BAD = [{"newest": 0, "of": "x"}, {"newest": 2}, {"newest": 2, "of": 3}, {"of": "x"}, "y/*", ["x"]]


@pytest.mark.parametrize("value", BAD)
def test_a_bad_wish_and_a_pattern_that_nothing_matches_are_refused(training, value):
    with raises(UserError):
        opened(training, value)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("*", False), ("*/step-*", True), ("**", True), ("**/step-*", True), ("x/**/step-*", True), ("y/**", False)],
)
def test_a_recorded_checkpoint_stays_only_if_the_pattern_would_find_it(training, pattern, matches):
    """The star of a pattern stays within a folder."""
    for folder in ("final", "y/final"):
        settled(checkpoint(training / folder, 0.2))
    gone = str(training / "x/step-80")
    given = load(str(config(training / "c.yaml", f"{training}/{pattern}")))
    named = resolve_patterns(given, [gone])[0].grid[0]["model.checkpoint"]
    assert (gone in named) == matches


def test_of_the_newest_those_that_were_evaluated_before_stay(training):
    given = load(str(config(training / "c.yaml", {"newest": 1, "of": str(training / "x/step-*")})))
    before = str(training / "x/step-90")
    now = resolve_patterns(given, [before])[0].grid[0]["model.checkpoint"]
    assert now == [before, str(training / "x/step-1000")]
