"""Training of each process: what the network is given and told there is what samplers give and tell it."""

import diffusers
import pytest
import torch
from scipy import stats
from tiny import UNET

from taugrid import config
from taugrid.jobs import TrainingSpec
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import path
from taugrid.workers.network.checkpoint import read_checkpoint, saved_network
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import save_pipeline
from taugrid.workers.samplers import ddim
from taugrid.workers.training.checkpoints import new_state
from taugrid.workers.training.loop import Batches, Loss

pytestmark = pytest.mark.usefixtures("one_thread")

PROCESSES = {
    "ddpm": config.DIFFUSION_DEFAULTS,
    "edm": config.EDM_DEFAULTS.model_copy(update={"sigma_data": 0.7}),
    "flow": config.FLOW_DEFAULTS.model_copy(update={"timesteps": 1000}),
}
UNSAVED = {"rescale_betas_zero_snr": None, "set_alpha_to_one": None}
"""Keys of every resolved section that say nothing without betas."""
each_process = pytest.mark.parametrize("name", PROCESSES)
continuous = pytest.mark.parametrize("name", ["edm", "flow"])
SMALL = config.Unet(**UNET | {"block_out_channels": [16, 16]})


def a_spec(folder, name, **train):
    settings = {"steps": 120, "batch_size": 32, "seed": 3, "learning_rate": 1e-2, "ema_decay": 0.98} | train
    images = config.Data()
    sections = SMALL, PROCESSES[name], config.Train(**settings)
    return TrainingSpec(images, data.content_fingerprint(images), *sections, "m", str(folder), 1.0, 0.0)


def batch_of(folder, name, step=0, **train):
    return Batches(a_spec(folder, name, **train), 0, 1, "cpu")[step]


def denoising(folder, diffusion):
    """How samplers call the network in a folder."""
    network = load_network(saved_network(folder / "unet"), diffusion, "cpu")
    return Denoise(network, schedules.process(diffusion))


@each_process
def test_training_gives_and_tells_the_network_what_samplers_do(tmp_path, name):
    batch, process = batch_of(tmp_path, name), schedules.process(PROCESSES[name])
    for i, at in enumerate(map(process.told, batch.told.tolist())):
        x = (at.alpha * batch.x0[i].double() + at.sigma * batch.eps[i].double()).float()
        scaling = process.preconditioning(at)
        torch.testing.assert_close(batch.x_t[i], x if scaling is None else scaling.into * x, rtol=0, atol=3e-6)
        assert process.at(batch.t[i].item()).time == pytest.approx(batch.told[i].item(), rel=1e-6)


@each_process
def test_a_network_without_loss_is_one_whose_x0_is_the_image(tmp_path, name):
    """And the loss is the square of what it adds to that, at every time."""
    batch, process = batch_of(tmp_path, name), schedules.process(PROCESSES[name])
    loss_of = Loss(PROCESSES[name], None, "cpu")
    target = torch.zeros_like(batch.x0).requires_grad_()
    loss_of(target, batch).sum().backward()
    target = -target.grad * batch.x0[0].numel() / 2  # of a mean square
    for i, at in enumerate(map(process.told, batch.told.tolist())):
        of = process.predicted(target[i], at.alpha * batch.x0[i] + at.sigma * batch.eps[i], at)
        torch.testing.assert_close(of.x0, batch.x0[i], rtol=0, atol=2e-5 / at.alpha)
    torch.testing.assert_close(loss_of(target + 0.5, batch), torch.full((32,), 0.25), rtol=1e-4, atol=0)


def test_times_are_uniform_and_sigma_is_log_normal(tmp_path):
    flow, edm = (batch_of(tmp_path, name, batch_size=20_000).t for name in ("flow", "edm"))
    assert 0 < flow.min() < flow.max() < 1
    assert stats.kstest(flow.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(edm.log().numpy(), "norm", (-1.2, 1.2)).pvalue > 1e-4
    torch.testing.assert_close(edm.log(), -1.2 + 1.2 * torch.special.ndtri(flow), rtol=0, atol=2**-21 + 1e-12)


@each_process
def test_batches_are_the_same_images_and_noise_for_any_ranks(tmp_path, name):
    train = {"batch_size": 15, "antithetic": True, "flip": True}
    spec = a_spec(tmp_path, name, **train)
    whole, ddpm = Batches(spec, 0, 1, "cpu")[5], batch_of(tmp_path, "ddpm", 5, **train)
    parts = [Batches(spec, rank, 4, "cpu")[5] for rank in range(4)]
    for got, want in zip(list(zip(*parts, strict=True))[:5], whole[:5], strict=True):
        assert torch.equal(torch.cat(got), want)
    assert torch.equal(whole.x0, ddpm.x0)
    assert torch.equal(whole.eps, ddpm.eps)
    if name == "flow":
        assert torch.equal(1 + (whole.t * 1000).floor().long(), ddpm.t), "the same words"
        assert torch.equal(whole.t[1::2], 1 - whole.t[0:-1:2])


def test_draws_of_continuous_processes_never_change(tmp_path):
    """Trained networks on people's disks depend on these: if this fails, the change is wrong, not the test."""
    assert batch_of(tmp_path, "flow", 7).t[:3].tolist() == [0.9236026991010869, 0.3302935147678422, 0.4383065974791033]
    logs = batch_of(tmp_path, "edm", 7).t[:3].log() * 2**20
    assert logs.round().tolist() == [540725, -1810810, -1453659]


@pytest.mark.long
@continuous
def test_a_network_learns_and_is_sampled_as_it_was_trained(tmp_path, name):
    """From its folder, as samplers call it, it tells images better than the best that knows each pixel's moments."""
    spec = a_spec(tmp_path, name)
    state, batches, loss_of = new_state(spec, "cpu"), Batches(spec, 0, 1, "cpu"), Loss(spec.diffusion, None, "cpu")
    for step in range(spec.train.steps):
        batch = batches[step]
        state.optimizer.zero_grad()
        loss_of(state.unet(batch.x_t, batch.told).sample, batch).mean().backward()
        state.optimizer.step()
    save_pipeline(spec.final, state.unet, dict(state.unet.named_parameters()), spec.diffusion)
    process, denoise = schedules.process(spec.diffusion), denoising(spec.final, spec.diffusion)
    held_out = batch_of(tmp_path, name, 10**6, batch_size=200)
    images = torch.tensor(data.load_images(config.Data())) / 127.5 - 1
    mean, variance = images.mean(dim=0), images.var(dim=0)
    for t in {"edm": (0.2, 0.5), "flow": (0.2, 0.4)}[name]:
        at = process.at(t)
        x = at.alpha * held_out.x0 + at.sigma * held_out.eps
        linear = mean + at.alpha * variance / (at.alpha**2 * variance + at.sigma**2) * (x - at.alpha * mean)
        ours, theirs = ((x0 - held_out.x0).square().mean().item() for x0 in (denoise(x, at).x0, linear))
        assert ours < 0.8 * theirs


@continuous
def test_diffusers_own_pipeline_samples_what_was_trained(tmp_path, name):
    """Its pictures are DDIM's along the same times, but for x_T of EDM, which diffusers scales by 80.006."""
    state = new_state(a_spec(tmp_path, name), "cpu")
    diffusion = PROCESSES[name]
    save_pipeline(tmp_path / "p", state.unet, state.ema, diffusion)
    assert read_checkpoint(str(tmp_path / "p")).diffusion == diffusion.model_copy(update=UNSAVED)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "p")
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 5, "output_type": "np"}
    theirs = torch.from_numpy(pipeline(batch_size=3, **arguments).images)[..., 0]
    process = schedules.process(diffusion)
    times = {"edm": process.spaced("linear", 5), "flow": torch.linspace(1e-3, 1, 5).double().tolist()}[name]
    visited = path(process, times)
    z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x0 = ddim.decode(process.first_scale(visited[0]) * z, visited, denoising(tmp_path / "p", diffusion))
    torch.testing.assert_close(((x0 + 1) / 2).clamp(0, 1)[:, 0], theirs, rtol=0, atol=2e-3)
    assert theirs.std() > 0.1
