"""Networks as functions of x and the paper's time, and the sampler on the levels and times of a test."""

from functools import partial

from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import path
from taugrid.workers.diffusion.processes import DiscreteVP
from taugrid.workers.diffusion.schedule import alpha_bar as levels
from taugrid.workers.samplers import ddim

USUAL = DiscreteVP(levels("linear", 1000, 1e-4, 2e-2))

at = USUAL.at
"""The point at the paper's time t in 1..1000."""


def of_time(function):
    """A Denoiser from a function of x and the paper's t."""
    return lambda x, at, condition=None: function(x, at.key)


def sample(network, noise, alpha_bar, tau, eta, clip, prediction="epsilon", clip_range=1.0):
    process = DiscreteVP(alpha_bar, prediction)
    denoise = Denoise(network, process, clip=clip, clip_range=clip_range)
    return ddim.sample(noise(0), path(process, tau), denoise, noise, eta)


def _along(function, network, x, alpha_bar, tau, prediction="epsilon"):
    process = DiscreteVP(alpha_bar, prediction)
    return function(x, path(process, tau), Denoise(network, process))


decode, encode = partial(_along, ddim.decode), partial(_along, ddim.encode)
