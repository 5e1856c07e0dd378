"""The judge of `taugrid selfcheck --sampler` passes what solves the ODE, and finds what does not.

Seeds are fixed: a cell that passes here passes always.
"""

import re
from functools import cache

import numpy as np
import pytest
import torch
from snapshots import recorded

from taugrid import images
from taugrid.config import DIFFUSION_DEFAULTS, EDM_DEFAULTS, Sample
from taugrid.config.load import load
from taugrid.eval.metrics import frechet, statistics
from taugrid.eval.selfcheck import STEPS, judge_sampler, ode_images, order_problems
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.selfcheck import overrides
from taugrid.registry.samplers import SAMPLERS
from taugrid.workers import schedules
from taugrid.workers.diffusion import noise, oracle
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.gaussian import draw, gaussian
from taugrid.workers.diffusion.process import path
from taugrid.workers.diffusion.timesteps import times
from taugrid.workers.samplers import solvers
from taugrid.workers.samplers.sampler import find, with_defaults
from taugrid.workers.samplers.solvers import churned as raised
from taugrid.workers.samplers.solvers import second_order

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, N, SEED = (1, 8, 8), 1000, 11
DATA, PROCESS = gaussian(SHAPE), schedules.process(DIFFUSION_DEFAULTS)
INDEX = np.arange(N)


@cache
def reference():
    return images.to_uint8(draw(DATA, 10_000, 0)).reshape(-1, *SHAPE)


def features(pixels):
    return statistics.Moments.of(pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(127.5) - 1)


def pictures(name, steps, eta=0.0, network=None, indices=INDEX):
    """The cell's images, by the functions that a run calls."""
    points = path(PROCESS, times("logsnr", steps, PROCESS.alpha_bar))
    denoise = Denoise(network or oracle.gaussian_eps(DATA, PROCESS.alpha_bar, "cpu"), PROCESS)
    return sampled(Sample(steps=steps, sampler=name, eta=eta, spacing="logsnr"), points, denoise, 1, indices)


def sampled(settings, points, denoise, scale, indices):
    def of_key(key, draw=0):
        return noise.normal(SEED, torch.from_numpy(indices), key, SHAPE, f"sample/{draw}" if draw else "sample")

    sampler = find(settings.sampler)
    settings = with_defaults(settings, sampler)
    return images.to_uint8(sampler.sample(scale * of_key(0), points, denoise, of_key, settings).numpy())


def judged(name, pixels, steps, follows=True, fid=None):
    exact = ode_images(DATA, PROCESS.alpha_bar[1000], PROCESS.alpha_bar[1], SEED, INDEX)
    fid = fid or frechet.frechet_distance(features(pixels), features(reference()))
    return judge_sampler(pixels, INDEX, N, exact, fid, reference(), follows, is_last=steps == max(STEPS))


def problems(name, make=pictures, follows=True, **given):
    """The problems of all cells, and of the order between them."""
    found = {steps: judged(name, make(name, steps, **given), steps, follows) for steps in STEPS}
    order = order_problems(name, find(name).order, {steps: each.mean_difference for steps, each in found.items()})
    return [line for each in found.values() for line in each.problems] + order


@pytest.mark.parametrize("name", [name for name in SAMPLERS if find(name).order])
def test_our_solvers_pass(name):
    assert problems(name) == []


def churned(S_noise=1.0):
    """100 steps of edm-heun on its own process: the images, and what they should be like."""
    process = schedules.process(EDM_DEFAULTS)
    points = path(process, process.spaced("logsnr", 100))
    network = oracle.edm(oracle.expected_x0(DATA, "cpu"), 0.5)
    settings = Sample(steps=100, sampler="edm-heun", sampler_options={"S_churn": 10.0, "S_noise": S_noise})
    pixels = sampled(settings, points, Denoise(network, process), points[0].sigma, INDEX)
    first, last = raised(points[0], process, with_defaults(settings, find("edm-heun"))), points[-2]
    start = process.first_scale(first) / first.scale
    exact = ode_images(DATA, first.alpha_bar, last.alpha_bar, SEED, INDEX, start)
    fid = frechet.frechet_distance(features(pixels), features(reference()))
    return judge_sampler(pixels, INDEX, N, exact, fid, reference(), follows=False, is_last=True)


def test_edms_sampler_is_judged_on_its_process():
    """Churn makes another image of x_T, but the distribution stays; too much noise widens it."""
    found = churned()
    assert (found.problems, found.mean_difference) == ((), None)
    assert any("above" in line for line in churned(1.2).problems)
    [cell, *_] = plan(load("selfcheck", overrides("edm-heun")), dry=True).cells
    assert cell.model.diffusion.process == "edm"


def test_an_unknown_sampler_is_judged_by_what_its_images_are():
    """DDIM as a package's sampler: at eta = 0 its images are the ODE's, at eta = 1 its FID is theirs."""
    for eta, follows in ((0.0, True), (1.0, False)):
        found = judged("another", pictures("ddim", 200, eta), 200, follows=False)
        assert found.problems == ()
        assert (found.mean_difference is not None) == follows


@pytest.mark.parametrize(
    ("name", "attribute", "lower", "order"),
    [
        ("dpm++3m", "third_order", lambda x, history, b: second_order(x, history[:2], b), "1.9"),
        ("unipc", "UNIP_ORDER", 2, "3.0"),
        ("dpm++2m", "second_order", lambda x, history, b: second_order(x, history[:1], b), "1.0"),
    ],
)
def test_a_solver_of_a_lower_order_is_found(monkeypatch, name, attribute, lower, order):
    monkeypatch.setattr(solvers, attribute, lower)
    [problem] = problems(name)
    recorded(problem)
    assert f"order {order}," in problem


def test_a_wrong_coefficient_and_a_network_asked_at_another_time_are_found(monkeypatch):
    """One step of the schedule too early moves images by less than a grey level."""
    network, real = oracle.gaussian_eps(DATA, PROCESS.alpha_bar, "cpu"), solvers.weights
    shifted = lambda x, at, condition=None: network(x, PROCESS.at(max(1, at.key - 1)))  # noqa: E731
    assert any("order 3" in line for line in problems("dpm++3m", network=shifted))
    monkeypatch.setattr(solvers, "weights", lambda h, r: [w * (1 + (i == 0) / 100) for i, w in enumerate(real(h, r))])
    assert any("order 4" in line for line in problems("unipc"))


def test_images_of_other_noise_are_found():
    pixels = pictures("heun", 200)
    pixels[[3, 40]] = pixels[[40, 3]]
    [line] = judged("heun", pixels, 200).problems
    recorded(line)
    doubled = pictures("heun", 100, indices=INDEX // 2)
    recorded("\n".join(judged("heun", doubled, 100).problems), "equal")


def test_an_unknown_sampler_with_too_wide_a_distribution_is_found():
    """By 20 %, both if it follows the ODE and if it does not."""
    centre = 127.5 * (1 + DATA.mean.reshape(SHAPE))
    for eta in (0.0, 1.0):
        wide = centre + 1.2 * (pictures("ddim", 200, eta).astype(float) - centre)
        found = judged("another", np.clip(np.rint(wide), 0, 255).astype(np.uint8), 200, follows=False)
        assert re.match(r"FID is 0.0\d+ ", found.problems[-1])


def test_the_tables_fid_is_compared_in_all_cells():
    for steps in STEPS:
        [line] = judged("unipc", pictures("unipc", steps), steps, fid=0.5).problems[-1:]
        recorded(line, "images")
