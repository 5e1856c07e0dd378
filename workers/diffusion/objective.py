"""The training objective L_gamma. variational.py has the weights that make it Theorem 1's J_sigma."""

from torch import Tensor


def l_gamma(eps_predicted: Tensor, eps: Tensor, gamma: Tensor | float) -> Tensor:
    """Each image's term of eq. 5: gamma times the squared error of its predicted noise, averaged over its d dimensions.

    Eq. 5 and Theorem 1 sum over dimensions: their L_gamma is d times the sum over t of this loss's expectation. The
    factor d is the same for all t.

    Args:
        eps_predicted: (B, ...) eps_theta(x_t, t).
        eps: as `eps_predicted`, the noise in x_t.
        gamma: (B,) the weight of each image's time, in any floating point, or one number for all.

    Returns:
        (B,) losses in the dtype of `eps`. The caller takes the mean over images, because it knows the global batch.
    """
    error = mean_square(eps_predicted, eps)
    return error * (gamma.to(error) if isinstance(gamma, Tensor) else gamma)


def mean_square(predicted: Tensor, target: Tensor) -> Tensor:
    """(B,) squared errors of (B, ...), averaged over dimensions."""
    return (predicted - target).square().flatten(1).mean(dim=1)


def l_simple(eps_predicted: Tensor, eps: Tensor) -> Tensor:
    """DDPM's L_simple: `l_gamma` with gamma = 1."""
    return l_gamma(eps_predicted, eps, 1.0)
