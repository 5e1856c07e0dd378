"""Networks for inference: any that a job names (saved, custom, an oracle), or one in the caller's memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taugrid.config import Diffusion
from taugrid.errors import CustomCodeError
from taugrid.jobs import Conditions, CustomNetwork, NetworkSpec, SavedNetwork
from taugrid.workers import schedules
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.accelerator.policy import Policy, policy
from taugrid.workers.data.published import distribution
from taugrid.workers.diffusion import gaussian, oracle
from taugrid.workers.diffusion.denoiser import Denoiser, FromTimes
from taugrid.workers.network import custom
from taugrid.workers.network.checkpoint import conditions_of


def load_network(network: NetworkSpec, diffusion: Diffusion, device: str, how: Policy | None = None) -> Denoiser:
    """A network for inference on `device`, which predicts `diffusion.prediction`. `how`: by default in float32.

    Its memory format, the type of its weights and its compilation are those of `how`; the rest is for its callers
    (`accelerator.arithmetic.adapted`).

    Raises `WorkerRefusal` if this node has other files, code or weights than the driver planned with, or none, or they
    do not fit each other; `CustomCodeError` (see `custom.load`)."""
    how = how or policy(kind_of(device))
    if isinstance(network, SavedNetwork):
        from taugrid.workers.network.unet import load_unet  # diffusers takes seconds, and only these need it

        return load_unet(network, device, how)
    if isinstance(network, CustomNetwork):
        return custom.load(network, device, how)
    data = distribution(network.data)
    if diffusion.process == "edm":
        assert diffusion.sigma_data is not None
        return oracle.edm(oracle.expected_x0(data, device), diffusion.sigma_data)
    if diffusion.process == "flow":
        assert diffusion.timesteps is not None
        return oracle.flow(oracle.expected_x0(data, device), diffusion.timesteps)
    if isinstance(data, gaussian.TwoPoints):
        return oracle.two_points_eps(data, device)
    return oracle.gaussian_eps(data, schedules.alpha_bar(diffusion), device)


def conditions_in_memory(made: Any, times: int = 1) -> Conditions | None:
    """The labels that a network in the caller's memory takes, by its attributes or as a diffusers network. Flow maps
    have two `times`. `CustomCodeError` if it is a transformer of latents, whose VAE is not with it."""
    config: Any = getattr(made, "config", None)
    if hasattr(config, "num_embeds_ada_norm"):
        raise CustomCodeError(f"a {type(made).__name__} needs its pipeline's VAE; give the pipeline's folder instead")
    if hasattr(config, "num_class_embeds"):
        return conditions_of(config)
    return custom.conditions_of(made, type(made).__name__, times)


@contextmanager
def network_in_memory(made: Any) -> Iterator[Denoiser]:
    """`made`, an `nn.Module` or a function of x and time indices, for inference within the context, where it is.

    If it takes labels (`conditions_in_memory`), they are its third argument. A module is in evaluation mode meanwhile,
    called in inference mode, and left as it was. A function may need gradients, so it is called as it is. Of diffusers'
    outputs, the `.sample` is taken. Every output is `custom.checked`. `CustomCodeError` if `made` is not callable;
    calling it can raise the same."""
    if not callable(made) or isinstance(made, type):
        raise CustomCodeError(f"a model is a folder, a mapping, or a network to be called, not {made!r}")
    name = type(made).__name__

    def network(x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        output = made(x, t, *labels)
        return custom.checked(getattr(output, "sample", output), x, name)

    is_module = isinstance(made, nn.Module)
    modes = [(part, part.training) for part in made.modules()] if is_module else []
    if is_module:
        made.eval()
    try:
        yield FromTimes(torch.inference_mode()(network) if is_module else network)
    finally:
        for part, mode in modes:  # each its own: `train` would set those that the caller has frozen, too
            part.training = mode


def device_of(made: Any) -> str | None:
    """The device of a module's parameters, as torch names it; None: it has none."""
    first = next(made.parameters(), None) if isinstance(made, nn.Module) else None
    return None if first is None else str(first.device)


def shape_of(made: Any) -> tuple[int, int, int] | None:
    """(channels, height, width) that the config of a diffusers network names; None: it names none."""
    config: Any = getattr(made, "config", None)
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if not isinstance(channels, int) or size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width
