"""Whether a custom network denoises when it is called as its process says: its error on a few images of `data`.

A network that expects another time, another input or another sign returns finite images of the right shape, and samples
noise. Its error shows that, and calling it in other ways shows which one it was trained with.

The measure is the squared error of x_0 over that of the best linear estimate, which moves x towards the images' mean.
The mean alone would be too easy to beat: EDM's c_skip x does that with any network.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taugrid.config import DIFFUSION_DEFAULTS, EDM_DEFAULTS, FLOW_DEFAULTS, Data, Diffusion
from taugrid.errors import CustomCodeError
from taugrid.jobs import Conditions
from taugrid.workers import schedules
from taugrid.workers.data.load import few_images, few_labels
from taugrid.workers.diffusion.denoiser import Denoise, OfTimes
from taugrid.workers.diffusion.process import Point

LEVELS, OUTER = (1.0, 0.5, 2.0), (0.1, 10.0)
"""Noise levels sigma / alpha, in standard deviations of the images. At much more noise no network does better than a
guess, and at much less EDM's does well whatever it is told. But at `LEVELS`, where t is 0.3 to 0.6 and ln(sigma) / 4 is
near 0, a small network that is told a wrong time may do well: it shows at `OUTER`."""

GOOD, BETTER, DENOISES, POOR = 0.2, 0.6, 0.7, 1.1
"""Errors. Below `GOOD` nothing is wrong: a trained network of Fashion-MNIST has 0.13, and 0.24 to 0.35 if it is told
wrong times, for it sees the noise. Another way is better if it has less than `BETTER` times the error, and less than
`DENOISES`. Above `POOR` there is a doubt in any case. The optimum for white Gaussian noise has 1."""

AS_GOOD, SOMEWHERE = 1.05, 0.8
"""Another way is better too if it has at most `AS_GOOD` times the error at every level, and at one below `SOMEWHERE`
times: networks of 99,000 parameters that were told wrong times had 1.2 to 1.7 times their error at one of `OUTER`."""

UNLIKE_NOISE = 0.1
"""At T, a network that predicts eps returns nearly x. The squared error above which it is tried as a flow's."""

QUICK_SECONDS, PATIENCE_SECONDS = 5.0, 60.0
"""A network that takes longer for one level is tried at this one alone. Other ways are tried for so long."""

Told = Callable[[Point], float]
"""What a network is told at a point."""

Measure = Callable[["Way", float, Sequence[float]], float]
"""The mean error of a way at noise levels; infinite if it fails, or is above the limit."""


class Way(NamedTuple):
    """A way to call a network, for the x_0 that it predicts then."""

    call: str
    diffusion: Diffusion
    told: Told
    sign: float = 1.0
    is_scaled: bool = True
    """Whether x is multiplied by c_in, if the process does that."""
    settings: Mapping[str, Any] | None = None
    """The keys of `diffusion` that mean it; None: only the user's code can call it so."""


def ways(sigma_data: float) -> list[Way]:
    """Those that networks of the field are called in, the likeliest first; at the end those that no config can name."""
    edm = EDM_DEFAULTS.model_copy(update={"sigma_data": sigma_data})

    def t(at: Point) -> float:
        return at.sigma

    def c_noise(at: Point) -> float:
        return math.log(at.sigma) / 4

    def known(call: str, told: Told, process: str, **others: Any) -> Way:
        diffusion = FLOW_DEFAULTS if process == "flow" else edm
        return Way(call, diffusion.model_copy(update=others), told, settings={"process": process, **others})

    return [
        Way("network(x, index) of DDPM", DIFFUSION_DEFAULTS, lambda at: at.time, settings={"process": "ddpm"}),
        known("network(x, t)", t, "flow", timesteps=1, prediction="velocity"),
        known("network(x, 1000 t)", lambda at: 1000 * at.sigma, "flow", timesteps=1000, prediction="velocity"),
        known("network(x, t) as x_0", t, "flow", timesteps=1, prediction="sample"),
        known("network(c_in x, ln(sigma) / 4)", c_noise, "edm", prediction="edm"),
        known("network(c_in x, ln(sigma) / 4) as -F", c_noise, "edm", prediction="v_prediction"),
        known("network(x, sigma) as x_0", lambda at: at.sigma, "edm", prediction="sample"),
        Way("-network(x, 1 - t)", FLOW_DEFAULTS, lambda at: at.alpha, sign=-1.0),  # SiT's
        Way("network(x, 1 - t)", FLOW_DEFAULTS, lambda at: at.alpha),
        Way("-network(x, t)", FLOW_DEFAULTS, t, sign=-1.0),
        Way("network(c_in x, 250 ln(sigma))", edm, lambda at: 1000 * c_noise(at)),  # consistency models'
        Way("network(c_in x, ln(sigma) / 4000)", edm, lambda at: c_noise(at) / 1000),
        Way("network(x, ln(sigma) / 4)", edm, c_noise, is_scaled=False),  # with c_in inside
    ]


def require(network: OfTimes, name: str, diffusion: Diffusion, data: Data, takes: Conditions | None) -> str | None:
    """None if the network denoises images of `data`, or can't be judged; else a line with a doubt.

    Images that are not here, and consistency models, whose x_0 is the end of a path, are not judged.

    Args:
        network: as it is for inference on the CPU.
        name: in messages.
        diffusion: resolved. Of DDPM's process the betas do not matter: only a flow's network is noticed.
        data: where the images are from.
        takes: the labels that the network takes.

    Raises:
        CustomCodeError: if it denoises only when it is called in another way. If it is merely better then, which may be
            a matter of the images, or if the process is DDPM's, that is the line returned.
    """
    own = Way("", diffusion, lambda at: at.time)
    measure = None if diffusion.prediction == "consistency" else _measure(network, diffusion, data, takes)
    started = time.monotonic()
    if measure is None or (error := measure(own, math.inf, LEVELS)) < GOOD:
        return None
    is_quick, others = time.monotonic() - started < QUICK_SECONDS, ways(diffusion.sigma_data or 0.5)
    found, where, shown = _better(measure, others, error), f"on noised images of {data.full_name}", error
    if found is None and is_quick and diffusion.process and (there := _better_somewhere(measure, own, others)):
        found, (shown, level) = there
        where += f" with {level:g} standard deviations of noise"
    where += f" its squared error is {shown:.2g} times that of a linear estimate"
    if shown == math.inf:
        where = f"{where.partition(' its ')[0]} it fails, or returns nan or infinity"
    if found is not None and (diffusion.process or found[0].diffusion.process) is not None:
        way, less = found
        fix = f"have its function return {way.call}" if way.settings is None else f"set diffusion: {_flow(way)}"
        said = f"the network of {name} is called as {expected(diffusion)}, and {where}; called as {way.call} it is "
        said = f"{said}{less:.2g}: {fix}"
        if diffusion.process is None or error < POOR:
            return said
        raise CustomCodeError(said)
    if error < POOR or diffusion.process is None:
        return None
    return (
        f"the network of {name} predicts x_0 no better than the mean: {where}; is it trained, and is it to be "
        f"called as {expected(diffusion)}?"
    )


def _flow(way: Way) -> str:
    return f"{{{', '.join(f'{key}: {value}' for key, value in (way.settings or {}).items())}}}"


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


def _better(measure: Measure, among: Iterable[Way], error: float) -> tuple[Way, float] | None:
    """The best way with an error below `BETTER` times `error`, and its error; None: there is none."""
    best, end = None, time.monotonic() + PATIENCE_SECONDS
    for way in among:
        if time.monotonic() > end:
            break
        limit = min(BETTER * error, DENOISES) if best is None else best[1]
        if (less := measure(way, limit, LEVELS)) < limit:
            best = way, less
    return best


def _better_somewhere(
    measure: Measure, own: Way, among: Iterable[Way]
) -> tuple[tuple[Way, float], tuple[float, float]] | None:
    """A way as good as `own` at every level and better at one, and its error there; that of `own` there, and the level.

    None: there is none.
    """
    end, found, least = time.monotonic() + PATIENCE_SECONDS, None, SOMEWHERE
    errors = {level: measure(own, math.inf, (level,)) for level in (*OUTER, *LEVELS)}
    for way in among:
        if time.monotonic() > end:
            break
        others = {}
        for level, error in errors.items():
            others[level] = measure(way, AS_GOOD * error, (level,))
            if others[level] == math.inf:
                break
        else:
            at = min(errors, key=lambda level: others[level] / errors[level])
            if others[at] < least * errors[at] and measure(way, DENOISES, LEVELS) < DENOISES:
                least, found = others[at] / errors[at], ((way, others[at]), (errors[at], at))
    return found


def _measure(network: OfTimes, diffusion: Diffusion, data: Data, takes: Conditions | None) -> Measure | None:
    """The errors of ways, over those of the best linear estimate; None if there are no images here."""
    channels, height, width = data.image_shape
    count = min(64, max(4, 4096 // (channels * height * width)))
    if (pixels := few_images(data, count)) is None:
        return None
    x0 = torch.from_numpy(pixels).float() / 127.5 - 1
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    variance, is_slow = float(x0.var()), False
    if variance == 0:
        return None
    labels = () if takes is None else (_labels(data, len(x0), takes),)

    def measure(way: Way, limit: float, levels: Sequence[float]) -> float:
        nonlocal is_slow
        process = schedules.process(way.diffusion)
        errors: list[float] = []

        def called(x: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
            scaling = process.preconditioning(at)
            if scaling is not None and not way.is_scaled:
                x = x / scaling.into
            times = [torch.full((len(x),), way.told(at))] * (2 if diffusion.prediction == "average_velocity" else 1)
            return way.sign * network(x, *times, *labels)

        prediction = "velocity" if way.diffusion.prediction == "average_velocity" else way.diffusion.predicts
        denoise = Denoise(called, process, prediction)
        for deviations in levels:
            started = time.monotonic()
            level = deviations * math.sqrt(variance)  # or else the least that the process has
            told = process.told_within([0, level])[-1:] or process.told_within([level, 1e9])[:1]
            at = process.told(told[0])
            try:
                found = denoise(at.alpha * x0 + at.sigma * eps, at).x0
            except Exception:  # user code may fail in any way if it is called in another
                return math.inf
            linear = variance * at.ratio**2 / (variance + at.ratio**2)
            errors.append(float((found - x0).square().mean()) / linear)
            is_slow = is_slow or time.monotonic() - started > QUICK_SECONDS
            if not sum(errors) < limit * (1 if is_slow else len(levels)):  # NaN too
                return math.inf
            if is_slow:
                break
        return sum(errors) / len(errors)

    return measure


def _labels(data: Data, count: int, takes: Conditions) -> Tensor:
    """The null label, else the images' own, else some."""
    if takes.null_label is not None:
        return torch.full((count,), takes.null_label)
    own = few_labels(data, count)
    return (torch.arange(count) if own is None else torch.from_numpy(own).long()) % takes.classes
