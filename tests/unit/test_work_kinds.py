"""A kind of work is one module in orchestrator/work; what its workers refuse ends a run, by the type of the error."""

import io
import pickle
import sys
from unittest.mock import Mock

import pytest
from in_process import PoolHere
from plans import planned
from ray.exceptions import RayTaskError
from rich.console import Console
from snapshots import raises, recorded

from taugrid import parquet
from taugrid.config import Cluster, Config, Diffusion, validate
from taugrid.errors import RunFailed, UserError, WorkerRefusal
from taugrid.jobs import WorkerInfo
from taugrid.orchestrator import work
from taugrid.orchestrator.cli.text import print_result
from taugrid.orchestrator.dispatch.loop import Loop
from taugrid.orchestrator.dispatch.policy import health
from taugrid.orchestrator.dispatch.policy.dispatcher import Dispatcher
from taugrid.orchestrator.dispatch.pool import Joined
from taugrid.orchestrator.dispatch.worker_manager import Outputs
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.view.verify import verify
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers.network.checkpoint import Checkpoint

KINDS = ["reference", "sample", "reconstruct", "interpolate", "extract", "score", "by_label"]

SIXTH = """
from dataclasses import dataclass
from pathlib import Path

from taugrid import parquet
from taugrid.errors import WorkerRefusal
from taugrid.jobs import Job, Result
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import KindResult, WorkKind


@dataclass(frozen=True)
class PaintJob(Job):
    entry_point = "taugrid.orchestrator.work.paint:run"
    colour: str


def run(job, device):
    if job.colour == "wrong":
        raise WorkerRefusal("no such colour")
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


class Workers(PoolHere):
    """Its worker is healthy, or has an error."""

    def __init__(self, error=None):
        super().__init__(*[None] * 7)
        joined = Joined("worker-0", WorkerInfo("here", "cpu", {}))
        self._health = Mock(return_value=joined, side_effect=error)

    def check_health(self, worker):
        self._answer(worker, self._health)


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

    def do(self, error=None):
        tasks = {task.key: task for task in self.kind.tasks()}
        outputs = Outputs(Progress(Console(file=self.printed, soft_wrap=True)), self.events, self._log)
        return Loop(tasks, work.work_kinds(), Workers(error), 1, True, Cluster(max_attempts=2), outputs).run()

    def _log(self, name, text):
        path = self.rundir.root / f"{name.replace('/', '-')}.log"
        path.write_text(text)
        return path


def test_a_sixth_kind_takes_its_place_by_its_priority(sixth):
    """The kinds are in the order in which their work goes out."""
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
    (root / "paintings").mkdir(parents=True)
    opened.rundir.claim()  # it is a run directory
    [cell] = opened.plan.cells
    leftover, painting = root / "paintings" / ".x.parquet.0.tmp", root / "paintings" / f"{cell.id}.parquet"
    leftover.touch()
    with parquet.PartWriter(painting, parquet.number_schema({}, ["stroke"])) as part:
        part.write({"index": range(1), "stroke": [0.1]})
        part.commit(replace=False)
    outcome = Session(opened, "local", Progress()).do({"paint"})
    assert (outcome.missing, outcome.rows) == ({}, [{"cell": cell.id}]), "nothing was to be done"
    assert not leftover.exists()
    print_result(opened.rundir, outcome)
    recorded(capsys.readouterr().out, "painted")
    painting.write_bytes(painting.read_bytes()[:-20])
    damages, _ = verify(opened, lambda count: None)
    assert painting in [damage.path for damage in damages]


def test_what_every_worker_would_refuse_ends_the_run_with_its_one_line(sixth, tmp_path):
    run = Painting(tmp_path / "run", "wrong")
    with raises(WorkerRefusal):
        run.do()
    assert all("Traceback" in log.read_text() for log in run.rundir.root.glob("*.log"))


def test_another_error_is_tried_again_and_then_given_up(sixth, tmp_path):
    run = Painting(tmp_path / "run", "broken")
    problems = run.do()
    assert len(problems) == 2
    assert all("is broken" in reason for reason in problems.values())
    assert run.printed.getvalue().count("be retried") == 2
    assert run.printed.getvalue().count("given up") == 2


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(WorkerRefusal("not seen"), WorkerRefusal), (FileNotFoundError("libcuda"), RunFailed)],
)
def test_a_worker_that_can_not_start_ends_the_run(sixth, tmp_path, raised, expected):
    with pytest.raises(expected, match=str(raised)):
        Painting(tmp_path / "run", "blue").do(raised)


def test_shards_are_compared_with_those_whose_network_computes_alike(tmp_path):
    """Of two precisions, one may take many times as long for equal cost; the number of steps changes only the cost."""
    values = {"name": "paces", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "sample": {"seed": 0}}
    grid = {"steps": [2, 5], "precision": ["float32", "bf16"]}
    cells = plan(validate(Config, values | {"grid": grid}, "test")).cells
    paces = {}
    for cell in cells:
        task = Task(f"sample/{cell.id}/0", "sample", cell.nfe, cell=cell)
        paces.setdefault(SampleWork.pace(task), []).append((cell.settings.precision, cell.settings.steps))
    assert sorted(map(sorted, paces.values())) == [[("bf16", 2), ("bf16", 5)], [("float32", 2), ("float32", 5)]]


def checkpoint(path):
    """Another one of the same architecture for each `path`."""
    unet = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    return Checkpoint(path, f"{path}/unet", unet, path[-8:].rjust(64, "0"), Diffusion(), {})


PLANS = {
    "checkpoints": {"model": {}, "grid": {"model.checkpoint": [f"/models/step-{n}" for n in range(8)], "steps": [5]}},
    "trained": {"model": {"unet": {}}, "grid": {"train.seed": list(range(8)), "steps": [5]}},
}


@pytest.mark.parametrize("values", PLANS.values(), ids=PLANS)
def test_the_only_shard_of_a_checkpoint_is_late_beside_those_of_others_of_its_architecture(values):
    """Defect: the model's id was its pace, so the last of 8 shards, on a worker 20 times slower, had no copy."""
    cells = planned(checkpoint, dry=True, **{"data": {"name": "digits"}, **values}).cells
    tasks = [Task(f"sample/{cell.id}/0", "sample", 100 * cell.nfe, cell=cell) for cell in cells]
    dispatcher = Dispatcher(tasks, ["sample"], pace=SampleWork.pace)
    for number in range(8):
        dispatcher.worker_joined(f"w{number}")
    slowest = dispatcher.assign(0.0)[-1]
    for number in range(7):
        dispatcher.succeeded(f"w{number}", 10.0)
    dispatcher.heartbeat("w7", 60.0)
    assert dispatcher.assign(60.0) == []
    assert [(copy.task.key, copy.speculative) for copy in dispatcher.assign(61.0)] == [(slowest.task.key, True)]


def test_networks_of_other_architectures_have_another_pace():
    grid = {"model.unet.layers_per_block": [1, 2], "train.seed": [0, 1], "steps": [5]}
    cells = planned(dry=True, model={"unet": {}}, data={"name": "digits"}, grid=grid).cells
    paces = {}
    for cell in cells:
        pace = SampleWork.pace(Task("sample", "sample", cell.nfe, cell=cell))
        paces.setdefault(pace, []).append(cell.model.source.unet.layers_per_block)
    assert list(paces.values()) == [[1, 1], [2, 2]]


@pytest.mark.parametrize("kind", [WorkerRefusal, *WorkerRefusal.__subclasses__()])
def test_a_refusal_keeps_its_type_and_line_on_the_way_through_ray(kind):
    there = RayTaskError("do", "Traceback", kind("one line"))
    cause = pickle.loads(pickle.dumps(there)).cause
    assert type(cause) is kind
    assert isinstance(cause, UserError)
    assert str(cause) == "one line"
