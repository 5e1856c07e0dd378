"""The objectives: L_gamma, which is trained, J_sigma, and the gamma for which both are equal (Theorem 1).

alpha_t is the paper's: the product of 1 - beta_s for s <= t, elsewhere written alpha_bar. Imports no torch.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taugrid.workers.diffusion.denoiser import Denoiser
from taugrid.workers.diffusion.forward import Conditional, generative, marginal, posterior
from taugrid.workers.diffusion.forward import sigma as sigma_of_eta
from taugrid.workers.diffusion.process import PredictionType, predicted
from taugrid.workers.diffusion.processes import DiscreteVP

if TYPE_CHECKING:
    from torch import Tensor


def l_gamma(eps_predicted: "Tensor", eps: "Tensor", gamma: "Tensor | float") -> "Tensor":
    """Each image's term of eq. 5, (B,): gamma times the squared error of its noise, averaged over its d dimensions.

    With gamma = 1 it is DDPM's L_simple. Eq. 5 and Theorem 1 sum over dimensions: their L_gamma is d times the sum over
    t of this loss's expectation. The factor d is the same for all t. The caller takes the mean over images, because it
    knows the global batch.

    `eps_predicted` is eps_theta(x_t, t), (B, ...), like `eps`, the noise in x_t; `gamma`, (B,) in any floating point,
    is the weight of each image's time, or one number for all. The losses have the dtype of `eps`."""
    error = mean_square(eps_predicted, eps)
    return error * (gamma if isinstance(gamma, float | int) else gamma.to(error))


def mean_square(predicted: "Tensor", target: "Tensor") -> "Tensor":
    """(B,) squared errors of (B, ...), averaged over dimensions."""
    return (predicted - target).square().flatten(1).mean(dim=1)


def theorem1_weights(
    alpha_bar: NDArray[np.float64], tau: Sequence[int], sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The gamma for which J_sigma of eq. 11, or of appendix C.1 along tau, is L_gamma plus a constant (Theorem 1).

    The KL of each chain factor is between two Gaussians of equal covariance. Their means differ by x_0 - f(x_t) times
    the coefficient of x_0 in eq. 7. Where x_0 itself is predicted, at tau_1 and at every t not in tau, that coefficient
    is 1. These weights are exact; the 1 / (2 d sigma^2 alpha) of the paper's proof are not.

    All arrays are (T + 1,), indexed by the paper's t: `alpha_bar` with 1 at 0; `sigma`, eq. 7's at tau_i for i >= 2,
    and at all other t the one of p(x_0 | x_t) = N(f(x_t), sigma_t^2 I); and the gamma returned, float64 with 0 at 0,
    for squared errors summed over dimensions. `tau` are strictly increasing times in 1..T that end at T; all of them
    for eq. 11. `ValueError` for any other tau, for a sigma_t that is not above 0 or too large for eq. 7, and if alpha_T
    is 0."""
    require_densities(alpha_bar, tau, sigma)
    T = len(alpha_bar) - 1
    gamma = np.zeros(T + 1)
    time_before = {t: s for s, t in pairwise(tau)}
    for t in range(1, T + 1):
        alpha_t, sigma_t = float(alpha_bar[t]), float(sigma[t])
        chained = t in time_before
        coefficient = posterior(alpha_t, float(alpha_bar[time_before[t]]), sigma_t).from_x0 if chained else 1.0
        gamma[t] = coefficient**2 * (1 - alpha_t) / (2 * sigma_t**2 * alpha_t)
    return gamma


def require_densities(alpha_bar: NDArray[np.float64], tau: Sequence[int], sigma: NDArray[np.float64]) -> None:
    """Check that eqs. 7, 10 and 52 to 57 have densities, so that J_sigma is finite; arguments as in `theorem1_weights`.
    `ValueError` for any other tau, for a sigma_t that is not above 0, and if alpha_T is 0."""
    T = len(alpha_bar) - 1
    if any(t <= s for s, t in pairwise([0, *tau])) or not tau or tau[-1] != T:
        raise ValueError(f"Theorem 1 needs times that increase strictly from above 0 to {T}; tau is {list(tau)}")
    if alpha_bar[T] <= 0:
        raise ValueError("alpha_T is 0, where Theorem 1's weight is infinite; choose a schedule that ends above 0")
    for t in range(1, T + 1):
        if not sigma[t] > 0:
            raise ValueError(
                f"sigma is {sigma[t]:g} at t = {t}, where Theorem 1's weight is infinite; take eta > 0 and sigma_1 > 0"
            )


def theorem1_sigma(
    alpha_bar: NDArray[np.float64], tau: Sequence[int], eta: float, sigma_1: float
) -> NDArray[np.float64]:
    """A sigma for every time, for `theorem1_weights`: eq. 16 along tau, except at tau_1.

    Eq. 16 is 0 at tau_1 for every eta, so `sigma_1` takes its place. For t not in tau the paper leaves sigma_t free.
    Here it is eq. 14's sqrt((1 - alpha_t) / alpha_t), the standard deviation of x_0 given x_t alone, which makes
    gamma_t = 1/2. With DDPM's sigma-hat, gamma_t would grow without bound: to 6e5 at t = 999 of the linear schedule.

    The weights need `eta`, the scale of eq. 16, in (0, 1] if tau has more than one time, and `sigma_1`, the standard
    deviation of p(x_0 | x_{tau_1}), above 0. `alpha_bar`, `tau` and what is returned are as in `theorem1_weights`."""
    sigma = np.zeros(len(alpha_bar))
    off_tau = np.setdiff1d(np.arange(1, len(alpha_bar)), tau)
    sigma[off_tau] = np.sqrt((1 - alpha_bar[off_tau]) / alpha_bar[off_tau])
    sigma[tau[0]] = sigma_1
    for s, t in pairwise(tau):
        sigma[t] = sigma_of_eta(float(alpha_bar[t]), float(alpha_bar[s]), eta)
    return sigma


def j_sigma(
    network: Denoiser,
    x0: "Tensor",
    noise: "Callable[[int], Tensor]",
    alpha_bar: NDArray[np.float64],
    tau: Sequence[int],
    sigma: NDArray[np.float64],
    prediction: PredictionType = "epsilon",
) -> "Tensor":
    """Each image's log q_sigma(x_{1:T} | x_0) - log p_theta(x_{0:T}) on one path; J_sigma, eq. 11, is the expectation.

    The path is drawn from q_sigma: x_T given x_0, then eq. 7 downwards along tau. A time off tau is drawn from x_0
    alone, and p_theta predicts x_0 from it (appendix C.1: eqs. 52, 53, and 55 to 57 with f(x_{tau_i}), where eq. 57
    prints f(x_{tau_{i-1}})). J_sigma bounds -log p_theta(x_0) only if no time is off tau.

    `x0` are images, (B, ...) floating point (float64 keeps small sigmas exact), `noise(t)` the standard normal, shaped
    like it, that x_t is made of, and `prediction` what `network` predicts, which is called at every t in 1..T.
    `alpha_bar`, `tau` and `sigma` are as in `theorem1_weights`. What is returned, (B,) in nats and in the dtype of
    `x0`, estimates J_sigma without bias by its mean over images and noise. `ValueError` as of `theorem1_weights`."""
    require_densities(alpha_bar, tau, sigma)
    process, T, time_after = DiscreteVP(alpha_bar), len(alpha_bar) - 1, dict(pairwise(tau))
    x: dict[int, Tensor] = {}
    f: dict[int, Tensor] = {}
    log_ratio = x0.new_zeros(len(x0))
    for t in range(T, 0, -1):
        alpha_t = float(alpha_bar[t])
        chained, after = t in time_after, time_after.get(t, t)
        above, state = (float(alpha_bar[after]), alpha_t, float(sigma[after])), x.get(after, x0)
        q = posterior(*above) if chained else marginal(alpha_t)
        x[t] = _mean(q, x0, state) + math.sqrt(q.variance) * noise(t)
        log_ratio = log_ratio + _log_density(x[t], q, x0, state)
        f[t] = predicted(network(x[t], process.at(t)), x[t], alpha_t, prediction).x0
        if chained:
            log_ratio = log_ratio - _log_density(x[t], generative(*above), f[after], state)
        elif t == T:
            log_ratio = log_ratio - _log_density(x[t], Conditional(0.0, 0.0, 1.0), x0, state)  # p(x_T) = N(0, I)
        if t == tau[0] or t not in tau:
            log_ratio = log_ratio - _log_density(x0, generative(alpha_t, 1.0, float(sigma[t])), f[t], x[t])
    return log_ratio


def _mean(at: Conditional, x0: "Tensor", state: "Tensor") -> "Tensor":
    return at.from_x0 * x0 + at.from_state * state


def _log_density(x: "Tensor", at: Conditional, x0: "Tensor", state: "Tensor") -> "Tensor":
    """(B,) log densities of x, (B, ...), under a conditional on x_0 and another state."""
    square = (x - _mean(at, x0, state)).square() / at.variance
    return -0.5 * (square + math.log(2 * math.pi * at.variance)).flatten(1).sum(dim=1)
