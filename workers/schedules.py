"""What config sections describe: the process and alpha_0..alpha_T of `diffusion`, gamma of `train.loss_weights`.

Imports no torch, because the driver checks a config with it.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Diffusion, LossWeights
from taugrid.workers.diffusion import schedule
from taugrid.workers.diffusion.forward import sigma_hat
from taugrid.workers.diffusion.objective import theorem1_sigma, theorem1_weights
from taugrid.workers.diffusion.process import Process
from taugrid.workers.diffusion.processes import EDM, DiscreteEDM, DiscreteVP, Flow
from taugrid.workers.diffusion.timesteps import tau


@lru_cache(maxsize=16)
def process(diffusion: Diffusion) -> Process:
    """The forward process of a resolved section (no key that it needs is null). ValueError as `alpha_bar` and `EDM`."""
    if diffusion.process == "flow":
        assert diffusion.timesteps is not None
        return Flow(diffusion.timesteps, diffusion.predicts)
    if diffusion.process == "edm":
        assert diffusion.sigma_min is not None
        assert diffusion.sigma_max is not None
        assert diffusion.rho is not None
        assert diffusion.sigma_data is not None
        levels = diffusion.sigma_min, diffusion.sigma_max, diffusion.rho, diffusion.sigma_data
        if diffusion.timesteps is None:
            return EDM(*levels, diffusion.predicts)
        return DiscreteEDM(diffusion.timesteps, *levels)
    return DiscreteVP(alpha_bar(diffusion), diffusion.predicts)


def alpha_bar(diffusion: Diffusion) -> NDArray[np.float64]:
    """alpha_0..alpha_T, (T + 1,) float64, of a resolved section of DDPM's process (no key is null). ValueError if the
    betas should be rescaled to zero SNR but can't be."""
    if diffusion.trained_betas is not None:
        levels = schedule.products(np.array(diffusion.trained_betas))
    else:
        assert diffusion.schedule is not None
        assert diffusion.timesteps is not None
        assert diffusion.beta_start is not None
        assert diffusion.beta_end is not None
        levels = schedule.alpha_bar(diffusion.schedule, diffusion.timesteps, diffusion.beta_start, diffusion.beta_end)
    if diffusion.rescale_betas_zero_snr:
        levels = schedule.rescaled_to_zero_snr(levels)
    if diffusion.set_alpha_to_one is False:
        levels[0] = levels[1]
    return levels


def gamma(weights: LossWeights, alpha_bar: NDArray[np.float64]) -> NDArray[np.float64]:
    """Theorem 1's weights for t = 0..T, (T + 1,) float64, divided by their mean over 1..T: that keeps the gradient's
    scale, and so the meaning of `learning_rate`. ValueError if it has no weights for these settings."""
    timesteps = len(alpha_bar) - 1
    times = tau(weights.spacing, weights.steps or timesteps, timesteps)
    first = sigma_hat(float(alpha_bar[times[0]]), 1.0) if weights.sigma_1 == "sigma_hat" else weights.sigma_1
    values = theorem1_weights(alpha_bar, times, theorem1_sigma(alpha_bar, times, weights.eta, first))
    normalised: NDArray[np.float64] = values / values[1:].mean()
    return normalised
