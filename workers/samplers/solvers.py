"""taugrid's solvers of the probability-flow ODE, eq. 14 of the DDIM paper, and Heun's method with EDM's churn.

In lambda = log(alpha / sigma) the ODE is linear but for the predicted x0: with h = lambda_b - lambda_a, a step from
point a to point b is exactly

    x_b = sigma_b / sigma_a x_a + alpha_b int_0^h e^(tau - h) x0(lambda_a + tau) dtau

(Lu et al. 2022, DPM-Solver++, prop. 4.1). Solvers differ in what they take for x0 between the points. Coefficients are
Python floats; tensors keep the type of x.

They take nothing but x0 from the network, and the eps that leads from it to x. So the images of clip `x0` are those of
clip `x0_and_eps`: an ODE has no other eps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import expm1, factorial
from typing import TYPE_CHECKING, Any

import numpy as np

from taugrid.config import Sample
from taugrid.errors import UserError
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, Process, path, predict_eps
from taugrid.workers.samplers.sampler import Noise, Sampler, mostly_signal, sampler

if TYPE_CHECKING:
    from torch import Tensor

    History = Sequence[tuple[Point, Tensor]]
    """The last points of a path where the network was called, each with the x0 predicted there; the newest first."""


def moving(self: Sampler, settings: Sample, process: Process) -> tuple[float, ...]:
    """The times of the spacing; `ValueError` if two points in a row are equal, or x is mostly signal at the first."""
    found = Sampler.tau(self, settings, process)
    steps = zip(reversed(found), pairwise(path(process, found)), strict=True)
    stays = (f"has a step of length 0 at time {t:g}" for t, (a, b) in steps if (a.alpha, a.sigma) == (b.alpha, b.sigma))
    if why := mostly_signal(process, found[-1]) or next(stays, None):
        raise ValueError(
            f"{settings.sampler} with steps {settings.steps} and spacing {settings.spacing_name} {why}; choose other "
            "steps, another spacing, or another `diffusion`"
        )
    return found


solver = partial(sampler, keys=frozenset({"spacing", "steps_offset", "clip", "clip_range"}), tau=moving)
"""`sampler` for solvers, which refuse steps of length 0, and to begin where x should be mostly signal."""


def first_order(x: "Tensor", x0: "Tensor", a: Point, b: Point) -> "Tensor":
    """X at b with x0 as it is at a: DDIM's step with eta = 0, which needs no lambda."""
    return b.alpha * x0 + b.sigma * predict_eps(x, x0, a)


# Euler and Heun: Karras et al. 2022, algorithms 1 and 2. They are exact where the slope is constant: dx / dt = eps - x0
# of a flow; else d(x / alpha) / dr = eps, eq. 14 of DDIM, in r = sigma / alpha.


@solver(order=1)
def euler(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """First order, one evaluation a step; of a flow, x + (r - t) v. DDIM's step with eta = 0 is Euler's."""
    for a, b in pairwise(path):
        x = first_order(x, denoise(x, a).x0, a, b)
    return x


def times_of_heun(self: Sampler, settings: Sample, process: Process) -> tuple[float, ...]:
    """Of each step the time where it begins and, if it has a second evaluation, the time where it ends."""
    steps = pairwise(path(process, self.tau(settings, process)))
    begun = ((churned(a, process, settings), b) for a, b in steps)
    return tuple(at.time for a, b in begun for at in ((a, b) if has_slope(a, b, process) else (a,)))


@solver(order=2, times=times_of_heun)
def heun(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """Second order, by the mean of the slopes at both ends: two evaluations a step, one where it is first-order."""
    process = denoise.process

    def slope(x: "Tensor", x0: "Tensor", at: Point) -> "Tensor":
        eps = predict_eps(x, x0, at)
        return eps - x0 if process.name == "flow" else eps

    for at, b in pairwise(path):
        if (a := churned(at, process, settings)) is not at:
            x = x + settings.sampler_options["S_noise"] * math.sqrt(a.sigma**2 - at.sigma**2) * noise(at.key)
        x0 = denoise(x, a).x0
        d, x = slope(x, x0, a), first_order(x, x0, a, b)  # Euler's step
        if has_slope(a, b, process):
            d_b = slope(x, denoise(x, b).x0, b)
            length = b.sigma - a.sigma if process.name == "flow" else b.alpha * (b.ratio - a.ratio)
            x = x + length / 2 * (d_b - d)
    return x


def has_slope(a: Point, b: Point, process: Process) -> bool:
    """Whether the slope at b is known too: the network has no time 0, and r is infinite where alpha is 0."""
    return process.knows(b) and (a.alpha > 0 or process.name == "flow")


CHURN: Mapping[str, Any] = {"S_churn": 0.0, "S_min": 0.0, "S_max": None, "S_noise": 1.0}

MOST_CHURN = math.sqrt(2) - 1  # the largest gamma: a step never adds more noise than x already has


def churned(a: Point, process: Process, settings: Sample) -> Point:
    """The point with (1 + gamma) of a's noise; a itself where there is no churn, as in `heun`."""
    options = {**CHURN, **settings.sampler_options}
    most = math.inf if options["S_max"] is None else options["S_max"]
    if not options["S_churn"] or not options["S_min"] <= a.sigma <= most:
        return a
    return process.at(a.sigma * (1 + min(options["S_churn"] / settings.steps, MOST_CHURN)))


def check_churn(self: Sampler, options: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless they are numbers that have an effect."""
    Sampler.check_options(self, options)
    for name, value in options.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if not is_number and (name, value) != ("S_max", None):
            raise ValueError(f"{name}: {value} must be a number that is not negative")
    if options and "S_churn" not in options:
        raise ValueError(f"{' and '.join(options)} without S_churn has no effect; set S_churn too")


def churning(self: Sampler, settings: Sample, process: Process) -> tuple[float, ...]:
    """The noise levels of the spacing; `UserError` if it should churn, but none is within S_min..S_max."""
    found, options = moving(self, settings, process), self.arguments(settings)
    if options["S_churn"] and all(churned(at, process, settings) is at for at in map(process.at, found)):
        least, most = options["S_min"], math.inf if options["S_max"] is None else options["S_max"]
        raise UserError(
            f"sample.sampler_options of edm-heun: none of the noise levels {found[0]:.3g} to {found[-1]:.3g} is "
            f"within S_min {least:g} and S_max {most:g}"
        )
    return found


def remark_on_churn(self: Sampler, settings: Sample) -> str | None:
    """That gamma is cut off, or 0."""
    asked, S = self.arguments(settings)["S_churn"], settings.steps
    if not asked:
        return "edm-heun: with S_churn 0 it adds no noise: its images are those of heun, bit for bit"
    if asked / S <= MOST_CHURN:
        return None
    return f"edm-heun: at S={S}, S_churn {asked:g} acts as {S * MOST_CHURN:.3g}: no step adds more noise than x has"


edm_heun = solver(
    processes=frozenset({"edm"}),
    options=CHURN,
    check_options=check_churn,
    tau=churning,
    times=times_of_heun,
    remark=remark_on_churn,
)(heun.sample)
"""EDM's stochastic sampler: before a step it adds noise, up to (1 + gamma) sigma. With churn it follows no ODE."""


# DPM-Solver++ and UniPC, multistep in lambda: one evaluation a step.


def is_infinite(a: Point, b: Point) -> bool:
    """Whether lambda is infinite at an end of the step, so that a polynomial in lambda means nothing there."""
    return a.alpha == 0 or b.sigma == 0


def length(a: Point, b: Point) -> float:
    """The length h of a step, lambda_b - lambda_a."""
    return math.log(a.ratio / b.ratio)


def multistep(
    x: "Tensor",
    path: Sequence[Point],
    denoise: Denoise,
    step: "Callable[[Tensor, History, Point], Tensor]",
    points: int,
) -> "Tensor":
    """x_0, (B, C, H, W), from x_T: `step` leads x from the newest point of a history to the next point of the path. A
    step uses so many `points`, its own included, or fewer where there were no more before it."""
    history: list[tuple[Point, Tensor]] = []
    for a, b in pairwise(path):
        x0 = denoise(x, a).x0
        if is_infinite(a, b):
            x = first_order(x, x0, a, b)
        else:
            history = [(a, x0), *history][:points]
            x = step(x, history, b)
    return x


@solver(order=2)
def dpmpp_2m(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """DPM-Solver++(2M): Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095), algorithm 2."""
    return multistep(x, path, denoise, second_order, points=2)


def second_order(x: "Tensor", history: "History", b: Point) -> "Tensor":
    """The second-order update of the paper's algorithm 2; the first-order one without an older point. D = (1 + 1 / (2
    r)) x0 - 1 / (2 r) x0_before with r = h_before / h: a line through both, taken at h / 2."""
    (a, x0), *before = history
    h, d = length(a, b), x0
    for older, x0_before in before:
        r = length(older, a) / h
        d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
    return b.sigma / a.sigma * x - b.alpha * expm1(-h) * d


@solver(order=3)
def dpmpp_3m(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """DPM-Solver++(3M): the paper's Taylor expansion with x0' and x0'' from three points. The authors' multistep code,
    and diffusers after it, have half of this D2, and therefore order 2: docs/mathematics.md."""
    return multistep(x, path, denoise, third_order, points=3)


def third_order(x: "Tensor", history: "History", b: Point) -> "Tensor":
    """The integral of the parabola through three x0; with fewer, the step of DPM-Solver++(2M)."""
    if len(history) < 3:
        return second_order(x, history, b)
    (a, m0), (before, m1), (first, m2) = history
    h = length(a, b)
    r0, r1 = length(before, a) / h, length(first, before) / h
    D1_0, D1_1 = (m0 - m1) / r0, (m1 - m2) / r1
    D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)  # x0' h
    D2 = 2 / (r0 + r1) * (D1_0 - D1_1)  # x0'' h^2
    phi_1 = expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 1 / 2
    return b.sigma / a.sigma * x - b.alpha * (phi_1 * m0 - phi_2 * D1 + phi_3 * D2)


UNIP_ORDER = 3
"""p of UniPC-p: the paper's choice for unconditional sampling. The corrector makes the order p + 1."""


@solver(order=4)
def unipc(x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
    """UniPC-3 (Zhao et al. 2023): UniP-3 predicts and UniC-3 corrects, from predicted x0.

    The corrector uses the evaluation that the next step needs anyway. The paper solves R_p(h) a_p = phi_p(h) / B(h) and
    multiplies a_p by B(h), which cancels: `weights` solves the same conditions without it. (The released code takes 1/2
    for a_1 of UniP-2 and UniC-1 instead, so that B(h) = h and B(h) = e^h - 1 differ there.)"""
    history: list[tuple[Point, Tensor]] = []
    source = x  # x at the newest point, corrected
    for a, b in pairwise(path):
        new = a, denoise(x, a).x0
        if is_infinite(a, b):
            x = first_order(x, new[1], a, b)
            continue
        source = integrated(source, history[0][0], a, [new, *history]) if history else x  # UniC
        history = [new, *history][:UNIP_ORDER]
        x = integrated(source, a, b, history)  # UniP
    return x


def integrated(x: "Tensor", a: Point, b: Point, known: "History") -> "Tensor":
    """X at b, from x at a, with the polynomial through the `known` x0 in place of the network's."""
    h = length(a, b)
    w = weights(h, [length(a, at) / h for at, _ in known])
    x = b.sigma / a.sigma * x
    for weight, (_, x0) in zip(w, known, strict=True):
        x = x + b.alpha * weight * x0
    return x


def weights(h: float, r: Sequence[float]) -> list[float]:
    """The weights w of values at r, in units of h, with sum_m w_m f(r_m) = h int_0^1 e^(h (u - 1)) f(u) du. They are
    exact for the polynomials f of a degree below len(r): sum_m w_m r_m^k is the integral of u^k."""
    solved: list[float] = np.linalg.solve(np.vander(r, increasing=True).T, moments(h, len(r))).tolist()
    return solved


SMALL = 0.5
"""The h below which the differences in the recursion of `moments` cancel. It uses a power series there: with 16 terms,
both are exact to 1e-15 at this h, while the recursion is off by 4e-10 at h = 0.01."""


def moments(h: float, count: int) -> list[float]:
    """The integrals h int_0^1 e^(h (u - 1)) u^k du, for k in 0..`count` - 1."""
    if h < SMALL:
        return [
            sum((-1) ** j * h ** (j + 1) * factorial(k) / factorial(k + j + 1) for j in range(16)) for k in range(count)
        ]
    found = [-expm1(-h)]
    for k in range(1, count):
        found.append(1 - k * found[-1] / h)
    return found
