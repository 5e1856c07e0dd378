"""Interpolation between samples in the space of x_T, section 5.3 of the paper."""

import torch
from torch import Tensor

from taugrid.workers.diffusion.noise import in_float64

PARALLEL = 1e-7  # below this sin(theta), float64's cosine can't distinguish two directions


def slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """(k, *shape) points from a to b, eq. 67: sin((1 - u) theta) / sin(theta) a + sin(u theta) / sin(theta) b.

    `a` and `b` are (*shape) floating point, u the `fractions`, (k,) in [0, 1], and theta the angle between a and b.
    Points between two standard normals then have a norm like theirs, unlike the middle of a straight line, and the
    network was trained on no other norms at T. Where a and b are parallel there is no arc, and the straight line is
    used."""
    x, y = in_float64(a).flatten(), in_float64(b).flatten()
    theta = torch.arccos((torch.dot(x, y) / (x.norm() * y.norm())).clamp(-1, 1))
    u = in_float64(fractions).to(x.device)[:, None]
    if torch.sin(theta) < PARALLEL:
        return ((1 - u) * x + u * y).reshape(-1, *a.shape).to(a)
    between = (torch.sin((1 - u) * theta) * x + torch.sin(u * theta) * y) / torch.sin(theta)
    return between.reshape(-1, *a.shape).to(a)


def rows(x_T: Tensor, steps: int) -> Tensor:
    """(r, k, *shape): k = `steps` points between x_T 0 and 1, ends included, between 2 and 3, and so on, figure 6.
    `x_T` is (2 r, *shape)."""
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.stack([slerp(a, b, u) for a, b in zip(x_T[0::2], x_T[1::2], strict=True)])


def square(x_T: Tensor, steps: int) -> Tensor:
    """(k, k, *shape) points within two pairs and then across, appendix D.5: corners x_T 0, 1 (above), 2, 3 (below).
    `x_T` is (4, *shape), and k = `steps`."""
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    above, below = slerp(x_T[0], x_T[1], u), slerp(x_T[2], x_T[3], u)
    return torch.stack([slerp(a, b, u) for a, b in zip(above, below, strict=True)], dim=1)
