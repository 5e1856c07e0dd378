"""The report of a grid that compares settings: a small real run of oracles, jobs in this process."""

import csv
import io
import re
from pathlib import Path

import pytest
from in_process import small_run
from snapshots import raises, recorded
from test_grid import planned

from taugrid.config import Config, validate
from taugrid.config.load import load
from taugrid.errors import UserError
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.report.replicates import label_without_seeds, unequal, unscored
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.dry_run import describe_plan

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

CONFIG = """
name: ablation
model: {oracle: gaussian}
data: {name: gaussian, shape: [1, 2, 2]}
sample: {num_samples: 60, batch_size: 60}
grid: {diffusion.schedule: [linear, cosine], diffusion.beta_end: [0.02, 0.01], seed: [0, 1, 2], steps: [2, 4]}
evaluate: {metrics: [fid], keep_features: true}
report: {base: {schedule: cosine}}
cluster: {workers: 1}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with small_run(tmp_path_factory.mktemp("ablation"), CONFIG) as opened:
        outcome = Session(opened, "local", Progress()).do(("sample", "evaluate", "report"))
    return opened, outcome


@pytest.mark.long
def test_tables_and_figures_are_of_means_and_effects(run):
    opened, outcome = run
    assert len(outcome.rows) == 24
    quality = (opened.rundir.tables / "quality.md").read_text()
    rows = [line for line in quality.splitlines() if line.startswith("| ")]
    recorded(rows[0])
    assert [line.split("|")[1].strip() for line in rows[2:6]] == ["linear", "linear", "cosine", "cosine"]
    recorded(quality, "sampling")
    effects = list(csv.DictReader(io.StringIO((opened.rundir.tables / "effects.csv").read_text())))
    of_schedule = [row for row in effects if row["key"] == "diffusion.schedule"]
    assert {(row["base"], row["value"], row["over"]) for row in of_schedule} == {("cosine", "linear", "sampling seed")}
    names = {path.name for path in opened.rundir.figures.iterdir()}
    assert {"effects.png", "by-schedule.png", "by-beta_end.svg", "heat-map.png", "quality.png"} <= names
    samples = [name for name in names if name.startswith("samples-")]
    assert len(samples) == 4, "of replicates only the first is shown"
    assert all("seed=0" in name for name in samples)
    page = opened.rundir.report.read_text()
    assert "beta_end = 0.02" in page
    assert "seed = 0" in page
    assert not re.search(r"(?<=[ >])η=|<caption>[^<]*\w=", page)
    assert "3 sampling" in page
    assert "± is one" not in page
    assert "8 settings" in page, "each is three cells"


@pytest.mark.parametrize(
    "report",
    [{"base": {"schedule": "sigmoid"}}, {"base": {"train.seed": 1}}, {"rows": ["schedule", "weights"]},
     {"rows": ["eta", "schedule"], "columns": "eta"}, {"columns": "train.seed"}],
)  # fmt: skip
def test_what_the_grid_does_not_have_is_refused_in_a_line(report):
    plan = planned(grid={"diffusion.schedule": ["linear", "cosine"], "steps": [3], "train.seed": [0, 1]})
    with raises(UserError) as refused:
        requested.check(validate(Config, {"name": "x", "report": report}, "test"), plan)
    assert "\n" not in str(refused.value)


def test_plan_suggests_replicates_and_names_unequal_ones(tmp_path):
    grid = {"diffusion.schedule": ["linear", "cosine"], "steps": [3]}

    def remarks(grid):
        plan = planned(grid=grid)
        return describe_plan(Run(validate(Config, {"name": "x"}, "test"), plan, RunDir(tmp_path)))["remarks"]

    [said] = [line for line in remarks(grid) if "luck" in line]
    assert "train.seed: [0, 1, 2]" in said
    recorded(said, "trainings")
    assert not [line for line in remarks(grid | {"train.seed": [0, 1, 2]}) if "luck" in line or "replicates" in line]
    assert not [line for line in remarks({"steps": [3, 4]}) if "luck" in line]
    uneven = [grid | {"train.seed": [0, 1]}, {"diffusion.schedule": ["linear"], "train.seed": [2], "steps": [3]}]
    [said] = [line for line in remarks(uneven) if "replicates" in line]
    recorded(said)


def test_the_experiment_of_the_docs_is_one():
    file = Path(__file__).parents[2] / "docs/results/ablation/digits-ablation.yaml"
    config = load(str(file))
    made = plan(config)
    requested.check(config, made)
    assert (len(made.models), len(made.cells)) == (12, 48)
    table = (file.parent / "tables/quality.csv").read_text()
    assert all(cell.id in table for cell in made.cells), "its tables are of another config"


def test_replicates_share_a_label():
    cells = planned(grid={"diffusion.schedule": ["linear", "cosine"], "train.seed": [0, 1], "seed": [5, 6]}).cells
    assert [label_without_seeds(cell) for cell in cells[:4]] == ["schedule=linear · S=50 eta=0"] * 4
    assert unequal(cells) == []
    recorded(unequal(cells[1:])[0], "schedule")
    recorded("\n".join(unscored(cells[:1])))
    recorded(unscored(cells)[0], "cells")
