"""Parity with diffusers' schedulers over whole trajectories, on an oracle and on networks that have learned.

The same noise goes into both. An untrained network would prove nothing: its trajectories explode, so that a fault
drowns in float32's rounding and every pixel saturates.
"""

import math
import shutil
from functools import cache
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from denoisers import decode, encode, sample
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler

from taugrid import config
from taugrid.images import to_uint8
from taugrid.orchestrator.plan.grid import plan
from taugrid.workers import schedules
from taugrid.workers.data.load import load_images
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import diffuse, network_time
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.network.checkpoint import saved_network
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import build_unet

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHA = alpha_bar("linear", 1000, 1e-4, 2e-2)
SHAPE = (1, 8, 8)
ETAS = [0.0, 0.5, 1.0]
CLIPS = ["none", "x0", "x0_and_eps"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
VARIANCES = {"fixed_small": 1.0, "fixed_large": "sigma_hat"}
PATHS = [("leading", 10), ("trailing", 10), ("trailing", 50)]
"""S divides T, where DDIMScheduler's prev = t - T // S is the time before in its own list."""
ON_BOTH = [*(("oracle", path) for path in PATHS), *(("trained", path) for path in PATHS[:2])]
DDPM_ON_BOTH = [("oracle", 10), ("oracle", 50), ("trained", 10)]
"""Of a network that has learned, 50 steps cost most of this file's time, and show nothing beyond 10 of them."""
CHECKPOINT = Path(__file__).parents[3] / "shared" / "checkpoints" / "fashion-ddpm-28"
needs_checkpoint = pytest.mark.skipif(
    not CHECKPOINT.exists(), reason="no checkpoint of somebody else's beside the repository"
)


@cache
def noise(t, shape=SHAPE):
    return normal(11, torch.arange(6), t, shape)


def oracle(prediction="epsilon", alpha=ALPHA):
    """The best prediction for data N(0.3, 1.5^2), at diffusers' time index: many pixels lie outside [-1, 1]."""

    def model(x, index):
        a = alpha[index + 1]
        deviation = (x - a**0.5 * 0.3) / (a * 1.5**2 + 1 - a)
        eps, x0 = (1 - a) ** 0.5 * deviation, 0.3 + a**0.5 * 1.5**2 * deviation
        return {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}[prediction]

    return model


def train():
    """A small U-Net after 200 steps on the digits. Late times come more often: an error there grows most, by eq. 9."""
    torch.manual_seed(0)
    unet = build_unet(
        config.Unet(
            block_out_channels=[16, 16],
            layers_per_block=1,
            down_block_types=["DownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "UpBlock2D"],
            norm_num_groups=8,
            add_attention=False,
        ),
        SHAPE,
    )
    images = torch.from_numpy(load_images(config.Data())).float() / 127.5 - 1
    alphas = torch.from_numpy(ALPHA)
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=200)

    def loss(t):
        x0 = images[torch.randint(len(images), t.shape)]
        eps = torch.randn_like(x0)
        return (unet(diffuse(x0, eps, alphas[t]), network_time(t)).sample - eps).square().mean()

    for _ in range(200):
        optimizer.zero_grad()
        loss(1 + (1000 * torch.rand(32).sqrt()).long().clamp(max=999)).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        return unet.eval(), loss(torch.randint(1, 1001, (1000,))).item()


@pytest.fixture(scope="module")
def trained(one_thread):
    unet, loss = train()
    assert loss < 0.25  # 1 is what eps = 0 would have

    @torch.no_grad()
    def model(x, index):
        return unet(x, index).sample

    for eta in ETAS:
        images = sample(ours(model), noise, ALPHA, tau("linear", 10, 1000), eta, "none")
        assert images.abs().max() < 15  # 1 / sqrt(alpha_T) = 157 times x_T's 3 where nothing was learned
        assert (images.abs() < 1).float().mean() > 0.4  # so that 8 bits can tell something
    return model


@pytest.fixture(scope="module")
def eps_model(request):
    return oracle() if request.param == "oracle" else request.getfixturevalue("trained")


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


def by_ddpm(model, scheduler, x, generator):
    for index in scheduler.timesteps.tolist():
        x = scheduler.step(model(x, index), index, x, generator=generator).prev_sample
    return x


def as_drawn(x_T, generator):
    """DDPMScheduler draws z itself, one for each step but the last: the same generator gives us the same in turn."""
    return lambda t: torch.randn(x_T.shape, generator=generator, dtype=x_T.dtype) if t else x_T


def assert_same(ours, theirs, tolerance=1e-5):
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() <= tolerance * max(1, theirs.abs().max())
    levels = to_uint8(ours.numpy()).astype(int) - to_uint8(theirs.numpy())
    assert np.abs(levels).max() <= 1


@pytest.mark.parametrize(("eps_model", "path"), ON_BOTH, indirect=["eps_model"])
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("clip", CLIPS)
def test_ddim(eps_model, clip, eta, path):
    spacing, steps = path
    scheduler = prepared(DDIMScheduler(clip_sample=clip != "none", timestep_spacing=spacing), steps)
    theirs = by_ddim(eps_model, scheduler, eta, clip, noise(0))
    assert_same(sample(ours(eps_model), noise, ALPHA, tau(spacing, steps, 1000), eta, clip), theirs)


@pytest.mark.long
@pytest.mark.parametrize("path", [*PATHS, ("trailing", 1), ("leading", 250)])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_in_float64(prediction, clip, path):
    """With images in float64 too there is next to no rounding, and no fault is too small to be seen."""
    (spacing, steps), model = path, oracle(prediction)
    scheduler = DDIMScheduler(clip_sample=clip != "none", timestep_spacing=spacing, prediction_type=prediction)
    for eta in ETAS:
        theirs = by_ddim(model, prepared(scheduler, steps), eta, clip, noise(0).double(), lambda t: noise(t).double())
        images = sample(
            ours(model), lambda t: noise(t).double(), ALPHA, tau(spacing, steps, 1000), eta, clip, prediction
        )
        assert (images - theirs).abs().max() <= 1e-11 * theirs.abs().max()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("prediction", PREDICTIONS[1:])
def test_ddim_with_other_predictions(prediction, clip, path):
    (spacing, steps), model = path, oracle(prediction)
    scheduler = DDIMScheduler(clip_sample=clip != "none", timestep_spacing=spacing, prediction_type=prediction)
    for eta in ETAS:
        theirs = by_ddim(model, prepared(scheduler, steps), eta, clip, noise(0))
        assert_same(sample(ours(model), noise, ALPHA, tau(spacing, steps, 1000), eta, clip, prediction), theirs)


@pytest.mark.parametrize(("eps_model", "steps"), DDPM_ON_BOTH, indirect=["eps_model"])
@pytest.mark.parametrize("clip", ["none", "x0_and_eps"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm(eps_model, variance, clip, steps):
    """DDPM's posterior mean is that of eta = 1 with the eps of the clipped x0; index 0 comes last, without noise."""
    scheduler = prepared(DDPMScheduler(variance_type=variance, clip_sample=clip != "none"), steps)
    theirs = by_ddpm(eps_model, scheduler, noise(0), torch.Generator().manual_seed(5))
    drawn = as_drawn(noise(0), torch.Generator().manual_seed(5))
    assert_same(sample(ours(eps_model), drawn, ALPHA, tau("leading", steps, 1000), VARIANCES[variance], clip), theirs)


@pytest.mark.parametrize("steps", [10, 250])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_with_every_prediction(variance, prediction, steps):
    model = oracle(prediction)
    scheduler = prepared(DDPMScheduler(variance_type=variance, prediction_type=prediction), steps)
    theirs = by_ddpm(model, scheduler, noise(0), torch.Generator().manual_seed(6))
    drawn = as_drawn(noise(0), torch.Generator().manual_seed(6))
    times, eta = tau("leading", steps, 1000), VARIANCES[variance]
    assert_same(sample(ours(model), drawn, ALPHA, times, eta, "x0_and_eps", prediction), theirs)


@pytest.mark.parametrize(("eps_model", "path"), ON_BOTH, indirect=["eps_model"])
def test_inverse_ddim(eps_model, path):
    """Its indices are our tau - 1 in both spacings: a step starts at index - T/S, which is alpha = 1 below 0, and leads
    to index, where eps is asked for, as ours."""
    spacing, steps = path
    scheduler = prepared(DDIMInverseScheduler(clip_sample=False, timestep_spacing=spacing), steps)
    images = noise(7).clamp(-1, 1)
    x = images
    for index in scheduler.timesteps.tolist():
        x = scheduler.step(eps_model(x, index), index, x).prev_sample
    assert_same(encode(ours(eps_model), images, ALPHA, tau(spacing, steps, 1000)), x)


@pytest.mark.long
def test_a_trained_networks_reconstructions_come_nearer_with_more_steps(trained):
    """The paper's table 2: the error of encoding and decoding falls with S, both being Euler steps of one ODE."""
    x0 = torch.from_numpy(load_images(config.Data())[:64]).float() / 127.5 - 1
    errors = []
    for steps in (10, 20, 50):
        times = tau("linear", steps, 1000)
        rebuilt = decode(ours(trained), encode(ours(trained), x0, ALPHA, times), ALPHA, times)
        errors.append(((rebuilt - x0) / 2).square().mean().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] > 2 * errors[2]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddim_as_it_comes(clip, steps):
    """With diffusers' own float32 alphas: what people will see, and where the digits of 1 - alpha_1 are missed."""
    scheduler = prepared(DDIMScheduler(clip_sample=clip != "none", timestep_spacing="trailing"), steps, exact=False)
    theirs = by_ddim(oracle(), scheduler, 1.0, clip, noise(0))
    images = sample(ours(oracle()), noise, ALPHA, tau("trailing", steps, 1000), 1.0, clip)
    assert_same(images, theirs, tolerance=1e-4)


@needs_checkpoint
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checkpoint_with_its_own_scheduler(dtype):
    """Its settings are `leading`, clipping and fixed_small: as DDPM eta = 1 with x0 and eps clipped, as DDIM x0 alone.

    DDPM's posterior in float64, as DDPM and we write it differently: of four batches of x_T this network took that
    difference from rounding to 2.5e-5 in one where it was computed in float32, to 8e-14 at most in float64.
    """
    folder = {"pretrained_model_name_or_path": CHECKPOINT, "torch_dtype": dtype, "low_cpu_mem_usage": False}
    unet = diffusers.UNet2DModel.from_pretrained(**folder, subfolder="unet").eval()
    x_T = noise(0, (1, 28, 28))[:2].to(dtype)
    times = tau("leading", 10, 1000)

    @torch.no_grad()
    def model(x, index):
        return unet(x, index).sample

    if dtype == torch.float32:
        scheduler = prepared(DDIMScheduler.from_pretrained(CHECKPOINT / "scheduler"), 10)
        theirs = by_ddim(model, scheduler, 0.0, "x0", x_T, lambda t: None)
        images = sample(ours(model), lambda _: x_T, ALPHA, times, 0.0, "x0")
        assert_same(images, theirs)
    else:
        scheduler = prepared(DDPMScheduler.from_pretrained(CHECKPOINT / "scheduler"), 10)
        theirs = by_ddpm(model, scheduler, x_T, torch.Generator().manual_seed(5))
        images = sample(ours(model), as_drawn(x_T, torch.Generator().manual_seed(5)), ALPHA, times, 1.0, "x0_and_eps")
        assert (images - theirs).abs().max() <= 1e-10
    assert (images.abs() < 1).float().mean() > 0.2


def planned_cell(folder, **sections):
    """The only cell of a config, seeded as a file of it would be."""
    sections["sample"] = {"seed": 0, **sections.get("sample", {})}
    values = {"name": "x", "model": {"checkpoint": str(folder)}, **sections}
    [cell] = plan(config.validate(config.Config, values, "test")).cells
    return cell


def sampled(cell, model, noise):
    """As `workers.sample.sample_batch` samples a cell."""
    settings, diffusion = cell.settings, cell.model.diffusion
    clip = (settings.clip, diffusion.predicts, settings.clip_range)
    return sample(model, noise, schedules.alpha_bar(diffusion), cell.tau, settings.eta, *clip)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """All forms of one model: name -> (folder, what its config must say because the folder does not)."""
    bare, beside = (tmp_path_factory.mktemp(name) for name in ("bare", "beside"))
    network = [*(CHECKPOINT / "unet").iterdir()]
    for folder, files in ((bare, network), (beside, [*network, CHECKPOINT / "scheduler" / "scheduler_config.json"])):
        for file in files:
            shutil.copyfile(file, folder / file.name)
    return {"pipeline": (CHECKPOINT, {}), "beside": (beside, {}), "bare": (bare, {"clip": "x0"})}


@pytest.mark.long
@needs_checkpoint
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("form", ["pipeline", "bare", "beside"])
def test_a_loaded_checkpoint_and_its_pipeline_make_the_same_images(forms, form, spacing):
    """From the folder to 8 bits, diffusers through its own DDIMPipeline, each with its own tables of alpha."""
    folder, settings = forms[form]
    cell = planned_cell(folder, sample={"steps": 10, "spacing": spacing, **settings})
    assert cell.settings.clip == "x0"
    pipeline = diffusers.DDIMPipeline.from_pretrained(CHECKPOINT, low_cpu_mem_usage=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing=spacing)
    pipeline.set_progress_bar_config(disable=True)
    drawn = {"batch_size": 4, "num_inference_steps": 10, "eta": 0.0, "output_type": "np"}
    floats = pipeline(**drawn, generator=torch.Generator().manual_seed(3)).images
    pictures = pipeline.numpy_to_pil(floats)
    assert [index + 1 for index in pipeline.scheduler.timesteps.tolist()] == [*reversed(cell.tau)]
    x_T = torch.randn((4, 1, 28, 28), generator=torch.Generator().manual_seed(3))
    model = load_network(saved_network(Path(cell.model.source.checkpoint.unet_folder)), cell.model.diffusion, "cpu")
    x0 = sampled(cell, model, lambda _: x_T).numpy()
    theirs = floats.transpose(0, 3, 1, 2) * 2 - 1  # its last x is clipped already, so its clamp to [0, 1] hides nothing
    assert np.abs(x0 - theirs).max() <= 1e-4 * np.abs(theirs).max()
    levels = to_uint8(x0).astype(int)[:, 0] - np.stack([np.asarray(picture) for picture in pictures])
    assert np.abs(levels).max() <= 1
    assert x0.std() > 0.3


@pytest.fixture(scope="module")
def weights(tmp_path_factory, one_thread):
    """A network's folder, for plans: what is sampled here is the oracle."""
    folder = tmp_path_factory.mktemp("network") / "unet"
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    diffusers.UNet2DModel(**sizes, **blocks).save_pretrained(folder)
    return folder


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


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("arguments", SCHEDULERS.values(), ids=SCHEDULERS)
def test_what_a_scheduler_may_ask_for(weights, tmp_path, arguments, spacing):
    """From the scheduler's own file through the plan to the images, beside diffusers' DDIMScheduler.

    Not at eta = 1, where theirs takes the root of a zero that rounding may have taken below zero, and returns nan.
    """
    folder = shutil.copytree(weights, tmp_path / "unet").parent
    scheduler = DDIMScheduler(**arguments, timestep_spacing=spacing)
    scheduler.save_pretrained(folder / "scheduler")
    for eta in (0.0, 0.5, 0.9):
        cell = planned_cell(folder, sample={"steps": 10, "spacing": spacing, "eta": eta})
        scheduler.set_timesteps(10)
        assert [index + 1 for index in scheduler.timesteps.tolist()] == [*reversed(cell.tau)]
        theirs = by_ddim(rough(cell), scheduler, eta, cell.settings.clip, noise(0))
        assert_same(sampled(cell, ours(rough(cell)), noise), theirs, tolerance=1e-4)


def test_what_a_scheduler_may_ask_for_changes_the_images(weights, tmp_path):
    """The agreement above would mean little if the settings made no difference to what is sampled."""
    images = []
    for name, arguments in SCHEDULERS.items():
        folder = shutil.copytree(weights, tmp_path / name / "unet").parent
        DDIMScheduler(**arguments).save_pretrained(folder / "scheduler")
        cell = planned_cell(folder, sample={"steps": 10, "spacing": "leading"})
        images.append(sampled(cell, ours(rough(cell)), noise))
    distances = [(a - b).abs().max() for i, a in enumerate(images) for b in images[:i]]
    assert min(distances) > 2e-3
