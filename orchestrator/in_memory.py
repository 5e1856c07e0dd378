"""Samples a model in this process, as arrays: no run directory, no cluster.

Torch is imported when something is sampled, not with this module.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Diffusion
from taugrid.config.load import load
from taugrid.errors import CustomCodeError, NotFinite, UserError, WorkerRefusal, is_out_of_memory, last_line
from taugrid.images import to_pictures, to_uint8
from taugrid.jobs import Conditions, CustomNetwork
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.selection import whole_numbers
from taugrid.registry.datasets import Shape
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import kind_of
from taugrid.workers.accelerator.policy import Arithmetic, lacks
from taugrid.workers.device import Device, OomCounter, set_up, usual_device
from taugrid.workers.diffusion.decoder import pictures
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import Checkpoint
from taugrid.workers.sample import Watched, images_not_finite
from taugrid.workers.samplers.sampler import SamplingSpec, sample_batch

if TYPE_CHECKING:
    from taugrid.workers.diffusion.denoiser import Denoiser

FOR_A_RUN = ("num_samples", "shard_evaluations")  # keys of `sample` that mean nothing without files


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
    is_named = isinstance(model, str | Mapping)
    if guide is not None and isinstance(guide, str | Mapping) != is_named:
        raise UserError(f"model and guide must both be named, or both be networks in memory; guide is {guide!r}")
    settings = {key: list(value) if isinstance(value, range) else value for key, value in settings.items()}
    settings = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in settings.items()}
    settings |= {"num_samples": max(wanted) + 1}
    with arithmetic.restored():
        try:
            _require_device(device)
            set_up()
            if is_named:
                cell = _planned(model, guide, shape, diffusion, settings)
                return _sampled_by_name(cell, wanted, device or usual_device())
            held = [model] if guide is None else [model, guide]
            return _sampled_as_held(held, wanted, shape, diffusion, settings, device)
        except (CustomCodeError, WorkerRefusal) as error:
            raise UserError(str(error)) from error


def _planned(
    model: str | Mapping[str, Any],
    guide: str | None,
    shape: Shape | None,
    diffusion: Mapping[str, Any],
    settings: Mapping[str, Any],
    lookups: Lookups | None = None,
) -> Cell:
    """The cell as a run of a checkpoint, a custom network or an oracle would have it."""
    section: dict[str, Any] = {"checkpoint": model} if isinstance(model, str) else dict(model)
    section |= {} if guide is None else {"guide": guide}
    if "unet" in section:
        raise UserError("model.unet is still to be trained; `taugrid.run` trains it, and its folder can be sampled")
    if shape is None and "callable" in section:
        raise UserError("shape is missing: the network does not say (channels, height, width) itself")
    data = {"name": section.get("oracle", "gaussian")} | ({} if shape is None else {"shape": shape})
    given = {"name": "in-memory", "data": data, "model": section, "diffusion": diffusion, "sample": settings}

    def described(*arguments: Any) -> CustomNetwork:
        return custom_process.describe(*arguments[:-1])  # without images: `data` is made up

    [cell] = plan(load(given), lookups or Lookups(describe_network=described)).cells
    return cell


@dataclass(frozen=True)
class HeldGuide(Checkpoint):
    """A guide in the caller's memory, as plans know guides."""

    takes: Conditions | None = None

    @property
    def conditions(self) -> Conditions | None:
        return self.takes


def _sampled_by_name(cell: Cell, wanted: list[int], place: str) -> NDArray[np.uint8]:
    _require_settings(cell, place)
    kinds = (cell.settings.weights, "ema")  # such sources need no run directory
    specs = [model.source.network(Path(), kind) for model, kind in zip(cell.networks, kinds, strict=False)]
    how, device = Arithmetic.of(cell.settings), Device(place)
    with _enough_memory(place):
        networks = [device.network(spec, cell.model.diffusion, how) for spec in specs]
        return _sampled(networks, cell, wanted, device)


def _sampled_as_held(
    held: list[Any],
    wanted: list[int],
    shape: Shape | None,
    diffusion: Mapping[str, Any],
    settings: Mapping[str, Any],
    place: str | None,
) -> NDArray[np.uint8]:
    """As `_sampled_by_name`, for networks in the caller's memory, planned as custom ones."""
    from taugrid.workers.network.load import conditions_in_memory, device_of, network_in_memory, shape_of

    times = 2 if diffusion.get("prediction") == "average_velocity" else 1
    takes = [conditions_in_memory(each, times) for each in held]
    name = f"memory:{type(held[0]).__name__}"
    guide_name = f"memory/{type(held[1]).__name__}" if len(held) > 1 else None  # as an id on the hub is written

    def described(name: str, weights: str | None, shape: Shape, *_: Any) -> CustomNetwork:
        return CustomNetwork(name, weights, "", "", "", shape, "", conditions=takes[0])

    def read_guide(path: str) -> Checkpoint:
        assert shape is not None, "planned without one, `_planned` has refused it"
        channels, *size = shape
        config = {"in_channels": channels, "out_channels": channels, "sample_size": size}
        return HeldGuide(path, "", config, "", Diffusion(), {}, takes=takes[1])

    shape = shape or shape_of(held[0])
    lookups = Lookups(describe_network=described, read_checkpoint=read_guide)
    cell = _planned({"callable": name}, guide_name, shape, diffusion, settings, lookups)
    if cell.settings.compile != "none" or cell.settings.precision == "bf16-weights":
        raise UserError("compile and bf16-weights are for models that taugrid loads; pass a network that is so already")
    place = place or device_of(held[0]) or usual_device()
    _require_settings(cell, place)
    with _enough_memory(place), ExitStack() as stack:
        networks = [stack.enter_context(network_in_memory(each)) for each in held]
        arithmetic.prepare(cell.settings.precision, place, place)
        how = Arithmetic.of(cell.settings)
        return _sampled([arithmetic.adapted(each, how, place) for each in networks], cell, wanted, Device(place))


def _sampled(networks: "list[Denoiser]", cell: Cell, wanted: list[int], device: Device) -> NDArray[np.uint8]:
    """The wanted images, (n, H, W) or (n, H, W, 3), in batches of the size of a run's."""
    import torch

    settings = cell.settings
    sampling = SamplingSpec(cell.decoder, cell.model.diffusion, settings, cell.tau, cell.nfe, cell.guidance)
    decode = device.decoder(cell.decoder, settings)
    watched, batches = Watched(networks[0]), []
    guide = watched.also(networks[1]) if len(networks) > 1 else None
    for start in range(0, len(wanted), settings.batch_size):
        batch = wanted[start : start + settings.batch_size]
        rule = cell.label_rule
        labels = None if rule is None else torch.from_numpy(rule.at(np.array(batch))).to(device.name, torch.int64)
        x0 = sample_batch(watched, torch.tensor(batch, device=device.name), sampling, labels, guide)
        watched.require_finite(min(batch), max(batch) + 1, settings)
        images = pictures(cell.decoder, decode, x0, settings.decode_batch)
        try:
            batches.append(to_uint8(images.cpu().numpy(), settings.rounding))
        except NotFinite:
            raise images_not_finite(cell.decoder, settings.sampler) from None
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


def _require_settings(cell: Cell, place: str) -> None:
    """Raise `UserError` if the device lacks what the settings need. A worker's words for it name its node."""
    need = lacks(kind_of(place), cell.settings.precision, arithmetic.is_ampere(place))
    if need is not None:
        raise UserError(need.refused(f"device {place} is none", "use another device"))


def _require_device(place: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {place} can't be used: {last_line(error)}; use device='cpu'") from None
