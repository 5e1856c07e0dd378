"""How a custom network is called, and whether it denoises then: its error on a few images of `data`.

A network that expects another time, another input or another sign returns finite images of the right shape, and samples
noise. Its error shows that.
"""

import math

import torch
from torch import Tensor

from taugrid.config import Data, Diffusion
from taugrid.jobs import Conditions
from taugrid.workers import schedules
from taugrid.workers.data.load import few_images, few_labels
from taugrid.workers.diffusion.denoiser import Denoise, FromTimes, OfTimes

LEVELS = (0.5, 1.0, 2.0)
"""Noise levels sigma / alpha, in standard deviations of the images. At much more noise no network does better than a
guess, and at much less EDM's does well whatever it is told."""

POOR = 1.1
"""The mean error above which a network is doubted. A trained one of Fashion-MNIST has 0.13, and 1.2 to 4.4 if its
output or its input is another process's. Told a wrong time it may see the noise, and has 0.24 to 0.35."""


def expected(diffusion: Diffusion) -> str:
    """How a network of a resolved `diffusion` is called, and what it returns, in a few words."""
    predicts = diffusion.predicts
    if diffusion.process == "flow":
        scale = "" if diffusion.timesteps == 1 else f"{diffusion.timesteps} "
        times = f"{scale}t, {scale}r" if predicts == "average_velocity" else f"{scale}t"
        end = {"sample": "x_0", "average_velocity": "u"}.get(predicts, "eps - x_0")
        return f"network(x, {times}) = {end} with t in [0, 1] and t = 0 at the image"
    if diffusion.process == "edm":
        sigma_data = f"with sigma_data {diffusion.sigma_data:g}"
        return {
            "sample": "network(x, sigma) = x_0",
            "edm": f"network(c_in x, ln(sigma) / 4) = F {sigma_data}",
            "v_prediction": f"network(c_in x, ln(sigma) / 4) = -F {sigma_data}",
            "consistency": f"network(c_in x, 250 ln(sigma)) = F {sigma_data}",
        }[predicts]
    return f"network(x, index) = {predicts} with the index in 0..{(diffusion.timesteps or 1) - 1}"


def doubt(network: OfTimes, name: str, diffusion: Diffusion, data: Data, takes: Conditions | None) -> str | None:
    """A line that says how the network is called and its errors, if it does not denoise images of `data`; else None.

    An error is the squared error of x_0 over that of the best linear estimate, which moves x towards the images' mean.
    The mean alone would be too easy to beat: EDM's c_skip x does that with any network.

    Images that are not here, and distilled networks, whose x_0 is the end of a path, are not judged.

    Args:
        network: as it is for inference on the CPU.
        name: in messages.
        diffusion: resolved.
        data: where the images are from.
        takes: the labels that the network takes.
    """
    channels, height, width = data.image_shape
    count = min(64, max(4, 4096 // (channels * height * width)))
    is_distilled = diffusion.predicts in ("consistency", "average_velocity")
    if is_distilled or (pixels := few_images(data, count)) is None or pixels.min() == pixels.max():
        return None
    x0 = torch.from_numpy(pixels).float() / 127.5 - 1
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    process, variance, errors = schedules.process(diffusion), float(x0.var()), list[float]()
    condition = None if takes is None else _labels(data, len(x0), takes)
    denoise = Denoise(FromTimes(network), process, condition=condition)
    for deviations in LEVELS:
        level = deviations * math.sqrt(variance)  # or else the least that the process has
        told = process.told_within([0, level])[-1:] or process.told_within([level, 1e9])[:1]
        at = process.told(told[0])
        try:
            error = float((denoise(at.alpha * x0 + at.sigma * eps, at).x0 - x0).square().mean())
        except Exception:  # user code may fail in any way where it is not called as it expects
            error = math.nan
        errors.append(error * (variance + at.ratio**2) / (variance * at.ratio**2))
    if sum(errors) <= POOR * len(errors):
        return None
    levels, shown = (", ".join(f"{number:.2g}" for number in numbers) for numbers in (LEVELS, errors))
    return (
        f"the network of {name} does not denoise: called as {expected(diffusion)}, on images of {data.full_name} with "
        f"noise of {levels} standard deviations, its squared error of x_0 is {shown} times that of a linear estimate; "
        "is it trained, and is it to be called so?"
    )


def _labels(data: Data, count: int, takes: Conditions) -> Tensor:
    """The null label, else the images' own, else some."""
    if takes.null_label is not None:
        return torch.full((count,), takes.null_label)
    own = few_labels(data, count)
    return (torch.arange(count) if own is None else torch.from_numpy(own).long()) % takes.classes
