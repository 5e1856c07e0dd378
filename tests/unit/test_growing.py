"""`--until told-apart`: only cells whose order is undecided grow, and all that reads the run takes their larger N."""

import io
import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from in_process import Faulty, PoolHere, results, small_run
from proofs import proof
from rich.console import Console
from simulated_looks import LOOKS, SHAPES, is_wrong
from snapshots import raises, recorded
from threadpoolctl import threadpool_limits

import taugrid
from taugrid.errors import UserError
from taugrid.eval.tables import seeds
from taugrid.eval.tables.alike import look
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import FID
from taugrid.orchestrator.baseline.snapshot import snapshot_of_run
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.cli.text import print_result, result_json
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.grown import at_larger_sizes, read_sizes
from taugrid.orchestrator.selection import select
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.dry_run import describe_plan
from taugrid.orchestrator.view.inspection import compare, describe
from taugrid.orchestrator.view.verify import verify
from taugrid.orchestrator.work.growing import Until

pytestmark = pytest.mark.usefixtures("sketched")

CONFIG = """
name: small
model: {oracle: gaussian}
data: {name: gaussian, shape: [1, 2, 2]}
sample: {seed: 0, num_samples: 50, batch_size: 50, shard_evaluations: 200}
grid: {steps: [2, 10], eta: [0.0, 0.05, sigma_hat]}
evaluate: {metrics: [fid, kid], reference: {name: gaussian, shape: [1, 2, 2], limit: 100}, keep_features: false}
cluster: {workers: 1}
"""
"""At S = 10, sigma_hat is better than the others already at N = 50; at S = 2, none differs."""

STAGES = ("train", "sample", "evaluate", "report")
TO_200 = Until(None, 200)


def at(opened, root):
    """The run in another directory, as a command opens it."""
    rundir = RunDir(root)
    return replace(opened, rundir=rundir, sizes=read_sizes(rundir))


def do(opened, root, until=None, only=(), stages=STAGES):
    """Run the command; returns the outcome and what it printed."""
    printed, run = io.StringIO(), at(opened, root)
    progress = Progress(Console(file=printed, soft_wrap=True))
    return Session(run, "local", progress, select(run.plan, only), until).do(stages), printed.getvalue()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with small_run(tmp_path_factory.mktemp("config"), CONFIG) as opened:
        yield opened


@pytest.fixture(scope="module")
def grown(opened, tmp_path_factory):
    """The directory, the outcome and what was printed."""
    root = tmp_path_factory.mktemp("grown") / "run"
    return root, *do(opened, root, TO_200)


@pytest.fixture
def copy(grown, tmp_path):
    return Path(shutil.copytree(grown[0], tmp_path / "run"))


def ids(opened, steps):
    return {cell.id for cell in opened.plan.cells if cell.settings.steps == steps}


def starting(printed, *starts):
    return [line for line in printed.splitlines() if line.startswith(starts)]


def test_only_undecided_cells_grow_and_it_says_what_that_saves(opened, grown):
    root, outcome, printed = grown
    assert read_sizes(RunDir(root)) == dict.fromkeys(ids(opened, 2), 200)
    recorded("\n".join(starting(printed, "look", "undecided", "750")))
    told = result_json(RunDir(root), outcome)["told_apart"]
    assert (told["metric"], set(told["undecided"]), told["images"]) == ("fid", ids(opened, 2), 750)
    assert json.loads((root / "config.json").read_text())["sample"]["num_samples"] == 50
    assert {cell["settings"]["num_samples"] for cell in json.loads((root / "plan.json").read_text())["cells"]} == {50}


def test_the_looks_of_a_session_share_their_workers(opened, tmp_path, monkeypatch):
    """A worker imports torch and loads networks. A node with a GPU that joins between looks must not mix cells."""
    sizes, worker_size = [], capacity.worker_size
    monkeypatch.setattr(capacity, "worker_size", lambda config: sizes.append(config) or worker_size(config))
    _, printed = do(opened, tmp_path / "run", TO_200)
    started = [event["worker"] for event in read_events(RunDir(tmp_path / "run")) if event["event"] == "starting"]
    assert (len(starting(printed, "to do")), started, len(sizes)) == (3, ["worker-0"], 1)


def test_the_scorer_is_recorded_once_however_often_cells_grow(opened, tmp_path):
    """It reads all features of the reference."""
    root = tmp_path / "run"
    run = replace(opened, rundir=RunDir(root, Faulty(root)))
    Session(run, "local", Progress.silent(), until=TO_200).do(STAGES)
    assert run.rundir.storage.calls.count(("commit", root / "scorer.json")) == 1


def test_a_dry_run_counts_what_cells_may_still_grow_by(copy):
    words = ["run", str(copy), "--until", "told-apart", "--max", "200", "--dry-run", "--json"]
    found = json.loads(CliRunner().invoke(cli, words).stdout)
    assert found["until"] == {"max": 200, "network_evaluations_remaining_at_most": 3 * 150 * 10}


def test_there_is_a_table_for_each_size(opened, grown, capsys):
    root, outcome, _ = grown
    first, larger = (pd.read_csv(root / "tables" / f"{name}.csv") for name in ("quality", "quality-N200"))
    assert set(first["cell"]) == ids(opened, 2) | ids(opened, 10)
    assert set(first["num_samples"]) == {50}
    assert (set(larger["cell"]), set(larger["num_samples"])) == (ids(opened, 2), {200})
    assert not list((root / "tables").glob("quality-N100*")), "no cell stayed there"
    both = first.merge(larger, on="cell")
    assert (both["seconds_x"] < both["seconds_y"]).all(), "a row has the seconds of its own images"
    recorded((root / "tables" / "quality.md").read_text(), "quality")
    print_result(RunDir(root), outcome)
    recorded(capsys.readouterr().out, "cells")


def test_without_until_there_is_nothing_to_do(opened, grown, copy):
    before = results(copy), {path.name: path.read_bytes() for path in copy.glob("tables/*")}
    outcome, printed = do(opened, copy)
    assert (outcome.missing, starting(printed, "to do", "look")) == ({}, [])
    assert [len(table.rows) for table in outcome.larger] == [3]
    assert before == (results(copy), {path.name: path.read_bytes() for path in copy.glob("tables/*")})
    assert starting(do(opened, copy, TO_200)[1], "to do", "look") == starting(grown[2], "look"), "it comes to the same"


@pytest.mark.long
@pytest.mark.parametrize("between", [False, True])
def test_an_interrupted_run_goes_on_where_it_was(opened, grown, tmp_path, monkeypatch, between):
    """N was recorded, and nothing was sampled yet. In between, a run without --until may make what is missing."""
    root, submit = tmp_path / "run", PoolHere.submit

    def interrupted(self, worker, job, key):
        if key.startswith("sample/") and job.stop > 50:
            raise KeyboardInterrupt
        submit(self, worker, job, key)

    with monkeypatch.context() as patched:
        patched.setattr(PoolHere, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do(opened, root, TO_200)
    assert read_sizes(RunDir(root)) == dict.fromkeys(ids(opened, 2), 100)
    recorded("\n".join(sorted({damage.reason for damage in verify(at(opened, root), lambda count: None).unfinished})))
    if between:
        assert do(opened, root)[0].missing == {}
        assert (root / "tables" / "quality-N100.csv").exists()
    outcome, _ = do(opened, root, TO_200)
    assert (outcome.missing, read_sizes(RunDir(root))) == ({}, read_sizes(RunDir(grown[0])))
    assert results(root) == results(grown[0])
    assert not list(root.glob("tables/quality-N100*")), "no cell stays there"


def test_commands_that_look_take_the_larger_size(opened, grown):
    run = at(opened, grown[0])
    assert {cell["cell"]: cell["images_done"] for cell in describe(run)["cells"]} == {
        cell.id: 200 if cell.settings.steps == 2 else 50 for cell in opened.plan.cells
    }
    assert describe_plan(run)["network_evaluations_remaining"] == 0
    assert not [remark for remark in describe_plan(run)["remarks"] if "replaces tables" in remark]
    assert verify(run, lambda count: None) == ([], [])
    grew, other, stayed = (next(c for c in opened.plan.cells if (c.settings.steps, c.eta) == at) for at in
                           ((2, 0.0), (2, 0.05), (10, 0.0)))  # fmt: skip
    for pair, n in (((grew, other), 200), ((grew, stayed), 50)):  # a pair has its smaller size
        row = compare(run, *(cell.id for cell in pair), join=False)
        assert (row["num_samples"], row["se"] is not None) == (n, True)
    assert {len(cell) for cell in taugrid.open(grown[0]).cells} == {50, 200}
    assert {cell.num_samples for cell in snapshot_of_run(str(grown[0])).cells} == {50}, "a night has the config's N"


@pytest.mark.long
def test_neighbours_along_a_key_grow_and_where_nothing_can_be_compared_it_says_so(opened, tmp_path):
    """Cells at S = 2 and 10 differ at any N; the first two eta differ at none."""
    root, said = tmp_path / "run", []
    for until, only in ((Until("S", 100), ()), (Until("eta", 100), ["steps=10"]), (TO_200, ["steps=10,eta=0"])):
        outcome, printed = do(opened, root, until, only)
        said += [*starting(printed, "look", "no cell", "warning: --until"), str(len(read_sizes(RunDir(root))))]
    recorded("\n".join(said))
    assert [line for line in said if line.isdigit()] == ["0", "2", "2"]
    assert len(outcome.growth.as_dict()["undecided"]) == 1


def test_where_fid_has_no_error_kid_decides(opened, tmp_path):
    text = CONFIG.replace("[1, 2, 2]", "[1, 4, 4]").replace("num_samples: 50", "num_samples: 150")
    with small_run(tmp_path, text) as opened:
        outcome, printed = do(opened, tmp_path / "run", Until(None, 150))
    [said] = [line for line in printed.splitlines() if "by KID:" in line]
    recorded(said)
    assert outcome.growth.as_dict()["metric"] == "kid"


def test_damage_is_found_and_the_run_goes_on_as_configured(opened, copy):
    (copy / "grown.json").write_text('{"num_samples": {"1234567890": 900}}')
    assert [damage.path.name for damage in verify(at(opened, copy), lambda count: None).damages] == ["grown.json"]
    outcome, printed = do(opened, copy)
    assert (outcome.missing, list(outcome.larger), len(list(copy.glob("tables/quality-N*")))) == ({}, [], 0)
    assert "damaged: grown.json" in printed
    _, printed = do(opened, copy, TO_200)
    assert (len(read_sizes(RunDir(copy))), starting(printed, "to do")) == (3, []), "all images and scores are there"


@pytest.mark.parametrize(
    ("changes", "until"),
    [
        ((), Until(None, 40)),
        ((), Until("sampler", 100)),
        (("[2, 10]", "[2]"), Until("S", 100)),
        (("[fid, kid]", "[kid]"), Until("num_samples", 100)),
        (("eta: [", "seed: [0, 1], eta: ["), TO_200),
        (("[fid, kid]", "[fid]", "num_samples: 50", "num_samples: 39"), TO_200),
        ((CONFIG.split("\n")[5], "grid: [{steps: [2], num_samples: [50]}, {steps: [3], num_samples: [60]}]"), TO_200),
    ],
)
def test_what_can_not_be_told_apart_is_refused_before_any_work(tmp_path, changes, until):
    text = CONFIG
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        text = text.replace(old, new)
    with small_run(tmp_path, text) as opened, raises(UserError):
        do(opened, tmp_path / "run", until)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["run", "digits", "--until", "told-apart"],
        ["run", "digits", "--max", "900"],
        ["run", "digits", "--until", "done", "--max", "900"],
        ["run", "digits", "--until", "told-apart=", "--max", "900"],
        ["evaluate", "digits", "--until", "told-apart"],
    ],
)
def test_options_that_mean_nothing_are_refused(words):
    done = CliRunner().invoke(cli, words)
    recorded(f"{done.output}{done.exception}", "--until")
    assert isinstance(done.exception, UserError) or done.exit_code == 2


def test_the_same_samples_are_told_apart_at_no_size():
    phi = np.random.default_rng(1).standard_normal((2, 100))
    rows = {cell: {"cell": cell, "num_samples": 100, "fid": fid} for cell, fid in (("a", 1.0), ("b", 1.0), ("c", 9.0))}
    evidence = Evidence({"a": phi[0], "b": phi[0], "c": phi[1]}, dict.fromkeys("abc", 0), {})
    assert look([["a", "b", "c"]], rows, evidence, FID, looks=1) == ([], {"b"}, set())


def test_neighbours_with_the_same_samples_do_not_grow_and_it_says_why(tmp_path):
    text = CONFIG.replace("0.05, sigma_hat", "1.0e-9")  # less than 8 bits show
    with small_run(tmp_path, text) as opened:
        outcome, printed = do(opened, tmp_path / "run", Until("eta", 100))
    assert (outcome.growth.undecided, len(read_sizes(RunDir(tmp_path / "run")))) == (set(), 0)
    recorded("\n".join(starting(printed, "look", "no ")))


@pytest.mark.parametrize(("level_divided_by", "fewest", "most"), [(LOOKS, 0, 10), (1, 11, 60)])
def test_looking_again_and_again_does_not_find_what_is_not_there(monkeypatch, level_divided_by, fewest, most):
    """All cells are equal: 5 % of runs may find a difference in five looks. With 5 % for each look, more do."""
    monkeypatch.setattr(seeds, "DRAWS", 2_000)
    runs = [is_wrong(np.random.default_rng((1, i)), np.zeros((2, 2)), "normal", level_divided_by) for i in range(100)]
    assert fewest <= sum(runs) <= most


WORLDS = ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.05, 0.2), (0.0, 0.01, 0.03, 0.1))
"""The true values of each column, in standard deviations of an influence."""


@pytest.mark.parametrize(("shape", "values"), [proof(*case) for case in product(SHAPES, WORLDS)])
def test_at_most_5_percent_of_runs_tell_cells_apart_in_the_wrong_order(monkeypatch, shape, values):
    """Three columns; 1,000 runs know a share of 5 % to 0.7 %."""
    monkeypatch.setattr(seeds, "DRAWS", 10_000)
    columns = np.tile(values, (3, 1))
    with threadpool_limits(limits=1):
        wrong = [is_wrong(np.random.default_rng((7, i)), columns, shape, LOOKS) for i in range(1_000)]
    assert np.mean(wrong) <= 0.064


def test_a_table_at_a_larger_n_has_all_cells_that_grew_at_least_to_it(opened):
    a, b, *_ = (cell.id for cell in opened.plan.cells)
    plans = at_larger_sizes(opened.plan, {a: 100, b: 200})
    found = [{cell.id: cell.settings.num_samples for cell in plan.cells} for plan in plans]
    assert found == [{a: 100, b: 100}, {b: 200}]
