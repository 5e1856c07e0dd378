"""MIND is the formula of torch-fidelity 0.5, and its influences are what leaving out a sample shows, in the limit."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from taugrid.eval.metrics import projections
from taugrid.eval.metrics.projections import monge_distance
from taugrid.eval.metrics.statistics import standard_error

pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((n, d)) * scale + shift).astype(np.float32)


def mind_by_its_formula(features, reference, projections, seed):
    """As torch-fidelity's source describes it, in torch and at once."""
    a, b = torch.from_numpy(features), torch.from_numpy(reference)
    generator = torch.Generator("cpu").manual_seed(seed)
    n, d = min(len(a), len(b)), a.shape[1]
    if len(a) > n:
        a = a[torch.randperm(len(a), generator=generator)[:n]]
    if len(b) > n:
        b = b[torch.randperm(len(b), generator=generator)[:n]]
    lines = torch.randn(projections, d, generator=generator, dtype=torch.float32)
    lines = lines / lines.norm(dim=1, keepdim=True).clamp(min=1e-12)
    gaps = (a @ lines.T).sort(dim=0).values - (b @ lines.T).sort(dim=0).values
    return 3 * d * gaps.double().square().mean().item()


@pytest.mark.parametrize(("n", "m"), [(300, 300), (300, 451), (451, 300)])
def test_mind_is_torch_fidelitys_formula(n, m, monkeypatch):
    """Also where the larger side is cut, and whatever the number of directions at a time."""
    features, reference = gaussian(n, 37, 1, 1.1, 0.1), gaussian(m, 37, 2)
    expected = mind_by_its_formula(features, reference, 101, 2020)
    assert monge_distance(features, reference, 101, 2020).value == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(projections, "PROJECTED_AT_ONCE", 7 * 300)
    assert monge_distance(features, reference, 101, 2020).value == pytest.approx(expected, rel=1e-6)
    assert monge_distance(features, reference, 101, 2021).value != pytest.approx(expected, rel=1e-3)


def cost(x, y):
    """The squared Wasserstein-2 distance of n and m numbers, by the coupling of their quantiles."""
    marks = np.union1d(np.arange(len(x) + 1) / len(x), np.arange(len(y) + 1) / len(y))
    middles, weights = (marks[1:] + marks[:-1]) / 2, np.diff(marks)
    x, y = np.sort(x), np.sort(y)
    gaps = x[(middles * len(x)).astype(int)] - y[(middles * len(y)).astype(int)]
    return weights @ gaps**2


def left_out(n):
    """Influences, and (n - 1) times what MIND loses without each sample, on one line."""
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, 1)) * 1.3 + 0.4, rng.standard_normal((n, 1))
    found = monge_distance(x, y, 1, 0)
    without = np.array([3 * cost(np.delete(x, i), y[:, 0]) for i in range(n)])
    assert found.value == pytest.approx(3 * cost(x[:, 0], y[:, 0]))
    return found.influence, (n - 1) * (found.value - without)


def test_influences_are_what_leaving_out_a_sample_shows_in_the_limit():
    """Leaving out one of n is a step of 1 / n, not a derivative: terms of order 1 / n remain.

    They have a sign, because the distance is convex in the distribution of the samples: no step loses more than an
    optimal potential says.
    """
    for n, tolerance in ((50, 0.15), (200, 0.04), (800, 0.01)):
        influence, lost = left_out(n)
        assert influence.mean() == pytest.approx(0, abs=1e-12)
        assert (influence - lost).min() > 0
        assert np.std(influence - lost) < tolerance * np.std(influence)
        assert standard_error(influence) == pytest.approx(standard_error(lost), rel=tolerance)


def test_samples_that_were_cut_have_no_influence_and_the_error_is_of_the_rest():
    features, reference = gaussian(900, 6, 1, 1.2, 0.3), gaussian(600, 6, 2)
    influence = monge_distance(features, reference, 50, 2020).influence
    kept = torch.randperm(900, generator=torch.Generator().manual_seed(2020))[:600].numpy()
    of_rest = influence[kept]
    assert np.count_nonzero(influence) == np.count_nonzero(of_rest) == 600
    assert standard_error(influence) == pytest.approx(np.std(of_rest / 1.5, ddof=1) / np.sqrt(600), rel=1e-3)


def test_the_references_influences_are_those_of_the_sides_exchanged():
    features, reference = gaussian(90, 6, 1, 1.2, 0.3), gaussian(90, 6, 2)
    there, back = monge_distance(features, reference, 50, 0), monge_distance(reference, features, 50, 0)
    assert there.value == pytest.approx(back.value, rel=1e-12)
    assert there.reference_influence == pytest.approx(back.influence, rel=1e-9)
    assert there.influence == pytest.approx(back.reference_influence, rel=1e-9)
