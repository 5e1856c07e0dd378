"""Samplers on EDM's process and on flows: against their papers, diffusers' own loops, and each other across processes.

In what is compared, a network predicts the x0 of a Gaussian, and what it says of x0 is bent, so that nothing is linear.
"""

import math
import re
from itertools import pairwise, product
from pathlib import Path
from typing import get_args

import numpy as np
import orders
import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from plans import planned
from snapshots import raises, recorded
from test_solvers import halved

from taugrid.config import DIFFUSION_DEFAULTS, EDM_DEFAULTS
from taugrid.errors import UserError
from taugrid.orchestrator.plan.sections import PREDICTIONS
from taugrid.registry.samplers import SAMPLERS
from taugrid.workers import schedules
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import PredictionType, path, predict_eps
from taugrid.workers.diffusion.processes import EDM, DiscreteVP, Flow
from taugrid.workers.samplers import solvers
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler
from taugrid.workers.samplers.sampler import find, with_defaults

pytestmark = pytest.mark.usefixtures("one_thread")

EDMS, FLOW, DDPM = EDM(0.002, 80.0, 7.0, 0.5), Flow(1000), schedules.process(DIFFUSION_DEFAULTS)
Z = normal(3, torch.arange(3), 0, (2, 3, 3)).double()


def x0_of(x, alpha, sigma):
    """Of any process alike: x, alpha and sigma may have a common factor."""
    mean = 0.3 + alpha * 0.25 * (x - alpha * 0.3) / (alpha**2 * 0.25 + sigma**2)
    return mean + 0.1 * alpha / math.hypot(alpha, sigma) * torch.sin(3 * x / math.hypot(alpha, sigma))


def edm(x, time):
    """F of Karras et al. 2022, eq. 7, told c_noise, for c_in x."""
    sigma = np.exp(4 * float(time))
    root = math.hypot(sigma, 0.5)
    return (x0_of(root * x, 1.0, sigma) - 0.25 / root**2 * root * x) * root / (0.5 * sigma)


def flow(x, time):
    """The velocity, told 1000 t."""
    t = float(time) / 1000
    x0 = x0_of(x, 1 - t, t)
    return (x - (1 - t) * x0) / t - x0


def epsilon(x, time):
    at = DDPM.at(float(time) + 1)
    return predict_eps(x, x0_of(x, at.alpha, at.sigma), at)


def sampled(name, process, points, noise=None, states=None, x=None, **options):
    """x_0 by a sampler, from Z at the first point or x; `states`: what the network gets, if it gets x itself."""
    networks = {"edm": edm, "velocity": flow, "epsilon": epsilon}

    def network(x, at, condition=None):
        if states is not None:
            states.append(x)
        of = networks.get(process.prediction)
        return of(x, at.time) if of else x0_of(x, at.alpha, at.sigma)

    settings = SAMPLE_DEFAULTS.model_copy(
        update={"sampler": name, "steps": len(points) - 1, "sampler_options": options}
    )
    x = process.first_scale(points[0]) * Z if x is None else x
    sampler = find(name)
    denoise = Denoise(network, process)
    return sampler.sample(x, points, denoise, noise, with_defaults(settings, sampler))


def preserving(points):
    """DDPM's process whose times 1..S have the alpha_bar of these points, and its path."""
    levels = [at.alpha_bar for at in reversed(points)]
    process = DiscreteVP(np.array(levels), "sample")
    return process, path(process, range(1, len(levels)))


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "dpm++3m", "unipc", "euler", "heun"])
@pytest.mark.parametrize("process", [EDMS, FLOW], ids=["edm", "flow"])
def test_x_over_its_scale_is_on_the_variance_preserving_path(name, process):
    """Also from t = 1 of a flow. Heun's method alone depends on the variable: a flow's is t."""
    points = path(process, process.spaced("linear", 12))
    vp, matched = preserving(points)
    x = process.first_scale(points[0]) * Z
    found, expected = sampled(name, process, points), sampled(name, vp, matched, x=x / points[0].scale)
    if (name, process) == ("heun", FLOW):
        assert 1e-3 < (found - expected).abs().max() < 0.1
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", ["edm", "flow"])
@pytest.mark.parametrize("name", [*orders.CLAIMED, "euler"])
def test_a_solver_has_its_order_on_every_process(name, process):
    """Uniform in log-SNR, without the last step. Where two errors cancel the order can look higher."""
    paths, known = {"edm": orders.edm, "flow": orders.flow}[process], orders.ORACLES[process]
    before, after = (orders.error(name, paths(steps), known) for steps in (125, 250))
    assert math.log(before / after) / math.log(249 / 124) > find(name).order - 0.2


def test_heun_has_order_2_on_a_flows_own_times():
    """From t = 1, where log-SNR is infinite, to the image; there a solver in log-SNR has no more than order 2."""
    paths = [path(orders.FLOW, orders.FLOW.spaced("linear", steps)) for steps in (125, 250)]
    before, after = (orders.error("heun", whole, orders.ORACLES["flow"]) for whole in paths)
    assert math.log2(before / after) == pytest.approx(2, abs=0.1)


def by_diffusers(scheduler, network, x):
    """Their own loop, in float32, from x at the first of `scheduler.timesteps`."""
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scaled(x, t), t), t, x).prev_sample
    return x


def near(found, expected):
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_edm_is_that_of_diffusers(steps, monkeypatch):
    """Euler and DPM-Solver++(2M); their (3M) has half of the second difference, as `halved` does."""
    points, settings = path(EDMS, EDMS.spaced("linear", steps)), {"sigma_data": 0.5}
    x = 80 * Z
    euler = EDMEulerScheduler(**settings)
    euler.set_timesteps(steps)
    np.testing.assert_allclose(euler.sigmas, [at.sigma for at in points], rtol=1e-6)
    np.testing.assert_allclose(euler.timesteps, [at.time for at in points[:-1]], rtol=1e-5)  # 0.25 ln sigma
    near(sampled("euler", EDMS, points), by_diffusers(euler, edm, x))
    for order, name in ((2, "dpm++2m"), (3, "dpm++3m")):
        monkeypatch.setattr(solvers, "third_order", halved)
        solver = EDMDPMSolverMultistepScheduler(**settings, solver_order=order, lower_order_final=False)
        solver.set_timesteps(steps)
        near(sampled(name, EDMS, points), by_diffusers(solver, edm, x))


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 1.0), (10, 3.0), (28, 1.0)])
def test_flows_are_those_of_diffusers(steps, shift):
    """FlowMatchEuler with the levels that pipelines pass, 1 to 1 / S, shifted once; times are 1000 of them."""
    points = path(FLOW, FLOW.spaced("linear", steps, shift=shift))
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    np.testing.assert_allclose(euler.timesteps, [at.time for at in points[:-1]], rtol=1e-6)
    expected = by_diffusers(euler, flow, Z)
    for name in ("euler", "ddim"):
        near(sampled(name, FLOW, points), expected)
    heun = FlowMatchHeunDiscreteScheduler(shift=shift)
    heun.set_timesteps(steps)
    levels = [*heun.sigmas[:1].tolist(), *heun.sigmas[1::2].tolist()]
    asked = []
    found = sampled("heun", FLOW, [FLOW.at(min(level, 1.0)) for level in levels], states=asked)
    near(found, by_diffusers(heun, flow, Z))
    assert len(asked) == len(heun.timesteps) == 2 * steps - 1


def test_diffusers_own_times_of_flows_are_not_ours():
    """Left alone, FlowMatchEuler spends its last step at 0.001, and shifts twice what it spaces (diffusers#14013)."""
    alone, shifted = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    alone.set_timesteps(2)
    assert alone.sigmas.tolist() == pytest.approx([1, 0.001, 0])
    shifted.set_timesteps(2)
    least = 0.003 / 1.002  # 0.001, shifted
    assert shifted.sigmas[1] == pytest.approx(3 * least / (1 + 2 * least))


CHURN = {"S_churn": 6.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.007}


def algorithm_2(x, sigmas, z, S_churn=0.0, S_min=0.0, S_max=math.inf, S_noise=1.0):
    """EDM's, as printed: Karras et al. 2022, for D = x0_of, with the noise z of each step."""
    N = len(sigmas)
    told = []
    for i, (t, t_next) in enumerate(pairwise([*sigmas, 0.0])):
        gamma = min(S_churn / N, math.sqrt(2) - 1) if S_min <= t <= S_max else 0.0
        eps = S_noise * z[i]
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * eps
        d = (x_hat - x0_of(x_hat, 1, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        told.append(math.log(t_hat) / 4)
        if t_next != 0:
            d_next = (x - x0_of(x, 1, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d / 2 + d_next / 2)
            told.append(math.log(t_next) / 4)
    return x, told


@pytest.mark.parametrize("options", [{}, CHURN, CHURN | {"S_churn": 40.0}, {"S_churn": 2.0}], ids=str)
def test_edm_heun_is_the_published_algorithm(options):
    """And what it tells the network is what the plan says."""
    planned = describe_sampler(
        SAMPLE_DEFAULTS.model_copy(update={"sampler": "edm-heun", "steps": 18, "sampler_options": options}),
        EDM_DEFAULTS,
    )
    points, drawn = path(EDMS, planned.tau), []

    def noise(key, draw=0):
        drawn.append((key, draw))
        return normal(3, torch.arange(3), key, Z.shape[1:]).double()

    z = [noise(at.key) for at in points[:-1]]
    expected, told = algorithm_2(80 * Z, [at.sigma for at in points[:-1]], z, **options)
    drawn.clear()
    found = sampled("edm-heun", EDMS, points, noise, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert planned.times == pytest.approx(told, rel=1e-9)
    assert planned.evaluations == len(told) == 2 * 18 - 1
    churned = [at.key for at in points[:-1] if options.get("S_min", 0) <= at.sigma <= options.get("S_max", math.inf)]
    assert drawn == [(key, 0) for key in churned if options]
    plain = sampled("heun", EDMS, points)
    assert (found - plain).abs().max() > 0.01 if options else torch.equal(found, plain)


@pytest.mark.parametrize("names", [("ddim", "euler"), ("heun", "edm-heun"), ("dpm++2m", "dpm++2m")], ids=str)
def test_proposition_1_ddims_ode_is_the_variance_exploding_one(names):
    """x / alpha of DDPM's process goes where EDM's x goes at sigma / alpha, at every call of two different networks."""
    theirs, points = [], path(DDPM, DDPM.spaced("linear", 12))
    x_T = Z / points[0].alpha
    process = EDM(0.002, points[0].ratio, 7.0, 0.5)
    found = sampled(names[0], DDPM, points, states=theirs)
    ours = []
    matched = [process.at(at.ratio) for at in points]
    assert matched[-1].sigma == 0
    exploding = sampled(names[1], process, matched, states=ours, x=x_T)
    torch.testing.assert_close(exploding, found, rtol=0, atol=1e-9)
    asked = [at for a, b in pairwise(points) for at in ((a, b) if names[0] == "heun" and b.sigma else (a,))]
    assert len(asked) == len(ours) == len(theirs)
    for at, x, scaled in zip(asked, theirs, ours, strict=True):
        torch.testing.assert_close(scaled * math.hypot(at.ratio, 0.5), x / at.alpha, rtol=1e-9, atol=1e-9)


def test_the_pages_table_says_what_each_sampler_takes_and_costs():
    """And every other process, prediction and sampler is refused."""
    page = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()
    table = page.partition("## Which sampler for which network")[2].partition("\n## ")[0]
    costs, predictions, S = {}, [], 5
    for network, samplers, cost, _ in (re.findall(r"[^|]+", line) for line in table.splitlines() if line[:3] == "| `"):
        process, *named = re.findall("`([a-z_]+)`", network)
        predictions = named or predictions  # the same
        for case in product([process], predictions, re.findall("`([^`]+)`", samplers)):
            costs[case] = 2 * S - 1 if "2 S" in cost else S
    for case in product(PREDICTIONS, get_args(PredictionType), SAMPLERS):
        process, prediction, name = case
        sections = {"model": {"checkpoint": "/no/such"}, "sample": {"sampler": name, "steps": S}}
        sections["diffusion"] = {"process": process, "prediction": prediction}
        if case in costs:
            [cell] = planned(**sections, dry=True).cells
            assert cell.nfe == costs[case], case
        else:
            with pytest.raises(UserError, match=r"^(diffusion\.prediction|sample\.sampler): .*set "):
                planned(**sections, dry=True)


def on(process, sampler, *, diffusion=None, **settings):
    """The plan of five steps, unless `settings` say otherwise."""
    sample = {"steps": 5, "sampler": sampler} | settings
    return planned(diffusion={"process": process} | (diffusion or {}), sample=sample, dry=True)


WRONG_OPTIONS = [
    {"S_chrn": 1}, {"S_churn": -1}, {"S_churn": "a"}, {"S_churn": None}, {"S_noise": 1.0}, {"S_churn": 4, "S_min": 100},
    {"S_churn": 9, "S_min": 30, "S_max": 40},
]  # fmt: skip
MISTAKES = [
    *(("edm", "edm-heun", {"sampler_options": options}) for options in WRONG_OPTIONS),
    ("edm", "euler", {"sampler_options": {"S_churn": 9}}), ("edm", "euler", {"eta": 1.0}),
    ("edm", "euler", {"diffusion": {"sigma_max": 0.8}}), ("edm", "diffusers:EDMEulerScheduler", {}),
    ("flow", "diffusers:DPMSolverMultistepScheduler", {}), ("ddpm", "edm-heun", {}), ("edm", "lcm", {}),
]  # fmt: skip


@pytest.mark.parametrize(("process", "sampler", "settings"), MISTAKES)
def test_a_mistake_is_refused(process, sampler, settings):
    with raises(UserError):
        on(process, sampler, **settings)


def remarks(*given, **settings):
    return on(*given, **settings).remarks


def test_the_plan_says_where_churn_is_cut_off_and_that_without_it_edm_heun_is_heun():
    options = {"S_churn": 10, "S_max": None}
    assert not any("S_churn" in line for line in remarks("edm", "edm-heun", steps=25, sampler_options=options))
    [said] = [line for line in remarks("edm", "edm-heun", sampler_options=options) if "S_churn" in line]
    recorded(said)
    assert "as 2.07" in said
    for options in ({}, {"S_churn": 0, "S_noise": 1.007}):
        recorded(" ".join(remarks("edm", "edm-heun", sampler_options=options)), "those")
    assert "heun" not in " ".join(remarks("edm", "edm-heun", sampler_options={"S_churn": 1}))


@pytest.mark.parametrize(("process", "path"), [(EDMS, [EDMS.last]), (FLOW, [1.0]), (DDPM, [DDPM.last])])
def test_one_step_is_the_same_in_all_solvers(process, path):
    points = [process.at(t) for t in (*path, 0)]
    every = [sampled(name, process, points) for name in ("ddim", "euler", "heun", "dpm++2m", "dpm++3m", "unipc")]
    for found in every[1:]:
        torch.testing.assert_close(found, every[0], rtol=0, atol=1e-9)


def test_only_a_flows_cell_is_named_by_its_shift():
    flow = {"diffusion.process": ["flow"], "shift": [1, 3], "steps": [5]}
    cells = planned(grid=[flow, {"diffusion.process": ["edm", "ddpm"], "steps": [5]}], dry=True).cells
    assert ["shift" in cell.label for cell in cells] == [True, True, False, False]
