"""A disk that fails at any moment of a run: each call of `Storage`, once, with each error.

The jobs run in this process, so that their calls fail too; the session, the loop and the files are the real ones.
"""

import errno
import io
import random
import shutil
from collections import deque
from contextlib import nullcontext

import pytest
from rich.console import Console

from taugrid.errors import RunFailed
from taugrid.orchestrator.dispatch import cluster, pool
from taugrid.orchestrator.dispatch.pool import Done, Failed, Joined
from taugrid.orchestrator.opened import Opened
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Run
from taugrid.storage import LocalStorage
from taugrid.workers.actor import Worker

pytestmark = pytest.mark.usefixtures("one_thread")

ERRORS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ENOSPC, errno.ETIMEDOUT)

CONFIG = """
name: small
model: {oracle: gaussian}
data: {name: gaussian, shape: [1, 4, 4]}
sample: {seed: 0, num_samples: 20, batch_size: 10, shard_evaluations: 20}
grid: {steps: [2], eta: [0.0, 1.0]}
evaluate: {metrics: [fid], keep_features: true}
cluster: {workers: 1}
"""

STAGES = ("sample", "evaluate")


class Faulty:
    """A storage whose call number `fails_at` (from 0) fails, or all from that one on."""

    def __init__(self, root, fails_at=None, code=errno.EIO, for_good=False):
        self._whole, self._fails_at, self._code, self._for_good = LocalStorage(), fails_at, code, for_good
        self.calls = []

    def __getattr__(self, name):
        method = getattr(self._whole, name)

        def call(path, *arguments):
            number = len(self.calls)
            self.calls.append((name, path))
            if number == self._fails_at or (self._for_good and self._fails_at is not None and number > self._fails_at):
                raise OSError(self._code, "planted", str(path))
            return method(path, *arguments)

        return call


class PoolHere:
    """A pool whose only worker lives in this process and does a job as soon as it gets it."""

    def __init__(self, actor, arguments, cpus, gpus, probe):
        self._worker, self._events, self._probe = Worker(1), deque(), probe

    def start(self):
        self._events.append(Joined("worker-0", self._worker.hello(self._probe)))

    def give(self, worker, job):
        try:
            self._events.append(Done(worker, self._worker.do(job)))
        except Exception as error:
            self._events.append(Failed(worker, error, "traceback"))

    def events(self, timeout_seconds):
        while self._events:
            yield self._events.popleft()

    def close(self):
        pass


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "small.yaml"
    config.write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "Pool", PoolHere)
        patch.setattr(cluster, "connected", lambda *arguments: nullcontext())
        patch.setattr(cluster, "room", lambda section: 1)
        yield Opened(str(config), (), str(tmp_path_factory.mktemp("unused")))


def drive(opened, root, storage):
    """Run the command; returns what it printed."""
    printed = io.StringIO()
    progress = Progress(Console(file=printed, soft_wrap=True))
    outcome = Run(opened.config, opened.plan, RunDir(root, storage), "local", progress).do(STAGES)
    return outcome, printed.getvalue()


def results(root):
    """The bytes of every file that a run is for, by name."""
    folders = ("samples", "features", "scores")
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(opened, tmp_path_factory):
    """The results of a run without faults; the calls of that run; the calls of the same command on what it left."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    storages = Faulty(root), Faulty(root)
    for storage in storages:
        outcome, _ = drive(opened, root, storage)
        assert outcome.missing == {}
    found = results(root)
    assert len([name for name in found if name.startswith("samples/")]) == 4
    return root, found, [len(storage.calls) for storage in storages]


def check(opened, root, expected, **fault):
    """Run with a fault, then again without: every good file stays, and in the end all is as if there had been none."""
    try:
        _, printed = drive(opened, root, Faulty(root, **fault))
    except RunFailed as error:
        printed = str(error)
    assert "Traceback" not in printed
    assert len(printed.splitlines()) < 20
    assert not (root / "damaged").exists(), printed
    left = results(root)
    assert all(left[name] == expected[name] for name in left if name in expected), "what is there is whole"
    places = {name: (root / name).stat().st_ino for name in left if name.startswith("samples/") and name in expected}
    outcome, printed = drive(opened, root, Faulty(root))
    assert outcome.missing == {}, printed
    assert results(root) == expected
    assert not (root / "damaged").exists(), printed
    assert {name: (root / name).stat().st_ino for name in places} == places, "nothing was done twice"


FRESH, FINISHED = "fresh", "finished"


def faults(number_of_calls, codes):
    """Every call of a run that begins and of one that finds everything done, with each error."""
    calls = [(FRESH, n) for n in range(number_of_calls[0])] + [(FINISHED, n) for n in range(number_of_calls[1])]
    return [(start, n, code) for start, n in calls for code in codes]


def check_all(opened, undisturbed, folder, chosen, for_good=False):
    finished, expected, _ = undisturbed
    for start, n, code in chosen:
        root = folder / f"{start}-{n}-{code}"
        if start == FINISHED:
            shutil.copytree(finished, root)
        try:
            check(opened, root, expected, fails_at=n, code=code, for_good=for_good)
        except BaseException as error:
            error.add_note(f"{start} run, call {n}, {errno.errorcode[code]}")
            raise
        shutil.rmtree(root)


def test_a_call_that_fails_loses_nothing(opened, undisturbed, tmp_path):
    every = faults(undisturbed[2], ERRORS)
    check_all(opened, undisturbed, tmp_path, random.Random(11).sample(every, 12))


def test_a_disk_that_is_gone_from_some_call_on_loses_nothing(opened, undisturbed, tmp_path):
    every = faults(undisturbed[2], ERRORS)
    check_all(opened, undisturbed, tmp_path, random.Random(12).sample(every, 4), for_good=True)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_any_call_that_fails_loses_nothing(opened, undisturbed, tmp_path, code, for_good):
    check_all(opened, undisturbed, tmp_path, faults(undisturbed[2], [code]), for_good)
