"""Tries a custom sampler on two tiny images, on the CPU, before it costs any accelerator time.

A process of its own does this (`workers.custom.describe`): the code may be anything, and imports torch. The network is
the exact prediction for independent pixels from one Gaussian, so each of its outputs depends on one pixel alone.
"""

import inspect
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taugrid.config import DIFFUSION_DEFAULTS, Diffusion, Sample
from taugrid.errors import SamplerFault, UserError
from taugrid.hashing import canonical_json
from taugrid.registry import samplers
from taugrid.workers import schedules
from taugrid.workers.custom.source import source_of
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.process import Point, Process, predict_eps
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, SamplerDescription, Tried, describe_sampler, honoured
from taugrid.workers.samplers.sampler import SamplingSpec, find, sample_batch

SHAPE = (1, 8, 8)
"""Pixels that fill a CPU's vectors: torch computes a remainder in another way, and powers then differ in a bit."""

ARGUMENTS = ("x", "path", "denoise", "noise", "settings")  # of `Sampler.sample`

MEAN, VARIANCE = 0.1, 0.0625  # of every pixel: few lie outside [-1, 1], where a sampler may clip

SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
}
"""Of torch, for the whole process: how each is read and set."""


def describe(name: str, points: Sequence[Mapping[str, Mapping[str, Any]]]) -> Tried:
    """What the custom sampler `name` says of `points`, or why it can't be used; the user's own errors pass through. A
    point has the keys of `sample` and of `diffusion` that differ from the defaults."""
    descriptions = []
    try:
        with _settings_kept(name):
            sampler = find(name)
            try:
                inspect.signature(sampler.sample).bind(*ARGUMENTS)
                canonical_json(dict(sampler.options))
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"sample.sampler: {name} must take sample({', '.join(ARGUMENTS)}) and have options that JSON can "
                    f"hold, but: {error}"
                ) from None
            for point in points:
                settings = Sample.model_validate({**SAMPLE_DEFAULTS.model_dump(), **point["sample"], "sampler": name})
                diffusion = Diffusion.model_validate({**DIFFUSION_DEFAULTS.model_dump(), **point["diffusion"]})
                promised = describe_sampler(settings, diffusion)
                times = _times_called(honoured(settings, promised.keys), diffusion, promised)
                descriptions.append(promised._replace(times=times)._asdict())
    except SamplerFault as error:
        return Tried((), refusal=f"sample.sampler: {error}")
    except UserError as error:
        return Tried((), refusal=str(error))
    return Tried(descriptions, source_of([samplers.entry(name).module]).files)


def _times_called(settings: Sample, diffusion: Diffusion, promised: SamplerDescription) -> tuple[float, ...]:
    """The times at which the sampler calls the network, in order, if it keeps its word. Raises `UserError` if it moves
    a global random state, returns NaN, or an image depends on its batch or on chance; `SamplerFault` (see
    `sample_batch`)."""
    name, steps = settings.sampler, settings.steps
    spec = SamplingSpec(Identity(SHAPE), diffusion, settings, promised.tau, promised.evaluations)
    times: list[float] = []

    def network(x: Tensor, at: Point, condition: Tensor | None = None, /) -> Tensor:
        times.append(at.time)
        return exact(x, at, schedules.process(diffusion))

    def images(*indices: int) -> Tensor:
        return sample_batch(network, torch.tensor(indices), spec)

    before = _random_states()
    both = images(0, 1)
    called = tuple(times)
    if moved := [library for library, state in _random_states().items() if state != before[library]]:
        raise UserError(
            f"sample.sampler: {name} draws from the global random numbers of {' and '.join(moved)}, so its images "
            "would be a matter of chance; draw with noise(key), and with noise(key, 1) for a second draw at one key"
        )
    if not both.isfinite().all():
        raise UserError(
            f"sample.sampler: {name} returns nan or infinity at steps {steps}: check its divisions (sigma is 0 at time "
            "0, alpha can be 0 at T, and times may repeat)"
        )
    if not torch.equal(torch.cat([images(0), images(1)]), both):
        raise UserError(
            f"sample.sampler: {name} makes another image of the same x when it is called again or in another batch: "
            "draw only with noise(key), keep no state, and compute each image from its own x (a mean, for one, over "
            "x.flatten(1), not over x)"
        )
    return called


def exact(x: Tensor, at: Point, process: Process, scale: float = 1.0) -> Tensor:
    """What the optimal network predicts for x, (B, C, H, W), elementwise, so that the batch changes no bit. With m and
    v for `MEAN` and `VARIANCE`, of pixels times `scale`, E[x0 | x] = m + a v (x - a m) / (a^2 v + s^2), as the process
    has it."""
    mean, variance = scale * MEAN, scale**2 * VARIANCE
    scaling = process.preconditioning(at)
    if scaling is not None:
        x = x / scaling.into
    gain = at.alpha * variance / (at.alpha**2 * variance + at.sigma**2)
    x0 = mean + gain * (x - at.alpha * mean)
    if scaling is not None:
        return (x0 - scaling.skip * x) / scaling.out
    if process.prediction == "sample":
        return x0
    eps = predict_eps(x, x0, at)
    by_name = {"epsilon": eps, "v_prediction": at.alpha * eps - at.sigma * x0, "velocity": eps - x0}
    return by_name[process.prediction]


@contextmanager
def _settings_kept(name: str) -> Iterator[None]:
    """Raises `UserError` if the block changes one of `SETTINGS`, whatever else it raises, and restores them all."""
    before = {setting: get() for setting, (get, _) in SETTINGS.items()}
    try:
        yield
    finally:
        changed = [setting for setting, (get, _) in SETTINGS.items() if get() != before[setting]]
        for setting in changed:
            SETTINGS[setting][1](before[setting])
        if changed:
            raise UserError(
                f"sample.sampler: {name} changes torch's {' and '.join(changed)} for the whole process, the network "
                "included; remove that, or do it in a `with` block that ends before the sampler calls or returns"
            )


def _random_states() -> dict[str, bytes]:
    """The states of the global random number generators, by their library."""
    torchs = torch.get_rng_state().numpy().tobytes()
    return {"torch": torchs, "numpy": pickle.dumps(np.random.get_state()), "random": pickle.dumps(random.getstate())}
