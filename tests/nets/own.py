"""What a user may write: samplers and networks, with faults that a file beside them switches on.

The code stays the same then, and so do its hashes: only what it computes shows the fault.
"""

import math
from pathlib import Path

import numpy as np
import torch

ALPHA = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
"""The paper's alpha at the times 0..1000, of linear betas."""


def fault(name):
    """Whether a fault is planted beside this file."""
    return (Path(__file__).parent / name).exists()


def paper_ddim(x, times, eta, predict, draw):
    """Equations 12 and 16 of Song, Meng & Ermon 2021 in float64; `sigma_hat` is DDPM's larger deviation."""
    for t, s in zip(times, [*times[1:], 0], strict=True):
        a, b = ALPHA[t], ALPHA[s]
        eps = predict(x, t)
        hat = math.sqrt(1 - a / b)
        sigma = (1.0 if eta == "sigma_hat" else eta) * math.sqrt((1 - b) / (1 - a)) * hat
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * eps
        if s and eta:
            x = x + (hat if eta == "sigma_hat" else sigma) * draw(t)
    return x


def times_of(steps):
    """The paper's linear tau from the last time on."""
    return [1000 * i // steps for i in range(steps, 0, -1)]


def ddim(x, path, denoise, noise, settings):
    """The paper's loop as a custom sampler, which has taugrid's noise."""
    points = dict(zip(times_of(settings.steps), path, strict=False))

    def predict(x, t):
        return denoise(x.float(), points[t]).eps.double()

    sign = -1 if fault("wrong-sign") else 1
    eta = settings.sampler_options["eta"]
    return paper_ddim(x.double(), times_of(settings.steps), eta, predict, lambda t: sign * noise(points[t].key)).float()


ddim.options = {"eta": 0.0}


def smooth(x, t):
    """A prediction of eps that is neither linear in x nor the same at all times."""
    time = torch.as_tensor(t, dtype=x.dtype).view(-1, 1, 1, 1) / 1000
    return 0.8 * x + 0.2 * torch.sin(3 * x.flip(-1) + 2 * time) - 0.1 * time


def network():
    """The function that a config names: returns the network."""
    return smooth
