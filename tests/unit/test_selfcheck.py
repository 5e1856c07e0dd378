"""The judge of `taugrid selfcheck` passes what is right and finds what is planted in the functions that a run uses.

Seeds are fixed: a cell that passes here passes always.
"""

from dataclasses import replace
from functools import cache, reduce
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from denoisers import sample
from snapshots import raises, recorded

from taugrid import images
from taugrid.config import EDM_DEFAULTS, FLOW_DEFAULTS, Sample
from taugrid.eval import selfcheck
from taugrid.eval.metrics import frechet, statistics
from taugrid.eval.selfcheck import CellSettings, ddpm_path, edm_path, flow_path, judge
from taugrid.workers import schedules
from taugrid.workers.conditions.guidance import Guidance, Guided
from taugrid.workers.conditions.labels import LabelRule
from taugrid.workers.diffusion import denoiser, noise, oracle, schedule
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.gaussian import Gaussian, classes, draw, gaussian, two_points
from taugrid.workers.diffusion.processes import edm
from taugrid.workers.diffusion.processes.discrete import DiscreteVP
from taugrid.workers.diffusion.processes.edm import EDM
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.samplers import ddim, sampler
from taugrid.workers.samplers.batch import SamplingSpec, sample_batch
from taugrid.workers.samplers.sampler import find

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
def reference(seed=0):
    return images.to_uint8(draw(DATA, 10_000, seed)).reshape(-1, *SHAPE)


def times(cell):
    """The paper's, which are the keys of DDPM's process."""
    return [level.key for level in reversed(cell.path[:-1])]


class Run:
    """One cell by the functions that a real run calls; each method is a place for a fault."""

    def __init__(self, cell, reference_seed=0):
        self.cell = cell
        self.reference = reference(reference_seed)

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
        return frechet.frechet_distance(merged, statistics.Moments.of(features(self.reference)))

    def verdict(self):
        pixels, index = self.files()
        return judge(pixels, index, self.cell, self.fid(pixels), self.reference)


class Continuous(Run):
    """A cell of edm or a flow, by what a worker calls."""

    def batch(self, indices):
        c = self.cell
        diffusion = EDM_DEFAULTS if c.start > 1 else FLOW_DEFAULTS
        options = {"S_churn": c.churn, "S_noise": c.churn_noise} if c.churn else {}
        settings = Sample(
            steps=len(c.path) - 1, eta=c.eta, sampler=c.sampler, sampler_options=options, clip=c.clip, seed=c.seed
        )
        process, sampler = schedules.process(diffusion), find(c.sampler)
        its = sampler.tau(settings, process), sampler.evaluations(settings, process)
        optimum = oracle.expected_x0(c.data, "cpu")
        network = oracle.edm(optimum, 0.5) if c.start > 1 else oracle.flow(optimum, 1)
        return sample_batch(network, indices, SamplingSpec(Identity(SHAPE), diffusion, settings, *its)).numpy()


def run_of(cell):
    return (Continuous if cell.start > 1 or cell.path[0].alpha == 0 else Run)(cell)


@cache
def healthy(cell):
    """The verdict of a cell in which nothing is planted; call it before anything is."""
    return run_of(cell).verdict()


HEALTHY = [
    *(settings(steps=s, eta=eta) for s in (5, 20) for eta in (0.0, 0.5, 1.0, "sigma_hat")),
    *(settings(steps=10, eta=eta, spacing="quadratic", clip="x0_and_eps") for eta in (0.0, "sigma_hat")),
    *(
        settings(POINTS, s, eta, clip)
        for s in (10, 20)
        for eta in (0.0, 1.0, "sigma_hat")
        for clip in ("none", "x0", "x0_and_eps")
    ),
    *(continuous(name, eta) for name in ("edm", "flow") for eta in (0.0, 0.5, 1.0, "sigma_hat")),
    *(continuous(name, 0.0, "heun") for name in ("edm", "flow")),
    continuous("edm", 0.0, "edm-heun"),
]


def z_scores(verdict):
    return [comparison.z for comparison in (verdict.mean, verdict.covariance, verdict.fid)]


@pytest.mark.long
def test_a_healthy_grid_passes():
    for cell in HEALTHY:
        verdict = healthy(cell)
        assert verdict.problems == ()
        assert verdict.largest_difference <= 1
        assert verdict.differing_share <= 5e-4
        if isinstance(cell.data, Gaussian):
            assert max(map(abs, z_scores(verdict))) < 3.5


@pytest.mark.long
def test_z_scores_are_standard_normal():
    """Over 100 seeds and references, in the cell where rounding is coarsest."""
    cell = settings(steps=5, eta=0.0)
    z = np.array([z_scores(Run(replace(cell, seed=seed), reference_seed=seed).verdict()) for seed in range(100)])
    assert (np.abs(z.mean(axis=0)) < 0.4).all()  # their standard errors are 0.1 and 0.07
    assert ((z.std(axis=0) > 0.75) & (z.std(axis=0) < 1.25)).all()


GUIDED = replace(settings(classes(SHAPE)), eta=0.5, guidance=2.5)


def guided(cell, how=None, shift=0):
    """Images of guided classes by the functions of a run, with their labels."""
    labels = torch.from_numpy(LabelRule("balanced", 11, cell.data.count).at(np.arange(N)))
    how = how or Guidance(cell.guidance, len(times(cell)), null_label=cell.data.count)
    network = oracle.classes_eps(cell.data, ALPHA, "cpu")
    asked = ((labels + shift) % cell.data.count).long()
    index = torch.arange(N)
    eps = Guided(lambda x, at, condition: network(x, at, asked if condition is None else condition), None, how)

    def in_batch(x, at, condition=None):
        return eps(x, at, asked)

    x0 = sample(in_batch, lambda t: noise.normal(cell.seed, index, t, SHAPE), ALPHA, times(cell), cell.eta, cell.clip)
    return images.to_uint8(x0.numpy()), np.arange(N), labels.numpy().astype(np.int64)


def test_guided_classes_pass_and_faults_of_guidance_are_found():
    for cell in (GUIDED, replace(GUIDED, eta=0.0), replace(GUIDED, eta=1.0, guidance=1.0)):
        pixels, index, labels = guided(cell)
        verdict = judge(pixels, index, cell, labels=labels)
        assert verdict.problems == ()
        assert verdict.largest_difference <= 1
        assert max(abs(verdict.mean.z), abs(verdict.covariance.z)) < 3.5
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
        by_mean = any(problem.startswith("mean") for problem in verdict.problems)
        assert by_mean or name != "w for g", "statistics alone would find that too"
    pixels, index, labels = guided(GUIDED)
    labels[:3] = 0
    problems = judge(pixels, index, GUIDED, labels=labels).problems
    recorded("\n".join(problems), "samples")


FAULTS = {}

IMAGES = "images not as (seed, n) gives them"
ALL_IMAGES = f"512 of 512 {IMAGES}"
LEVELS = "of pixels are off by one grey level"
TABLE = "the table's FID"


def fault(cell, *, finds):
    """Register a subclass of `Run`, or a function that plants something by monkeypatch, with a cell that shows it.

    `finds` are words of the problems, in order, that the fault must lead to. Those that z-scores tell are left out:
    which of them a fault moves beyond the limit, chance decides too.
    """

    def register(planted):
        name = planted.__name__
        FAULTS[f"{name}-{sum(other.startswith(name + '-') for other in FAULTS)}"] = (planted, cell, finds)
        return planted

    return register


def coefficients_with(change):
    real = ddim.coefficients
    return lambda a, a_prev, eta, *others: change(a, a_prev, eta, real(a, a_prev, eta, *others))


@fault(settings(eta="sigma_hat"), finds=[ALL_IMAGES])
def sigma_hat_in_the_direction_too(monkeypatch):
    def change(a, a_prev, eta, c):
        return c._replace(direction=sqrt(max(0.0, 1 - a_prev - c.noise**2)))

    monkeypatch.setattr(ddim, "coefficients", coefficients_with(change))


@fault(settings(eta="sigma_hat"), finds=[ALL_IMAGES])
def sigma_hat_taken_for_eta_one(monkeypatch):
    monkeypatch.setattr(ddim, "sigma_hat", lambda a, a_prev: ddim.sigma(a, a_prev, 1.0))


@fault(settings(eta="sigma_hat"), finds=[ALL_IMAGES])
def sigma_hat_adds_noise_in_the_last_step(monkeypatch):
    def change(a, a_prev, eta, c):
        return c._replace(noise=sqrt(1 - a / a_prev))

    monkeypatch.setattr(ddim, "coefficients", coefficients_with(change))


@fault(settings(eta=0.5), finds=[ALL_IMAGES])
def eta_squared(monkeypatch):
    real = ddim.sigma
    monkeypatch.setattr(ddim, "sigma", lambda a, a_prev, eta: real(a, a_prev, eta**2))


@fault(settings(steps=20), finds=[ALL_IMAGES])
def last_step_dropped(monkeypatch):
    monkeypatch.setattr(ddim, "pairwise", lambda path: list(pairwise(path))[:-1])


@fault(settings(steps=20), finds=[ALL_IMAGES])
def alpha_of_the_last_step(monkeypatch):
    """As with diffusers' `set_alpha_to_one=False`."""

    def change(a, a_prev, eta, c):
        return c._replace(signal=sqrt(ALPHA[1]), direction=sqrt(1 - ALPHA[1])) if a_prev == 1 else c

    monkeypatch.setattr(ddim, "coefficients", coefficients_with(change))


@fault(settings(), finds=[IMAGES])
class OtherTimeOfTheNetwork(Run):
    def eps(self, x, at, condition=None):
        return super().eps(x, DiscreteVP(ALPHA).at(max(1, at.key - 1)))


@fault(settings(), finds=[ALL_IMAGES])
class TimesOneTooEarly(Run):
    def batch(self, indices):
        return Run(replace(self.cell, path=ddpm_path(ALPHA, [t - 1 for t in times(self.cell)]))).batch(indices)


@fault(settings(), finds=[ALL_IMAGES])
class TruncatedTimes(Run):
    """ermongroup's range(0, T, T // S), which ends before T."""

    def batch(self, indices):
        return Run(replace(self.cell, path=ddpm_path(ALPHA, [t - 99 for t in times(self.cell)]))).batch(indices)


@fault(settings(eta=0.0), finds=[ALL_IMAGES])
@fault(settings(), finds=[LEVELS])
class XTKeyedByT(Run):
    """With eta = 1 little of x_T is left in x_0: nothing but the share of pixels shows it."""

    def noise(self, indices, t):
        return super().noise(indices, t if t > 0 else 1000)


@fault(settings(), finds=[ALL_IMAGES])
class NoiseReusedBetweenSteps(Run):
    def noise(self, indices, t):
        return super().noise(indices, min(t, 1))


@fault(settings(), finds=[ALL_IMAGES])
class NoiseKeyedByTheTimeItLeadsTo(Run):
    def noise(self, indices, t):
        return super().noise(indices, t and t - 100)


@fault(settings(), finds=[f"256 of 512 {IMAGES}"])
class SeedOffByRank(Run):
    def noise(self, indices, t):
        return noise.normal(self.cell.seed + int(indices[0]) // BATCH % 2, indices, t, SHAPE)


@fault(settings(), finds=[f"384 of 512 {IMAGES}", "384 images equal"])
class NoiseOfThePlaceInTheBatch(Run):
    def noise(self, indices, t):
        return super().noise(indices % BATCH, t)


@fault(settings(), finds=[ALL_IMAGES])
class NoiseOfTheNextIndex(Run):
    def noise(self, indices, t):
        return super().noise(indices + 1, t)


@fault(settings(), finds=[LEVELS])
class HalfPrecisionNetwork(Run):
    def eps(self, x, at, condition=None):
        return super().eps(x.bfloat16().float(), at).bfloat16().float()


@fault(settings(POINTS, steps=20, clip="none"), finds=[IMAGES])
class ClipX0ForNone(Run):
    def batch(self, indices):
        return Run(replace(self.cell, clip="x0")).batch(indices)


@fault(settings(POINTS, steps=20, clip="x0_and_eps"), finds=[IMAGES])
class ClipX0ForX0AndEps(Run):
    def batch(self, indices):
        return Run(replace(self.cell, clip="x0")).batch(indices)


@fault(settings(POINTS, steps=20, clip="x0"), finds=[IMAGES])
class ClipNoneForX0(Run):
    def batch(self, indices):
        return Run(replace(self.cell, clip="none")).batch(indices)


@fault(settings(POINTS, steps=20, clip="x0"), finds=[IMAGES])
def clip_at_another_bound(monkeypatch):
    real = torch.Tensor.clamp
    monkeypatch.setattr(torch.Tensor, "clamp", lambda x, low, high: real(x, low * 1.05, high * 1.05))


@fault(settings(), finds=[LEVELS])
def rounding_by_truncation(monkeypatch):
    monkeypatch.setattr(images, "to_uint8", lambda x: np.clip((x + 1) * 127.5, 0, 255).astype(np.uint8))


@fault(settings(), finds=[LEVELS])
def rounding_to_256_levels(monkeypatch):
    monkeypatch.setattr(images, "to_uint8", lambda x: np.clip((x + 1) * 128, 0, 255).astype(np.uint8))


@fault(settings(), finds=[ALL_IMAGES])
class RowsAndColumnsSwapped(Run):
    def pixels(self, indices):
        return super().pixels(indices).swapaxes(2, 3)


@fault(settings(), finds=[ALL_IMAGES])
class ChannelsSwapped(Run):
    def pixels(self, indices):
        return super().pixels(indices)[:, ::-1]


@fault(settings(), finds=["128 indices repeated, the first is 384"])
class ShardTwice(Run):
    def files(self):
        pixels, index = super().files()
        return np.concatenate([pixels, pixels[-BATCH:]]), np.concatenate([index, index[-BATCH:]])


@fault(settings(), finds=["128 indices missing, the first is 0"])
class ShardMissing(Run):
    def files(self):
        pixels, index = super().files()
        return pixels[BATCH:], index[BATCH:]


@fault(settings(), finds=[f"128 of 512 {IMAGES}", "128 images equal"])
class ShardUnderTwoNames(Run):
    def files(self):
        pixels, index = super().files()
        return np.concatenate([pixels[:-BATCH], pixels[:BATCH]]), index


@fault(settings(), finds=[f"256 of 512 {IMAGES}", "256 images equal"])
class HalfOfTheImagesDoubled(Run):
    def files(self):
        pixels, index = super().files()
        return np.concatenate([pixels[: N // 2]] * 2), index


@fault(settings(), finds=["1 index missing, the first is 0", "1 index outside", ALL_IMAGES])
class IndexFromOne(Run):
    def files(self):
        pixels, index = super().files()
        return pixels, index + 1


@fault(settings(), finds=[f"2 of 512 {IMAGES}"])
class TwoImagesExchanged(Run):
    def files(self):
        pixels, index = super().files()
        pixels[[3, 400]] = pixels[[400, 3]]
        return pixels, index


@fault(settings(eta=0.5), finds=[ALL_IMAGES])
class ImagesOfAnotherCell(Run):
    def files(self):
        return Run(replace(self.cell, eta=0.2)).files()


@fault(settings(), finds=[f"1 of 512 {IMAGES}: up to 2 grey levels off"])
class OnePixelOfOneImage(Run):
    def files(self):
        pixels, index = super().files()
        pixels[100, 0, 1, 2] += 2
        return pixels, index


@fault(settings(), finds=[TABLE])
def covariance_by_the_number_of_another_cell(monkeypatch):
    real = statistics.Moments.covariance.fget

    def covariance(self):
        return self.scatter / 599 if self.n == N else real(self)

    monkeypatch.setattr(statistics.Moments, "covariance", property(covariance))


@fault(settings(), finds=[TABLE])
def covariance_by_n(monkeypatch):
    monkeypatch.setattr(statistics.Moments, "covariance", property(lambda self: self.scatter / self.n))


@fault(settings(), finds=[TABLE])
def means_merged_without_their_numbers(monkeypatch):
    real = statistics.Moments.merge
    monkeypatch.setattr(
        statistics.Moments,
        "merge",
        lambda a, b: replace(real(a, b), mean=(a.mean + b.mean) / 2),
    )


@fault(settings(), finds=[TABLE])
class FidOfAnotherCell(Run):
    def fid(self, pixels):
        return super().fid(Run(settings(steps=11)).files()[0])


@fault(settings(), finds=[TABLE])
class FidWithoutOneShard(Run):
    def fid(self, pixels):
        return super().fid(pixels[BATCH:])


def edm_points(monkeypatch, change):
    real = EDM.at
    monkeypatch.setattr(EDM, "at", lambda process, t: change(real(process, t)) if t > 0 else real(process, t))


@fault(continuous("edm", 0.0), finds=[LEVELS])
@fault(continuous("edm", 0.0, "heun"), finds=[LEVELS])
def told_a_noise_level_that_is_off(monkeypatch):
    edm_points(monkeypatch, lambda at: at._replace(time=1.02 * at.time))


@fault(continuous("edm", 0.0), finds=[ALL_IMAGES])
def told_1000_times_the_noise_level(monkeypatch):
    """As diffusers' timesteps of a network that is told sigma."""
    edm_points(monkeypatch, lambda at: at._replace(time=1000 * at.time))


@fault(continuous("edm", 0.0), finds=[ALL_IMAGES])
def told_sigma(monkeypatch):
    edm_points(monkeypatch, lambda at: at._replace(time=at.sigma))


@fault(continuous("edm"), finds=[IMAGES])
@fault(continuous("edm", 0.0, "heun"), finds=[LEVELS])
def sigmas_2_percent_too_large(monkeypatch):
    real = EDM.spaced
    monkeypatch.setattr(EDM, "spaced", lambda *given: tuple(1.02 * sigma for sigma in real(*given)))


@fault(continuous("edm"), finds=[IMAGES])
def steps_2_percent_too_far(monkeypatch):
    """The network is told the right noise level, and x has another."""
    edm_points(monkeypatch, lambda at: at._replace(sigma=1.02 * at.sigma))


@fault(continuous("edm", 0.0), finds=[LEVELS])
@fault(continuous("edm", 0.0, "heun"), finds=[LEVELS])
def last_step_at_a_sigma_of_0001(monkeypatch):
    monkeypatch.setattr(edm, "END", edm.point(0.001, 0.0))


@fault(continuous("edm", 0.0), finds=[ALL_IMAGES, "images equal"])
def x_t_without_its_scale(monkeypatch):
    monkeypatch.setattr(EDM, "first_scale", lambda process, first: 1.0)


@fault(continuous("edm"), finds=[ALL_IMAGES])
@fault(continuous("flow"), finds=[ALL_IMAGES])
def noise_without_the_scale(monkeypatch):
    real = ddim.coefficients

    def unscaled(a, a_prev, eta, is_last, scale):
        return real(a, a_prev, eta, is_last, scale)._replace(noise=real(a, a_prev, eta, is_last).noise)

    monkeypatch.setattr(ddim, "coefficients", unscaled)


@fault(continuous("edm", 0.0, "edm-heun"), finds=[IMAGES])
class ChurnWithoutItsNoise(Continuous):
    """S_noise left out."""

    def batch(self, indices):
        return Continuous(replace(self.cell, churn_noise=1.0)).batch(indices)


@fault(continuous("edm", 0.0, "edm-heun"), finds=[IMAGES])
class LessChurn(Continuous):
    def batch(self, indices):
        return Continuous(replace(self.cell, churn=2.5)).batch(indices)


@fault(continuous("flow", 0.0), finds=[ALL_IMAGES])
@fault(continuous("flow", 0.0, "heun"), finds=[ALL_IMAGES])
def velocity_towards_the_noise(monkeypatch):
    real = denoiser.predicted
    monkeypatch.setattr(denoiser, "predicted", lambda output, *others: real(-output, *others))


def planted_verdict(name, monkeypatch):
    planted, cell, _ = FAULTS[name]
    if isinstance(planted, type):
        return planted(cell).verdict()
    try:
        forget_times()
        planted(monkeypatch)
        return run_of(cell).verdict()
    finally:
        forget_times()


def forget_times():
    for cached in (sampler._spaced, sampler._told):
        cached.cache_clear()


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, monkeypatch):
    """In a cell that is healthy without it."""
    _, cell, finds = FAULTS[name]
    assert healthy(cell).problems == ()
    problems = [line for line in planted_verdict(name, monkeypatch).problems if " is expected, z = " not in line]
    assert len(problems) == len(finds)
    for line, words in zip(problems, finds, strict=True):
        assert words in line


@pytest.mark.parametrize(
    "name",
    [
        "TimesOneTooEarly-0",
        "eta_squared-0",
        "NoiseKeyedByTheTimeItLeadsTo-0",
        "SeedOffByRank-0",
        "ImagesOfAnotherCell-0",
        "rounding_by_truncation-0",
        "covariance_by_n-0",
    ],
)
def test_statistics_alone_would_miss_it(name, monkeypatch):
    """Why every image is recomputed, and FID too."""
    assert max(map(abs, z_scores(planted_verdict(name, monkeypatch)))) < 4


@pytest.mark.parametrize(("seed", "time"), [(0, 0), (-3, 1000), (2**63, 2**32 - 1)])
def test_the_judges_noise_is_that_of_runs(seed, time):
    index = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 5])
    ours = noise.normal(seed, torch.from_numpy(index), time, (3, 5)).flatten(1).numpy()
    np.testing.assert_allclose(selfcheck.standard_normals(seed, index, time, 15), ours, rtol=1.2e-7, atol=0)


def test_recomputing_in_parts_changes_nothing():
    cell = settings(steps=2, num_samples=5000)
    whole = selfcheck.recomputed(np.arange(5000), cell)
    assert whole.shape == (5000, 32)
    np.testing.assert_array_equal(whole[4090:4100], selfcheck.recomputed(np.arange(4090, 4100), cell))


def test_order_of_the_images_does_not_matter():
    run = Run(settings())
    pixels, index = run.files()
    order = np.random.RandomState(0).permutation(N)
    assert judge(pixels[order], index[order], run.cell, run.fid(pixels), reference()).problems == ()


def test_problems_are_lines_for_people():
    pixels, index = Run(settings()).files()
    pixels[7, 0, 0, 0] ^= 16
    index = np.where(index == 5, 4, index)
    verdict = judge(pixels, index, settings(), 1.0, reference())
    recorded("\n".join(verdict.problems[:3]))
    assert verdict.problems[3].startswith("FID: 1 where 0.138")
    recorded(verdict.problems[4])
    assert " 0.137" in verdict.problems[4]


def test_a_gaussian_cell_needs_its_fid():
    pixels, index = Run(settings()).files()
    with raises(ValueError):
        judge(pixels, index, settings())


def test_reference_of_other_data_is_found():
    assert selfcheck.reference_problems(reference(), DATA) == []
    truncated = np.clip((draw(DATA, 10_000, seed=0) + 1) * 127.5, 0, 255).astype(np.uint8)
    for other in (truncated, reference().swapaxes(2, 3), np.concatenate([reference()[:5000]] * 2)):
        assert selfcheck.reference_problems(other, DATA)
