"""Theorem 1 of the DDIM paper (Song et al. 2021): weights gamma for which L_gamma of eq. 5 equals J_sigma of eq. 11.

alpha_t is the paper's: the product of 1 - beta_s for s <= t, elsewhere written alpha_bar. Imports no torch.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from taugrid.workers.diffusion.forward import posterior
from taugrid.workers.diffusion.forward import sigma as sigma_of_eta


def theorem1_weights(
    alpha_bar: NDArray[np.float64], tau: Sequence[int], sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The gamma for which J_sigma of eq. 11, or of appendix C.1 along tau, is L_gamma plus a constant (Theorem 1).

    The KL of each chain factor is between two Gaussians of equal covariance. Their means differ by x_0 - f(x_t) times
    the coefficient of x_0 in eq. 7. Where x_0 itself is predicted, at tau_1 and at every t not in tau, that coefficient
    is 1. These weights are exact; the 1 / (2 d sigma^2 alpha) of the paper's proof are not.

    Args:
        alpha_bar: (T + 1,) with `alpha_bar[0] == 1`.
        tau: strictly increasing times in 1..T that end at T; all of them for eq. 11.
        sigma: (T + 1,) indexed by the paper's t, `sigma[0]` unused: eq. 7's sigma at tau_i for i >= 2, and at all other
            t the one of p(x_0 | x_t) = N(f(x_t), sigma_t^2 I).

    Returns:
        (T + 1,) float64 indexed by the paper's t, with gamma[0] = 0, for squared errors summed over dimensions.

    Raises:
        ValueError: for any other tau, for a sigma_t that is not above 0 or too large for eq. 7, and if alpha_T is 0.
    """
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

    Raises:
        ValueError: for any other tau, for a sigma_t that is not above 0, and if alpha_T is 0.
    """
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

    Args:
        alpha_bar: (T + 1,) with `alpha_bar[0] == 1`.
        tau: strictly increasing times in 1..T that end at T.
        eta: the scale of eq. 16; the weights need it in (0, 1] if tau has more than one time.
        sigma_1: the standard deviation of p(x_0 | x_{tau_1}), above 0.

    Returns:
        (T + 1,) float64 indexed by the paper's t, with 0 at t = 0.
    """
    sigma = np.zeros(len(alpha_bar))
    off_tau = np.setdiff1d(np.arange(1, len(alpha_bar)), tau)
    sigma[off_tau] = np.sqrt((1 - alpha_bar[off_tau]) / alpha_bar[off_tau])
    sigma[tau[0]] = sigma_1
    for s, t in pairwise(tau):
        sigma[t] = sigma_of_eta(float(alpha_bar[t]), float(alpha_bar[s]), eta)
    return sigma
