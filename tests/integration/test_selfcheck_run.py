"""`taugrid selfcheck` as people run it: it passes, and a fault in the workers alone makes it fail."""

import json
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
from shared import taugrid

from taugrid import parquet
from taugrid.orchestrator.dispatch import pool
from taugrid.storage import read_sealed, write_sealed

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
    assert findings["status"] == "done"
    assert findings["problems"] == []
    assert len(findings["cells"]) == 45
    assert all(cell["largest_difference"] <= 1 for cell in findings["cells"])
    known = [cell for cell in findings["cells"] if cell["data"] == "gaussian"]
    assert len(known) == 23
    assert {(cell["process"], cell["sampler"]) for cell in known} == {
        ("ddpm", "ddim"), ("edm", "ddim"), ("edm", "heun"), ("edm", "edm-heun"), ("flow", "ddim"), ("flow", "heun"),
    }  # fmt: skip
    assert max(abs(cell[name]["z"]) for cell in known for name in ("fid", "mean", "covariance")) < 5
    # The FID of different cells is told apart by far: agreement is no matter of wide errors.
    exact = {cell["name"]: cell["fid"]["exact"] for cell in known}
    assert max(exact.values()) / min(exact.values()) > 5
    assert len(list(root.glob("samples/*/part-*.parquet"))) > len(findings["cells"])


def rewrite(path, change):
    """Let `change` act on the list of a file's PNGs, and write it again as a worker would: its seal is right."""
    table = pq.read_table(path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    pngs = [image["bytes"] for image in columns["image"]]
    change(pngs)
    columns["image"] = [image | {"bytes": png} for image, png in zip(columns["image"], pngs, strict=True)]
    with parquet.PartWriter(path, table.schema) as part:
        part.write(columns)
        part.commit(replace=True)
    parquet.check_seal(path)


def swap(pngs):
    pngs[3], pngs[40] = pngs[40], pngs[3]


def double(pngs):
    pngs[3] = pngs[40]


@pytest.mark.long
def test_faults_in_the_workers_and_on_disk_under_a_right_seal_are_found(checked, tmp_path):
    """In their cells, and in those alone; all are judged at once, since a judgement takes seconds.

    Faulty workers sample the cells with sigma-hat again, and some with eta = 1, which the fault does not touch. Three
    others are changed on disk.
    """
    findings, root = checked
    copy = shutil.copytree(root, tmp_path / "run")
    names = [cell["name"] for cell in findings["cells"]]
    touched, others = ([name for name in names if f"-{eta}-" in name] for eta in ("sigma_hat", "eta1"))
    again = [*touched, *others[:3]]
    for name in again:
        shutil.rmtree(copy / "samples" / name)
    kept = [cell for cell in findings["cells"] if cell["data"] == "gaussian" and cell["name"] not in again]
    swapped, doubled, scored = kept[2:5]  # of 10 and 20 steps, in two parts or more
    rewrite(copy / "samples" / swapped["name"] / "part-000001.parquet", swap)
    rewrite(copy / "samples" / doubled["name"] / "part-000000.parquet", double)
    [path] = copy.glob(f"scores/{scored['cell']}-*.json")
    score = read_sealed(path)
    score["metrics"]["fid"] *= 1 + 1e-4
    write_sealed(path, score)

    done = taugrid("selfcheck", "--workers", "1", "--out", copy, code=1, workers=FaultyPool)
    assert len(list(copy.glob("samples/*"))) == 45
    lines = [line.removeprefix("wrong: ") for line in done.stderr.splitlines() if line.startswith("wrong: ")]
    by_workers = [line for line in lines if "sigma_hat" in line]
    assert by_workers
    labels, wrong = zip(*(line.split(": ", 1) for line in lines if line not in by_workers), strict=True)
    expected = [
        "2 of 1000 images not as (seed, n) gives them",
        "1 of 1000 images not as (seed, n) gives them",
        "1 image equal to an earlier one, first 3 and 40",
        "the table's FID is",
        f"the table's FID is {score['metrics']['fid']:.8g}",
    ]
    assert len(wrong) == len(expected), wrong
    for line, start in zip(wrong, expected, strict=True):
        assert line.startswith(start)
    assert labels[1] == labels[2] == labels[3]
    assert len(set(labels)) == 3, "each cell by a name of its own"
    assert len(touched) == 11
    assert len(others) > 3
    assert done.stdout.count("WRONG") == len(touched) + 3, "cells with a numeric eta are not touched by the workers'"
    assert sum(line.split()[:1] == ["ok"] for line in done.stdout.splitlines()) == 45 - len(touched) - 3


@pytest.mark.long
def test_rows_of_a_gaussian_have_their_exact_fid_beside_the_measured(checked):
    """`report` on what selfcheck made. FID at infinite N is below what N = 1000 leads to expect."""
    findings, root = checked
    taugrid("report", root)
    table = pd.read_csv(root / "tables" / "quality.csv", dtype={"cell": str}).set_index("cell")
    for cell in findings["cells"]:
        exact = table.loc[cell["cell"], "fid_exact"]
        clips = cell["process"] == "edm" and "sigma_hat" in cell["name"]  # more than one pixel in a million
        if cell["data"] == "gaussian" and cell["sampler"] == "ddim" and not clips:
            assert 0 < cell["fid"]["exact"] - exact < 0.01
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
    assert "starting Ray" not in again.stderr
    assert json.loads(again.stdout) == findings
    done = taugrid("selfcheck", "--sampler", "dpm+2m", code=2)
    assert "dpm++2m" in done.stderr
    assert "starting Ray" not in done.stderr
