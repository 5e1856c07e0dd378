"""A teacher and its student of few steps are one grid, compared by network evaluations: an exact flow and its map."""

from dataclasses import replace

import pandas as pd
import pytest
import yaml
from asking import answer
from in_process import drive, small_run
from pages import blocks
from plans import planned
from snapshots import recorded

from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.storage import LOCAL
from taugrid.workers.network import custom_process

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

NETWORKS = '''
import torch
from taugrid.workers.diffusion.gaussian import gaussian

DATA = gaussian((1, 4, 4))
MEAN, VARIANCES, VECTORS = map(torch.tensor, (DATA.mean, DATA.eigenvalues, DATA.eigenvectors))

def variances(t):
    return (1 - t) ** 2 * VARIANCES + t**2

def velocity(x, t):
    flat, t = x.double().flatten(1), t.double()[:, None]
    slopes = (t - (1 - t) * VARIANCES) / variances(t)
    return ((flat - (1 - t) * MEAN) @ VECTORS * slopes @ VECTORS.T - MEAN).reshape(x.shape).float()

def average_velocity(x, t, r):
    """(x_t - x_r) / (t - r), for the ODE that leads from x_t to x_r."""
    flat, t, r = x.double().flatten(1), t.double()[:, None], r.double()[:, None]
    moved = (flat - (1 - t) * MEAN) @ VECTORS * (variances(r) / variances(t)).sqrt() @ VECTORS.T + (1 - r) * MEAN
    return ((flat - moved) / (t - r)).reshape(x.shape).float()

def teacher():
    return velocity

def student():
    return average_velocity
'''

CONFIG = """
name: small
data: {name: gaussian, shape: [1, 4, 4]}
diffusion: {process: flow}
sample: {seed: 0, num_samples: 400, batch_size: 200}
grid:
  - {model.callable: ["exact:teacher"], sampler: [ddim, heun], steps: [2, 4]}
  - {model.callable: ["exact:student"], diffusion.prediction: [average_velocity], sampler: [flow-map], steps: [1, 4]}
evaluate: {metrics: [fid]}
cluster: {workers: 1}
"""


def test_a_student_beside_its_teacher(tmp_path, monkeypatch):
    """The teacher's cells take 2, 4, 3 and 7 evaluations, the student's 1 and 4."""
    (tmp_path / "exact.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(custom_process, "ask", answer)
    with small_run(tmp_path, CONFIG) as opened:
        drive(opened, tmp_path / "run", LOCAL)
        session = Session(replace(opened, rundir=RunDir(tmp_path / "run", LOCAL)), "local", Progress())
        session.do(("report",))
    table = pd.read_csv(tmp_path / "run/tables/quality.csv").set_index(["sampler", "network_evaluations"])
    assert sorted(table.index) == [("ddim", 2), ("ddim", 4), ("flow-map", 1), ("flow-map", 4), ("heun", 3), ("heun", 7)]
    assert all(table.steps[each] == each[1] for each in table.index if each[0] != "heun")
    student = table.fid["flow-map"]
    assert student[1] == pytest.approx(student[4], rel=0.05), "its jumps are exact"
    assert student[1] < 0.005 < 0.05 < table.fid[["ddim", "heun"]].min(), "as its data; the teacher's steps are not"
    costs = pd.read_csv(tmp_path / "run/tables/cost.csv")
    assert costs[costs.pareto_evaluations].evaluations_per_image.tolist() == [1]
    shown = (tmp_path / "run/tables/quality.md").read_text()
    recorded(shown, "student")
    recorded(shown, "evaluations")


def test_the_pages_config_of_a_flow_in_user_code_is_planned(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(custom_process, "ask", answer)
    [text] = [each.text for each in blocks() if each.page == "docs/samplers.md" and "callable: my_flow" in each.text]
    (tmp_path / "my_flow.py").write_text(f"{NETWORKS}\nnetwork = teacher\n")
    cells = {(cell.settings.sampler, cell.nfe) for cell in planned(**yaml.safe_load(text)).cells}
    names = "euler", "dpm++2m", "heun"
    assert cells == {(name, 2 * S - 1 if name == "heun" else S) for name in names for S in (5, 10, 20)}
