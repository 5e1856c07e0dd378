"""The processes of the DDIM paper, forward and generative, as linear-Gaussian conditionals; eq. 16's sigma.

All dimensions of an image are treated alike and independently, so three plain numbers describe a conditional. The
arguments are values of alpha_bar at two times s < t, `alpha_prev` at s and `alpha_t` at t, with
0 <= alpha_t <= alpha_prev <= 1 and alpha_t < 1. The same formulas hold for neighbours in a sub-sequence tau instead of
t - 1 and t (appendix C.1).
"""

import math
from typing import NamedTuple

ROUNDING = 1e-12  # how far sigma^2 may exceed 1 - alpha_prev, relative to it: a sigma at the bound is a rounded root


class Conditional(NamedTuple):
    """N(from_x0 * x_0 + from_state * y, variance * I), where y is the other state in the condition."""

    from_x0: float
    from_state: float  # 0 if the condition is x_0 alone
    variance: float


def marginal(alpha_t: float) -> Conditional:
    """q(x_t | x_0), eq. 4; also the star of appendix C.1, eq. 53."""
    return Conditional(math.sqrt(alpha_t), 0.0, 1 - alpha_t)


def markov_step(alpha_t: float, alpha_prev: float) -> Conditional:
    """q(x_t | x_{t-1}), DDPM's forward step, which does not depend on x_0."""
    return Conditional(0.0, math.sqrt(alpha_t / alpha_prev), 1 - alpha_t / alpha_prev)


def posterior(alpha_t: float, alpha_prev: float, sigma: float) -> Conditional:
    """q_sigma(x_{t-1} | x_t, x_0), eq. 7, for any sigma that keeps the root real; else `ValueError`."""
    from_state = math.sqrt(_kept(alpha_prev, sigma) / (1 - alpha_t))
    return Conditional(math.sqrt(alpha_prev) - from_state * math.sqrt(alpha_t), from_state, sigma**2)


def generative(alpha_t: float, alpha_prev: float, sigma: float) -> Conditional:
    """p_theta(x_{t-1} | x_t), eq. 10, with the predicted f(x_t) of eq. 9 in place of x_0. For t > 1 it is eq. 7, and at
    t = 1, where `alpha_prev` is 1, N(f(x_1), sigma_1^2 I) for any sigma_1. The paper's sampler adds no noise there,
    because eq. 16 makes sigma_1 0."""
    return Conditional(1.0, 0.0, sigma**2) if alpha_prev == 1 else posterior(alpha_t, alpha_prev, sigma)


def forward_step(alpha_t: float, alpha_prev: float, sigma: float) -> Conditional:
    """q_sigma(x_t | x_{t-1}, x_0), eq. 8 in closed form: Bayes' rule for the Gaussians of eqs. 4 and 7.

    Given x_0, x_t and x_{t-1} have covariance sqrt((1 - alpha_t) (1 - alpha_prev - sigma^2)). The regression of x_t on
    x_{t-1} is this covariance divided by x_{t-1}'s variance, 1 - alpha_prev. With sigma = 0 the step is deterministic.
    With alpha_prev = 1 the state is x_0 itself and the limit depends on the path; eq. 4 is returned, with from_state 0.
    As `posterior` it raises `ValueError`."""
    kept = _kept(alpha_prev, sigma)
    if alpha_prev == 1:
        return marginal(alpha_t)
    from_state = math.sqrt((1 - alpha_t) * kept) / (1 - alpha_prev)
    from_x0 = math.sqrt(alpha_t) - from_state * math.sqrt(alpha_prev)
    return Conditional(from_x0, from_state, (1 - alpha_t) * sigma**2 / (1 - alpha_prev))


def sigma(alpha_t: float, alpha_prev: float, eta: float) -> float:
    """The standard deviation of a step's noise, eq. 16: eta = 0 is DDIM, eta = 1 is DDPM."""
    return eta * math.sqrt((1 - alpha_prev) / (1 - alpha_t)) * math.sqrt(1 - alpha_t / alpha_prev)


def sigma_hat(alpha_t: float, alpha_prev: float) -> float:
    """DDPM's larger standard deviation, the sigma-hat below eq. 16."""
    return math.sqrt(1 - alpha_t / alpha_prev)


def _kept(alpha_prev: float, sigma: float) -> float:
    """1 - alpha_prev - sigma^2, the variance that x_{t-1} takes over from x_t."""
    bound = 1 - alpha_prev
    if not sigma**2 <= bound * (1 + ROUNDING):
        raise ValueError(
            f"sigma = {sigma:g} is too large: eq. 7 needs sigma^2 <= 1 - alpha_prev, so sigma <= {math.sqrt(bound):g}"
        )
    return max(0.0, bound - sigma**2)
