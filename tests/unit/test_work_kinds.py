"""A kind of work is one module in orchestrator/work; what its workers refuse ends a run, by the type of the error."""

import io
import json
import pickle
import sys
import traceback
from collections import deque

import pytest
from ray.exceptions import RayTaskError
from rich.console import Console
from snapshots import raises, recorded

from taugrid import parquet
from taugrid.config import Cluster, Config, validate
from taugrid.errors import RunDirectoryNotVisible, RunFailed, UserError, WorkerRefusal, WrongWeights
from taugrid.jobs import WorkerInfo
from taugrid.orchestrator import work
from taugrid.orchestrator.cli.text.runs import print_result
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.policy import health
from taugrid.orchestrator.dispatch.pool import Done, Failed, Joined
from taugrid.orchestrator.dispatch.worker_manager import Outputs
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.verify import verify
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers.actor import Probe, Worker

KINDS = ["reference", "sample", "reconstruct", "interpolate", "extract", "score", "by_label"]

SIXTH = """
from dataclasses import dataclass
from pathlib import Path

from taugrid import parquet
from taugrid.errors import WrongWeights
from taugrid.jobs import Job, Result
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import KindResult, WorkKind


@dataclass(frozen=True)
class PaintJob(Job):
    entry_point = "taugrid.orchestrator.work.paint:run"
    colour: str


def run(job, device):
    if job.colour == "wrong":
        raise WrongWeights("no such colour")
    if job.colour == "broken":
        raise ValueError("the brush\\nis broken")
    schema = parquet.number_schema({"colour": f"{job.colour} on {device.name}"}, ["stroke"])
    with parquet.PartWriter(Path(job.path), schema, job.storage) as part:
        part.write({"index": range(3), "stroke": [0.1, 0.2, 0.3]})
        return Result(0.25, 3, part.commit(replace=False))


class PaintWork(WorkKind):
    name = "paint"
    priority = 35
    folder = "paintings"
    files = "*.parquet"
    stage = "paint"
    unit = "strokes"
    activity = "painting"
    task_in_words = ("cell", "to paint")
    finished_noun = "cells painted"

    def _path(self, cell):
        return self.path / f"{cell.id}.parquet"

    def _is_there(self, cell):
        return self.rundir.storage.exists(self._path(cell))

    def tasks(self):
        for cell in self.plan.cells:
            if not self._is_there(cell):
                job = PaintJob(str(self._path(cell)), self.config.name)
                yield Task(f"paint/{cell.id}", "paint", cell.settings.steps, cell=cell, given=job)

    def missing(self):
        return {cell.name: "it is not painted" for cell in self.plan.cells if not self._is_there(cell)}

    def conclude(self):
        rows = [{"cell": cell.id} for cell in self.plan.cells if self._is_there(cell)]
        return KindResult(rows, "all is painted")

"""


@pytest.fixture
def sixth(tmp_path, monkeypatch):
    """The folder of the kinds holds one module more."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    (folder / "paint.py").write_text(SIXTH)
    monkeypatch.setattr(work, "__path__", [*work.__path__, str(folder)])
    yield
    sys.modules.pop("taugrid.orchestrator.work.paint", None)
    vars(work).pop("paint", None)


@pytest.fixture(autouse=True)
def short_benches(monkeypatch):
    monkeypatch.setattr(health, "FIRST_COOLDOWN_SECONDS", 0.01)


class PoolHere:
    """A pool whose one worker lives in this process and does a job as soon as it gets it."""

    cpu_only = None

    def __init__(self):
        self._worker, self._events = Worker(1), deque()

    def start(self, avoid=()):
        self.check_health("worker-0")
        return "worker-0"

    def check_health(self, worker):
        self._events.append(Joined(worker, WorkerInfo("here", "cpu", {})))

    def places(self):
        return set()

    def submit(self, worker, job, key):
        try:
            self._events.append(Done(worker, self._worker.do(job), key))
        except Exception as error:
            self._events.append(Failed(worker, error, "".join(traceback.format_exception(error)), key))

    def events(self, timeout_seconds):
        while self._events:
            yield self._events.popleft()


class Painting:
    """A run of the sixth kind, as a session puts it together."""

    def __init__(self, root, colour):
        values = {"name": colour, "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "sample": {"seed": 0}}
        config = validate(Config, values | {"grid": {"steps": [2, 5]}}, "test")
        self.rundir, self.printed = RunDir(root), io.StringIO()
        root.mkdir(parents=True)
        survey = Survey(Run(config, plan(config), self.rundir), None, frozenset({"paint"}), pytest.fail)
        [self.kind] = [kind(survey) for kind in work.work_kinds() if kind.stage in survey.stages]
        self.events = Events(self.rundir)

    def do(self):
        tasks = {task.key: task for task in self.kind.tasks()}
        progress = Progress(Console(file=self.printed, soft_wrap=True))
        limits = Cluster(max_attempts=2)
        loop = Loop(tasks, work.work_kinds(), PoolHere(), 1, True, limits, Outputs(progress, self.events, self._log))
        return loop.run()

    def _log(self, name, text):
        path = self.rundir.root / f"{name.replace('/', '-')}.log"
        path.write_text(text)
        return path


def test_the_kinds_are_found_in_the_order_in_which_their_work_goes_out():
    assert [kind.name for kind in work.work_kinds()] == KINDS


def test_a_sixth_kind_takes_its_place_by_its_priority(sixth):
    assert [kind.name for kind in work.work_kinds()] == [*KINDS[:4], "paint", *KINDS[4:]]


def test_a_sixth_kind_is_announced_done_recorded_and_concluded(sixth, tmp_path):
    run = Painting(tmp_path / "run", "blue")
    assert len(run.kind.missing()) == 2
    assert run.do() == {}
    recorded(run.printed.getvalue(), "cells")
    assert run.kind.missing() == {}
    assert list(run.kind.tasks()) == [], "what is there is not done again"
    conclusion = run.kind.conclude()
    assert len(conclusion.rows) == 2
    found = [parquet.inspect(path) for path in (run.rundir.root / "paintings").glob("*.parquet")]
    assert [part.metadata for part in found] == [{"colour": "blue on cpu"}] * 2
    lines = [event for event in read_events(run.rundir) if event["event"] == "paint"]
    ids = [cell.id for cell in sorted(run.kind.plan.cells, key=lambda cell: -cell.settings.steps)]
    assert [line["task"] for line in lines] == [f"paint/{id}" for id in ids], "the costliest first"
    wanted = {"images": 3, "seconds": 0.25, "committed": True, "worker": "worker-0", "node": "here", "device": "cpu"}
    assert all(wanted.items() <= line.items() for line in lines)


def test_the_files_of_a_sixth_kind_are_cleaned_up_verified_and_told(sixth, tmp_path, capsys):
    config, root = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(
        "{name: blue, model: {oracle: gaussian}, data: {name: gaussian}, sample: {num_samples: 1}, grid: {steps: [2]}}"
    )
    opened = open_config(str(config), (), str(root))
    root.mkdir()
    (root / "run.json").write_text(json.dumps({"run": "0" * 32}))
    leftover = root / "paintings" / ".x.parquet.0.tmp"
    leftover.parent.mkdir(parents=True)
    opened.rundir.claim()  # it is a run directory
    leftover.touch()
    [cell] = opened.plan.cells
    schema = parquet.number_schema({}, ["stroke"])
    with parquet.PartWriter(root / "paintings" / f"{cell.id}.parquet", schema) as part:
        part.write({"index": range(1), "stroke": [0.1]})
        part.commit(replace=False)
    outcome = Session(opened, "local", Progress()).do({"paint"})
    assert (outcome.missing, outcome.rows) == ({}, [{"cell": cell.id}]), "nothing was to be done"
    assert not leftover.exists()
    print_result(opened.rundir, outcome)
    recorded(capsys.readouterr().out, "painted")
    painting = root / "paintings" / f"{cell.id}.parquet"
    painting.write_bytes(painting.read_bytes()[:-20])
    damages, _ = verify(opened, lambda count: None)
    assert painting in [damage.path for damage in damages]


def test_what_every_worker_would_refuse_ends_the_run_with_its_one_line(sixth, tmp_path):
    run = Painting(tmp_path / "run", "wrong")
    with raises(WrongWeights):
        run.do()
    assert all("Traceback" in log.read_text() for log in run.rundir.root.glob("*.log"))


def test_another_error_is_tried_again_and_then_given_up(sixth, tmp_path):
    run = Painting(tmp_path / "run", "broken")
    problems = run.do()
    assert len(problems) == 2
    assert all("is broken" in reason for reason in problems.values())
    assert run.printed.getvalue().count("be retried") == 2
    assert run.printed.getvalue().count("given up") == 2


def test_a_worker_that_does_not_see_the_run_directory_says_where(tmp_path):
    with pytest.raises(RunDirectoryNotVisible) as error:
        Worker(1).check_health(Probe(str(tmp_path / "nowhere" / ".probe")))
    assert str(tmp_path / "nowhere") in str(error.value)


class Startless(PoolHere):
    def __init__(self, error):
        super().__init__()
        self._error = error

    def check_health(self, worker):
        self._events.append(Failed(worker, self._error, "traceback"))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RunDirectoryNotVisible("not seen"), RunDirectoryNotVisible),
        (FileNotFoundError("libcuda"), RunFailed),
    ],
)
def test_a_worker_that_can_not_start_ends_the_run(sixth, tmp_path, raised, expected):
    run = Painting(tmp_path / "run", "blue")
    tasks = {task.key: task for task in run.kind.tasks()}
    progress = Progress(Console(file=run.printed))
    outputs = Outputs(progress, run.events, run._log)
    loop = Loop(tasks, work.work_kinds(), Startless(raised), 1, True, Cluster(), outputs)
    with pytest.raises(expected, match=str(raised)):
        loop.run()


@pytest.mark.parametrize("kind", WorkerRefusal.__subclasses__())
def test_a_refusal_keeps_its_type_and_line_on_the_way_through_ray(kind):
    there = RayTaskError("do", "Traceback", kind("one line"))
    cause = pickle.loads(pickle.dumps(there)).cause
    assert type(cause) is kind
    assert isinstance(cause, UserError)
    assert str(cause) == "one line"
