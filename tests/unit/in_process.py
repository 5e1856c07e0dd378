"""A small run of oracles whose jobs run in this process, without Ray; the session, the loop and the files are real."""

import errno
import io
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from threading import current_thread
from traceback import format_exception
from unittest import mock

import pytest
from rich.console import Console

from taugrid.orchestrator.dispatch import capacity, cluster, pool
from taugrid.orchestrator.dispatch.policy import health
from taugrid.orchestrator.dispatch.pool import Done, Failed, Joined, Located
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.storage import LocalStorage
from taugrid.workers.actor import Worker

CONFIG = """
name: small
model: {oracle: gaussian}
data: {name: gaussian, shape: [1, 4, 4]}
sample: {seed: 0, num_samples: 20, batch_size: 10, shard_evaluations: 20}
grid: {steps: [2], eta: [0.0, 1.0]}
evaluate: {metrics: [fid], keep_features: true}
cluster: {workers: 1}
"""

SMALL_UNET = """{block_out_channels: [8, 8], layers_per_block: 1, norm_num_groups: 4, add_attention: false,
  down_block_types: [DownBlock2D, DownBlock2D], up_block_types: [UpBlock2D, UpBlock2D]}"""
"""`model.unet` for images of 8 x 8, as YAML; the fewest operations that are still a U-Net."""

STAGES = ("sample", "evaluate")

COOLDOWN_SECONDS = 0.05
"""In place of 1, which doubles each time: the only worker fails as often as one of many."""


class Faulty:
    """A storage whose call number `fails_at` (from 0) fails, or all from that one on."""

    def __init__(self, root, fails_at=None, code=errno.EIO, for_good=False):
        self._whole, self._fails_at, self._code, self._for_good = LocalStorage(root), fails_at, code, for_good
        self.calls = []

    def __getattr__(self, name):
        method = getattr(self._whole, name)
        if not callable(method):
            return method

        def call(path, *arguments, **options):
            if current_thread().name == "lease":  # the slower the run, the more heartbeats: they do not count
                return method(path, *arguments, **options)
            number = len(self.calls)
            self.calls.append((name, path))
            if number == self._fails_at or (self._for_good and self._fails_at is not None and number > self._fails_at):
                raise OSError(self._code, "planted", str(path))
            return method(path, *arguments, **options)

        return call


class PoolHere:
    """A pool whose only worker lives in this process and does a job as soon as it gets it."""

    def __init__(self, actor, arguments, cpus, gpus, probe, label_selector, scorer):
        self._worker, self._events, self._probe, self.scorer = Worker(1), deque(), probe, scorer
        self._idle = []

    def start(self, avoid=()):
        self._idle = [(Located("worker-0", "here", "here"), False)]
        self.check_health("worker-0")
        return "worker-0"

    def take_over(self):
        return self._idle

    def check_health(self, worker):
        self._answer(worker, lambda: Joined(worker, self._worker.check_health(self._probe)))

    def submit(self, worker, job, key):
        self._answer(worker, lambda: Done(worker, self._worker.do(job), key), key)

    def _answer(self, worker, call, key=None):
        try:
            self._events.append(call())
        except Exception as error:
            self._events.append(Failed(worker, error, "".join(format_exception(error)), key))

    def stop(self):
        return []  # no job is in flight: each is done as it is given

    def kill(self, worker):
        pytest.fail(f"{worker} had to be killed")

    def events(self, timeout_seconds):
        if not self._events:  # its node cools down
            time.sleep(min(timeout_seconds, 0.02))
        while self._events:
            yield self._events.popleft()

    def close(self):
        pass


@contextmanager
def small_run(folder, text=CONFIG) -> Iterator[Run]:
    """The run that `text` describes, whose workers are this process while the context lasts."""
    config = folder / "small.yaml"
    config.write_text(text)
    with (
        mock.patch.object(pool, "Pool", PoolHere),
        mock.patch.object(cluster, "connected", return_value=nullcontext()),
        mock.patch.object(health, "FIRST_COOLDOWN_SECONDS", COOLDOWN_SECONDS),
        mock.patch.object(capacity, "embedded_workers", return_value=1),
        mock.patch.object(capacity, "worker_size", return_value=capacity.Size(1, 0)),
        mock.patch.object(capacity, "staying", return_value=[capacity.Node("here", 1, 0)]),
    ):
        yield open_config(str(config), (), str(folder / "unused"))


def drive(opened, root, storage, stages=STAGES):
    """Run the command; returns what it printed."""
    printed = io.StringIO()
    progress = Progress(Console(file=printed, soft_wrap=True))
    outcome = Session(replace(opened, rundir=RunDir(root, storage)), "local", progress).do(stages)
    return outcome, printed.getvalue()


def results(root):
    """The bytes of every file that a run is for, by name."""
    folders = ("samples", "features", "scores")
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def flip(path):
    """Damage a file by one bit, in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
