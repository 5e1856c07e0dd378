"""The objectives: L_gamma, which is trained, and the variational J_sigma.

variational.py has the weights with which both are equal up to a constant (Theorem 1).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taugrid.workers.diffusion.denoiser import Denoiser
from taugrid.workers.diffusion.forward import Conditional, generative, marginal, posterior
from taugrid.workers.diffusion.process import PredictionType, predicted
from taugrid.workers.diffusion.processes import DiscreteVP
from taugrid.workers.diffusion.variational import require_densities


def l_gamma(eps_predicted: Tensor, eps: Tensor, gamma: Tensor | float) -> Tensor:
    """Each image's term of eq. 5, (B,): gamma times the squared error of its noise, averaged over its d dimensions.

    With gamma = 1 it is DDPM's L_simple. Eq. 5 and Theorem 1 sum over dimensions: their L_gamma is d times the sum over
    t of this loss's expectation. The factor d is the same for all t. The caller takes the mean over images, because it
    knows the global batch.

    `eps_predicted` is eps_theta(x_t, t), (B, ...), like `eps`, the noise in x_t; `gamma`, (B,) in any floating point,
    is the weight of each image's time, or one number for all. The losses have the dtype of `eps`.
    """
    error = mean_square(eps_predicted, eps)
    return error * (gamma.to(error) if isinstance(gamma, Tensor) else gamma)


def mean_square(predicted: Tensor, target: Tensor) -> Tensor:
    """(B,) squared errors of (B, ...), averaged over dimensions."""
    return (predicted - target).square().flatten(1).mean(dim=1)


def j_sigma(
    network: Denoiser,
    x0: Tensor,
    noise: Callable[[int], Tensor],
    alpha_bar: NDArray[np.float64],
    tau: Sequence[int],
    sigma: NDArray[np.float64],
    prediction: PredictionType = "epsilon",
) -> Tensor:
    """Each image's log q_sigma(x_{1:T} | x_0) - log p_theta(x_{0:T}) on one path; J_sigma, eq. 11, is the expectation.

    The path is drawn from q_sigma: x_T given x_0, then eq. 7 downwards along tau. A time off tau is drawn from x_0
    alone, and p_theta predicts x_0 from it (appendix C.1: eqs. 52, 53, and 55 to 57 with f(x_{tau_i}), where eq. 57
    prints f(x_{tau_{i-1}})). J_sigma bounds -log p_theta(x_0) only if no time is off tau.

    Args:
        network: called at every t in 1..T.
        x0: (B, ...) images, floating point; float64 keeps small sigmas exact.
        noise: `noise(t)` is the standard normal, shaped like `x0`, that x_t is made of.
        alpha_bar: (T + 1,) with `alpha_bar[0] == 1`.
        tau: strictly increasing times in 1..T that end at T; all of them for eq. 11.
        sigma: (T + 1,), as in `variational.theorem1_weights`.
        prediction: what the network predicts.

    Returns:
        (B,) in nats, in the dtype of `x0`. Their mean over images and noise estimates J_sigma without bias.

    Raises:
        ValueError: see `variational.theorem1_weights`.
    """
    require_densities(alpha_bar, tau, sigma)
    process, T, time_after = DiscreteVP(alpha_bar), len(alpha_bar) - 1, dict(pairwise(tau))
    x: dict[int, Tensor] = {}
    f: dict[int, Tensor] = {}
    log_ratio = torch.zeros_like(x0.flatten(1)[:, 0])
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


def _mean(at: Conditional, x0: Tensor, state: Tensor) -> Tensor:
    return at.from_x0 * x0 + at.from_state * state


def _log_density(x: Tensor, at: Conditional, x0: Tensor, state: Tensor) -> Tensor:
    """(B,) log densities of x, (B, ...), under a conditional on x_0 and another state."""
    square = (x - _mean(at, x0, state)).square() / at.variance
    return -0.5 * (square + math.log(2 * math.pi * at.variance)).flatten(1).sum(dim=1)
