"""`taugrid selfcheck` as people run it: it passes, and a fault in the workers alone makes it fail."""

import json
import shutil

import pandas as pd
import pytest
from shared import taugrid

from taugrid.orchestrator.dispatch import pool

pytestmark = pytest.mark.usefixtures("sketched")


def faulty(worker):
    """A class of workers with one percent in sigma-hat's coefficient; made in a function, so that it travels by value.

    The driver judges with its own code.
    """

    class Faulty(worker):
        def do(self, job):
            import taugrid.workers.samplers.ddim as sampler

            sampler.sigma_hat = lambda alpha_t, alpha_prev: 1.01 * (1 - alpha_t / alpha_prev) ** 0.5
            return super().do(job)

    return Faulty


class FaultyPool(pool.Pool):
    def __init__(self, worker, *arguments):
        super().__init__(faulty(worker), *arguments)


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    root = tmp_path_factory.mktemp("selfcheck") / "run"
    done = taugrid("selfcheck", "--out", root, "--json")
    assert "all 45 cells" in done.stderr
    return json.loads(done.stdout), root


@pytest.mark.long
def test_a_sound_system_passes(checked):
    findings, root = checked
    assert (findings["status"], findings["problems"], len(findings["cells"])) == ("done", [], 45)
    assert all(cell["largest_difference"] <= 1 for cell in findings["cells"])
    known = [cell for cell in findings["cells"] if cell["data"] == "gaussian"]
    assert len(known) == 23
    assert {(cell["process"], cell["sampler"]) for cell in known} == {
        ("ddpm", "ddim"), ("edm", "ddim"), ("edm", "heun"), ("edm", "edm-heun"), ("flow", "ddim"), ("flow", "heun"),
    }  # fmt: skip
    measured, recomputed = ([cell["fid"][key] for cell in known] for key in ("measured", "recomputed"))
    assert measured == pytest.approx(recomputed, rel=2e-6)
    assert max(measured) / min(measured) > 5
    assert len(list(root.glob("samples/*/part-*.parquet"))) > len(findings["cells"])


@pytest.mark.long
def test_faults_in_the_workers_are_found_in_the_cells_that_they_touch(checked, tmp_path):
    """Faulty workers sample the cells with sigma-hat again, and some with eta = 1, which the fault does not touch."""
    findings, root = checked
    copy = shutil.copytree(root, tmp_path / "run")
    names = [cell["name"] for cell in findings["cells"]]
    touched, others = ([name for name in names if f"-{eta}-" in name] for eta in ("sigma_hat", "eta1"))
    for name in [*touched, *others[:3]]:
        shutil.rmtree(copy / "samples" / name)
    done = taugrid("selfcheck", "--workers", "1", "--out", copy, code=1, workers=FaultyPool)
    wrong = [line for line in done.stderr.splitlines() if line.startswith("wrong: ")]
    assert wrong
    assert all("sigma_hat" in line for line in wrong)
    assert (len(touched), len(others) > 3) == (11, True)
    assert done.stdout.count("WRONG") == len(touched)
    assert sum(line.split()[:1] == ["ok"] for line in done.stdout.splitlines()) == 45 - len(touched)


@pytest.mark.long
def test_rows_of_a_gaussian_have_their_exact_fid_beside_the_measured(checked):
    """`report` on what selfcheck made. FID at N = 1000 is biased upwards by about 0.01."""
    findings, root = checked
    taugrid("report", root)
    table = pd.read_csv(root / "tables" / "quality.csv", dtype={"cell": str}).set_index("cell")
    for cell in findings["cells"]:
        exact = table.loc[cell["cell"], "fid_exact"]
        clips = cell["process"] == "edm" and "sigma_hat" in cell["name"]  # more than one pixel in a million
        if cell["data"] == "gaussian" and cell["sampler"] == "ddim" and not clips:
            assert abs(cell["fid"]["measured"] - exact - 0.01) < 0.02
            assert table.loc[cell["cell"], "fid"] == cell["fid"]["measured"]
        else:
            assert pd.isna(exact)
    assert "closed form" in (root / "tables" / "quality.md").read_text()


@pytest.mark.long
def test_another_sampler_is_checked(tmp_path):
    """Its images approach the ODE's as its order says; a name that is not there is refused before anything starts.

    A finished selfcheck is judged again without being made again: everything is there, so no worker is asked for.
    """
    command = ("selfcheck", "--sampler", "dpm++2m", "--out", tmp_path / "run", "--json")
    findings = json.loads(taugrid(*command).stdout)
    assert findings["problems"] == []
    few, many, most = (cell["mean_difference"] for cell in findings["cells"])
    assert few / many > 4**1.75
    assert most < many
    again = taugrid(*command)
    assert json.loads(again.stdout) == findings
    wrong = taugrid("selfcheck", "--sampler", "dpm+2m", code=2)
    assert "dpm++2m" in wrong.stderr
    assert "starting Ray" not in again.stderr + wrong.stderr
