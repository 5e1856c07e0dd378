"""The objective: Theorem 1 on a model whose J_sigma can be integrated exactly, and the weights' special cases.

The model has T <= 4 times, d = 2 dimensions, two data points, and for each time a quadratic eps_theta without shared
parameters. The package's J_sigma is averaged over the paths. Its integrand is a polynomial of degree 4 in each normal
variable of a path, for which Gauss-Hermite quadrature with 3 nodes is exact. `j_by_hand` has the same from its
definition, log densities of eqs. 7, 10, 52 and 57, with none of the package's formulas.
"""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from denoisers import of_time
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from snapshots import raises

from taugrid.workers.diffusion.forward import generative, posterior, sigma_hat
from taugrid.workers.diffusion.objective import j_sigma, l_gamma, theorem1_sigma, theorem1_weights
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.diffusion.timesteps import tau

D = 2
DATA = np.array([[0.8, -0.3], [-0.5, 0.4]])
PROBABILITIES = np.array([0.3, 0.7])
LINEAR = alpha_bar("linear", 1000, 1e-4, 2e-2)


def expectation_grid(variables, probabilities=PROBABILITIES):
    """Data points, (P, d), and normal variables, (P, variables, d), with weights (P,) for an exact expectation."""
    nodes, weights = hermegauss(3)
    size = variables * D
    normals = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), axis=-1).reshape(-1, variables, D)
    normal_weights = np.stack(np.meshgrid(*[weights / weights.sum()] * size, indexing="ij"), axis=-1)
    x0 = np.repeat(DATA, len(normals), axis=0)
    return x0, np.tile(normals, (2, 1, 1)), np.outer(probabilities, normal_weights.reshape(-1, size).prod(1)).ravel()


def random_theta(T, rng):
    """For each t the (6, d) coefficients of a quadratic map; index 0 is unused."""
    return rng.normal(size=(T + 1, 6, D))


def eps_theta(theta, x, t):
    a, b = x[:, :1], x[:, 1:]
    return np.hstack([np.ones_like(a), a, b, a * a, a * b, b * b]) @ theta[t]


def log_density(x, mean, variance):
    return -0.5 * (D * math.log(2 * math.pi * variance) + ((x - mean) ** 2).sum(axis=1) / variance)


def eq_7_mean(x_t, x0, a, a_prev, sigma):
    return a_prev**0.5 * x0 + (1 - a_prev - sigma**2) ** 0.5 * (x_t - a**0.5 * x0) / (1 - a) ** 0.5


def j_of(theta, alpha, times, sigma, probabilities=PROBABILITIES):
    """The package's J_sigma, integrated."""
    x0, z, weights = expectation_grid(len(alpha) - 1, probabilities)

    @of_time
    def network(x, t):
        return torch.from_numpy(eps_theta(theta, x.numpy(), t))

    def noise(t):
        return torch.from_numpy(z[:, t - 1])

    each = j_sigma(network, torch.from_numpy(x0), noise, alpha, times, sigma)
    assert (each.shape, each.dtype) == ((len(x0),), torch.float64)
    return weights @ each.numpy()


def j_by_hand(theta, alpha, times, sigma, as_printed=False):
    """Eq. 11 over eqs. 52, 53 and 55 to 57: E_q [log q(x_{1:T} | x_0) - log p_theta(x_{0:T})].

    `as_printed` conditions eq. 57 on f(x_{tau_{i-1}}), where the correct formula has f(x_{tau_i}).
    """
    T = len(alpha) - 1
    star = [t for t in range(1, T + 1) if t not in times]
    x0, z, weights = expectation_grid(T)
    x, log_q = {}, 0.0
    for t in [T, *star]:
        x[t] = alpha[t] ** 0.5 * x0 + (1 - alpha[t]) ** 0.5 * z[:, t - 1]
        log_q = log_q + log_density(x[t], alpha[t] ** 0.5 * x0, 1 - alpha[t])
    chain = list(reversed(list(pairwise(times))))
    for s, t in chain:
        mean = eq_7_mean(x[t], x0, alpha[t], alpha[s], sigma[t])
        x[s] = mean + sigma[t] * z[:, s - 1]
        log_q = log_q + log_density(x[s], mean, sigma[t] ** 2)
    f = {t: (x[t] - (1 - alpha[t]) ** 0.5 * eps_theta(theta, x[t], t)) / alpha[t] ** 0.5 for t in x}  # eq. 9
    log_p = log_density(x[T], 0.0, 1.0)
    for s, t in chain:
        mean = eq_7_mean(x[t], f[s] if as_printed else f[t], alpha[t], alpha[s], sigma[t])
        log_p = log_p + log_density(x[s], mean, sigma[t] ** 2)
    for t in [times[0], *star]:
        log_p = log_p + log_density(x0, f[t], sigma[t] ** 2)
    return weights @ (log_q - log_p)


def l_terms(theta, alpha, gamma):
    """The terms of eq. 5 for t = 1..T by the package's l_gamma, as the sum over dimensions that the paper takes."""
    x0, z, weights = expectation_grid(1)
    eps, terms = torch.from_numpy(z[:, 0]), []
    for t in range(1, len(alpha)):
        x_t = alpha[t] ** 0.5 * x0 + (1 - alpha[t]) ** 0.5 * z[:, 0]
        each = l_gamma(torch.from_numpy(eps_theta(theta, x_t, t)), eps, float(gamma[t]))
        terms.append(D * float(weights @ each.numpy()))
    return np.array(terms)


def residual(alpha, times, sigma, gamma, seed):
    """The spread over theta of J_sigma - L_gamma, relative to that of J_sigma."""
    rng = np.random.default_rng(seed)
    thetas = [random_theta(len(alpha) - 1, rng) for _ in range(4)]
    j = np.array([j_of(theta, alpha, times, sigma) for theta in thetas])
    rest = j - [l_terms(theta, alpha, gamma).sum() for theta in thetas]
    return np.ptp(rest) / np.ptp(j)


def random_problem(T, times, seed):
    """alpha_bar and a sigma for every time: below eq. 7's bound on the chain, of any size at tau_1 and on the star."""
    rng = np.random.default_rng(seed)
    alpha = np.cumprod([1.0, *rng.uniform(0.3, 0.98, size=T)])
    sigma = np.concatenate([[math.nan], rng.uniform(0.1, 2, size=T)])
    for s, t in pairwise(times):
        sigma[t] = rng.uniform(0.1, 1) * math.sqrt(1 - alpha[s])
    return alpha, sigma


SEEDS = st.integers(0, 2**32 - 1)
PATHS = st.integers(1, 4).flatmap(
    lambda T: st.tuples(st.just(T), st.sets(st.integers(1, T)).map(lambda chosen: tuple(sorted({*chosen, T}))))
)
FULL, APPENDIX_C1, NESTED = (4, (1, 2, 3, 4)), (3, (1, 3)), (4, (2, 4))


@settings(max_examples=40)
@given(PATHS, SEEDS)
@example(FULL, 0)
@example(APPENDIX_C1, 1)
@example(NESTED, 2)
def test_j_sigma_is_eq_11_by_its_definition(path, seed):
    """With its constant, of which Theorem 1 says nothing."""
    alpha, sigma = random_problem(*path, seed)
    theta = random_theta(path[0], np.random.default_rng(seed))
    by_hand = j_by_hand(theta, alpha, path[1], sigma)
    assert j_of(theta, alpha, path[1], sigma) == pytest.approx(by_hand, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_j_sigma_does_not_depend_on_what_the_network_predicts(prediction):
    """It has another shape than (B, d), too: a term is of an image, whatever its shape."""
    x0, z = torch.randn(2, 5, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alpha, sigma = np.array([1.0, 0.8, 0.5]), np.array([math.nan, 0.3, 0.2])

    def found(prediction):
        @of_time
        def network(x, t):
            eps = 0.7 * x
            image = (x - (1 - alpha[t]) ** 0.5 * eps) / alpha[t] ** 0.5
            v = alpha[t] ** 0.5 * eps - (1 - alpha[t]) ** 0.5 * image
            return {"epsilon": eps, "sample": image, "v_prediction": v}[prediction]

        return j_sigma(network, x0, lambda t: z / t, alpha, (1, 2), sigma, prediction)

    torch.testing.assert_close(found(prediction), found("epsilon"), rtol=1e-12, atol=1e-12)


def test_the_generative_process_is_eq_7_down_to_t_1_and_has_noise_of_its_own_there():
    """Eq. 10: at t = 1, N(f(x_1), sigma_1^2 I) for a sigma_1 that eq. 7 would not allow."""
    assert generative(0.5, 0.8, 0.3) == posterior(0.5, 0.8, 0.3)
    assert generative(0.8, 1.0, 2.0) == (1.0, 0.0, 4.0)
    with pytest.raises(ValueError, match="too large"):
        posterior(0.8, 1.0, 2.0)
    with pytest.raises(ValueError, match="too large"):
        generative(0.5, 0.8, 2.0)


@settings(max_examples=40)
@given(PATHS, SEEDS)
@example(FULL, 0)
@example(APPENDIX_C1, 1)
@example(NESTED, 2)
def test_theorem_1_for_any_sigma_and_any_tau(path, seed):
    """J_sigma - L_gamma is one constant for all theta."""
    alpha, sigma = random_problem(*path, seed)
    assert residual(alpha, path[1], sigma, theorem1_weights(alpha, path[1], sigma), seed) < 1e-9


@pytest.mark.parametrize("path", [FULL, APPENDIX_C1])
def test_printed_weights_do_not_satisfy_theorem_1(path):
    """1 / (2 d sigma^2 alpha) of the paper's proof, for errors summed over dimensions and averaged; nor does gamma = 1.

    So the test above has teeth.
    """
    alpha, sigma = random_problem(*path, seed=3)
    printed = np.concatenate([[0.0], 1 / (2 * D * sigma[1:] ** 2 * alpha[1:])])
    for wrong in (printed, D * printed, np.ones(len(alpha))):
        assert residual(alpha, path[1], sigma, wrong, seed=3) > 0.05


def test_eq_57_as_printed_satisfies_theorem_1_for_no_weights():
    """With f(x_{tau_{i-1}}) a chain factor is no density in x_{tau_{i-1}} and J_sigma no L_gamma whatever.

    Least squares of J on the terms of L_1 and a constant find the closed form's weights, and leave nothing.
    """
    alpha, sigma = random_problem(*APPENDIX_C1, seed=4)
    rng, times = np.random.default_rng(4), APPENDIX_C1[1]
    thetas = [random_theta(len(alpha) - 1, rng) for _ in range(20)]
    terms = np.array([[*l_terms(theta, alpha, np.ones(len(alpha))), 1.0] for theta in thetas])
    for j_paths, is_right in ((j_of, True), (partial(j_by_hand, as_printed=True), False)):
        j = np.array([j_paths(theta, alpha, times, sigma) for theta in thetas])
        fit = np.linalg.lstsq(terms, j, rcond=None)[0]
        rest = np.ptp(j - terms @ fit) / np.ptp(j)
        assert rest < 1e-9 if is_right else rest > 0.05
        if is_right:
            np.testing.assert_allclose(fit[:-1], theorem1_weights(alpha, times, sigma)[1:], rtol=1e-8)


def test_j_bounds_the_likelihood_on_the_full_chain_but_not_with_a_star():
    """Eq. 55 counts p(x_0 | .) once for each star element: a narrow star takes J below -log p_theta(x_0).

    Data and network know one image, f(x_t) = x_0 for every x_t, so p_theta(x_0) is N(f, sigma_{tau_1}^2 I) exactly.
    """
    alpha, sigma = np.array([1.0, 0.8, 0.5, 0.2]), np.array([math.nan, 0.5, 0.01, 0.3])
    theta = np.zeros((4, 6, D))
    for t in (1, 2, 3):
        theta[t, :3] = np.vstack([-(alpha[t] ** 0.5) * DATA[0], np.eye(D)]) / (1 - alpha[t]) ** 0.5
    negative_log_likelihood = -log_density(DATA[:1], DATA[0], sigma[1] ** 2).item()
    assert j_of(theta, alpha, (1, 2, 3), sigma, [1.0, 0.0]) > negative_log_likelihood
    assert j_of(theta, alpha, (1, 3), sigma, [1.0, 0.0]) < negative_log_likelihood - 1


@pytest.mark.parametrize("steps", [1000, 50, 10])
@pytest.mark.parametrize("spacing", ["linear", "quadratic"])
def test_eta_one_has_ddpms_weights(spacing, steps):
    """Ho et al.'s variational weight beta^2 / (2 sigma^2 (1 - beta) (1 - alpha_t)), beta that of the step along tau."""
    times = np.array(tau(spacing, steps, 1000))
    sigma = theorem1_sigma(LINEAR, times.tolist(), 1.0, 0.01)
    gamma = theorem1_weights(LINEAR, times.tolist(), sigma)
    a, a_prev = LINEAR[times[1:]], LINEAR[times[:-1]]
    beta, variance = 1 - a / a_prev, (1 - a_prev) / (1 - a) * (1 - a / a_prev)
    np.testing.assert_allclose(gamma[times[1:]], beta**2 / (2 * variance * (1 - beta) * (1 - a)), rtol=1e-10)


@given(st.sets(st.integers(1, 999), max_size=40), st.floats(1e-3, 1), st.floats(1e-3, 10))
def test_weights_are_positive_for_every_eta_and_tau(chosen, eta, sigma_1):
    times = [*sorted(chosen), 1000]
    gamma = theorem1_weights(LINEAR, times, theorem1_sigma(LINEAR, times, eta, sigma_1))
    assert (gamma.shape, gamma.dtype, gamma[0]) == ((1001,), np.float64, 0)
    assert (gamma[1:] > 0).all()
    assert np.isfinite(gamma).all()


def test_sigma_for_theorem_1():
    """Eq. 16 on the chain, the given number at tau_1, and on the star what makes gamma 1/2."""
    alpha, times = np.array([1.0, 0.9, 0.7, 0.4, 0.3, 0.1]), (2, 3, 5)
    sigma = theorem1_sigma(alpha, times, 0.5, 0.25)
    chain = [0.5 * math.sqrt(0.3 / 0.6 * (1 - 0.4 / 0.7)), 0.5 * math.sqrt(0.6 / 0.9 * (1 - 0.1 / 0.4))]
    expected = [0, math.sqrt(0.1 / 0.9), 0.25, chain[0], math.sqrt(0.7 / 0.3), chain[1]]
    np.testing.assert_allclose(sigma, expected, rtol=1e-12)
    gamma = theorem1_weights(alpha, times, sigma)
    np.testing.assert_allclose(gamma[[1, 4]], 0.5, rtol=1e-12)
    assert gamma[2] == pytest.approx(0.3 / (2 * 0.25**2 * 0.7))
    by_sigma_hat = np.array([0.0, *(sigma_hat(a, a_prev) for a_prev, a in pairwise(LINEAR.tolist()))])
    assert theorem1_weights(LINEAR, (1000,), by_sigma_hat)[999] == pytest.approx(6e5, rel=0.05), "without bound"


@pytest.mark.parametrize(("eta", "sigma_1"), [(0.0, 0.1), (1.0, 0.0), (1.0, math.nan), (1.0, -0.1)])
def test_sigma_that_is_not_positive_is_refused(eta, sigma_1):
    alpha = np.array([1.0, 0.9, 0.7, 0.4, 0.3])
    with raises(ValueError):
        theorem1_weights(alpha, (2, 4), theorem1_sigma(alpha, (2, 4), eta, sigma_1))


FALLING = (1.0, 0.9, 0.7, 0.4)


@pytest.mark.parametrize(
    ("alpha", "times", "sigma_T"),
    [
        *((FALLING, times, 0.1) for times in ((), (1, 2), (2, 2, 3), (0, 3), (2, 1, 3))),
        (FALLING, (1, 3), 0.32),  # above eq. 7's bound, which is for the chain alone
        ((1.0, 0.5, 0.0), (1, 2), 0.1),
    ],
)
def test_what_theorem_1_does_not_cover_is_refused(alpha, times, sigma_T):
    sigma = np.array([0.0, *[5.0] * (len(alpha) - 2), sigma_T])
    with raises(ValueError):
        theorem1_weights(np.array(alpha), times, sigma)
    theorem1_weights(np.array(FALLING), (1, 3), np.array([0.0, 5.0, 5.0, 0.31]))


@pytest.mark.parametrize(("alpha_T", "sigma_1", "times"), [(0.0, 0.1, (1, 2)), (0.3, 0.0, (1, 2)), (0.3, 0.1, (1,))])
def test_j_sigma_refuses_what_has_no_weights(alpha_T, sigma_1, times):
    alpha, sigma, x0 = np.array([1.0, 0.5, alpha_T]), np.array([0.0, sigma_1, 0.1]), torch.zeros(1, 2)
    with raises(ValueError):
        j_sigma(of_time(lambda x, t: x), x0, lambda t: x0, alpha, times, sigma)


def test_l_gamma_weights_the_mean_square_of_each_image():
    a, b = torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(7))
    mean_squares = ((a - b).double().numpy() ** 2).reshape(4, -1).mean(axis=1)
    gamma = torch.tensor([0.0, 0.5, 1.0, 1e4], dtype=torch.float64)
    assert l_gamma(a, b, gamma).dtype == torch.float32
    np.testing.assert_allclose(l_gamma(a, b, gamma).numpy(), gamma.numpy() * mean_squares, rtol=1e-5)
    np.testing.assert_allclose(l_gamma(a, b, 0.5).numpy(), 0.5 * mean_squares, rtol=1e-5)
