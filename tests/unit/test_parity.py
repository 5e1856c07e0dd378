"""Parity with diffusers' schedulers over whole trajectories: the same noise goes into both.

Networks are an oracle and, in places, an oracle and a U-Net. A U-Net alone would prove nothing: its trajectories
explode, so that a fault drowns in float32's rounding and every pixel saturates.
"""

import math
import shutil
from functools import cache
from itertools import product
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from denoisers import encode, sample
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from plans import planned
from proofs import cases
from tiny import UNET

from taugrid.images import to_uint8
from taugrid.workers import schedules
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.network.checkpoint import saved_network
from taugrid.workers.network.load import load_network

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHA = alpha_bar("linear", 1000, 1e-4, 2e-2)
SHAPE = (1, 8, 8)


@cache
def noise(t):
    return normal(11, torch.arange(6), t, SHAPE)


def oracle(prediction="epsilon", alpha=ALPHA):
    """The best prediction for data N(0.3, 1.5^2), at diffusers' time index: many pixels lie outside [-1, 1]."""

    def model(x, index):
        a = alpha[index + 1]
        deviation = (x - a**0.5 * 0.3) / (a * 1.5**2 + 1 - a)
        eps, x0 = (1 - a) ** 0.5 * deviation, 0.3 + a**0.5 * 1.5**2 * deviation
        return {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}[prediction]

    return model


@pytest.fixture(scope="module")
def unet(one_thread):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(8, 1, 1, **UNET).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def with_unet(unet):
    """An oracle of eps and a U-Net, which shows: it moves images by more than 0.1."""

    def model(x, index):
        return oracle()(x, index) + 0.2 * unet(x, index).sample

    both = [ours(each) for each in (model, oracle())]
    images, plain = (sample(each, noise, ALPHA, tau("linear", 10, 1000), 0.0, "none") for each in both)
    assert (images - plain).abs().mean() > 0.1
    assert (images.abs() < 1).float().mean() > 0.4, "8 bits can tell something"
    return model


def ours(model):
    return lambda x, at, condition=None: model(x, at.time)


def prepared(scheduler, steps, exact=True):
    """`exact` gives diffusers our alphas in float64. Rounded to float32, as its own are, alpha_1 leaves a 1 - alpha_1
    that is off by 1.7e-4 of itself: its tables, not its formulas, would be what is compared. Images are float32."""
    if exact:
        scheduler.alphas_cumprod = torch.from_numpy(ALPHA[1:])
    scheduler.set_timesteps(steps)
    return scheduler


def by_ddim(model, scheduler, eta, clip, x, noise=noise):
    for index in scheduler.timesteps.tolist():
        kept, z = clip == "x0_and_eps", noise(index + 1)
        x = scheduler.step(model(x, index), index, x, eta, use_clipped_model_output=kept, variance_noise=z).prev_sample
    return x


def assert_same(ours, theirs, tolerance=1e-5):
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() <= tolerance * max(1, theirs.abs().max())
    levels = to_uint8(ours.numpy()).astype(int) - to_uint8(theirs.numpy())
    assert np.abs(levels).max() <= 1


def assert_same_in_float64(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-11 * theirs.abs().max()


ETAS, CLIPS, PREDICTIONS = [0.0, 0.5, 1.0], ["none", "x0", "x0_and_eps"], ["epsilon", "sample", "v_prediction"]
PATHS = [("leading", 10), ("trailing", 10), ("trailing", 50), ("trailing", 1), ("leading", 250)]
"""S divides T, where DDIMScheduler's prev = t - T // S is the time before in its own list."""
PAIRS = [
    (path, PREDICTIONS[j], ETAS[(i + j) % 3], CLIPS[(i + 2 * j) % 3]) for i, path in enumerate(PATHS) for j in range(3)
]
"""Each two of the values meet in one of them."""


@pytest.mark.parametrize(("path", "prediction", "eta", "clip"), cases(PAIRS, PATHS, PREDICTIONS, ETAS, CLIPS))
def test_ddim(path, prediction, eta, clip):
    """In float64 there is next to no rounding, and no fault is too small to be seen."""
    (spacing, steps), model = path, oracle(prediction)
    scheduler = DDIMScheduler(clip_sample=clip != "none", timestep_spacing=spacing, prediction_type=prediction)

    def noise64(t):
        return noise(t).double()

    for z, same in ((noise, assert_same), (noise64, assert_same_in_float64)):
        theirs = by_ddim(model, prepared(scheduler, steps), eta, clip, z(0), z)
        same(sample(ours(model), z, ALPHA, tau(spacing, steps, 1000), eta, clip, prediction), theirs)


@pytest.mark.parametrize(("eta", "clip"), [*zip(ETAS, reversed(CLIPS), strict=True)])
def test_ddim_of_a_network(with_unet, eta, clip):
    scheduler = prepared(DDIMScheduler(clip_sample=clip != "none", timestep_spacing="trailing"), 10)
    theirs = by_ddim(with_unet, scheduler, eta, clip, noise(0))
    assert_same(sample(ours(with_unet), noise, ALPHA, tau("trailing", 10, 1000), eta, clip), theirs)


@pytest.mark.parametrize(("clip", "steps"), [("none", 1000), ("x0", 10), ("x0_and_eps", 1000)])
def test_ddim_as_it_comes(clip, steps):
    """With diffusers' own float32 alphas: what people will see, and where the digits of 1 - alpha_1 are missed."""
    scheduler = prepared(DDIMScheduler(clip_sample=clip != "none", timestep_spacing="trailing"), steps, exact=False)
    theirs = by_ddim(oracle(), scheduler, 1.0, clip, noise(0))
    images = sample(ours(oracle()), noise, ALPHA, tau("trailing", steps, 1000), 1.0, clip)
    assert_same(images, theirs, tolerance=1e-4)


def assert_same_as_ddpm(model, variance, clip, steps, prediction="epsilon"):
    """DDPMScheduler draws z itself, one for each step but the last: the same generator gives us the same in turn."""
    kept = {"variance_type": variance, "clip_sample": clip != "none", "prediction_type": prediction}
    theirs, (one, other) = noise(0), (torch.Generator().manual_seed(5) for _ in range(2))
    scheduler = prepared(DDPMScheduler(**kept), steps)
    for index in scheduler.timesteps.tolist():
        theirs = scheduler.step(model(theirs, index), index, theirs, generator=one).prev_sample

    def drawn(t):
        return torch.randn(theirs.shape, generator=other) if t else noise(0)

    times, eta = tau("leading", steps, 1000), {"fixed_small": 1.0, "fixed_large": "sigma_hat"}[variance]
    assert_same(sample(ours(model), drawn, ALPHA, times, eta, clip, prediction), theirs)


DDPM = ["fixed_small", "fixed_large"], ["none", "x0_and_eps"], [10, 50, 250], PREDICTIONS
DDPM_PAIRS = [
    (DDPM[0][(i + j) % 2], DDPM[1][(i + j) // 2 % 2], steps, prediction)
    for (i, steps), (j, prediction) in product(enumerate(DDPM[2]), enumerate(PREDICTIONS))
]


@pytest.mark.parametrize(("variance", "clip", "steps", "prediction"), cases(DDPM_PAIRS, *DDPM))
def test_ddpm(variance, clip, steps, prediction):
    """DDPM's posterior mean is that of eta = 1 with the eps of the clipped x0; index 0 comes last, without noise."""
    assert_same_as_ddpm(oracle(prediction), variance, clip, steps, prediction)


def test_ddpm_of_a_network(with_unet):
    assert_same_as_ddpm(with_unet, "fixed_large", "none", 10)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 10), ("trailing", 50)])
def test_inverse_ddim(with_unet, spacing, steps):
    """Its indices are our tau - 1 in both spacings: a step starts at index - T/S, which is alpha = 1 below 0, and leads
    to index, where eps is asked for, as ours."""
    scheduler = prepared(DDIMInverseScheduler(clip_sample=False, timestep_spacing=spacing), steps)
    x = images = noise(7).clamp(-1, 1)
    for index in scheduler.timesteps.tolist():
        x = scheduler.step(with_unet(x, index), index, x).prev_sample
    assert_same(encode(ours(with_unet), images, ALPHA, tau(spacing, steps, 1000)), x)


def planned_cell(folder, **sample):
    [cell] = planned(model={"checkpoint": str(folder)}, data={}, sample=sample).cells
    return cell


def sampled(cell, model, noise):
    """As `workers.sample.sample_batch` samples a cell."""
    settings, diffusion = cell.settings, cell.model.diffusion
    clip = (settings.clip, diffusion.predicts, settings.clip_range)
    return sample(model, noise, schedules.alpha_bar(diffusion), cell.tau, settings.eta, *clip)


@pytest.mark.parametrize(("form", "spacing"), [("pipeline", "leading"), ("beside", "trailing"), ("bare", "leading")])
def test_a_loaded_checkpoint_and_its_pipeline_make_the_same_images(unet, tmp_path, form, spacing):
    """From the folder to 8 bits, diffusers through its own DDIMPipeline, each with its own tables of alpha."""
    folder, whole = tmp_path / form, tmp_path / "pipeline"
    diffusers.DDIMPipeline(unet, DDIMScheduler(timestep_spacing=spacing)).save_pretrained(whole)
    if form != "pipeline":
        shutil.copytree(whole / "unet", folder)
    if form == "beside":
        shutil.copy(whole / "scheduler/scheduler_config.json", folder)
    said = {"clip": "x0"} if form == "bare" else {}
    cell = planned_cell(folder, steps=10, spacing=spacing, **said)
    assert cell.settings.clip == "x0"
    pipeline = diffusers.DDIMPipeline.from_pretrained(whole, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    drawn = {"batch_size": 4, "num_inference_steps": 10, "eta": 0.0, "output_type": "np"}
    floats = pipeline(**drawn, generator=torch.Generator().manual_seed(3)).images
    assert [index + 1 for index in pipeline.scheduler.timesteps.tolist()] == [*reversed(cell.tau)]
    x_T = torch.randn((4, *SHAPE), generator=torch.Generator().manual_seed(3))
    model = load_network(saved_network(Path(cell.model.source.checkpoint.unet_folder)), cell.model.diffusion, "cpu")
    x0 = sampled(cell, model, lambda _: x_T).numpy()
    theirs = floats.transpose(0, 3, 1, 2) * 2 - 1  # its last x is clipped already, so its clamp to [0, 1] hides nothing
    assert np.abs(x0 - theirs).max() <= 1e-4 * np.abs(theirs).max()
    pictures = np.stack([np.asarray(picture) for picture in pipeline.numpy_to_pil(floats)])
    levels = to_uint8(x0).astype(int)[:, 0] - pictures
    assert np.abs(levels).max() <= 1
    assert (np.abs(x0) < 1).mean() > 0.4


SCHEDULERS = {
    "as it is": {},
    "alpha_0 = alpha_1": {"set_alpha_to_one": False},
    "offset": {"steps_offset": 1},
    "offset, alpha_0 = alpha_1, as Stable Diffusion's": {"steps_offset": 1, "set_alpha_to_one": False},
    "wider clip": {"clip_sample_range": 2.0},
    "narrower clip": {"clip_sample_range": 0.5},
    "no clip": {"clip_sample": False},
    "betas": {"trained_betas": [2e-4 * (50 + abs(i - 500)) / 10 for i in range(1000)]},
    "no signal at T": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "all": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "sample",
        "clip_sample_range": 1.5,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "beta_schedule": "scaled_linear",
    },
}


def rough(cell):
    """The oracle of a cell's process and something that it is not, without which the last steps would hardly matter."""
    best = oracle(cell.model.diffusion.predicts, schedules.alpha_bar(cell.model.diffusion))
    return lambda x, index: best(x, index) + 0.5 * math.cos(index / 100) * torch.tanh(x)


@pytest.mark.parametrize("arguments", SCHEDULERS.values(), ids=SCHEDULERS)
def test_what_a_scheduler_may_ask_for(unet, tmp_path, arguments):
    """From the scheduler's own file through the plan to the images, beside diffusers' DDIMScheduler.

    Not at eta = 1, where theirs takes the root of a zero that rounding may have taken below zero, and returns nan.
    """
    for spacing, eta in (("leading", 0.5), ("trailing", 0.0), ("leading", 0.9)):
        scheduler = DDIMScheduler(**arguments, timestep_spacing=spacing)
        diffusers.DDIMPipeline(unet, scheduler).save_pretrained(tmp_path)
        cell = planned_cell(tmp_path, steps=10, spacing=spacing, eta=eta)
        scheduler.set_timesteps(10)
        assert [index + 1 for index in scheduler.timesteps.tolist()] == [*reversed(cell.tau)]
        theirs = by_ddim(rough(cell), scheduler, eta, cell.settings.clip, noise(0))
        assert_same(sampled(cell, ours(rough(cell)), noise), theirs, tolerance=1e-4)
