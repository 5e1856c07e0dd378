"""The training objective."""

from torch import Tensor


def l_simple(eps_predicted: Tensor, eps: Tensor) -> Tensor:
    """The squared error of each image's predicted noise, averaged over its dimensions: eq. 5 with gamma = 1.

    Args:
        eps_predicted: (B, ...) eps_theta(x_t, t).
        eps: as `eps_predicted`, the noise in x_t.

    Returns:
        (B,) losses; the mean over images is left to the caller, who knows the global batch.
    """
    return (eps_predicted - eps).square().flatten(1).mean(dim=1)
