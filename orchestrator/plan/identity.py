"""The content of the identities of models and cells: values that differ from defaults, and the training images.

This content must never change: tests/unit/test_grid.py pins some ids.
"""

from collections.abc import Callable, Set
from typing import Any

from taugrid.config import DIFFUSION_DEFAULTS, Data, Diffusion, Sample, Section, Train, Unet
from taugrid.orchestrator.plan.resolve import SAMPLE_DEFAULTS
from taugrid.workers.samplers.sampler import code

NOT_IDENTITY = {
    "data": {"root", "download"},
    "train": {"workers", "checkpoint_every", "tensorboard"},
    "sample": {"num_samples"},
}
"""Keys that do not change a result (`num_samples` only extends it)."""

NOT_CELLS = {"num_samples"} | {f"{name}.{key}" for name in ("data", "train") for key in NOT_IDENTITY[name]}
"""The same, as keys of a grid."""

TRAIN_DEFAULTS = Train(seed=0)

Fingerprint = Callable[[Data], str]
"""Like `workers.data.load.content_fingerprint`."""


def diffusion_identity(diffusion: Diffusion) -> dict[str, Any]:
    """The keys of a resolved `diffusion` that differ from the defaults."""
    return _differing(diffusion, DIFFUSION_DEFAULTS)


def unet_identity(unet: Unet) -> dict[str, Any]:
    """The keys of `model.unet` that differ from the defaults."""
    return _differing(unet, Unet())


def train_identity(train: Train) -> dict[str, Any]:
    """The keys of `train` that differ from the defaults and change the trained model."""
    return _differing(train, TRAIN_DEFAULTS, NOT_IDENTITY["train"])


def sample_identity(settings: Sample) -> dict[str, Any]:
    """The keys of a resolved `sample` that differ from the defaults and change images, and a foreign sampler's code."""
    foreign = code(settings.sampler)
    differing = _differing(settings, SAMPLE_DEFAULTS, NOT_IDENTITY["sample"])
    return differing if foreign is None else differing | {"sampler_code": foreign}


def data_identity(data: Data, fingerprint: Fingerprint) -> dict[str, Any]:
    """The training data's identity: the keys of a published data set, or else the images."""
    if not data.dataset.is_published:
        return {"name": data.name, "shape": list(data.image_shape), "sha256": fingerprint(data)}
    return _differing(data.in_ids, Data(), NOT_IDENTITY["data"])


def _differing(section: Section, defaults: Section, without: Set[str] = frozenset()) -> dict[str, Any]:
    values, base = section.model_dump(mode="json"), defaults.model_dump(mode="json")
    differing = {key: value for key, value in values.items() if key not in without and value != base[key]}
    for key in differing:
        inner = getattr(section, key)
        if isinstance(inner, Section):  # its defaults must stay out too, because it may gain keys
            differing[key] = inner.model_dump(mode="json", exclude_defaults=True)
    return differing
