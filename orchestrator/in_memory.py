"""Samples a model in this process, as arrays: no run directory, no cluster.

Torch is imported when something is sampled, not with this module.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Diffusion, Sample, validate
from taugrid.config.load import load
from taugrid.errors import (
    CustomCodeError,
    NotFinite,
    UserError,
    WorkerRefusal,
    is_out_of_memory,
    last_line,
)
from taugrid.images import to_pictures, to_uint8
from taugrid.jobs import Conditions, CustomNetwork
from taugrid.orchestrator.plan.conditions import label_differences, label_rule, require_no, require_possible
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.plan.sections import diffusion_section, require_decoder_keys, sample_section
from taugrid.orchestrator.selection import whole_numbers
from taugrid.registry.datasets import Shape
from taugrid.workers import schedules
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.accelerator.policy import Arithmetic, lacks
from taugrid.workers.conditions import LabelRule, guidance_of, inside, read_column
from taugrid.workers.device import Device, OomCounter, set_up, usual_device
from taugrid.workers.diffusion.decoder import Identity, pictures
from taugrid.workers.network import custom_process
from taugrid.workers.sample import BY_VAE, Watched
from taugrid.workers.samplers.description import describe_samplers, honoured
from taugrid.workers.samplers.sampler import SamplingSpec, sample_batch

if TYPE_CHECKING:
    from taugrid.workers.diffusion.decoder import Decode
    from taugrid.workers.diffusion.denoiser import Denoiser

FOR_A_RUN = ("num_samples", "shard_evaluations")
"""Keys of `sample` that mean nothing without files."""


class AskedImages(NamedTuple):
    """What a caller of `taugrid.sample` asks for, beside the networks."""

    wanted: Sequence[int]
    """The indices of the images."""
    shape: Shape | None
    diffusion: Mapping[str, Any]
    settings: Mapping[str, Any]
    device: str | None


def sample_in_memory(
    model: Any,
    guide: Any,
    indices: int | Iterable[int],
    shape: Shape | None,
    diffusion: Mapping[str, Any],
    settings: Mapping[str, Any],
    device: str | None,
) -> NDArray[np.uint8]:
    """The images `indices` of a model; arguments and errors as in `taugrid.sample`."""
    given = indices
    if isinstance(indices, int | np.integer) and not isinstance(indices, bool):
        indices = range(int(indices))
    wanted = whole_numbers(indices)
    if not wanted or min(wanted) < 0:
        raise UserError(f"indices must be a positive number of images, or their indices from 0, not {given!r}")
    if idle := sorted(settings.keys() & set(FOR_A_RUN)):
        raise UserError(f"{idle[0]} is for a run; say with indices which images are wanted")
    if device is not None:
        _require_device(device)
    with arithmetic.restored():
        try:
            set_up()
            settings = {key: list(value) if isinstance(value, range) else value for key, value in settings.items()}
            settings = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in settings.items()}
            asked = AskedImages(wanted, shape, diffusion, settings, device)
            if isinstance(model, str | Mapping):
                return _sample_planned(model, guide, asked)
            return _sample_held(model, guide, asked)
        except (CustomCodeError, WorkerRefusal) as error:
            raise UserError(str(error)) from error


def _sample_planned(model: str | Mapping[str, Any], guide: Any, asked: AskedImages) -> NDArray[np.uint8]:
    """As a run with a checkpoint, a custom network or an oracle would sample these images."""
    section: dict[str, Any] = {"checkpoint": model} if isinstance(model, str) else dict(model)
    if guide is not None and not isinstance(guide, str):
        raise UserError("guide must be a folder or an id on the hub, because the model is named too")
    section |= {} if guide is None else {"guide": guide}
    if "unet" in section:
        raise UserError("model.unet is still to be trained; `taugrid.run` trains it, and its folder can be sampled")
    if asked.shape is None and "callable" in section:
        raise UserError("shape is missing: a custom network does not say (channels, height, width) itself")
    data = {"name": section.get("oracle", "gaussian")} | ({} if asked.shape is None else {"shape": asked.shape})
    sample = dict(asked.settings) | {"num_samples": max(asked.wanted) + 1}
    given = {"name": "in-memory", "data": data, "model": section, "diffusion": asked.diffusion, "sample": sample}

    def described(*arguments: Any) -> CustomNetwork:
        return custom_process.describe(*arguments[:-1])  # without images: `data` is made up

    [cell] = plan(load(given), Lookups(describe_network=described)).cells
    kinds = (cell.settings.weights, "ema")  # such sources need no run directory
    specs = [model.source.network(Path(), kind) for model, kind in zip(cell.networks, kinds, strict=False)]
    planned = SamplingSpec(cell.decoder, cell.model.diffusion, cell.settings, cell.tau, cell.nfe, cell.guidance)
    place = asked.device or usual_device()
    _require_settings(planned.settings, place)
    device_here = Device(place)
    with _enough_memory(place):
        decode = device_here.decoder(planned.decoder, planned.settings)
        networks = [device_here.network(spec, planned.diffusion, Arithmetic.of(planned.settings)) for spec in specs]
        return _sampled(networks, planned, asked.wanted, cell.label_rule, place, decode)


def _sample_held(model: Any, guide: Any, asked: AskedImages) -> NDArray[np.uint8]:
    """As `_sample_planned`, for networks in the caller's memory."""
    from taugrid.workers.network.load import conditions_in_memory, device_of, network_in_memory, shape_of

    if isinstance(guide, str | Mapping):
        raise UserError(f"guide must be a network in memory, as the model is, not {guide!r}; or give both by name")
    held = [model] if guide is None else [model, guide]
    times = 2 if asked.diffusion.get("prediction") == "average_velocity" else 1
    takes = [conditions_in_memory(each, times) for each in held]
    sampling = _settings(asked.shape or shape_of(model), asked.diffusion, asked.settings, takes)
    rows = sampling.settings.model_copy(update={"num_samples": max(asked.wanted) + 1})
    labels = label_rule(rows, takes[0], f"the network {type(model).__name__}", read_column)
    if sampling.settings.compile != "none":
        raise UserError("compile is for models that taugrid loads; pass torch.compile(network) instead")
    if sampling.settings.precision == "bf16-weights":
        raise UserError("precision: bf16-weights is for models that taugrid loads; set bf16")
    place = asked.device or device_of(model) or usual_device()
    _require_settings(sampling.settings, place)
    with _enough_memory(place), ExitStack() as held_open:
        networks = [held_open.enter_context(network_in_memory(each)) for each in held]
        arithmetic.prepare(sampling.settings.precision, place, place)
        computed = [arithmetic.adapted(each, Arithmetic.of(sampling.settings), place) for each in networks]
        return _sampled(computed, sampling, asked.wanted, labels, place)


def _settings(
    shape: Shape | None,
    diffusion: Mapping[str, Any],
    settings: Mapping[str, Any],
    takes: Sequence[Conditions | None],
) -> SamplingSpec:
    """How networks in the caller's memory are sampled: one, or one and its guide, with the labels that each `takes`."""
    if shape is None:
        raise UserError("shape is missing: the network does not say (channels, height, width) itself")
    given = validate(Sample, {"seed": 0} | dict(settings), "sample")
    process = diffusion_section(validate(Diffusion, diffusion, "diffusion"), sampler=given.sampler)
    require_decoder_keys(given, Identity(shape))
    resolved = sample_section(given, {})
    [described], _ = describe_samplers([(resolved, process)])
    resolved = honoured(resolved, described.keys)
    points = list(map(schedules.process(process).told, described.times))
    guided = len(inside(resolved.guidance_interval, points)) if resolved.is_guided else 0
    how = guidance_of(resolved, guided, *takes)
    if how is None and len(takes) > 1:
        raise UserError("guide has no effect with guidance 1; set guidance, or leave it out")
    if how is not None:
        require_no(label_differences(takes[-1], takes[0]), "guide")
        require_possible(resolved, how, len(takes) > 1, shape[0], points)
    return SamplingSpec(Identity(shape), process, resolved, described.tau, described.evaluations + guided, how)


def _sampled(
    networks: "Sequence[Denoiser]",
    sampling: SamplingSpec,
    wanted: Sequence[int],
    labels: LabelRule | None,
    device: str,
    decode: "Decode | None" = None,
) -> NDArray[np.uint8]:
    """The wanted images, (n, H, W) or (n, H, W, 3), in batches of the size of a run's."""
    import torch

    watched, batches = Watched(networks[0]), []
    guide = watched.also(networks[1]) if len(networks) > 1 else None
    size = sampling.settings.batch_size
    for start in range(0, len(wanted), size):
        batch = wanted[start : start + size]
        asked = None if labels is None else torch.from_numpy(labels.at(np.array(batch))).to(device, torch.int64)
        x0 = sample_batch(watched, torch.tensor(batch, device=device), sampling, asked, guide)
        watched.require_finite(start, start + len(batch), sampling.settings)
        images = x0 if decode is None else pictures(sampling.decoder, decode, x0, sampling.settings.decode_batch)
        try:
            batches.append(to_uint8(images.cpu().numpy(), sampling.settings.rounding))
        except NotFinite as error:
            raise NotFinite(f"{error}{'' if decode is None else BY_VAE}") from None
    return to_pictures(np.concatenate(batches))


@contextmanager
def _enough_memory(device: str) -> Iterator[None]:
    """Raise `UserError` if memory of a GPU runs out within the context, even if a library hides it."""
    shortages = OomCounter(device)
    try:
        yield
        shortages.require_none()
    except Exception as error:
        if not (shortages.any and is_out_of_memory(error)):
            raise
        raise UserError(
            f"{last_line(error)}; set a smaller batch_size, or restart Python: cuDNN keeps the kernels that it chose "
            "while memory was full"
        ) from error


def _require_settings(settings: Sample, place: str) -> None:
    """Raise `UserError` if the device lacks what `settings` need. A worker's words for it name its node."""
    need = lacks(kind_of(place), settings.precision, arithmetic.is_ampere(place))
    if need is not None:
        raise UserError(need.refused(f"device {place} is none", "use another device"))


def _require_device(place: str) -> None:
    """Raise `UserError` if torch has no device of that name, or can't use it."""
    import torch

    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        if str(place).partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise UserError(f"device must be cpu, cuda, cuda:N or mps, not {str(place)!r}") from None
        raise UserError(f"device: {place} can't be used: {last_line(error)}; use device='cpu'") from None
