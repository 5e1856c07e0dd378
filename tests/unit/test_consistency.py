"""Pipelines with classes in diffusers' own loops, with our noise and labels; the process of consistency models."""

import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_consistency_models
from in_process import drive, small_run
from latents import edit
from plans import ORACLE, planned
from snapshots import raises, recorded
from tiny import UNET

import taugrid
from taugrid import parquet
from taugrid.config import CONSISTENCY_DEFAULTS, Diffusion, Sample
from taugrid.errors import UserError
from taugrid.images import to_uint8
from taugrid.orchestrator.work.ode import require_ode_cells
from taugrid.storage import LOCAL
from taugrid.workers import schedules
from taugrid.workers.conditions import LabelRule
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import log_snr_key
from taugrid.workers.diffusion.processes import DiscreteEDM
from taugrid.workers.samplers.sampler import SamplingSpec, find, sample_batch

pytestmark = [
    pytest.mark.usefixtures("one_thread", "sketched"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # diffusers'
]

SHAPE, N, CLASSES = (3, 8, 8), 7, 5
LABELS = torch.from_numpy(LabelRule("balanced", 3, CLASSES).at(np.arange(N))).long()
PROCESS = schedules.process(CONSISTENCY_DEFAULTS)


@pytest.fixture(scope="module")
def folder(one_thread, tmp_path_factory):
    """A class-conditional consistency model with random weights."""
    path = tmp_path_factory.mktemp("consistency")
    ConsistencyModelPipeline(random_unet(), CMStochasticIterativeScheduler()).save_pretrained(path)
    return path


@torch.no_grad()
def random_unet():
    """A U-Net that says more than the noise that is left, and the more so for a class than another."""
    torch.manual_seed(0)
    unet = UNet2DModel(8, 3, 3, **UNET, num_class_embeds=CLASSES)
    unet.conv_out.weight.mul_(8)
    unet.class_embedding.weight.mul_(4)
    return unet


def config(folder, grid="{steps: [1, 4], sampler: [consistency]}"):
    return f"""
name: small
model: {{checkpoint: {folder}}}
data: {{name: gaussian, shape: [3, 8, 8]}}
sample: {{seed: 3, num_samples: {N}, batch_size: 4, shard_evaluations: 8, labels: balanced}}
grid: {grid}
evaluate: {{metrics: [fid]}}
cluster: {{workers: 1}}
"""


def on(folder, **sections):
    sample = {"sampler": "consistency", "steps": 2, "labels": "balanced"} | sections.pop("sample", {})
    return planned(**{"model": {"checkpoint": str(folder)}, "data": {}, "sample": sample} | sections)


@torch.no_grad()
def by_diffusers(folder, steps, labels=LABELS):
    """Pictures of an own loop of the pipeline's parts; the noise is named by the level that a step leads to."""
    pipeline = ConsistencyModelPipeline.from_pretrained(folder)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    scheduler.set_timesteps(steps)
    keys = [2**31 + round(2**21 * math.log(sigma)) for sigma in np.exp(scheduler.timesteps.numpy()[1:] / 250)]
    draws = iter([normal(3, torch.arange(N), key, SHAPE) for key in [*keys, 1]])  # the last is multiplied by 0
    x = normal(3, torch.arange(N), 0, SHAPE) * scheduler.init_noise_sigma
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_consistency_models, "randn_tensor", lambda *given, **named: next(draws))
        for t in scheduler.timesteps:
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t, labels).sample, t, x).prev_sample
    return to_uint8(x.numpy())


def pictures(root, steps):
    [cell] = (root / "samples").glob(f"S{steps:04d}-*")
    return np.concatenate([images for part in sorted(cell.iterdir()) for _, images in parquet.read_images(part)])


def test_pictures_are_those_of_diffusers_own_loop_with_our_noise(folder, tmp_path):
    with small_run(tmp_path, config(folder)) as opened:
        drive(opened, tmp_path / "run", LOCAL)
    for steps in (1, 4):
        mine = pictures(tmp_path / "run", steps).astype(int)
        assert mine.std() > 20
        other = by_diffusers(folder, steps, LABELS.roll(1))
        assert (np.abs(mine - other).max(axis=(1, 2, 3)) > 1).all(), "every label shows"
        assert np.abs(mine - by_diffusers(folder, steps)).max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_pixel_pipeline_with_classes_is_diffusers_ddim_with_our_noise_and_labels(tmp_path, eta):
    DDIMPipeline(random_unet(), DDIMScheduler(timestep_spacing="trailing")).save_pretrained(tmp_path / "it")
    with small_run(tmp_path, config(tmp_path / "it", grid=f"{{steps: [5], eta: [{eta}]}}")) as opened:
        drive(opened, tmp_path / "run", LOCAL)
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "it")
    pipeline.scheduler.set_timesteps(5)
    x = normal(3, torch.arange(N), 0, SHAPE)
    for t in pipeline.scheduler.timesteps.tolist():
        z = normal(3, torch.arange(N), t + 1, SHAPE)
        output = pipeline.unet(x, t, LABELS).sample
        x = pipeline.scheduler.step(output, t, x, eta, variance_noise=z).prev_sample
    mine = pictures(tmp_path / "run", 5)
    assert 20 < mine.std() < 120
    assert np.abs(mine.astype(int) - to_uint8(x.numpy())).max() <= 1


MEAN, DEVIATION = 0.3, 0.4


def gaussian_function(process):
    """F of the consistency function of N(MEAN, DEVIATION^2): its ODE scales x - MEAN as the deviation of x shrinks."""

    def function(x, at, condition=None):
        into, skip, out = process.preconditioning(at)
        x = x / into
        return ((MEAN + shrinking(process, at) * (x - MEAN)) - skip * x) / out

    return function


def shrinking(process, at):
    return math.sqrt((DEVIATION**2 + process.at(1).sigma ** 2) / (DEVIATION**2 + at.sigma**2))


@pytest.mark.parametrize(("spacing", "sigma_min"), [("linear", 0.002), ([40], 0.002), ([4, 30], 0.5)])
def test_a_gaussians_consistency_function_gives_its_mean_and_deviation(spacing, sigma_min):
    """The exact moments, those of an x_T without the mean included; they are within 1 % of the data's at sigma_min."""
    diffusion = CONSISTENCY_DEFAULTS.model_copy(update={"sigma_min": sigma_min})
    steps, process = 1 if spacing == [40] else 2, schedules.process(diffusion)
    settings = Sample(sampler="consistency", steps=steps, spacing=spacing, seed=0, clip="none")
    tau = find("consistency").tau(settings, process)
    spec = SamplingSpec(Identity((1, 1, 1)), diffusion, settings, tau, steps)
    x0 = sample_batch(gaussian_function(process), torch.arange(40_000), spec).double()
    mean, final = 0.0, sigma_min**2  # of x_0, before the first step as if its noise were added to nothing
    for t in reversed(tau):
        variance = final + process.at(t).sigma ** 2 - sigma_min**2
        shrinks = shrinking(process, process.at(t))
        mean, final = MEAN + shrinks * (mean - MEAN), shrinks**2 * variance
    assert abs(mean - MEAN) < 0.01
    assert abs(final**0.5 / math.hypot(DEVIATION, sigma_min) - 1) < 0.01
    assert abs(x0.mean().item() - mean) < 4 * final**0.5 / 200
    assert abs(x0.std().item() / final**0.5 - 1) < 4 / math.sqrt(2 * 40_000)


def test_the_process_is_that_of_diffusers_scheduler():
    theirs = CMStochasticIterativeScheduler()
    for t in (1, 2, 17, 40):
        at = PROCESS.at(t)
        assert (at.alpha, at.alpha_bar) == (1.0, pytest.approx(1 / (1 + at.sigma**2)))
        assert at.sigma == pytest.approx(float(theirs.sigmas[40 - t]), rel=1e-12)
        assert at.time == pytest.approx(float(theirs.timesteps[40 - t]), rel=1e-12)
        skip, out = theirs.get_scalings_for_boundary_condition(torch.tensor(at.sigma, dtype=torch.float64))
        expected = 1 / math.hypot(at.sigma, 0.5), float(skip), float(out)
        assert PROCESS.preconditioning(at) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert PROCESS.preconditioning(PROCESS.at(1))[1:] == (1.0, 0.0), "f(x, sigma_min) = x"
    for t in (1, 17.5, 40):
        assert PROCESS.told(PROCESS.at(t).time)[:6] == pytest.approx(PROCESS.at(t)[:6], rel=1e-12)


def test_keys_are_distinct_and_in_range_and_never_change():
    keys = [PROCESS.at(t).key for t in range(1, 41)]
    assert keys == sorted(set(keys))
    assert keys[0] == 2134450670
    assert keys[-1] == 2156673424
    limits = [log_snr_key(2 * math.log(alpha / sigma)) for alpha, sigma in ((1, 1e300), (1e300, 1))]
    assert limits[0] < 2**32
    assert limits[1] > 0
    with pytest.raises(ValueError, match="too close"):
        DiscreteEDM(1000, 1.0, 1.000001, 7.0, 0.5)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 13, 40])
def test_times_are_those_of_diffusers(steps):
    scheduler = CMStochasticIterativeScheduler()
    scheduler.set_timesteps(steps)
    mine = find("consistency").times(Sample(sampler="consistency", steps=steps, seed=0), PROCESS)
    np.testing.assert_allclose(mine, scheduler.timesteps.numpy(), rtol=1e-12)


def test_what_the_pipeline_says_is_taken_and_enters_the_id(folder):
    [cell] = on(folder).cells
    assert cell.model.diffusion == CONSISTENCY_DEFAULTS
    assert (cell.settings.clip, cell.nfe, cell.sampler_block["last_sigma"]) == ("x0", 2, pytest.approx(0.002))
    recorded(cell.model.source.description(cell.model.diffusion, [cell.settings]).partition("scheduler: ")[2])
    [other] = on(folder, diffusion={"sigma_max": 60.0}).cells
    assert other.model.id != cell.model.id
    assert other.model.diffusion.sigma_max == 60.0
    assert Diffusion().recorded == Diffusion().model_dump(exclude=set(Diffusion.later_keys))


def test_a_plan_without_the_weights_prices_it():
    sections = {"model": {"checkpoint": "no/such"}, "data": {}, "sample": {"sampler": "consistency"}}
    assert [cell.nfe for cell in planned(**sections, grid={"steps": [1, 2]}, dry=True).cells] == [1, 2]


def test_a_network_in_memory_predicts_so_by_default():
    told = []

    def network(x, t):
        told.append(t[0].item())
        return torch.zeros_like(x)

    taugrid.sample(network, 1, shape=SHAPE, diffusion={"process": "edm"}, sampler="consistency", steps=2)
    assert told == pytest.approx([PROCESS.at(t).time for t in (40, 20)])


@pytest.mark.parametrize(
    "sections",
    [
        {"sample": {"steps": 41}}, {"sample": {"spacing": "trailing"}}, {"sample": {"spacing": [3, 12]}},
        {"sample": {"eta": 0.5}}, {"diffusion": {"schedule": "cosine"}},
        {"diffusion": {"rescale_betas_zero_snr": True}}, {"diffusion": {"prediction": "epsilon"}},
        {"diffusion": {"sigma_max": 0.001}}, {"sample": {"labels": None}}, {"sample": {"guidance": 2.0}}, ORACLE,
        {**ORACLE, "diffusion": {"sigma_max": 1.0}}, {**ORACLE, "diffusion": {"process": "edm"}},
        {"model": {"unet": {}}, "diffusion": {"process": "edm", "prediction": "consistency"}},
        *({"sample": {"sampler": name}} for name in ("ddim", "heun", "diffusers:LCMScheduler")),
        {"sample": {"sampler": "diffusers:CMStochasticIterativeScheduler"}},
    ],
)  # fmt: skip
def test_a_mistake_is_refused(folder, sections):
    with raises(UserError):
        on(folder, **sections)


def test_there_is_nothing_to_reconstruct(folder):
    with raises(UserError):
        require_ode_cells(on(folder), "reconstruct")


def test_a_scheduler_that_cannot_be_honoured_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "it")
    edit(other / "scheduler/scheduler_config.json", s_noise=1.01)
    with raises(UserError):
        on(other)
    edit(other / "scheduler/scheduler_config.json", s_noise=1.0, sigma_data=0.6)
    with raises(UserError):
        on(folder, model={"checkpoint": str(folder), "guide": str(other)}, sample={"guidance": 2.0})
    changes = {"sigma_data": 0.5, "clip_denoised": False, "num_train_timesteps": 18}
    edit(other / "scheduler/scheduler_config.json", **changes)
    [cell] = on(other).cells
    assert (cell.settings.clip, cell.tau) == ("none", (9, 18))
