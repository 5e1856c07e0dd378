"""The judge of `taugrid selfcheck` passes what is right and finds what is planted in the functions that a run uses.

Seeds are fixed: a cell that passes here passes always.
"""

from dataclasses import replace
from functools import cache, reduce
from itertools import product, starmap
from math import sqrt

import numpy as np
import pytest
import torch
from denoisers import sample
from snapshots import recorded

from taugrid import images
from taugrid.config import EDM_DEFAULTS, FLOW_DEFAULTS, Sample
from taugrid.eval import selfcheck
from taugrid.eval.metrics import frechet, statistics
from taugrid.eval.selfcheck import CellSettings, ddpm_path, edm_path, flow_path, judge
from taugrid.workers import schedules
from taugrid.workers.conditions import LabelRule
from taugrid.workers.diffusion import noise, oracle, process, processes, schedule
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.denoiser import Denoise, Guidance
from taugrid.workers.diffusion.gaussian import Gaussian, classes, draw, gaussian, two_points
from taugrid.workers.diffusion.processes import EDM, DiscreteVP
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.samplers import ddim
from taugrid.workers.samplers.sampler import SamplingSpec, sample_batch

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHA = schedule.alpha_bar("linear", 1000, 1e-4, 2e-2)
SHAPE = (2, 4, 4)
N, BATCH = 512, 128
DATA, POINTS = gaussian(SHAPE), two_points(SHAPE)


@cache
def settings(data=DATA, steps=10, eta=1.0, clip="none", spacing="linear", num_samples=N):
    return CellSettings(data, ddpm_path(ALPHA, tau(spacing, steps, 1000)), eta, clip, 11, num_samples)


@cache
def continuous(name, eta=0.5, sampler="ddim", steps=10):
    path = flow_path(steps) if name == "flow" else edm_path(steps, 0.002, 80.0, 7.0)
    churn = (3.0, 1.1) if sampler == "edm-heun" else ()
    return CellSettings(DATA, path, eta, "none", 11, N, 1.0, path[0].sigma, sampler, *churn)


def features(pixels):
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(127.5) - 1


@cache
def reference():
    return images.to_uint8(draw(DATA, 10_000, seed=0)).reshape(-1, *SHAPE)


def times(cell):
    """The paper's, which are the keys of DDPM's process."""
    return [level.key for level in reversed(cell.path[:-1])]


class Run:
    """One cell by the functions that a real run calls; each method is a place for a fault."""

    def __init__(self, cell):
        self.cell = cell

    def eps(self, x, at, condition=None):
        if isinstance(self.cell.data, Gaussian):
            return oracle.gaussian_eps(self.cell.data, ALPHA, "cpu")(x, at)
        return oracle.two_points_eps(self.cell.data, "cpu")(x, at)

    def noise(self, indices, t):
        return noise.normal(self.cell.seed, indices, t, SHAPE)

    def batch(self, indices):
        c = self.cell
        return sample(self.eps, lambda t: self.noise(indices, t), ALPHA, times(c), c.eta, c.clip).numpy()

    def pixels(self, indices):
        return images.to_uint8(self.batch(indices))

    def files(self):
        starts = range(0, self.cell.num_samples, BATCH)
        parts = [self.pixels(torch.arange(start, min(start + BATCH, self.cell.num_samples))) for start in starts]
        return np.concatenate(parts), np.arange(self.cell.num_samples)

    def fid(self, pixels):
        moments = [statistics.Moments.of(part) for part in np.array_split(features(pixels), 3)]
        merged = reduce(statistics.Moments.merge, moments)
        return frechet.frechet_distance(merged, statistics.Moments.of(features(reference())))

    def verdict(self):
        pixels, index = self.files()
        return judge(pixels, index, self.cell, self.fid(pixels), reference())


class Continuous(Run):
    """A cell of edm or a flow, by what a worker calls."""

    def batch(self, indices):
        c = self.cell
        diffusion = EDM_DEFAULTS if c.start > 1 else FLOW_DEFAULTS
        options = {"S_churn": c.churn, "S_noise": c.churn_noise} if c.churn else {}
        settings = Sample(
            steps=len(c.path) - 1, eta=c.eta, sampler=c.sampler, sampler_options=options, clip=c.clip, seed=c.seed
        )
        tau = schedules.process(diffusion).spaced("linear", settings.steps)
        evaluations = settings.steps if c.sampler == "ddim" else 2 * settings.steps - 1
        optimum = oracle.expected_x0(c.data, "cpu")
        network = oracle.edm(optimum, 0.5) if c.start > 1 else oracle.flow(optimum, 1)
        return sample_batch(
            network, indices, SamplingSpec(Identity(SHAPE), diffusion, settings, tau, evaluations)
        ).numpy()


def run_of(cell):
    return (Continuous if cell.start > 1 or cell.path[0].alpha == 0 else Run)(cell)


@cache
def healthy(cell):
    """The verdict of a cell in which nothing is planted; call it before anything is."""
    return run_of(cell).verdict()


HEALTHY = [
    *(settings(steps=s, eta=eta) for s in (5, 20) for eta in (0.0, 0.5, 1.0, "sigma_hat")),
    *(settings(steps=10, eta=eta, spacing="quadratic", clip="x0_and_eps") for eta in (0.0, "sigma_hat")),
    *starmap(settings, product([POINTS], (10, 20), (0.0, 1.0, "sigma_hat"), ("none", "x0", "x0_and_eps"))),
    *starmap(continuous, product(("edm", "flow"), (0.0, 0.5, 1.0, "sigma_hat"))),
    *(continuous(*cell) for cell in (("edm", 0.0, "heun"), ("flow", 0.0, "heun"), ("edm", 0.0, "edm-heun"))),
]


@pytest.mark.long
def test_a_healthy_grid_passes():
    for cell in HEALTHY:
        verdict = healthy(cell)
        assert verdict.problems == ()
        assert verdict.largest_difference <= 1
        assert verdict.differing_share <= 5e-4


GUIDED = replace(settings(classes(SHAPE)), eta=0.5, guidance=2.5)


def guided(cell, how=None, shift=0):
    """Images of guided classes by the functions of a run, with their labels."""
    labels = torch.from_numpy(LabelRule("balanced", 11, cell.data.count).at(np.arange(N)))
    how = how or Guidance(cell.guidance, len(times(cell)), null_label=cell.data.count)
    network = oracle.gaussian_eps(cell.data, ALPHA, "cpu")
    asked = ((labels + shift) % cell.data.count).long()
    index = torch.arange(N)
    denoise = Denoise(network, DiscreteVP(ALPHA), condition=asked, guidance=how)

    def in_batch(x, at, condition=None):
        return denoise.output(x, at)

    x0 = sample(in_batch, lambda t: noise.normal(cell.seed, index, t, SHAPE), ALPHA, times(cell), cell.eta, cell.clip)
    return images.to_uint8(x0.numpy()), np.arange(N), labels.numpy().astype(np.int64)


def test_guided_classes_pass_and_faults_of_guidance_are_found():
    for cell in (GUIDED, replace(GUIDED, eta=0.0), replace(GUIDED, eta=1.0, guidance=1.0)):
        pixels, index, labels = guided(cell)
        verdict = judge(pixels, index, cell, labels=labels)
        assert verdict.problems == ()
        assert verdict.largest_difference <= 1
    steps, null = len(times(GUIDED)), GUIDED.data.count
    faults = {
        "the scale is off": (Guidance(2.4, steps, null_label=null), 0),
        "w for g": (Guidance(1 + 2.5, steps, null_label=null), 0),
        "another class in the place of the null class": (Guidance(2.5, steps, null_label=0), 0),
        "half of the calls": (Guidance(2.5, steps, (0.5, 1e6), null_label=null), 0),
        "half of the channels": (Guidance(2.5, steps, None, 1, null_label=null), 0),
        "labels of the next class": (None, 1),
    }
    for name, (how, shift) in faults.items():
        pixels, index, labels = guided(GUIDED, how, shift)
        verdict = judge(pixels, index, GUIDED, labels=labels)
        assert any(IMAGES in problem for problem in verdict.problems), name
    pixels, index, labels = guided(GUIDED)
    labels[:3] = 0
    problems = judge(pixels, index, GUIDED, labels=labels).problems
    recorded("\n".join(problems), "samples")


IMAGES, ALL_IMAGES, LEVELS, TABLE = "(seed, n)", "512 of 512", "of pixels", "on disk"
"""Words of the problems that a fault must lead to."""


def noise_of(change):
    """Images of noise whose seed, indices and time are changed."""

    def changed(run, indices, t):
        return noise.normal(*change(run.cell.seed, indices, t), SHAPE)

    return Run, "noise", lambda real: changed


def cell_with(kind=Run, **changes):
    return kind, "batch", lambda real: lambda run, indices: real(run_of(replace(run.cell, **changes)), indices)


def times_earlier(real):
    def batch(run, indices):
        return real(Run(replace(run.cell, path=ddpm_path(ALPHA, [t - 1 for t in times(run.cell)]))), indices)

    return batch


def files_with(change):
    return Run, "files", lambda real: lambda run: change(*real(run))


def coefficients_with(change):
    """`change` is called with alpha_bar at both ends of a step, and the coefficients."""
    return ddim, "coefficients", lambda real: lambda a, a_prev, *others: change(a, a_prev, real(a, a_prev, *others))


def unscaled_noise(real):
    def coefficients(a, a_prev, eta, is_last, scale):
        return real(a, a_prev, eta, is_last, scale)._replace(noise=real(a, a_prev, eta, is_last).noise)

    return coefficients


def edm_points_with(change):
    return EDM, "at", lambda real: lambda process, t: change(real(process, t)) if t > 0 else real(process, t)


def exchanged(pixels, index):
    pixels[[3, 400]] = pixels[[400, 3]]
    return pixels, index


def one_pixel_of_one(pixels, index):
    pixels[100, 0, 1, 2] += 2
    return pixels, index


def alpha_of_the_last_step(a, a_prev, c):
    """As with diffusers' `set_alpha_to_one=False`."""
    return c._replace(signal=sqrt(ALPHA[1]), direction=sqrt(1 - ALPHA[1])) if a_prev == 1 else c


SIGMA_HAT, POINTS_20 = settings(eta="sigma_hat"), settings(POINTS, steps=20)
EDM_DDIM, EDM_HEUN, CHURNED = (continuous("edm", 0.0, name) for name in ("ddim", "heun", "edm-heun"))
FLOW_DDIM, FLOW_HEUN = (continuous("flow", 0.0, name) for name in ("ddim", "heun"))
FAULTS = {
    "sigma hat in the direction too": [
        coefficients_with(lambda a, a_prev, c: c._replace(direction=sqrt(max(0.0, 1 - a_prev - c.noise**2)))),
        (SIGMA_HAT, ALL_IMAGES)],
    "sigma hat adds noise in the last step": [
        coefficients_with(lambda a, a_prev, c: c._replace(noise=sqrt(1 - a / a_prev))), (SIGMA_HAT, ALL_IMAGES)],
    "eta squared": [(ddim, "sigma", lambda real: lambda a, a_prev, eta: real(a, a_prev, eta**2)),
        (settings(eta=0.5), ALL_IMAGES)],
    "last step dropped": [(ddim, "pairwise", lambda real: lambda path: list(real(path))[:-1]),
        (settings(steps=20), ALL_IMAGES)],
    "alpha of the last step": [coefficients_with(alpha_of_the_last_step), (settings(steps=20), ALL_IMAGES)],
    "other time of the network": [
        (Run, "eps", lambda real: lambda run, x, at, *_: real(run, x, DiscreteVP(ALPHA).at(max(1, at.key - 1)))),
        (settings(), IMAGES)],
    "times one too early": [(Run, "batch", times_earlier), (settings(), ALL_IMAGES)],
    "x_T keyed by T": [  # with eta = 1 little of x_T is left in x_0: only the share of pixels shows it
        noise_of(lambda seed, n, t: (seed, n, t if t > 0 else 1000)), (settings(eta=0.0), ALL_IMAGES),
        (settings(), LEVELS)],
    "noise reused between steps": [noise_of(lambda seed, n, t: (seed, n, min(t, 1))), (settings(), ALL_IMAGES)],
    "noise keyed by the time it leads to": [noise_of(lambda seed, n, t: (seed, n, t and t - 100)),
        (settings(), ALL_IMAGES)],
    "seed by rank": [noise_of(lambda seed, n, t: (seed + int(n[0]) // BATCH % 2, n, t)), (settings(), "256 of 512")],
    "noise of the place in the batch": [noise_of(lambda seed, n, t: (seed, n % BATCH, t)),
        (settings(), "384 of 512")],
    "x0 clipped alone": [cell_with(clip="x0"), (POINTS_20, IMAGES), (replace(POINTS_20, clip="x0_and_eps"), IMAGES)],
    "x0 not clipped": [cell_with(clip="none"), (replace(POINTS_20, clip="x0"), IMAGES)],
    "rounding by truncation": [
        (images, "to_uint8", lambda real: lambda x: np.clip((x + 1) * 127.5, 0, 255).astype(np.uint8)),
        (settings(), LEVELS)],
    "rows and columns swapped": [files_with(lambda pixels, index: (pixels.swapaxes(2, 3), index)),
        (settings(), ALL_IMAGES)],
    "shard twice": [files_with(lambda *files: tuple(np.concatenate([each, each[-BATCH:]]) for each in files)),
        (settings(), "128 indices repeated")],
    "shard under two names": [
        files_with(lambda pixels, index: (np.concatenate([pixels[:-BATCH], pixels[:BATCH]]), index)),
        (settings(), "128 of 512")],
    "index from 1": [files_with(lambda pixels, index: (pixels, index + 1)),
        (settings(), "missing", "outside", ALL_IMAGES)],
    "two images exchanged": [files_with(exchanged), (settings(), "2 of 512")],
    "images of another cell": [cell_with(eta=0.2), (settings(eta=0.5), ALL_IMAGES)],
    "one pixel of one image": [files_with(one_pixel_of_one), (settings(), "1 of 512")],
    "covariance by n": [
        (statistics.Moments, "covariance", lambda real: property(lambda moments: moments.scatter / moments.n)),
        (settings(), TABLE)],
    "means merged without their numbers": [
        (statistics.Moments, "merge", lambda real: lambda a, b: replace(real(a, b), mean=(a.mean + b.mean) / 2)),
        (settings(), TABLE)],
    "FID without one shard": [(Run, "fid", lambda real: lambda run, pixels: real(run, pixels[BATCH:])),
        (settings(), TABLE)],
    "told a noise level that is off": [edm_points_with(lambda at: at._replace(time=1.02 * at.time)), (EDM_DDIM, LEVELS),
        (EDM_HEUN, LEVELS)],
    "sigmas 2 % too large": [(EDM, "spaced", lambda real: lambda *given: tuple(1.02 * sigma for sigma in real(*given))),
        (continuous("edm"), IMAGES), (EDM_HEUN, LEVELS)],
    "last step at a sigma of 0.001": [(processes, "END", lambda real: processes.point(0.001, 0.0)), (EDM_DDIM, LEVELS)],
    "x_T without its scale": [(EDM, "first_scale", lambda real: lambda process, first: 1.0),
        (EDM_DDIM, ALL_IMAGES)],
    "noise without the scale": [(ddim, "coefficients", unscaled_noise), (continuous("edm"), ALL_IMAGES),
        (continuous("flow"), ALL_IMAGES)],
    "churn without its noise": [cell_with(Continuous, churn_noise=1.0), (CHURNED, IMAGES)],
    "velocity towards the noise": [(process, "predicted", lambda real: lambda output, *others: real(-output, *others)),
        (FLOW_DDIM, ALL_IMAGES), (FLOW_HEUN, ALL_IMAGES)],
}  # fmt: skip
SUBTLE = {
    "times one too early", "eta squared", "noise keyed by the time it leads to", "seed by rank",
    "images of another cell", "rounding by truncation", "covariance by n",
}  # fmt: skip
"""The moments of 512 images do not show these."""


@pytest.mark.parametrize("name", [n if n in SUBTLE else pytest.param(n, marks=pytest.mark.long) for n in FAULTS])
def test_a_planted_fault_is_found(name, monkeypatch):
    """In cells that are healthy without it."""
    (owner, attribute, change), *cells = FAULTS[name]
    assert [healthy(cell).problems for cell, *_ in cells] == [()] * len(cells)
    monkeypatch.setattr(owner, attribute, change(getattr(owner, attribute)))
    for cell, *finds in cells:
        problems = run_of(cell).verdict().problems
        assert [words in line for words, line in zip(finds, problems, strict=True)] == [True] * len(finds)


@pytest.mark.parametrize(("seed", "time"), [(0, 0), (-3, 1000), (2**63, 2**32 - 1)])
def test_the_judges_noise_is_that_of_runs(seed, time):
    index = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 5])
    ours = noise.normal(seed, torch.from_numpy(index), time, (3, 5)).flatten(1).numpy()
    np.testing.assert_allclose(selfcheck.standard_normals(seed, index, time, 15), ours, rtol=1.2e-7, atol=0)


def test_neither_parts_nor_the_order_of_images_matter():
    run, order = Run(settings()), np.random.RandomState(0).permutation(N)
    pixels, index = run.files()
    assert judge(pixels[order], index[order], run.cell, run.fid(pixels), reference()).problems == ()
    cell = settings(steps=2, num_samples=5000)
    whole = selfcheck.recomputed(np.arange(5000), cell)
    assert whole.shape == (5000, 32)
    np.testing.assert_array_equal(whole[4090:4100], selfcheck.recomputed(np.arange(4090, 4100), cell))


def test_problems_are_lines_for_people():
    pixels, index = Run(settings()).files()
    pixels[7, 0, 0, 0] ^= 16
    index = np.where(index == 5, 4, index)
    verdict = judge(pixels, index, settings(), 1.0, reference())
    recorded("\n".join(verdict.problems[:3]))
    recorded(verdict.problems[3])
    assert " 0.137" in verdict.problems[3]
