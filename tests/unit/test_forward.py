"""The forward processes: Lemma 1, Bayes' rule for eq. 8, and the special cases that the papers give."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from snapshots import raises

from taugrid.workers.diffusion.forward import forward_step, marginal, markov_step, posterior, sigma, sigma_hat
from taugrid.workers.diffusion.process import Prediction, predict_eps
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.samplers.ddim import coefficients, step

SCHEDULES = {name: alpha_bar(name, 1000, 1e-4, 2e-2) for name in ("linear", "cosine", "scaled_linear")}
LINEAR = SCHEDULES["linear"]
SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.floats(0, 1)
"""sigma as a fraction of the largest that eq. 7 admits, both ends included."""
ALPHAS = st.tuples(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(2, 1000).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t - 1))),
).map(lambda chosen: tuple(float(SCHEDULES[chosen[0]][t]) for t in chosen[1]))
"""alpha_t and alpha_prev at two times of a schedule, the earlier one after 0."""


def assert_chain_keeps_marginals(alpha, times, fractions):
    """Composes eq. 7 downwards from q(x_T | x_0): the law of x_s is that of from_state x_t + from_x0 x_0 + noise."""
    mean, variance = math.sqrt(alpha[times[-1]]), 1 - alpha[times[-1]]
    for (s, t), fraction in zip(reversed(list(pairwise([0, *times]))), fractions, strict=True):
        link = posterior(float(alpha[t]), float(alpha[s]), fraction * math.sqrt(1 - alpha[s]))
        mean = link.from_x0 + link.from_state * mean
        variance = link.from_state**2 * variance + link.variance
        assert abs(mean - math.sqrt(alpha[s])) <= 1e-12
        assert abs(variance - (1 - alpha[s])) <= 1e-12
    assert (mean, variance) == (1.0, 0.0)


@given(st.sets(st.integers(1, 999), max_size=40) | st.just(range(1, 1000)), SEEDS)
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_lemma_1_along_any_tau(schedule, chosen, seed):
    """Appendix C.1, eq. 54, and the full chain."""
    times = [*sorted(chosen), 1000]
    assert_chain_keeps_marginals(SCHEDULES[schedule], times, np.random.default_rng(seed).uniform(size=len(times)))


@given(st.lists(st.tuples(st.floats(0.01, 0.99), FRACTIONS), min_size=1, max_size=8))
def test_lemma_1_for_any_alphas(links):
    """Steep schedules, and sigma at both ends of its range, which a schedule of 1000 steps rarely meets."""
    alpha = np.cumprod([1.0, *(ratio for ratio, _ in links)])
    assert_chain_keeps_marginals(alpha, range(1, len(alpha)), [fraction for _, fraction in links])


@given(ALPHAS, FRACTIONS)
@example((0.3, 0.8), 0.0)
@example((0.3, 0.8), 1.0)
def test_eq_8_gives_the_joint_that_eq_7_gives(alphas, fraction):
    """Bayes' rule: both factorisations of q(x_{t-1}, x_t | x_0) have the same means, variances and covariance."""
    a, a_prev = alphas
    sigma_t = fraction * math.sqrt(1 - a_prev)
    back, ahead = posterior(a, a_prev, sigma_t), forward_step(a, a_prev, sigma_t)
    assert ahead.from_x0 + ahead.from_state * math.sqrt(a_prev) == pytest.approx(math.sqrt(a), abs=1e-12)
    assert back.from_x0 + back.from_state * math.sqrt(a) == pytest.approx(math.sqrt(a_prev), abs=1e-12)
    assert ahead.from_state**2 * (1 - a_prev) + ahead.variance == pytest.approx(1 - a, rel=1e-9)
    assert ahead.from_state * (1 - a_prev) == pytest.approx(back.from_state * (1 - a), rel=1e-9, abs=1e-15)


@given(ALPHAS)
def test_eta_one_is_ddpm_both_ways(alphas):
    """Ho et al., eq. 7 backwards, and forwards a Markov step: no part of x_0 is left in eq. 8.

    1 - alpha_{t-1} - sigma^2 cancels where alpha_t is 1e-9 and t - 1 is near 0, and its root has half of the digits.
    """
    a, a_prev = alphas
    beta, sigma_t = 1 - a / a_prev, sigma(a, a_prev, 1.0)
    back, ahead = posterior(a, a_prev, sigma_t), forward_step(a, a_prev, sigma_t)
    assert back.from_x0 == pytest.approx(math.sqrt(a_prev) * beta / (1 - a), rel=1e-8)
    assert back.from_state == pytest.approx(math.sqrt(1 - beta) * (1 - a_prev) / (1 - a), rel=1e-8, abs=1e-9)
    assert back.variance == pytest.approx((1 - a_prev) / (1 - a) * beta, rel=1e-8)
    assert sigma_hat(a, a_prev) ** 2 == pytest.approx(beta, rel=1e-9)
    assert ahead == pytest.approx(tuple(markov_step(a, a_prev)), rel=1e-8, abs=1e-6)


def test_eq_8_depends_on_x0_for_every_other_sigma():
    """As the paper says of its family: what makes it non-Markovian is that only DDPM's sigma lets x_0 go."""
    a, a_prev = float(LINEAR[500]), float(LINEAR[400])
    shares = [forward_step(a, a_prev, sigma(a, a_prev, eta)).from_x0 for eta in (0.0, 0.5, 0.9, 1.0)]
    assert shares[0] < shares[1] < shares[2] < -1e-2
    assert abs(shares[3]) < 1e-12


def test_markov_steps_compose_to_the_marginals():
    mean, variance = 1.0, 0.0
    for a_prev, a in pairwise(LINEAR.tolist()):
        link = markov_step(a, a_prev)
        mean, variance = link.from_state * mean, link.from_state**2 * variance + link.variance
        assert (mean, 0.0, variance) == pytest.approx(tuple(marginal(a)), rel=0, abs=1e-12)


def test_without_noise_both_directions_are_one_line():
    """sigma = 0: x_t and x_{t-1} determine each other, so eq. 8 undoes eq. 7."""
    back, ahead = posterior(0.3, 0.8, 0.0), forward_step(0.3, 0.8, 0.0)
    assert (back.variance, ahead.variance) == (0.0, 0.0)
    x0, x_t = 0.7, -1.3
    assert ahead.from_x0 * x0 + ahead.from_state * (back.from_x0 * x0 + back.from_state * x_t) == pytest.approx(x_t)


def test_with_the_largest_sigma_the_states_are_independent():
    """sigma^2 = 1 - alpha_{t-1} leaves nothing of x_t in x_{t-1}; both ways eq. 4 remains, rounded roots or not."""
    for a_prev in LINEAR[1:1000].tolist():
        assert posterior(1e-5, a_prev, math.sqrt(1 - a_prev)) == pytest.approx(tuple(marginal(a_prev)), abs=1e-7)
        assert forward_step(1e-5, a_prev, math.sqrt(1 - a_prev)) == pytest.approx(tuple(marginal(1e-5)), abs=1e-5)


def test_at_time_0_the_state_is_x0():
    a = float(LINEAR[1])
    assert posterior(a, 1.0, 0.0) == (1.0, 0.0, 0.0)
    assert forward_step(a, 1.0, 0.0) == marginal(a) == (math.sqrt(a), 0.0, 1 - a)


@pytest.mark.parametrize("conditional", [posterior, forward_step])
@pytest.mark.parametrize(("alpha_prev", "sigma_t"), [(0.75, 0.5001), (1.0, 1e-6), (0.75, math.nan)])
def test_sigma_too_large_for_eq_7_is_refused(conditional, alpha_prev, sigma_t):
    with raises(ValueError):
        conditional(0.5, alpha_prev, sigma_t)


@given(ALPHAS, FRACTIONS)
def test_a_sampler_step_draws_from_eq_7(alphas, eta):
    """With the true x_0 for the predicted one, the sampler's update has the mean and the variance of the posterior."""
    a, a_prev = alphas
    generator = torch.Generator().manual_seed(1)
    x0, x_t = torch.randn(2, 2, 1, 2, 2, generator=generator, dtype=torch.float64)
    at, c = Prediction(x0, predict_eps(x_t, x0, a)), coefficients(a, a_prev, eta)
    law = posterior(a, a_prev, sigma(a, a_prev, eta))
    assert coefficients(a, a_prev, "sigma_hat")[:2] == coefficients(a, a_prev, 1.0)[:2], "the same mean"
    torch.testing.assert_close(step(at, None, c), law.from_x0 * x0 + law.from_state * x_t, rtol=1e-9, atol=1e-9)
    z = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64)
    added = step(at, z, c) - step(at, None, c)
    torch.testing.assert_close(added, math.sqrt(law.variance) * z, rtol=1e-9, atol=1e-12)
