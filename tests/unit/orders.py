"""How fast the solvers converge, against the ODE's own solutions: `python tests/unit/orders.py` prints the tables.

The ODE is solved from T, or from `LATER`, to time 1, where sigma is above 0, in steps that are uniform in
lambda = log(alpha / sigma), in float64. Of a Gaussian it has a closed form; of two points an integrator with a
tolerance of 1e-13 (DOP853) gives the solution. docs/mathematics.md holds what this file prints.
"""

from functools import cache
from math import exp, log, sqrt

import numpy as np
import torch
from scipy.integrate import solve_ivp

from taugrid.config import DIFFUSION_DEFAULTS, Sample
from taugrid.workers import schedules
from taugrid.workers.diffusion import oracle
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.gaussian import gaussian, two_points
from taugrid.workers.diffusion.process import Point, path
from taugrid.workers.diffusion.processes import EDM, Flow
from taugrid.workers.diffusion.timesteps import times
from taugrid.workers.samplers.sampler import find

CLAIMED = {name: find(name).order for name in ("ddim", "heun", "dpm++2m", "dpm++3m", "unipc")}
"""The order of each solver."""

STEPS = (125, 250, 500, 1000)
FLOOR = 1e-11
"""Errors below it are partly rounding."""

LATER = -1.0
"""A lambda at which the network's x0 already depends on x, unlike at T, where lambda is -5.06."""

SHAPE = (1, 2, 3)
PROCESS = schedules.process(DIFFUSION_DEFAULTS)
EDMS, FLOW = EDM(0.002, 80.0, 7.0, 0.5, "sample"), Flow(1, "sample")
X = 1.5 * torch.from_numpy(np.random.RandomState(3).standard_normal((8, *SHAPE)))


def point(lam):
    """The variance-preserving point of a lambda."""
    alpha_bar = 1 / (1 + exp(-2 * lam))
    return Point(sqrt(alpha_bar), 1 / sqrt(1 + exp(2 * lam)), alpha_bar, 1.0, 2)


def lam(at):
    return log(at.alpha / at.sigma)


def from_start(steps):
    """The points of `logsnr`, the last one at time 1: its step onto sigma = 0 is left out."""
    return path(PROCESS, times("logsnr", steps, PROCESS.alpha_bar))[:-1]


def edm(steps):
    """Those of `logsnr`, from sigma 80 to 0.002."""
    return path(EDMS, EDMS.spaced("logsnr", steps))[:-1]


def flow(steps):
    """Uniform in log-SNR, from t = 0.993 to 0.007."""
    return [FLOW.at(1 / (1 + exp(each))) for each in np.linspace(-5, 5, steps).tolist()]


def from_later(steps, first=None):
    """Points from `LATER` on; with `first`, after a step of that length."""
    end = lam(PROCESS.at(1))
    if first is None:
        return [point(each) for each in np.linspace(LATER, end, steps).tolist()]
    return [point(each) for each in (LATER, *np.linspace(LATER + first, end, steps).tolist())]


class Normal:
    """The Gaussian of `taugrid selfcheck`: its x0, and the closed form of the ODE in each direction of Sigma."""

    data, process = gaussian(SHAPE), PROCESS
    network = staticmethod(oracle.gaussian_eps(data, PROCESS.alpha_bar, "cpu", torch.float64))

    def in_basis(self, x):
        return x.reshape(len(x), -1) @ self.data.eigenvectors

    def x0(self, x, alpha, sigma):
        l, m = self.data.eigenvalues, self.data.mean @ self.data.eigenvectors  # noqa: E741
        centred = self.in_basis(x) - alpha * m
        return ((m + alpha * l / (alpha**2 * l + sigma**2) * centred) @ self.data.eigenvectors.T).reshape(x.shape)

    def solution(self, x, a, b):
        """At b, from x at a: x - alpha m grows as the standard deviation of x does."""
        l, m = self.data.eigenvalues, self.data.mean @ self.data.eigenvectors  # noqa: E741
        growth = np.sqrt((b.alpha**2 * l + b.sigma**2) / (a.alpha**2 * l + a.sigma**2))
        found = b.alpha * m + growth * (self.in_basis(x) - a.alpha * m)
        return (found @ self.data.eigenvectors.T).reshape(x.shape)


class Scaled(Normal):
    """The same under a process whose networks predict x0."""

    def __init__(self, process):
        self.process = process

    def network(self, x, at, condition=None):
        return torch.from_numpy(self.x0(x.numpy(), at.alpha, at.sigma))


class Pair:
    """Two points, whose x0 is not linear in x."""

    data, process = two_points(SHAPE), PROCESS
    network = staticmethod(oracle.two_points_eps(data, "cpu", torch.float64))

    def x0(self, x, alpha, sigma):
        flat = x.reshape(len(x), -1)
        distances = np.square(flat[:, None] - alpha * self.data.points).sum(axis=2)
        log_weights = np.log(self.data.weights) - distances / (2 * sigma**2)
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        return (weights @ self.data.points / weights.sum(axis=1, keepdims=True)).reshape(x.shape)

    @cache  # noqa: B019  # one instance, few ends
    def _solution(self, begin, end):
        """Integrates d(x / alpha) / dr = eps, r = sigma / alpha, over log r."""

        def slope(log_r, y):
            r = exp(log_r)
            alpha = 1 / sqrt(1 + r * r)
            x = (alpha * y).reshape(X.shape)
            return ((x - alpha * self.x0(x, alpha, alpha * r)) / alpha).ravel()

        y = solve_ivp(slope, (-begin, -end), X.numpy().ravel() / point(begin).alpha, "DOP853", rtol=1e-13, atol=1e-15)
        return point(end).alpha * y.y[:, -1].reshape(X.shape)

    def solution(self, x, a, b):
        assert np.array_equal(x, X.numpy())
        return self._solution(lam(a), lam(b))


ORACLES = {"Gaussian": Normal(), "two points": Pair(), "edm": Scaled(EDMS), "flow": Scaled(FLOW)}


def solved(name, path, known, x=X):
    """The sampler's x at the last point of `path`, from `x` at its first."""

    def no_noise(*_):
        raise AssertionError("a solver draws no noise")

    denoise = Denoise(known.network, known.process)
    return find(name).sample(x, path, denoise, no_noise, Sample()).numpy()


def error(name, path, known):
    x = X if known.process is PROCESS else known.process.first_scale(path[0]) * X
    return float(np.abs(solved(name, path, known, x) - known.solution(x.numpy(), path[0], path[-1])).max())


def measured(name, paths, known):
    """The error at the largest of `STEPS` where it is above `FLOOR`, and the order between it and the S before."""
    errors = {steps: error(name, paths(steps), known) for steps in STEPS}
    *_, before, last = [steps for steps, size in errors.items() if size > FLOOR]
    return errors[last], log(errors[before] / errors[last]) / log((last - 1) / (before - 1))


def shortened(steps):
    """From `LATER`, after a first step of the square of the others' length."""
    return from_later(steps, first=((lam(PROCESS.at(1)) - LATER) / steps) ** 2)


def even(steps):
    """The points of `linear`, with the step onto sigma = 0."""
    return path(PROCESS, times("linear", steps, PROCESS.alpha_bar))


COLUMNS = {
    "Gaussian": (from_start, "Gaussian"),
    "two points": (from_start, "two points"),
    "Gaussian from λ = -1": (from_later, "Gaussian"),
    "the same after a step of h²": (shortened, "Gaussian"),
    "Gaussian, even times to the image": (even, "Gaussian"),
}


def table():
    """Lines of Markdown: for each solver the order and, in parentheses, the error at S = 1000."""
    yield f"| Solver | Order | {' | '.join(COLUMNS)} |"
    yield f"| :-- | --: |{' --: |' * len(COLUMNS)}"
    for name, claimed in CLAIMED.items():
        found = (measured(name, paths, ORACLES[oracle]) for paths, oracle in COLUMNS.values())
        yield f"| `{name}` | {claimed} | {' | '.join(f'{slope:.2f} ({size:.0e})' for size, slope in found)} |"


if __name__ == "__main__":
    for line in table():
        print(line)
