"""Whether a custom network denoises when it is called as its process says: its error on a few images of `data`.

A network that expects another time, another input or another sign returns finite images of the right shape, and samples
noise. Its error shows that, and calling it in other ways shows which one it was trained with.

The measure is the squared error of x_0 over that of the best linear estimate, which moves x towards the images' mean.
The mean alone would be too easy to beat: EDM's c_skip x does that with any network.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taugrid.config import DIFFUSION_DEFAULTS, EDM_DEFAULTS, FLOW_DEFAULTS, Data, Diffusion
from taugrid.errors import CustomCodeError
from taugrid.grids.names import in_yaml
from taugrid.jobs import Conditions
from taugrid.workers import schedules
from taugrid.workers.data.load import few_images, few_labels
from taugrid.workers.diffusion.denoiser import Denoise, OfTimes
from taugrid.workers.diffusion.process import Point

LEVELS, OUTER = (1.0, 0.5, 2.0), (0.1, 10.0)
"""Noise levels sigma / alpha, in standard deviations of the images. Means are over `LEVELS`: at much more noise no
network does better than a guess, and at much less EDM's does well whatever it is told. But there t is 0.3 to 0.6 and
ln(sigma) / 4 near 0, so a small network that is told a wrong time may do well: it shows at `OUTER`."""

GOOD, BETTER, DENOISES, POOR = 0.2, 0.6, 0.7, 1.1
"""Errors. Below `GOOD` nothing is wrong: a trained network of Fashion-MNIST has 0.13, and 0.24 to 0.35 if it is told
wrong times, for it sees the noise. Another way is better if it has less than `BETTER` times the error, and less than
`DENOISES`. Above `POOR` there is a doubt in any case. The optimum for white Gaussian noise has 1."""

AS_GOOD, SOMEWHERE = 1.05, 0.8
"""Another way is better too if it has at most `AS_GOOD` times the error at every level, and at one below `SOMEWHERE`
times: networks of 99,000 parameters that were told wrong times had 1.2 to 1.7 times their error at one of `OUTER`."""

UNLIKE_NOISE = 0.1
"""At T and T / 2, a network of eps returns noise nearly as it is. The squared error above which it is tried as another
process's. At T alone, a flow's, x less the images' mean, would pass."""

QUICK_SECONDS, PATIENCE_SECONDS = 5.0, 60.0
"""A network that takes longer for one level is tried at this one alone. Other ways are tried for so long."""


class Way(NamedTuple):
    """A way to call a network, for the x_0 that it predicts then."""

    diffusion: Diffusion
    call: str = ""
    """In messages, where only the user's code can call it so; empty: it is called as `diffusion` says."""
    told: Callable[[Point], float] = lambda at: at.time
    """What the network is told at a point."""
    sign: float = 1.0
    is_scaled: bool = True
    """Whether x is multiplied by c_in, if the process does that."""


Measure = Callable[[Way, float], list[float]]
"""The errors of a way at `LEVELS` and `OUTER`, inf where it fails; up to the first above a limit."""


def ways(own: Diffusion) -> list[Way]:
    """Those that networks of the field are called in, the likeliest first; at the end those that no config can name."""
    velocity = own.predicts if own.predicts == "average_velocity" else "velocity"
    flow = FLOW_DEFAULTS.model_copy(update={"prediction": velocity})
    edm = EDM_DEFAULTS.model_copy(update={"sigma_data": own.sigma_data or 0.5})
    others = [(flow, "timesteps", 1000), (flow, "prediction", "sample")]
    others += [(edm, "prediction", its) for its in ("edm", "v_prediction", "sample")]
    named = [DIFFUSION_DEFAULTS, flow, *(each.model_copy(update={key: value}) for each, key, value in others)]
    return [
        *map(Way, named[own.process is None :]),
        Way(flow, "-network(x, 1 - t)", lambda at: at.alpha, sign=-1.0),  # SiT's
        Way(flow, "network(x, 1 - t)", lambda at: at.alpha),
        Way(flow, "-network(x, t)", sign=-1.0),
        Way(edm, "network(c_in x, 250 ln(sigma))", lambda at: 1000 * at.time),  # consistency models'
        Way(edm, "network(c_in x, ln(sigma) / 4000)", lambda at: at.time / 1000),
        Way(edm, "network(x, ln(sigma) / 4)", is_scaled=False),  # with c_in inside
    ]


def require(network: OfTimes, name: str, diffusion: Diffusion, data: Data, takes: Conditions | None) -> str | None:
    """None if the network denoises images of `data`, or can't be judged; else a line with a doubt.

    Images that are not here, and consistency models, whose x_0 is the end of a path, are not judged.

    Args:
        network: as it is for inference on the CPU.
        name: in messages.
        diffusion: resolved. Of DDPM's process the betas do not matter: only another process's network is noticed.
        data: where the images are from.
        takes: the labels that the network takes.

    Raises:
        CustomCodeError: if it denoises only when it is called in another way. If it is merely better then, which may be
            a matter of the images, that is the line returned.
    """
    measure = None if diffusion.prediction == "consistency" else errors_of(network, diffusion, data, takes)
    if measure is None or (error := _mean(own := measure(Way(diffusion), math.inf))) < GOOD:
        return None
    where, call = f"on noised images of {data.full_name}", expected(diffusion)
    if (found := _better(measure, ways(diffusion), own)) is None:
        if error < POOR or diffusion.process is None:
            return None
        doubt = f"predicts x_0 no better than the mean: {where} {_said(error)}; is it trained"
        return f"the network of {name} {doubt}, and is it to be called as {call}?"
    way, errors = found
    at = min(range(len(errors)), key=lambda i: errors[i] / own[i])
    keys = {key: getattr(way.diffusion, key) for key in ("process", "timesteps", "prediction")}
    given = in_yaml({key: value for key, value in (keys | {"process": keys["process"] or "ddpm"}).items() if value})
    said = (
        f"the network of {name} is called as {call}, and {where}, with {(*LEVELS, *OUTER)[at]:g} times their standard "
        f"deviation, {_said(own[at])}; called as {way.call or expected(way.diffusion)} it is {errors[at]:.2g}: "
        + (f"have its function return {way.call}" if way.call else f"set diffusion: {given}")
    )
    if error < POOR:
        return said
    raise CustomCodeError(said)


def _said(error: float) -> str:
    if error == math.inf:
        return "it fails, or returns nan or infinity"
    return f"its squared error is {error:.2g} times that of a linear estimate"


def _mean(errors: Sequence[float]) -> float:
    return sum(errors[: len(LEVELS)]) / min(len(errors), len(LEVELS))


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


def _better(measure: Measure, among: Iterable[Way], own: Sequence[float]) -> tuple[Way, list[float]] | None:
    """The way with the least mean error among those that are better than `own`, and its errors; None: there is none."""
    found, least, end = None, DENOISES, time.monotonic() + PATIENCE_SECONDS
    for way in among:
        if time.monotonic() > end:
            break
        errors = measure(way, len(LEVELS) * DENOISES)
        ratios = [error / before for error, before in zip(errors, own, strict=False)]
        is_better = _mean(errors) < BETTER * _mean(own) or (
            len(ratios) > 1 and max(ratios) <= AS_GOOD and min(ratios) < SOMEWHERE
        )
        if is_better and _mean(errors) < least:
            found, least = (way, errors), _mean(errors)
    return found


def errors_of(network: OfTimes, diffusion: Diffusion, data: Data, takes: Conditions | None) -> Measure | None:
    """The errors of ways, over those of the best linear estimate; None if there are no images here."""
    channels, height, width = data.image_shape
    count = min(64, max(4, 4096 // (channels * height * width)))
    if (pixels := few_images(data, count)) is None:
        return None
    x0 = torch.from_numpy(pixels).float() / 127.5 - 1
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    variance, levels = float(x0.var()), [*LEVELS, *OUTER]
    if variance == 0:
        return None
    labels = () if takes is None else (_labels(data, len(x0), takes),)

    def measure(way: Way, limit: float) -> list[float]:
        predicts = "velocity" if way.diffusion.prediction == "average_velocity" else way.diffusion.predicts
        process = schedules.process(way.diffusion.model_copy(update={"prediction": predicts}))
        errors = list[float]()

        def called(x: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
            scaling = process.preconditioning(at)
            if scaling is not None and not way.is_scaled:
                x = x / scaling.into
            times = [torch.full((len(x),), way.told(at))] * (2 if diffusion.prediction == "average_velocity" else 1)
            return way.sign * network(x, *times, *labels)

        denoise = Denoise(called, process)
        for deviations in levels:
            started = time.monotonic()
            level = deviations * math.sqrt(variance)  # or else the least that the process has
            told = process.told_within([0, level])[-1:] or process.told_within([level, 1e9])[:1]
            at = process.told(told[0])
            try:
                found = denoise(at.alpha * x0 + at.sigma * eps, at).x0
                error = float((found - x0).square().mean())
            except Exception:  # user code may fail in any way if it is called in another
                error = math.nan
            linear = variance * at.ratio**2 / (variance + at.ratio**2)
            errors.append(math.inf if math.isnan(error) else error / linear)
            if time.monotonic() - started > QUICK_SECONDS:
                del levels[1:]
            if errors[-1] > limit:
                break
        return errors

    return measure


def _labels(data: Data, count: int, takes: Conditions) -> Tensor:
    """The null label, else the images' own, else some."""
    if takes.null_label is not None:
        return torch.full((count,), takes.null_label)
    own = few_labels(data, count)
    return (torch.arange(count) if own is None else torch.from_numpy(own).long()) % takes.classes
