"""Jobs read a network as what it predicts: `diffusion.prediction` of the config reaches the sampler."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from denoisers import decode, encode, sample
from tiny import UNET

from taugrid import config, parquet
from taugrid.images import to_uint8
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.work.ode import InterpolateWork, ReconstructWork
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers import ode, schedules
from taugrid.workers.data import load as data
from taugrid.workers.device import Device
from taugrid.workers.diffusion import noise
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import build_unet, ema_start, save_pipeline
from taugrid.workers.sample import sample_shard

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, SEED, N = (1, 8, 8), 5, 10
READINGS = ["epsilon", "sample", "v_prediction"]
ALPHA_BAR = schedules.alpha_bar(config.DIFFUSION_DEFAULTS)


@pytest.fixture(scope="module", params=READINGS)
def run(request, one_thread, tmp_path_factory):
    """A config whose untrained network predicts `request.param`, its plan, and its run directory with the network."""
    values = {
        "name": "x",
        "model": {"unet": UNET},
        "diffusion": {"prediction": request.param},
        "train": {"seed": 0},
        "sample": {"steps": 4, "eta": 0.5, "num_samples": N, "batch_size": 4, "seed": SEED},
        "report": {"reconstructed_images": N, "interpolated_pairs": 1},
    }
    loaded = config.validate(config.Config, values, "test")
    planned, rundir = plan(loaded), RunDir(tmp_path_factory.mktemp("run"))
    [model] = planned.models
    torch.manual_seed(3)
    unet = build_unet(model.source.unet, SHAPE)
    save_pipeline(rundir.models / model.id, unet, ema_start(unet), model.diffusion)
    return loaded, planned, rundir


def the_only_job(kind, run, stage):
    """The job, and the network that it names, loaded as a worker does."""
    [task] = kind(Survey(Run(*run), None, frozenset({stage}), pytest.fail)).tasks()
    return task.job, load_network(task.job.network, task.job.diffusion, "cpu")


def pictures(job):
    parts = list(parquet.read_images(Path(job.path)))
    assert np.concatenate([index for index, _ in parts]).tolist() == list(range(sum(len(i) for i, _ in parts)))
    return np.concatenate([batch for _, batch in parts]).astype(int)


def assert_read_as(run, found, by_reading):
    """`found` are the pictures of this config's reading of the network, and of no other."""
    for reading, x0 in by_reading.items():
        difference = np.abs(found - to_uint8(x0.numpy()))
        if reading == run[0].diffusion.prediction:
            assert difference.max() <= 1
        else:
            assert difference.mean() > 10


def assert_beats(do, job, network):
    """The job beats before each call of its network, and knows how many there will be."""
    calls, heard = [], []

    def counted(x, *where):
        calls.append(where)
        return network(x, *where)

    device = Device("cpu")
    device.heartbeat = lambda done, of: heard.append((done, of))
    do(job, counted, device)
    assert heard == [(done, len(calls)) for done in range(len(calls))]
    assert len(calls) >= len(job.tau)


def test_a_shard_is_sampled_by_what_the_network_predicts(run):
    job, network = the_only_job(SampleWork, run, "sample")
    assert_beats(sample_shard, job, network)

    def z(t):
        return noise.normal(SEED, torch.arange(N), t, SHAPE)

    by_reading = {r: sample(network, z, ALPHA_BAR, job.tau, 0.5, "none", r) for r in READINGS}
    assert_read_as(run, pictures(job), by_reading)


def test_images_are_encoded_and_decoded_by_what_the_network_predicts(run):
    job, network = the_only_job(ReconstructWork, run, "reconstruct")
    assert_beats(ode.reconstruct_shard, job, network)
    x0 = torch.tensor(data.load_images(config.Data())[:N]).float() / 127.5 - 1
    mse = np.concatenate([part for _, part in parquet.read_numbers(Path(job.path), "mse")])
    for reading in READINGS:
        along = ALPHA_BAR, job.tau, reading
        rebuilt = decode(network, encode(network, x0, *along), *along)
        expected = ((rebuilt - x0) / 2).square().flatten(1).mean(dim=1).numpy()
        if reading == run[0].diffusion.prediction:
            np.testing.assert_allclose(mse, expected, rtol=1e-3)
            assert np.abs(pictures(job) - to_uint8(rebuilt.numpy())).max() <= 1
        else:
            assert (np.abs(mse / expected - 1) > 0.1).all()


def test_what_lies_between_is_decoded_by_what_the_network_predicts(run):
    job, network = the_only_job(InterpolateWork, run, "interpolate")
    job = replace(job, batch_size=50)
    assert_beats(ode.interpolate_cell, job, network)
    x_T = ode.points(job, "cpu")[::11]
    by_reading = {r: decode(network, x_T, ALPHA_BAR, job.tau, r) for r in READINGS}
    assert_read_as(run, pictures(job)[::11], by_reading)
