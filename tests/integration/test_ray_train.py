import dataclasses
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from orchestrator import config
from orchestrator.errors import RunFailed
from workers import training
from workers.training import TrainingSpec

pytestmark = pytest.mark.usefixtures("ray_session")

WEIGHTS = "diffusion_pytorch_model.safetensors"
SPEC = TrainingSpec(
    data=config.Data(),
    unet=config.Unet(
        block_out_channels=[16, 16],
        layers_per_block=1,
        down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "UpBlock2D"],
        norm_num_groups=4,
        dropout=0.0,
    ),
    diffusion=config.DIFFUSION_DEFAULTS,
    train=config.Train(steps=120, batch_size=15, learning_rate=2e-3, ema_decay=0.9, checkpoint_every=30, seed=1),
    model_id="0123456789",
    models_dir="",
    cpus_per_worker=1,
    gpus_per_worker=0,
)


def a_spec(folder, **train):
    settings = SPEC.train.model_copy(update=train)
    return dataclasses.replace(SPEC, models_dir=str(folder), train=settings)


def in_a_thread(spec):
    """As the driver calls it: Ray Train would keep the main thread's SIGINT handler."""
    return ThreadPoolExecutor(1).submit(training.train, spec)


def log_of(folder):
    lines = (folder / SPEC.model_id / "train" / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    spec = a_spec(folder)
    spec.running.mkdir()
    (spec.running / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.')  # a kill left this
    leftover = folder / f".{SPEC.model_id}.77.tmp"
    leftover.mkdir()
    in_a_thread(spec).result()
    return folder


def test_a_finished_training_leaves_a_pipeline_and_its_log_alone(uninterrupted):
    assert [path.name for path in uninterrupted.iterdir()] == [SPEC.model_id]
    pipeline = diffusers.DDIMPipeline.from_pretrained(uninterrupted / SPEC.model_id)
    assert pipeline(batch_size=2, num_inference_steps=3, output_type="np").images.shape == (2, 8, 8, 1)
    log = log_of(uninterrupted)
    assert [record["step"] for record in log] == list(range(1, 121))
    losses = [record["loss"] for record in log]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    seconds = [record["seconds"] for record in log]
    assert seconds == sorted(seconds)


def test_averaged_and_raw_weights_differ(uninterrupted):
    averaged, raw = (load_file(uninterrupted / SPEC.model_id / name / WEIGHTS) for name in ("unet", "unet_raw"))
    assert averaged.keys() == raw.keys()
    assert not torch.equal(averaged["conv_in.weight"], raw["conv_in.weight"])


def test_a_trained_model_is_not_trained_again(uninterrupted):
    began = time.monotonic()
    in_a_thread(a_spec(uninterrupted)).result()
    assert time.monotonic() - began < 1  # Ray Train needs seconds to start anything


def test_two_workers_learn_what_one_learns(uninterrupted, tmp_path):
    # 15 images in a batch are 7 and 8: unweighted means of the two would be off by percents.
    in_a_thread(a_spec(tmp_path, workers=2, steps=50)).result()
    one, two = ([record["loss"] for record in log_of(folder)[:50]] for folder in (uninterrupted, tmp_path))
    assert two == pytest.approx(one, rel=1e-4)


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(uninterrupted, tmp_path):
    spec = a_spec(tmp_path)
    log = spec.running / "log.jsonl"
    running = in_a_thread(spec)
    _wait(lambda: (at := training.progress(tmp_path, spec.model_id)) is not None and at.step >= 65, running)
    before = log.stat().st_ino
    os.kill(_holder(log), signal.SIGKILL)
    _wait(lambda: log.stat().st_ino != before, running)  # the new worker has cut the log back
    resumed_at = training.progress(tmp_path, spec.model_id)
    assert resumed_at is not None
    assert resumed_at.step >= 30
    running.result()
    for name in ("unet", "unet_raw"):
        killed, straight = (folder / SPEC.model_id / name / WEIGHTS for folder in (tmp_path, uninterrupted))
        assert killed.read_bytes() == straight.read_bytes()
    assert [r | {"seconds": 0} for r in log_of(tmp_path)] == [r | {"seconds": 0} for r in log_of(uninterrupted)]
    assert [path.name for path in tmp_path.iterdir()] == [SPEC.model_id]


def test_a_diverging_training_stops_with_one_line(tmp_path):
    with pytest.raises(RunFailed, match=r"^the loss of step 2 is not finite; lower train.learning_rate"):
        in_a_thread(a_spec(tmp_path, learning_rate=1e30)).result()
    assert not (tmp_path / SPEC.model_id).exists()


def _wait(condition, running, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert not running.done(), running.exception()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _holder(path):
    """The process that has `path` open: the training worker, whichever other Ray sessions run on this machine."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError(f"no process has {path} open")
