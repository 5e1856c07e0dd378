"""Our solvers: what they converge to and how fast, and float64 loops of their papers, which share no code with them."""

import math
import re
from fractions import Fraction
from itertools import pairwise
from math import factorial
from pathlib import Path

import numpy as np
import orders
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from orders import CLAIMED, ORACLES, PROCESS, lam, measured
from proofs import proof
from snapshots import raises

from taugrid.config import DIFFUSION_DEFAULTS
from taugrid.errors import UserError
from taugrid.workers import schedules
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import path
from taugrid.workers.samplers import solvers
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler
from taugrid.workers.samplers.sampler import find
from taugrid.workers.samplers.solvers import moments, second_order

pytestmark = pytest.mark.usefixtures("one_thread")

SOLVERS = ["dpm++2m", "dpm++3m", "heun", "unipc"]
USUAL = DIFFUSION_DEFAULTS.model_copy(update={"prediction": "v_prediction"})
DIFFUSIONS = {
    "usual": USUAL,
    "jsd": USUAL.model_copy(update={"schedule": "jsd"}),  # alpha_T is 0
    "to alpha 1": USUAL.model_copy(update={"set_alpha_to_one": False}),
}
X = normal(3, torch.arange(5), 0, (2, 3, 3))


def x0_of(x, at):
    """For data N(0.3, 1.5^2), and not linear in x; wide enough that clipping to [-1, 1] acts on many pixels."""
    tanh = torch.tanh if isinstance(x, torch.Tensor) else np.tanh
    mean = 0.3 + at.alpha * 1.5**2 * (x - at.alpha * 0.3) / (at.alpha**2 * 1.5**2 + at.sigma**2)
    return mean + 0.1 * at.alpha * math.sin(at.time / 100) * tanh(x)


def v(x, at, condition=None):
    """As a network with v_prediction says it, which is finite where alpha is 0."""
    return (at.alpha * x - x0_of(x, at)) / at.sigma


def settings(name, steps=10, **given):
    return SAMPLE_DEFAULTS.model_copy(update={"sampler": name, "steps": steps, **given})


def no_noise(*_):
    raise AssertionError("a solver draws no noise")


def sampled(name, x=X, process="usual", network=v, **given):
    """What the solver makes of x, for settings that the plan accepts."""
    cell, diffusion = settings(name, **given), DIFFUSIONS[process]
    planned = describe_sampler(cell, diffusion)
    denoise = Denoise(network, schedules.process(diffusion), clip=cell.clip, clip_range=cell.clip_range)
    found = find(name).sample(x, path(denoise.process, planned.tau), denoise, no_noise, cell)
    assert denoise.calls == planned.evaluations
    return found


def integral(a, b, known):
    """sigma_b int e^lambda P(lambda) d lambda from a to b, P through the (point, x0) of `known`: by Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    half, middle = (lam(b) - lam(a)) / 2, (lam(b) + lam(a)) / 2
    points = middle + half * nodes
    total = 0.0
    for i, (at, x0) in enumerate(known):
        others = [lam(other) for j, (other, _) in enumerate(known) if j != i]
        lagrange = np.prod([(points - other) / (lam(at) - other) for other in others], axis=0)
        total = total + half * (weights * np.exp(points) * lagrange).sum() * x0
    return b.sigma * total


def ddim_step(x, x0, a, b):
    return b.alpha * x0 + b.sigma * (x - a.alpha * x0) / a.sigma


def paper_2m(x, points, x0_at):
    """Algorithm 2 of DPM-Solver++, in its letters."""
    before = None
    for a, b in pairwise(points):
        x0 = x0_at(x, a)
        if a.alpha == 0 or b.sigma == 0:
            x = ddim_step(x, x0, a, b)
            continue
        h, D = lam(b) - lam(a), x0
        if before is not None:
            r = (lam(a) - lam(before[0])) / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before[1]
        x, before = b.sigma / a.sigma * x - b.alpha * (math.exp(-h) - 1) * D, (a, x0)
    return x


def paper_3m(x, points, x0_at):
    """Two points as 2M, three by their parabola."""
    known = []
    for a, b in pairwise(points):
        x0 = x0_at(x, a)
        if a.alpha == 0 or b.sigma == 0:
            x = ddim_step(x, x0, a, b)
            continue
        known = [(a, x0), *known][:3]
        if len(known) == 3:
            x = b.sigma / a.sigma * x + integral(a, b, known)
        elif len(known) == 2:
            [(_, m0), (c, m1)], h = known, lam(b) - lam(a)
            D = m0 + h / (2 * (lam(a) - lam(c))) * (m0 - m1)
            x = b.sigma / a.sigma * x - b.alpha * (math.exp(-h) - 1) * D
        else:
            x = ddim_step(x, x0, a, b)
    return x


def paper_unipc(x, points, x0_at):
    """Each step is predicted, and corrected once x0 at its end is known."""
    known, source = [], None
    for a, b in pairwise(points):
        x0 = x0_at(x, a)
        if known:
            x = a.sigma / known[0][0].sigma * source + integral(known[0][0], a, [(a, x0), *known])
        if a.alpha == 0 or b.sigma == 0:
            x = ddim_step(x, x0, a, b)
            continue
        known = [(a, x0), *known][:3]
        source, x = x, b.sigma / a.sigma * x + integral(a, b, known)
    return x


def paper_heun(x, points, x0_at):
    """Algorithm 1 of EDM, for y = x / alpha and its sigma, which is our sigma / alpha."""
    for a, b in pairwise(points):
        if a.alpha == 0 or b is points[-1]:
            x = ddim_step(x, x0_at(x, a), a, b)
            continue
        y, s, s_next = x / a.alpha, a.sigma / a.alpha, b.sigma / b.alpha
        d = (y - x0_at(x, a)) / s
        y_next = y + (s_next - s) * d
        d_next = (y_next - x0_at(b.alpha * y_next, b)) / s_next
        x = b.alpha * (y + (s_next - s) * (d / 2 + d_next / 2))
    return x


PAPERS = {"dpm++2m": paper_2m, "dpm++3m": paper_3m, "unipc": paper_unipc, "heun": paper_heun}


def by_the_paper(name, process="usual", **given):
    cell, process = settings(name, **given), schedules.process(DIFFUSIONS[process])
    points = path(process, process.spaced(cell.spacing, cell.steps, cell.steps_offset))

    def x0_at(x, at):
        x0 = x0_of(x, at)
        return x0 if cell.clip == "none" else np.clip(x0, -cell.clip_range, cell.clip_range)

    return PAPERS[name](X.double().numpy(), points, x0_at)


CASES = [
    {"spacing": "linear"}, {"spacing": "logsnr", "steps": 7}, {"spacing": "leading", "steps_offset": 1},
    {"spacing": "quadratic", "steps": 30},  # diffusers lowers the order of last steps below S = 15 alone
    {"spacing": [1, 3, 250, 999], "steps": 4}, {"spacing": "logsnr-int", "clip": "x0"},
    {"spacing": "trailing", "clip": "x0_and_eps", "clip_range": 0.5}, {"steps": 1}, {"steps": 2},
    {"process": "jsd", "spacing": "linear"}, {"process": "jsd", "steps": 1}, {"process": "to alpha 1"},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_agrees_with_a_float64_loop_of_its_paper(name, case):
    expected = by_the_paper(name, **case)
    exact, found = sampled(name, X.double(), **case), sampled(name, **case)
    assert exact.dtype == torch.float64
    np.testing.assert_allclose(exact.numpy(), expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("dpm++2m", "two points"),
        *((name, "Gaussian") for name in ("dpm++3m", "heun", "unipc")),
        *(proof(name, "two points") for name in ("ddim", "dpm++3m", "heun", "unipc")),
        *(proof(name, "Gaussian") for name in ("ddim", "dpm++2m")),
    ],
)
def test_a_solver_has_its_order(name, oracle):
    """From T to time 1, uniform in log-SNR, unrounded times."""
    _, order = measured(name, orders.from_start, ORACLES[oracle])
    assert order == pytest.approx(CLAIMED[name], abs=0.15)


def test_the_start_alone_limits_the_order_of_3m():
    """A first step is first-order. From T that can't be seen, as x0 does not depend on x there; from lambda = -1 it
    leaves an error of h^2, which goes if the first step is as short as h^2."""
    _, from_later = measured("dpm++3m", orders.from_later, ORACLES["Gaussian"])
    _, shortened = measured("dpm++3m", orders.shortened, ORACLES["Gaussian"])
    assert from_later == pytest.approx(2, abs=0.15)
    assert shortened == pytest.approx(3, abs=0.15)


@pytest.mark.proof
@pytest.mark.slow
def test_the_page_shows_what_is_measured():
    page = (Path(__file__).parents[2] / "docs" / "mathematics.md").read_text()
    starts = ("| Solver |", *(f"| `{name}` |" for name in CLAIMED))
    rows = [line for line in page.splitlines() if line.startswith(starts)]
    numbers = re.compile(r"[\d.]+(?:e[-+]\d+)?")
    for shown, found in zip(rows, (line for line in orders.table() if not line.startswith("| :")), strict=True):
        assert numbers.sub("#", shown) == numbers.sub("#", found)
        assert [*map(float, numbers.findall(shown))] == pytest.approx([*map(float, numbers.findall(found))], rel=0.02)


def halved(x, history, b):
    """DPM-Solver++(3M) as diffusers computes it: D2 is half of x0'' h^2."""
    if len(history) < 3:
        return second_order(x, history, b)
    (a, m0), (c, m1), (d, m2) = history
    h, h_0, h_1 = lam(b) - lam(a), lam(a) - lam(c), lam(c) - lam(d)
    D1_0, D1_1 = h / h_0 * (m0 - m1), h / h_1 * (m1 - m2)
    D1, D2 = D1_0 + h_0 / (h_0 + h_1) * (D1_0 - D1_1), h / (h_0 + h_1) * (D1_0 - D1_1)
    e = math.exp(-h) - 1
    return b.sigma / a.sigma * x - b.alpha * (e * m0 - (e / h + 1) * D1 + ((e + h) / h**2 - 0.5) * D2)


def test_diffusers_third_order_is_of_order_2(monkeypatch):
    """Its own function gives what `halved` does, and that has order 2."""
    theirs = DPMSolverMultistepScheduler(solver_order=3, final_sigmas_type="sigma_min", lower_order_final=False)
    theirs.set_timesteps(20)
    points = [orders.point(-math.log(s)) for s in theirs.sigmas.double().tolist()[4:8]]
    m = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in theirs.timesteps[:6]:
        theirs.step(m[0], t, m[0])
    expected = theirs.multistep_dpm_solver_third_order_update(list(m), sample=m[0])
    history = list(zip(points[2::-1], reversed(m), strict=True))
    torch.testing.assert_close(halved(m[0], history, points[3]), expected, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(solvers, "third_order", halved)
    _, order = measured("dpm++3m", orders.from_start, ORACLES["Gaussian"])
    assert order == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_is_the_prediction_at_the_last_time(name):
    """Whatever the spacing says: never a prediction at time 0, whose deviation would be 0.01."""
    for spacing in ("linear", "trailing", "logsnr", "logsnr-int"):
        assert torch.equal(sampled(name, steps=1, spacing=spacing), sampled("dpm++2m", steps=1))
    np.testing.assert_allclose(sampled(name, X.double(), steps=1), x0_of(X.double(), PROCESS.at(1000)), rtol=1e-12)


@pytest.mark.parametrize(("process", "expected"), [("usual", 2 * 10 - 1), ("jsd", 2 * 10 - 2)])
def test_heun_evaluates_twice_where_a_step_is_second_order(process, expected):
    asked = []

    def network(x, at, condition=None):
        asked.append(at.time)
        return v(x, at)

    sampled("heun", process=process, network=network)
    assert asked == list(find("heun").times(settings("heun"), schedules.process(DIFFUSIONS[process])))
    assert len(asked) == expected


@pytest.mark.parametrize("h", [1e-6, 1e-4, 0.01, 0.1, 0.49, 0.5, 0.51, 1.0, 3.0, 10.0])
def test_moments_of_unipc_are_those_of_fractions(h):
    """h sum_j (-h)^j k! / (k + j + 1)!, of rational numbers."""
    terms = [Fraction(-h) ** j for j in range(80)]
    exact = [sum(Fraction(h) * each * Fraction(factorial(k), factorial(k + j + 1)) for j, each in enumerate(terms))
             for k in range(4)]  # fmt: skip
    assert moments(h, 4) == pytest.approx([float(each) for each in exact], rel=1e-14, abs=0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("spacing", "steps", "process", "works"),
    [
        ("logsnr-int", 100, "usual", 37), ("ermongroup-quad", 100, "usual", 29), ("linear", 1000, "to alpha 1", 500),
        ("logsnr", 10, "to alpha 1", None), ([1, 500], 2, "to alpha 1", None),
    ],
)  # fmt: skip
def test_a_step_of_length_0_is_refused(name, spacing, steps, process, works):
    with raises(UserError):
        sampled(name, spacing=spacing, steps=steps, process=process)
    if works is None:
        assert sampled(name, spacing=spacing, steps=steps).isfinite().all()
        return
    assert sampled(name, spacing=spacing, steps=works, process=process).isfinite().all()
    with pytest.raises(UserError, match="of length 0"):
        sampled(name, spacing=spacing, steps=works + 1, process=process)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", [1], [1, 2, 3]])
def test_a_first_call_where_x_should_be_mostly_signal_is_refused(name, spacing):
    is_named = isinstance(spacing, str)
    with raises(UserError):
        sampled(name, spacing=spacing, steps=1 if is_named else len(spacing))
    if is_named:
        sampled(name, spacing=spacing, steps=2)
