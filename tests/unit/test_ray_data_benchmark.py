"""`python -m benchmarks.ray_data`: what it counts, with faults planted. The benchmark itself needs a cluster."""

import os
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from taugrid.config import Config, validate
from taugrid.orchestrator.plan.grid import plan

pytestmark = pytest.mark.long

tally = import_module("benchmarks.ray_data.tally")
USER, ROOT = Path(tally.__file__).parent / "user", Path(__file__).parents[2]
WORK = tally.Work(steps=(2, 4), images=6, batch=2, evaluations=8, seconds=0.5, workers=2)


def write(path, steps, indices):
    pq.write_table(pa.table({"steps": [steps] * len(indices), "index": list(indices)}), path)


@pytest.fixture
def finished(tmp_path):
    """An undisturbed run: its files, and the calls of two workers, each with the cells of one number of steps."""
    write(tmp_path / "a.parquet", 2, range(4))
    write(tmp_path / "b.parquet", 2, range(4, 6))
    for k in range(3):
        write(tmp_path / f"c{k}.parquet", 4, range(2 * k, 2 * k + 2))
    calls = [np.array([(100 + k / 2, 0.5, 2) for k in range(n)], tally.RECORD) for n in (3 * 2, 3 * 4)]
    return tmp_path, calls


def counts(folder, calls):
    return tuple(tally.count(WORK, tally.rows_of(folder.glob("*.parquet")), calls))


def test_nothing_is_missing_from_an_undisturbed_run(finished):
    assert counts(*finished) == (0, 0, 0)


def test_each_fault_is_counted_where_it_belongs(finished):
    """All at once, so that a lost row can't hide a doubled one."""
    folder, calls = finished
    (folder / "b.parquet").unlink()  # loses two images
    write(folder / "again.parquet", 4, [0, 1, 2])  # doubles three
    write(folder / "other.parquet", 7, [0])  # nobody asked for it
    more = [*calls, np.array([(200, 0.5, 2)] * 5, tally.RECORD)]  # ten evaluations too many
    assert counts(folder, more) == (2, 4, 10)


def test_the_ideal_is_what_the_calls_take():
    assert WORK.ideal == 3 * (2 + 4) * 0.5 / 2
    assert WORK._replace(slow=4.0).ideal == pytest.approx(9 / 1.25)


def test_wall_and_tail(finished, tmp_path):
    folder, calls = finished
    for path in folder.glob("*.parquet"):
        os.utime(path, (107.0, 107.0))
    found = tally.timing(calls, folder.glob("*.parquet"))
    assert found == pytest.approx((107.0 - 99.5, 107.0 - 102.5))


@pytest.mark.parametrize("evaluations", [1, 80, 1000])
def test_both_programs_have_the_same_shards(evaluations):
    """The Ray Data program's own arithmetic, without importing Ray or torch."""
    text = (USER / "with_ray_data.py").read_text()
    names = {}
    exec(re.search(r"^def shards.*?(?=^class)", text, re.DOTALL | re.MULTILINE)[0], names)
    values = yaml.safe_load((USER / "experiment.yaml").read_text())
    values["model"] = {"oracle": "gaussian"}
    values["sample"] = {"num_samples": 100, "batch_size": 8, "shard_evaluations": evaluations}
    values["grid"] = {"steps": [10, 20, 1000]}
    planned = [
        (cell.settings.steps, shard.start, shard.stop)
        for cell in plan(validate(Config, values, "test")).cells
        for shard in cell.shards
    ]
    assert sorted(names["shards"](values["sample"], values["grid"], False)) == sorted(planned)
    costs = [steps * (stop - start) for steps, start, stop in names["shards"](values["sample"], values["grid"], True)]
    assert costs == sorted(costs, reverse=True)
    work = tally.Work((10, 20, 1000), 100, 8, evaluations, 1.0, 2)
    assert work.shards == len(planned)


def test_lines_are_counted_without_comments_and_docstrings():
    assert (
        tally.code_lines('"""One.\n\nTwo."""\nimport a\n\n# no\ndef f():\n    """Three."""\n    return 1  # yes\n') == 3
    )


class FourNodes:
    """A cluster that only notes what is done to it."""

    names, cpus = ("A", "B", "C", "D"), 4

    def __init__(self):
        self.done = []

    def drain(self, name, seconds):
        self.done.append(f"drain {name}")

    def kill(self, name):
        self.done.append(f"kill {name}")

    def start(self, name, cpus):
        self.done.append(f"start {name}")


@pytest.mark.parametrize("with_notice", [True, False])
def test_a_storm_takes_half_of_the_nodes_away_in_turns_and_counts_the_time_of_those_that_are_there(
    monkeypatch, with_notice
):
    """By a clock that goes on when it is waited for."""
    storms = import_module("benchmarks.ray_data.storm")
    began = now = 1000.0

    def wait(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(storms, "time", SimpleNamespace(time=lambda: now, monotonic=lambda: now))
    nodes = FourNodes()
    storm = storms.Storm(nodes, 130.0, with_notice)
    monkeypatch.setattr(storm._over, "wait", wait)
    with storm:
        storm._thread.join()
    steps = ("drain", "kill", "start") if with_notice else ("kill", "start")
    halves = [{f"{what} {name}" for name in names} for names in ("AB", "CD") for what in steps]
    assert [set(nodes.done[i : i + 2]) for i in range(0, len(nodes.done), 2)] == halves, "both drain at a time"
    assert storm.left == 4
    assert now == began + 60 + 20 + 20
    assert storm.node_seconds(began, now) == 4 * 100 - 4 * 20
    assert storm.node_seconds(began, began + 10) == 40


STAND_IN_PROGRAM = """
import os, sys, time
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from benchmarks.ray_data.tally import RECORD

out, calls, shards, loses, halts = *map(Path, sys.argv[1:3]), *map(int, sys.argv[3:])
out.mkdir(exist_ok=True)
while (worker := os.fork()) and os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]):
    pass  # a new one for a worker that was killed
if not worker:
    record = os.open(calls / str(os.getpid()), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for shard in range(shards):
        path = out / f"{shard}.parquet"
        if not path.exists() and shard != loses:
            call = np.array([(time.time(), 0.02, 2)], RECORD).tobytes()
            os.write(record, call)
            time.sleep(0.02)
            pq.write_table(pa.table({"steps": [1, 1], "index": [2 * shard, 2 * shard + 1]}), path.with_suffix(".new"))
            os.write(record, call * (shard == halts))  # of the next shard, for which it is killed
            path.with_suffix(".new").rename(path)
            time.sleep(600 * (shard == halts))
"""


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Makes trials of a program that has one worker and starts another for it."""
    scenarios, programs = (import_module(f"benchmarks.ray_data.{name}") for name in ("scenarios", "programs"))

    def make(shards=30, loses=-1, halts=-1):
        work = tally.Work((1,), 2 * shards, 2, 1, 0.02, 1)
        experiment = programs.Experiment(tmp_path / "run", work)
        command = [sys.executable, "-c", STAND_IN_PROGRAM, str(experiment.out), str(experiment.calls)]
        monkeypatch.setattr(experiment, "command", lambda *_: [*command, *map(str, (shards, loses, halts))])
        cluster = SimpleNamespace(address="", environment={**os.environ, "PYTHONPATH": str(ROOT)})
        return scenarios, scenarios.Trial("ray_data", cluster, experiment)

    return make


def test_an_undisturbed_program_is_timed(trial):
    scenarios, made = trial()
    figures = scenarios.undisturbed(made)
    assert (figures["lost"], figures["doubled"], figures["twice"], figures["files"]) == (0, 0, 0, 30)
    assert 1 < figures["wall / ideal"] < 30


def test_a_killed_worker_is_hit_and_what_it_computed_again_is_counted(trial):
    scenarios, made = trial(halts=11)  # with this one, 0.4 of them are there
    figures = scenarios.kill_a_worker(made)
    assert (figures["workers hit"], figures["lost"], figures["doubled"]) == (1, 0, 0)
    assert figures["twice"] == 2


def test_a_killed_driver_is_started_again_on_what_is_left(trial):
    scenarios, made = trial(halts=25)  # the fifth last
    figures = scenarios.restart(made)
    assert figures["shards left"] == 4
    assert (figures["lost"], figures["doubled"]) == (0, 0)
    assert figures["MB read"] > 0


def test_a_program_that_loses_a_shard_is_found_out(trial):
    scenarios, made = trial(loses=3)
    assert scenarios.undisturbed(made)["lost"] == 2
