"""Diffusers folders whose scheduler is a flow's or EDM's: what is read, refused and written, and their samples."""

import diffusers
import numpy as np
import pytest
import torch
from latents import DIT, VAE, edit, lively
from plans import planned
from snapshots import raises
from tiny import UNET

import taugrid
from taugrid.config import EDM_DEFAULTS, FLOW_DEFAULTS, Diffusion, Unet
from taugrid.errors import UserError
from taugrid.images import to_pictures, to_uint8
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.network.checkpoint import read_checkpoint
from taugrid.workers.network.unet import build_unet, ema_start, save_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, SEED = 6, 5
FLOW, EDM = diffusers.FlowMatchEulerDiscreteScheduler, diffusers.EDMEulerScheduler
EDM_OF_8 = {"sigma_max": 8.0, "sigma_min": 0.02, "sigma_data": 0.4, "rho": 5.0}
EDM_V = diffusers.EDMDPMSolverMultistepScheduler(**EDM_OF_8, prediction_type="v_prediction")
READ = [
    (FLOW(shift=3.0), {"process": "flow", "prediction": "velocity", "timesteps": 1000}, 3.0),
    (diffusers.FlowMatchHeunDiscreteScheduler(500), {"process": "flow", "prediction": "velocity", "timesteps": 500}, 1),
    (EDM(**EDM_OF_8), {"process": "edm", "prediction": "edm", **EDM_OF_8}, None),
    (EDM_V, {"process": "edm", "prediction": "v_prediction", **EDM_OF_8}, None),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, one_thread):
    """A folder without a scheduler, and its network, whose outputs are not all near 0."""
    torch.manual_seed(0)
    unet = build_unet(Unet(**UNET), (1, 8, 8)).eval()
    with torch.no_grad():
        unet.conv_out.weight *= 5
    folder = tmp_path_factory.mktemp("saved")
    unet.save_pretrained(folder / "unet")
    return folder, unet


@pytest.fixture
def pipeline(saved):
    """The folder with a given scheduler."""

    def make(scheduler, **changes):
        scheduler.save_pretrained(saved[0] / "scheduler")
        edit(saved[0] / "scheduler/scheduler_config.json", **changes)
        return str(saved[0])

    return make


def cell_of(folder, **sections):
    [cell] = planned(**{"model": {"checkpoint": folder}, "data": {}} | sections).cells
    return cell


@pytest.mark.parametrize(("scheduler", "diffusion", "shift"), READ, ids=lambda value: type(value).__name__)
def test_a_schedulers_process_is_read(pipeline, scheduler, diffusion, shift):
    found = read_checkpoint(pipeline(scheduler))
    assert found.diffusion == Diffusion(**diffusion)
    assert found.sample.get("shift") == shift
    cell = cell_of(found.path)
    assert cell.settings.shift == (3.0 if shift == 3 else None)
    said = cell.model.source.description(cell.model.diffusion, [cell.settings])
    assert ("shift 3," in said or said.endswith("shift 3)")) == (shift == 3), said
    cell = cell_of(found.path, sample={"shift": 2.0} if shift else {})
    assert cell.settings.shift == (2.0 if shift else None), "the config's is first"


@pytest.mark.parametrize("scheduler", [FLOW(), EDM()], ids=["flow", "edm"])
def test_what_a_config_leaves_out_is_what_its_class_has(pipeline, scheduler):
    full = read_checkpoint(pipeline(scheduler))
    names = {name for name in scheduler.config if not name.startswith("_")}
    short = read_checkpoint(pipeline(scheduler, **dict.fromkeys(names)))
    assert (short.diffusion, short.sample) == (full.diffusion, full.sample)


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [
        (FLOW(), {"use_dynamic_shifting": True}), (FLOW(), {"shift_terminal": 0.1}), (FLOW(), {"invert_sigmas": True}),
        (FLOW(), {"use_karras_sigmas": True}), (FLOW(), {"stochastic_sampling": True}), (FLOW(), {"shift": -1}),
        (EDM(), {"sigma_schedule": "exponential"}), (EDM(), {"final_sigmas_type": "sigma_min"}),
        (EDM(), {"prediction_type": "sample"}), (EDM(), {"sigma_max": "large"}),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(pipeline, scheduler, changes):
    with raises(UserError):
        read_checkpoint(pipeline(scheduler, **changes))


@pytest.mark.parametrize(
    ("scheduler", "process"), [(FLOW(), "ddpm"), (FLOW(), "edm"), (diffusers.DDIMScheduler(), "flow")]
)
def test_a_network_of_another_process_than_the_configs_is_one_line(pipeline, scheduler, process):
    with raises(UserError):
        cell_of(pipeline(scheduler), diffusion={"process": process})


@torch.no_grad()
def by_diffusers(scheduler, predict, shape, count):
    """x0 of `count` samples by diffusers' loop, from our noise."""
    x, edm = normal(SEED, torch.arange(count), 0, shape, domain="sample"), isinstance(scheduler, EDM)
    scheduler.set_timesteps(STEPS, **({} if edm else {"sigmas": np.linspace(1, 1 / STEPS, STEPS)}))
    x = x * scheduler.config.sigma_max if edm else x
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, t) if edm else x
        x = scheduler.step(predict(inputs, t.expand(count)), t, x).prev_sample
    return x


def levels(x):
    return to_pictures(to_uint8(x.numpy())).astype(int)


@pytest.mark.parametrize(
    "scheduler",
    [FLOW(shift=2.0), EDM(**EDM_OF_8), EDM(**EDM_OF_8, prediction_type="v_prediction")],
    ids=["flow", "edm", "edm-v"],
)
def test_a_unets_pictures_are_those_of_diffusers_loop(saved, pipeline, scheduler):
    x = by_diffusers(scheduler, lambda x, t: saved[1](x, t).sample, (1, 8, 8), 4)
    found = taugrid.sample(pipeline(scheduler), 4, steps=STEPS, seed=SEED)
    assert np.ptp(found) > 100
    assert abs(found - levels(x)).max() <= 1


def test_a_latent_pipeline_samples_too(tmp_path):
    """DiT is told 1000 t, and its learned sigma is dropped."""
    torch.manual_seed(1)
    vae = lively(diffusers.AutoencoderKL(**VAE, latent_channels=4, scaling_factor=0.3))
    dit = diffusers.DiTTransformer2DModel(**DIT).eval().requires_grad_(False)
    for weight in dit.parameters():
        weight += 0.05 * torch.randn_like(weight)
    labels = torch.tensor([3, 9, 0])
    x = by_diffusers(FLOW(), lambda x, t: dit(x, t, class_labels=labels).sample[:, :4], (4, 8, 8), 3)
    for name, part in (("transformer", dit), ("vae", vae), ("scheduler", FLOW())):
        part.save_pretrained(tmp_path / name)
    found = taugrid.sample(str(tmp_path), 3, labels=labels.tolist(), steps=STEPS, seed=SEED)
    assert np.ptp(found) > 100
    with torch.no_grad():
        assert abs(found - levels(vae.decode(x / 0.3).sample)).max() <= 1


SAVED = [
    FLOW_DEFAULTS.model_copy(update={"timesteps": 1000}),
    EDM_DEFAULTS.model_copy(update={"sigma_data": 0.4, "sigma_max": 50.0}),
]


@pytest.mark.parametrize("diffusion", SAVED, ids=["flow", "edm"])
def test_a_saved_network_is_read_back_as_the_same_process(saved, tmp_path, diffusion):
    """`test_objectives.py` has what diffusers' own pipeline samples of it."""
    save_pipeline(tmp_path, saved[1], ema_start(saved[1]), diffusion)
    model = cell_of(str(tmp_path)).model
    assert model.diffusion == diffusion
    assert model.source.checkpoint.raw_folder is not None
