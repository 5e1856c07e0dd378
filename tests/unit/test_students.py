"""Samplers of few-step students: latent consistency models as in diffusers' loop, and flow maps in closed form."""

import json

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_lcm
from plans import planned
from snapshots import raises, recorded
from tiny import UNET

import taugrid
from taugrid.config import DIFFUSION_DEFAULTS, FLOW_DEFAULTS
from taugrid.errors import UserError
from taugrid.images import to_uint8
from taugrid.orchestrator.plan.grid import with_settings
from taugrid.workers import schedules
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.denoiser import Denoise, FromTimes, Guidance, Wrapped
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import path
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler
from taugrid.workers.samplers.sampler import SamplingSpec, find, sample_batch, with_defaults
from taugrid.workers.samplers.students import boundary

pytestmark = [
    pytest.mark.usefixtures("one_thread", "sketched"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # diffusers'
]

SHAPE, N = (3, 8, 8), 4
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def settings_of(name="lcm", steps=1, **given):
    return SAMPLE_DEFAULTS.model_copy(update={"sampler": name, "steps": steps, **given})


def noise(key, draw=0):
    return normal(5, torch.arange(N), key, SHAPE)


@pytest.fixture(scope="module")
def unet(one_thread):
    torch.manual_seed(0)
    made = UNet2DModel(8, 3, 3, **UNET).requires_grad_(False)
    made.conv_out.weight.mul_(8)
    return made


def by_diffusers(unet, scheduler, steps):
    """Diffusers' own loop, where the draw of a step has the key of the time that it leaves."""
    scheduler.set_timesteps(steps)
    draws = iter([noise(int(t) + 1) for t in scheduler.timesteps])
    x = noise(0) * scheduler.init_noise_sigma
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_lcm, "randn_tensor", lambda *given, **named: next(draws))
        for t in scheduler.timesteps:
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    assert len(list(draws)) == 1, "the last step draws none"
    return x


def by_us(unet, settings, prediction="epsilon", **diffusion):
    section = DIFFUSION_DEFAULTS.model_copy(update={"prediction": prediction, **diffusion})
    planned, process = describe_sampler(settings, section), schedules.process(section)
    network = FromTimes(lambda x, t: unet(x, t).sample)
    denoise = Denoise(network, process, clip=settings.clip, clip_range=settings.clip_range)
    sampler = find(settings.sampler)
    x0 = sampler.sample(noise(0), path(process, planned.tau), denoise, noise, with_defaults(settings, sampler))
    assert denoise.calls == planned.evaluations == settings.steps
    return x0


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_is_diffusers_own_loop(unet, steps):
    prediction = "v_prediction" if steps in (2, 8) else "epsilon"
    theirs = by_diffusers(unet, LCMScheduler(**BETAS, prediction_type=prediction), steps)
    mine = by_us(unet, settings_of(steps=steps), prediction)
    adapted = by_us(unet, settings_of("diffusers:LCMScheduler", steps), prediction)
    for other in (theirs, adapted):
        assert (mine - other).abs().max() < 1e-5 * theirs.abs().max()


def test_options_and_clipping_of_lcm_are_those_of_diffusers(unet):
    options = {"original_inference_steps": 30, "timestep_scaling": 0.003}
    scheduler = LCMScheduler(**BETAS, **options, clip_sample=True, clip_sample_range=0.7)
    mine = by_us(unet, settings_of(steps=4, sampler_options=options, clip="x0", clip_range=0.7))
    theirs = by_diffusers(unet, scheduler, 4)
    assert (mine - theirs).abs().max() < 3e-5 * theirs.abs().max(), "1.5e-5 with torch 2.9 and diffusers 0.38"
    for told in ({}, {"sampler_options": options}):
        assert (by_us(unet, settings_of(steps=4, **told)) - mine).abs().max() > 0.01, "both show"
    assert boundary(0.0) == (1.0, 0.0), "f(x, 0) = x"


@pytest.mark.parametrize("learned", [50, 30, 7, 999])
def test_times_of_lcm_are_those_of_diffusers(learned):
    scheduler = LCMScheduler(**BETAS, original_inference_steps=learned)
    process = schedules.process(DIFFUSION_DEFAULTS)
    for steps in (1, 2, 3, 5, 7, 22, 26, 50):
        if steps <= learned:
            settings = settings_of(steps=steps, sampler_options={"original_inference_steps": learned})
            scheduler.set_timesteps(steps)
            assert find("lcm").times(settings, process) == tuple(scheduler.timesteps.tolist())
    assert find("lcm").times(settings_of(steps=2, spacing=[500, 1000]), process) == (999, 499)


def with_scheduler(unet, folder, **values):
    """The sections of a folder with this U-Net and LCM's scheduler, in whose file are these values alone."""
    unet.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": "LCMScheduler", **values}))
    return {"model": {"checkpoint": str(folder)}, "data": {"name": "gaussian", "shape": SHAPE}}


def test_an_lcm_folder_is_loaded_with_its_betas(unet, tmp_path):
    full = with_scheduler(unet, tmp_path / "full", **LCMScheduler().config)
    early = with_scheduler(unet, tmp_path / "early")
    cells = planned(**full, grid={"steps": [4], "sampler": ["lcm", "ddim"]}).cells
    assert [(cell.nfe, cell.settings.clip) for cell in cells] == [(4, "none")] * 2
    levels = schedules.alpha_bar(cells[0].model.diffusion)[1:]
    np.testing.assert_allclose(levels, LCMScheduler().alphas_cumprod, rtol=2e-5)
    [cell] = planned(**early, sample={"sampler": "lcm", "steps": 1}).cells
    assert cell.model.diffusion == cells[0].model.diffusion


def test_an_lcm_folders_options_are_those_of_lcm_unless_set(unet, tmp_path):
    learned = {"original_inference_steps": 20, "timestep_scaling": 5.0}
    sections = with_scheduler(unet, tmp_path / "it", **learned)
    found = planned(**sections, grid={"steps": [4], "sampler": ["lcm", "ddim", "diffusers:LCMScheduler"]})
    assert [cell.settings.sampler_options for cell in found.cells] == [learned, {}, {}]
    assert found.cells[0].tau == (250, 500, 750, 1000)
    given = {"sampler": "lcm", "steps": 4, "sampler_options": {"original_inference_steps": 50}}
    [cell] = planned(**sections, sample=given).cells
    assert cell.settings.sampler_options == {"original_inference_steps": 50, "timestep_scaling": 5.0}
    assert with_settings(cell, {"num_samples": 2}).settings.sampler_options == cell.settings.sampler_options
    recorded(cell.model.source.description(cell.model.diffusion, [cell.settings]))


MEAN, VARIANCE = 0.3, 0.2


def spread(t):
    """The standard deviation of x_t for pixels from N(MEAN, VARIANCE)."""
    return ((1 - t) ** 2 * VARIANCE + t**2) ** 0.5


def flow_map(x, t, r):
    """The exact average velocity: the ODE keeps (x_t - (1 - t) MEAN) / spread(t), which is standard normal."""
    t, r = (each.double()[:, None, None, None] for each in (t, r))
    x_r = (1 - r) * MEAN + spread(r) / spread(t) * (x - (1 - t) * MEAN)
    return (x - x_r) / (t - r)


@pytest.mark.parametrize("told", [1, 1000])
@pytest.mark.parametrize(("steps", "shift"), [(1, None), (2, None), (7, None), (3, 2.5)])
def test_a_gaussians_flow_map_gives_its_samples_in_any_number_of_steps(steps, shift, told):
    """Each x_0 is MEAN + its x_T times the data's standard deviation."""
    diffusion = FLOW_DEFAULTS.model_copy(update={"prediction": "average_velocity", "timesteps": told})
    settings = settings_of("flow-map", steps, shift=shift)
    planned, process = describe_sampler(settings, diffusion), schedules.process(diffusion)
    denoise = Denoise(FromTimes(lambda x, t, r: flow_map(x, t / told, r / told)), process)
    x = noise(0).double()
    found = find("flow-map").sample(x, path(process, planned.tau), denoise, noise, settings)
    torch.testing.assert_close(found, MEAN + VARIANCE**0.5 * x, rtol=1e-6, atol=1e-6)
    assert denoise.calls == planned.evaluations == steps
    assert planned.last_sigma == 0


def test_guidance_and_wrappers_hand_the_second_time_on():
    told = []

    def network(x, t, r, labels):
        told.append((t.tolist(), r.tolist(), labels.tolist()))
        return labels[:, None, None, None] + torch.zeros_like(x)

    diffusion = FLOW_DEFAULTS.model_copy(update={"prediction": "average_velocity"})
    guidance = Guidance(3.0, calls=2, null_label=5)
    spec = SamplingSpec(Identity((1, 2, 2)), diffusion, settings_of("flow-map", 2), (0.5, 1.0), 4, guidance)
    wrapped = Wrapped(FromTimes(network), lambda call, x: call(x))
    x0 = sample_batch(wrapped, torch.arange(1), spec, torch.tensor([1]))
    x_T = normal(0, torch.arange(1), 0, (1, 2, 2))
    torch.testing.assert_close(x0, x_T - (5 + 3 * (1 - 5)))
    calls = [([t], [r], [label]) for t, r in ((1.0, 0.5), (0.5, 0.0)) for label in (1, 5)]
    assert told == calls


def test_a_flow_map_in_memory_is_called_with_two_times_and_perhaps_labels():
    x_T = normal(3, torch.arange(2), 0, SHAPE)
    settings = {"shape": SHAPE, "sampler": "flow-map", "steps": 1, "seed": 3}
    diffusion = {"process": "flow", "prediction": "average_velocity"}
    found = taugrid.sample(flow_map, 2, diffusion=diffusion, **settings)
    expected = to_uint8((MEAN + VARIANCE**0.5 * x_T).numpy())
    assert np.abs(found.transpose(0, 3, 1, 2).astype(int) - expected).max() <= 1

    class Labelled:
        num_classes, null_label = 2, None

        def __call__(self, x, t, r, label):
            return x - label[:, None, None, None] / 2

    found = taugrid.sample(Labelled(), 2, diffusion=diffusion, labels=[1, 0], **settings)
    assert (found[0].min(), found[0].max(), found[1].max()) == (191, 191, 128)


@pytest.mark.parametrize(
    "sample",
    [
        {"steps": 51}, {"steps": 4, "sampler_options": {"original_inference_steps": 2000}},
        {"sampler_options": {"original_inference_steps": 5.0}}, {"sampler_options": {"timestep_scaling": True}},
        {"sampler_options": {"timesteps": [1]}}, {"spacing": "trailing"}, {"steps": 2, "spacing": [3, 5]}, {"eta": 0.5},
    ],
)  # fmt: skip
def test_a_mistake_with_lcm_is_refused(sample):
    with raises(UserError):
        planned(sample={"sampler": "lcm"} | sample, dry=True)
