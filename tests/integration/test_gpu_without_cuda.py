"""Ray believes in GPUs, on a machine whose torch is for CPUs: one line for a worker and a training."""

import dataclasses
from types import SimpleNamespace

import pytest
import ray.train
import torch
from snapshots import raises
from test_ray_train import a_spec

from taugrid.errors import WorkerRefusal
from taugrid.jobs import Hopeless
from taugrid.workers.actor import Probe, Worker
from taugrid.workers.training import loop

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None, reason="torch is built for GPUs"
)


def test_a_worker_says_that_torch_has_no_cuda(tmp_path, monkeypatch):
    (tmp_path / ".probe").touch()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    with raises(WorkerRefusal):
        Worker(1).check_health(Probe(str(tmp_path / ".probe")))


def test_a_training_says_so_once(tmp_path, monkeypatch):
    """The error came out of `loop.run` as it was: Ray Train began three times, and named a worker in its place."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    with raises(Hopeless):
        loop.run(dataclasses.replace(a_spec(tmp_path), gpus_per_worker=1.0))
