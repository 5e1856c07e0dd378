"""Interpolation between samples in the space of x_T, section 5.3 of the paper."""

import torch
from torch import Tensor

from taugrid.workers.diffusion.noise import in_float64

PARALLEL = 1e-7
"""Below this sin(theta), float64's cosine can't distinguish two directions."""


def slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """Spherical interpolation, eq. 67: sin((1 - u) theta) / sin(theta) a + sin(u theta) / sin(theta) b.

    theta is the angle between a and b. Points between two standard normals then have a norm like theirs, unlike the
    middle of a straight line, and the network was trained on no other norms at T.

    Args:
        a: (*shape) floating point. If it is parallel to b there is no arc, and the straight line is used.
        b: like `a`.
        fractions: (k,) in [0, 1], u.

    Returns:
        (k, *shape), from a at u = 0 to b at u = 1.
    """
    x, y = in_float64(a).flatten(), in_float64(b).flatten()
    theta = torch.arccos((torch.dot(x, y) / (x.norm() * y.norm())).clamp(-1, 1))
    u = in_float64(fractions).to(x.device)[:, None]
    if torch.sin(theta) < PARALLEL:
        return ((1 - u) * x + u * y).reshape(-1, *a.shape).to(a)
    between = (torch.sin((1 - u) * theta) * x + torch.sin(u * theta) * y) / torch.sin(theta)
    return between.reshape(-1, *a.shape).to(a)


def rows(x_T: Tensor, steps: int) -> Tensor:
    """Points between x_T 0 and 1, between 2 and 3, and so on, figure 6.

    Args:
        x_T: (2 r, *shape).
        steps: k, points of each row, including its ends.

    Returns:
        (r, k, *shape).
    """
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.stack([slerp(a, b, u) for a, b in zip(x_T[0::2], x_T[1::2], strict=True)])


def square(x_T: Tensor, steps: int) -> Tensor:
    """Points within two pairs and then across, appendix D.5: (k, k, *shape), corners x_T 0, 1 (above), 2, 3 (below).

    Args:
        x_T: (4, *shape).
        steps: k.
    """
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    above, below = slerp(x_T[0], x_T[1], u), slerp(x_T[2], x_T[3], u)
    return torch.stack([slerp(a, b, u) for a, b in zip(above, below, strict=True)], dim=1)
