"""A real Ray that believes in GPUs, on a machine whose torch is for CPUs: one line for a worker and a training."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None, reason="torch is built for GPUs"
)

SCRIPT = """
import dataclasses, json, sys, threading
from pathlib import Path
from taugrid.orchestrator.dispatch.cluster import prepare_embedded
prepare_embedded()
import ray
from taugrid.config.load import load
from taugrid.jobs import TrainingSpec
from taugrid.orchestrator.dispatch.pool import Failed, Pool
from taugrid.orchestrator.plan.grid import plan
from taugrid.workers.actor import Probe, Worker
from taugrid.workers.data.load import content_fingerprint
from taugrid.workers.training import fit

folder = Path(sys.argv[1])
ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
(folder / ".probe").touch()
pool = Pool(Worker, (1,), 1, 1, Probe(str(folder / ".probe")))
pool.start()
while not (refused := [event for event in pool.events(30.0) if isinstance(event, Failed)]):
    pass
pool.close()
(model,) = plan(load("digits", ["train.steps=4", "train.workers=1", "train.warmup_steps=1"])).models
spec = TrainingSpec(
    data=model.data, data_sha256=content_fingerprint(model.data), unet=model.source.unet, diffusion=model.diffusion,
    train=model.source.train, model_id=model.id, models_dir=str(folder), cpus_per_worker=1, gpus_per_worker=1,
)
failed = []
def train():
    try:
        fit.train(spec)
    except BaseException as error:
        failed.append(error)
thread = threading.Thread(target=train)
thread.start()
thread.join()
print(json.dumps([[type(error).__name__, str(error)] for error in (refused[0].cause, *failed)]))
"""


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.slow
def test_a_worker_and_a_training_say_once_that_torch_has_no_cuda(tmp_path):
    """The defect of the training: `_device` outside of the `try` in `loop.run`. Ray Train repeats it three times, and
    the error names a worker (`RunFailed`, "... (worker 0, 1)") and not what fails again."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    (kind, worker), (failure, training) = json.loads(done.stdout.splitlines()[-1])
    assert (kind, failure) == ("DeviceUnusable", "FailsAgain")
    for text, who in ((worker, "this worker"), (training, "training worker")):
        assert who in text
        assert "cluster.gpus_per_worker: 0" in text
        assert "\n" not in text
