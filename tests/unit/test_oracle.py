"""Data of which everything is known: the draws, the best eps, and the closed form of what the sampler makes of them.

Inputs of the statistical tests are fixed, so one that passes once passes always; tolerances are at least four standard
errors, so that chance would not explain a failure after a change of the inputs either.
"""

import hashlib
from dataclasses import replace
from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
from scipy import stats
from snapshots import raises

from taugrid.eval.metrics import frechet, statistics
from taugrid.images import to_uint8
from taugrid.workers.diffusion import oracle as optimum
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.gaussian import (
    Classes,
    TwoPoints,
    classes,
    draw,
    frechet_distance,
    gaussian,
    rounded,
    sampled,
    share_beyond_1,
    two_points,
)
from taugrid.workers.diffusion.oracle import gaussian_eps, two_points_eps
from taugrid.workers.diffusion.process import path
from taugrid.workers.diffusion.processes import EDM, DiscreteVP, Flow
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.samplers import ddim

ALPHA = alpha_bar("linear", 1000, 1e-4, 2e-2)
SHAPE = (2, 2, 3)
DATA = gaussian(SHAPE)
POINTS = two_points(SHAPE)
ETAS = [0.0, 0.5, 1.0, "sigma_hat"]


def levels(times):
    """alpha_bar along a path."""
    return [float(ALPHA[t]) for t in reversed([0, *times])]


pytestmark = pytest.mark.usefixtures("one_thread")


def test_gaussian_is_what_it_says():
    mean, covariance = DATA.mean.reshape(SHAPE), DATA.covariance.reshape(*SHAPE, *SHAPE)
    assert mean[0, 0, 0] == -0.1
    assert mean[1, 1, 2] == 0.1
    assert (np.diff(DATA.mean) > 0).all()
    for c, i, j, d, k, l in product(range(2), range(2), range(3), repeat=2):  # noqa: E741
        expected = 0.1**2 * 0.5 ** abs(i - k) * 0.6 ** abs(j - l) if c == d else 0.0
        assert covariance[c, i, j, d, k, l] == pytest.approx(expected, abs=1e-15)


def test_draws_have_the_moments():
    n, draws = 20_000, draw(DATA, 20_000, seed=1)
    z_mean = (draws.mean(axis=0) - DATA.mean) / np.sqrt(np.diag(DATA.covariance) / n)
    c = DATA.covariance
    z_covariance = (np.cov(draws, rowvar=False) - c) / np.sqrt((c**2 + np.outer(np.diag(c), np.diag(c))) / n)
    assert np.abs(z_mean).max() < 4
    assert np.abs(z_covariance).max() < 4.5
    draws = draw(POINTS, 10_000, seed=1)
    first, second = ((draws == point).all(axis=1) for point in POINTS.points)
    assert (first | second).all()
    assert first.mean() == pytest.approx(0.4, abs=4 * sqrt(0.4 * 0.6 / 10_000))


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (gaussian((1, 8, 8)), "ed4d1a99e8583a86"),
        (two_points((1, 8, 8)), "a6a6228d6613da76"),
    ],
)
def test_8_bit_draws_never_change(data, digest):
    """They are data sets, and runs on disk depend on them."""
    images = to_uint8(draw(data, 1000, seed=0))
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == digest


def test_share_beyond_1_is_that_of_draws():
    """Pixels far wider than the data's: counted among draws, where the bound is nearly the share itself."""
    wide = replace(gaussian((1, 2, 2)), eigenvalues=gaussian((1, 2, 2)).eigenvalues * 18)
    counted = (np.abs(draw(wide, 200_000, 0)) > 1).any(axis=1).mean()
    assert counted > 0.01
    assert counted < share_beyond_1(wide) < 1.2 * counted


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_one_image_in_a_million_is_clipped_at_most(shape):
    data = gaussian(shape)
    cells = product(("linear", "quadratic"), (5, 10, 20, 50, 1000), ETAS)
    for pixels in [data, *(sampled(data, levels(tau(spacing, s, 1000)), eta) for spacing, s, eta in cells)]:
        assert share_beyond_1(pixels) < 1e-6


def bayes_x0(data, x, alpha, sigma, label):
    """E[x0 | x], (n, d): by the joint normal distribution of x0 and x, or by scipy's densities."""
    d = x.shape[1]
    if isinstance(data, TwoPoints):
        logs = [stats.multivariate_normal(alpha * p, sigma**2 * np.eye(d)).logpdf(x) for p in data.points]
        joint = np.stack(logs, axis=1) + np.log(data.weights)
        weights = np.exp(joint - joint.max(axis=1, keepdims=True))
        return weights @ data.points / weights.sum(axis=1, keepdims=True)
    base = data.base if isinstance(data, Classes) else data
    mean = base.mean + (data.offsets[label] if isinstance(data, Classes) else 0)
    joint = alpha * base.covariance, alpha**2 * base.covariance + sigma**2 * np.eye(d)
    return mean + (x - alpha * mean) @ np.linalg.solve(joint[1], joint[0])


def ddpm(data, dtype):
    if isinstance(data, TwoPoints):
        return two_points_eps(data, "cpu", dtype)
    return gaussian_eps(data, ALPHA, "cpu", dtype)


def continuous(network, scale):
    return lambda data, dtype: network(optimum.expected_x0(data, "cpu", dtype), scale)


PROCESSES = {
    "ddpm": (DiscreteVP(ALPHA), ddpm, (1, 50, 500, 1000)),
    "edm": (EDM(0.002, 80.0, 7.0, 0.7), continuous(optimum.edm, 0.7), (0.002, 0.3, 5.0, 80.0)),
    "flow": (Flow(), continuous(optimum.flow, 1), (0.001, 0.3, 0.9, 1.0)),
    "flow told 1000 t": (Flow(1000), continuous(optimum.flow, 1000), (0.4, 1.0)),
}


@pytest.mark.parametrize("data", [DATA, POINTS, classes(SHAPE)], ids=["gaussian", "two points", "classes"])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_network_is_the_conditional_expectation(name, data):
    """By what Denoise makes of its output; and a network that is told another noise level shows it."""
    process, network, times = PROCESSES[name]
    label = torch.full((5,), 2) if isinstance(data, Classes) else None
    z = torch.randn(5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in times:
        at = process.at(t)
        x = at.alpha * torch.from_numpy(POINTS.points.mean(axis=0)).reshape(1, *SHAPE) + at.sigma * z
        expected = bayes_x0(data, x.flatten(1).numpy(), at.alpha, at.sigma, 2)
        amplified = max(1, at.ratio) if name == "ddpm" else 1  # an error of eps is as much larger in x0
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
            optimal = network(data, dtype)
            for factor in (1, 1.02, 1000) if t in (0.3, 5.0) else (1,):

                def told(x, at, condition=None, /, factor=factor, optimal=optimal):
                    return optimal(x, at._replace(time=at.time * factor), condition)

                found = Denoise(told, process, condition=label)(x.to(dtype), at).x0
                error = np.abs(found.flatten(1).numpy() - expected).max()
                if factor == 1:
                    assert found.dtype == dtype
                    assert error < tolerance * amplified
                else:
                    assert not error < 1e-3


def test_classes_without_labels_are_no_class():
    with raises(AssertionError):
        optimum.expected_x0(classes(SHAPE), "cpu")(torch.zeros(2, *SHAPE), 1.0, 1.0, None)


CELLS = [("ddpm", tau(spacing, steps, 1000)) for spacing, steps in (("linear", 1), ("quadratic", 7), ("linear", 20))]
CELLS += [(name, PROCESSES[name][0].spaced("linear", 7)) for name in PROCESSES if name != "ddpm"]


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize(("name", "times"), CELLS, ids=lambda value: value if isinstance(value, str) else len(value))
def test_closed_form_of_the_samples_is_exact(name, times, eta):
    """The sampler is affine in its noise; fed with unit vectors at one time after the other it shows its matrices.

    At the first point of a flow there is no signal, and that of edm has little.
    """
    process, network, _ = PROCESSES[name]
    d, visited = len(DATA.mean), path(process, times)
    denoise = Denoise(network(DATA, torch.float64), process)
    scale = process.first_scale(visited[0])

    def run(key_of_units):
        units = torch.cat([torch.zeros(1, d), torch.eye(d)]).double().reshape(-1, *SHAPE)
        x_T = scale * units * (key_of_units == 0)
        x0 = ddim.sample(x_T, visited, denoise, lambda key: units * (key == key_of_units), eta).flatten(1).numpy()
        return x0[0], (x0[1:] - x0[0]).T

    responses = {key: run(key) for key in (0, *(at.key for at in visited[:-1]))}
    covariance = sum(matrix @ matrix.T for _, matrix in responses.values())
    exact = sampled(DATA, [at.alpha_bar for at in visited], eta, (scale / visited[0].scale) ** 2)
    np.testing.assert_allclose(exact.mean, responses[0][0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(exact.covariance, covariance, rtol=0, atol=1e-12)


def test_frechet_distance_is_the_general_one():
    a, b = sampled(DATA, levels(tau("linear", 10, 1000)), 0.5), DATA
    general = frechet.frechet_distance(*(statistics.Moments(2, g.mean, g.covariance) for g in (a, b)))
    assert frechet_distance(a, b) == pytest.approx(general, rel=1e-10)
    with pytest.raises(ValueError, match="same eigenvectors"):
        frechet_distance(gaussian((1, 3, 2)), gaussian((1, 2, 3)))


def test_rounding_acts_as_independent_noise():
    """In the cell whose pixels vary least; draws and rounded draws are paired, which leaves little of their scatter."""
    data = gaussian((1, 4, 4))
    narrow = sampled(data, levels(tau("linear", 5, 1000)), 0.0)
    draws = draw(narrow, 200_000, seed=5)
    images = to_uint8(draws) / 127.5 - 1
    added = np.cov(images, rowvar=False) - np.cov(draws, rowvar=False)
    expected = rounded(narrow).covariance - narrow.covariance
    noise = expected[0, 0]
    assert noise == pytest.approx((2 / 255) ** 2 / 12)
    assert np.diag(added).mean() == pytest.approx(noise, rel=0.02)
    assert np.abs(added - expected).max() < 0.1 * noise
    assert np.abs((images - draws).mean(axis=0)).max() < 4 * sqrt(noise / 200_000)
