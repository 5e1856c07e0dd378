"""The pixels of every way to sample: against loops of the papers, against themselves, and against what was measured."""

import shutil
from itertools import combinations

import diffusers
import numpy as np
import own
import pytest
import torch
from outside import OWN, UNET, measured, most_apart

import taugrid

pytestmark = pytest.mark.usefixtures("one_thread")

N = 24
DDPM, EDM, FLOW = {}, {"process": "edm"}, {"process": "flow"}

CELLS = {
    "ddim 0": {"eta": 0.0},
    "ddim 0.5": {"eta": 0.5},
    "sigma_hat": {"eta": "sigma_hat", "clip": "x0_and_eps"},
    "quadratic": {"spacing": "quadratic", "eta": 0.5},
    "clip": {"clip": "x0", "clip_range": 0.2},
    "seed": {"seed": 1},
    "cosine": {"diffusion": {"schedule": "cosine"}},
    "truncate": {"rounding": "truncate"},
    "euler": {"sampler": "euler", "spacing": "logsnr-int"},
    "heun": {"sampler": "heun"},
    "dpm++3m": {"sampler": "dpm++3m"},
    "unipc": {"sampler": "unipc", "steps": 5},
    "lcm": {"sampler": "lcm"},
    "diffusers": {"sampler": "diffusers:DEISMultistepScheduler"},
    "diffusers with noise": {"sampler": "diffusers:EulerAncestralDiscreteScheduler"},
    "edm heun": {"diffusion": EDM, "sampler": "heun"},
    "edm churn": {"diffusion": EDM, "sampler": "edm-heun", "sampler_options": {"S_churn": 2.0}},
    "flow unipc": {"diffusion": FLOW, "sampler": "unipc", "shift": 3.0},
    "flow ddim 1": {"diffusion": FLOW, "eta": 1.0},
    "guided": {"guidance": 2.0},
    "guided partly": {"guidance": 2.0, "guidance_interval": [0.5, 2.0]},
    "labels drawn": {"labels": "random"},
}


def sample(model, indices=N, **settings):
    return taugrid.sample(model, indices, shape=(1, 4, 4), **{"steps": 5} | settings)


def grey(x, t, label):
    """A network of ten classes in the middle of the greys, where solvers of few steps differ."""
    a = torch.tensor(own.ALPHA[1 + t.long().numpy()], dtype=x.dtype).view(-1, 1, 1, 1)
    mean = (label.view(-1, 1, 1, 1) - 5) / 20 + 0.5 * torch.sin(4 * x.flip(-1))
    return (1 - a).sqrt() / (1 - 0.9 * a) * (x - a.sqrt() * mean)


grey.num_classes = grey.null_label = 10


def cell(name, indices=N, batch_size=8):
    settings = {"steps": 3, "batch_size": batch_size} | CELLS[name]
    if "diffusion" in settings and settings["diffusion"].get("process"):
        return sample({"oracle": "gaussian"}, indices, **settings)
    return sample(grey, indices, **{"labels": "balanced"} | settings)


@pytest.fixture(scope="module")
def sampled(one_thread):
    return {name: cell(name) for name in CELLS}


def noise(n=N, shape=(1, 4, 4), diffusion=DDPM):
    """x_T of the first images at the default seed: what a network sees first."""
    seen = []
    network = lambda x, t: (seen.append(x.double().clone()), x)[1]  # noqa: E731
    taugrid.sample(network, n, shape=shape, steps=1, diffusion=diffusion, batch_size=n)
    return seen[-1]


def as_pictures(x):
    """From [-1, 1] to 0..255."""
    grey = (127.5 * (x + 1)).round().clip(0, 255).numpy().astype(np.uint8)
    return grey[:, 0] if grey.shape[1] == 1 else grey.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", CELLS)
def test_batches_and_neighbours_change_no_image(sampled, name):
    assert most_apart(cell(name, batch_size=N), sampled[name]) <= 1
    assert most_apart(cell(name, [17, 3], batch_size=2), sampled[name][[17, 3]]) <= 1
    assert (cell(name) == sampled[name]).all()


def test_pixels_are_those_that_were_measured(sampled):
    for name, found in sampled.items():
        measured(f"pixels: {name}", found[::8].ravel(), 1)


def test_no_key_is_without_effect(sampled):
    assert [pair for pair in combinations(sampled, 2) if (sampled[pair[0]] == sampled[pair[1]]).all()] == []


@pytest.mark.parametrize("steps", [1, 7])
def test_ddim_is_the_papers_loop(steps):
    found = sample(own.smooth, steps=steps)
    loop = own.paper_ddim(noise(), own.times_of(steps), 0.0, lambda x, t: own.smooth(x, t - 1.0), None)
    assert most_apart(found, as_pictures(loop)) <= 1
    assert found.std() > 20


NETWORK = pytest.param({"callable": "nets_own:network"}, "sigma_hat", marks=pytest.mark.long)


@pytest.mark.parametrize(("model", "eta"), [(own.smooth, 0.5), NETWORK])
def test_a_users_sampler_and_network_make_the_papers_loop_with_the_same_noise(model, eta, tmp_path, monkeypatch):
    shutil.copy(OWN["nets_own"], tmp_path / "nets_own.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ours = sample(own.smooth, eta=eta)
    assert most_apart(sample(model, sampler="nets_own:ddim", sampler_options={"eta": eta}), ours) <= 1
    measured(f"pixels: own {eta}", [ours.mean() / 255, ours.std() / 255], 2e-3)


def test_a_network_may_predict_the_noise_the_image_or_v():
    def of(prediction):
        def network(x, t):
            a, eps = torch.tensor(own.ALPHA[1 + t.numpy()], dtype=x.dtype).view(-1, 1, 1, 1), own.smooth(x, t)
            x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
            return {"epsilon": eps, "sample": x0, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x0}[prediction]

        return sample(network, diffusion={"prediction": prediction}, eta=1.0)

    assert most_apart(of("sample"), of("epsilon")) <= 1
    assert most_apart(of("v_prediction"), of("epsilon")) <= 1


def test_eulers_steps_of_a_flow_are_the_papers():
    x = noise(diffusion=FLOW)
    for i in range(5, 0, -1):
        x = x - own.smooth(x, i / 5) / 5
    assert most_apart(sample(own.smooth, diffusion=FLOW, sampler="euler"), as_pictures(x)) <= 1


@pytest.mark.parametrize("process", [DDPM, EDM, FLOW], ids=["ddpm", "edm", "flow"])
def test_all_solvers_end_where_the_ode_does(process):
    asked = {"diffusion": process} | ({"spacing": "logsnr"} if process is not FLOW else {})
    exact = sample({"oracle": "gaussian"}, steps=900, **asked)
    for sampler in ("heun", "dpm++2m", "dpm++3m", "unipc"):
        found = sample({"oracle": "gaussian"}, steps=60, sampler=sampler, **asked)
        assert most_apart(found, exact) <= 3, sampler


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_an_adapted_scheduler_is_diffusers_own_loop(name):
    options = {"timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, **options)
    scheduler.set_timesteps(5)
    x = noise().float() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(own.smooth(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    found = sample(own.smooth, sampler=f"diffusers:{name}", sampler_options=options)
    assert most_apart(found, as_pictures(x)) <= 1


class Labelled:
    """A network of ten classes, and a label that means none."""

    num_classes = null_label = 10

    def __init__(self):
        self.labels = []

    def __call__(self, x, t, label):
        self.labels += label.tolist()
        return own.smooth(x, t) + 0.1 * label.view(-1, 1, 1, 1)


def test_guidance_leads_away_from_the_null_class():
    def guided(x, t, label):
        return Labelled()(x, t, torch.full_like(label, 10)) * (1 - 2.5) + 2.5 * Labelled()(x, t, label)

    guided.num_classes = guided.null_label = 10
    assert most_apart(sample(Labelled(), guidance=2.5, labels=[0, 2]), sample(guided, labels=[0, 2])) <= 1


def test_labels_are_what_their_rule_says():
    def asked(labels, indices=range(N)):
        network = Labelled()
        sample(network, indices, steps=1, labels=labels, batch_size=N)
        return network.labels[-len(indices) :]

    assert asked([0, 2, 1, 1]) == [0, 2, 1, 1] * 6
    assert asked(1) == [1] * N
    balanced, drawn = asked("balanced"), asked("random")
    assert sorted(balanced[:10]) == sorted(balanced[10:20]) == list(range(10))
    assert asked("balanced", [17, 3]) == [balanced[17], balanced[3]]
    assert asked("random", [17, 3]) == [drawn[17], drawn[3]]
    measured("labels", balanced + drawn, 0)


def test_a_latent_pipeline_is_its_parts(tmp_path):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=4, in_channels=3, out_channels=3, **UNET)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    widths = {"latent_channels": 3, "num_vq_embeddings": 16, "norm_num_groups": 4, "block_out_channels": (4, 4)}
    vae = diffusers.VQModel(scaling_factor=2.0, **kinds, **widths)
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 4
        vae.quantize.embedding.weight.normal_()
    ldm = diffusers.LDMPipeline(vqvae=vae, unet=unet, scheduler=diffusers.DDIMScheduler(clip_sample=False))
    ldm.save_pretrained(tmp_path / "ldm")
    found = taugrid.sample(str(tmp_path / "ldm"), 4, steps=3)
    assert found.shape == (4, 8, 8, 3)
    with torch.no_grad():
        predict = lambda x, t: unet(x.float(), t - 1).sample.double()  # noqa: E731
        x = own.paper_ddim(noise(4, (3, 4, 4)), own.times_of(3), 0.0, predict, None)
        assert most_apart(found, as_pictures(vae.decode(x.float() / 2).sample)) <= 1
    measured("pixels: latents", [found.mean() / 255, found.std() / 255], 2e-3)
