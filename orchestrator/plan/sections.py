"""Sections of a config as cells and models take them: resolved, checked against the mathematics, and as they enter ids.

What enters ids must never change: tests/unit/test_grid.py pins some.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from functools import lru_cache
from typing import Any

import numpy as np

from taugrid.config import (
    CONSISTENCY_DEFAULTS,
    DIFFUSION_DEFAULTS,
    EDM_DEFAULTS,
    FLOW_DEFAULTS,
    SCHEDULE_KEYS,
    SIGMA_KEYS,
    Data,
    Diffusion,
    Sample,
    Section,
    Train,
    Unet,
)
from taugrid.errors import UserError
from taugrid.grids import plain_text
from taugrid.registry.samplers import CONSISTENCY, DEFAULT, LCM
from taugrid.workers import schedules
from taugrid.workers.conditions import LabelRule
from taugrid.workers.data.load import number_of_classes, without_labels
from taugrid.workers.diffusion.decoder import Decoder, Vae
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS

UNSET = Diffusion()


def diffusion_section(section: Diffusion, theirs: Diffusion = UNSET, sampler: str | None = None) -> Diffusion:
    """`section` with no key left null that its process has, filled in from `theirs`, a loaded checkpoint's, then from
    the defaults. The keys of other processes stay null, and `process` for DDPM's.

    `sampler`: the cell's. With `consistency` alone, networks of the process `edm` predict that by default.

    Raises `UserError` if there are too few or too many betas, alpha does not fall, no signal is left for epsilon, or a
    key belongs to another process."""
    if section.process not in (None, theirs.process or "ddpm"):
        if theirs.process or ((theirs.schedule or theirs.trained_betas) and not _is_consistency(section, sampler)):
            raise UserError(
                f"diffusion.process: {section.process}, but by its scheduler the checkpoint's is "
                f"{theirs.process or 'ddpm'}; remove the key"
            )
        theirs = UNSET
    known = _filled(section, theirs)
    defaults = {"edm": EDM_DEFAULTS, "flow": FLOW_DEFAULTS}.get(known.process or "ddpm", DIFFUSION_DEFAULTS)
    is_jump = known.process == "edm" and _is_consistency(known, sampler)
    resolved = _filled(known, CONSISTENCY_DEFAULTS if is_jump else defaults)
    if resolved.process == "ddpm":
        resolved = resolved.model_copy(update={"process": None})
    _require_one_process(resolved)
    if resolved.process is None:
        _require_signal(resolved)
    return resolved


def _is_consistency(diffusion: Diffusion, sampler: str | None) -> bool:
    """Whether a network of the process `edm` is a consistency model. A folder's betas say nothing of one."""
    return diffusion.prediction == "consistency" or (diffusion.prediction is None and sampler == CONSISTENCY)


def _filled(section: Diffusion, fallback: Diffusion) -> Diffusion:
    """`section` with null keys taken from `fallback`. A schedule and a list of betas replace each other."""
    given = {key: value for key, value in section.model_dump().items() if value is not None}
    replaced: dict[str, Any] = {}
    if section.trained_betas is not None:
        replaced = {**dict.fromkeys(SCHEDULE_KEYS), "timesteps": len(section.trained_betas)}
    elif given.keys() & set(SCHEDULE_KEYS):
        replaced = {"trained_betas": None}
    filled = fallback.model_copy(update=replaced | given)
    if filled.trained_betas is not None and filled.timesteps != len(filled.trained_betas):
        raise UserError(
            f"diffusion.timesteps is {filled.timesteps}, but there are {len(filled.trained_betas)} trained_betas; "
            "remove timesteps, or set a schedule instead of trained_betas"
        )
    return filled


def _require_one_process(diffusion: Diffusion) -> None:
    """Raise `UserError` if a key belongs to another process, or the noise levels of `edm` are impossible."""
    name = diffusion.process or "ddpm"
    if diffusion.prediction not in PREDICTIONS[name]:
        fitting = [f"process: {each}" for each, its in PREDICTIONS.items() if diffusion.prediction in its]
        raise UserError(
            f"diffusion.prediction: {diffusion.prediction} does not go with process: {name}, whose networks predict "
            f"{' or '.join(PREDICTIONS[name])}; set one of these, or {' or '.join(fitting)}"
        )
    no_sigma = "only process: edm has such a key; remove it, or set the process"
    strangers = {} if name == "edm" else dict.fromkeys(SIGMA_KEYS, (None, no_sigma))
    if name != "ddpm":
        strangers |= {key: (absent, f"process: {name} has no betas; remove it") for key, absent in _OF_BETAS.items()}
    if name == "edm" and diffusion.prediction != "consistency":
        strangers["timesteps"] = None, "with process: edm, only consistency models have whole times; remove it"
    for key, (absent, why) in strangers.items():
        if getattr(diffusion, key) != absent:
            raise UserError(f"diffusion.{key}: {why}")
    if name != "edm":
        return
    try:
        schedules.process(diffusion)
    except ValueError as error:
        raise UserError(f"diffusion: {error}; here, {diffusion.in_words}") from None
    is_jump = diffusion.prediction == "consistency"  # which may begin anywhere
    if not is_jump and diffusion.sigma_max <= diffusion.sigma_data:  # type: ignore[operator]  # it is resolved
        raise UserError(
            f"diffusion.sigma_max: {diffusion.sigma_max:g} is not above the images' standard deviation, sigma_data: "
            f"{diffusion.sigma_data:g}, so x_T would not be noise; set what the network was trained with, usually 80"
        )


PREDICTIONS = {
    "ddpm": ("epsilon", "sample", "v_prediction"),
    "edm": ("edm", "sample", "v_prediction", "consistency"),
    "flow": ("velocity", "sample", "average_velocity"),
}
"""What the networks of each process may predict."""


_OF_BETAS = dict.fromkeys((*SCHEDULE_KEYS, "trained_betas")) | {
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
}
"""Keys that say nothing without betas, with their values then."""


@lru_cache(maxsize=16)
def _require_signal(diffusion: Diffusion) -> None:
    try:
        alpha_bar = schedules.alpha_bar(diffusion)
    except ValueError as error:
        raise UserError(f"diffusion: {error}") from None
    ends_at_1 = diffusion.set_alpha_to_one is False  # alpha_0 = alpha_1 then
    if alpha_bar[-2] <= 0 or (np.diff(alpha_bar[int(ends_at_1) :]) >= 0).any():
        raise UserError(
            f"diffusion: with {diffusion.named_betas} and timesteps {diffusion.timesteps}, alpha does not fall at "
            "every step, or reaches 0 before the last; choose other betas or fewer timesteps"
        )
    if diffusion.prediction == "epsilon" and alpha_bar[-1] == 0:
        cause = f"schedule: {diffusion.schedule}" if diffusion.schedule else "trained_betas"
        cause = "rescale_betas_zero_snr" if diffusion.rescale_betas_zero_snr else cause
        raise UserError(
            f"diffusion.{cause} leaves no signal at T (alpha_T = 0), where epsilon does not determine x0: eq. 9 "
            "divides by zero; set diffusion.prediction: v_prediction (or sample), or another schedule"
        )


def check_loss_weights(train: Train, diffusion: Diffusion) -> None:
    if train.loss_weights is not None:
        if diffusion.process is not None:
            raise UserError(
                f"train.loss_weights: Theorem 1's weights are for process: ddpm, not {diffusion.process}, which has "
                "one loss; remove train.loss_weights"
            )
        try:
            schedules.gamma(train.loss_weights, schedules.alpha_bar(diffusion))
        except ValueError as error:
            raise UserError(f"train.loss_weights: {error}") from None


def check_classes(data: Data, unet: Unet, train: Train) -> None:
    """Raise `UserError` unless `data` has the labels that `unet` and `train` need. They are already in an identity."""
    if unet.num_classes is None:
        if train.label_dropout:
            raise UserError(
                f"train.label_dropout: {train.label_dropout} drops labels, but the network takes none: set "
                "model.unet.num_classes, or remove it"
            )
        return
    if not data.dataset.labels:
        raise UserError(f"model.unet.num_classes: {unet.num_classes}, but {without_labels(data)}")
    try:
        classes = number_of_classes(data)
    except UserError:
        return  # they are gone since: `data_identity` knows them by their recorded hash
    if classes != unet.num_classes:
        raise UserError(
            f"model.unet.num_classes: {unet.num_classes}, but {data.full_name} has {classes} classes: set {classes}"
        )


def sample_section(settings: Sample, theirs: Mapping[str, Any]) -> Sample:
    """`settings` with no key left null; `theirs` are the keys that a loaded pipeline sets. A `decode_batch` that makes
    the default's slices of every batch is the default, and so is a shift of 1, unless it replaces the pipeline's. The
    options of an LCM pipeline's scheduler are for the sampler `lcm` alone."""
    given = {key: value for key, value in theirs.items() if getattr(settings, key) is None and value is not None}
    defaults = {key: getattr(SAMPLE_DEFAULTS, key) for key in ("clip", "clip_range", "steps_offset")}
    missing = {key: value for key, value in defaults.items() if getattr(settings, key) is None}
    slices = {min(size, settings.batch_size) for size in (settings.decode_batch, SAMPLE_DEFAULTS.decode_batch)}
    usual: dict[str, Any] = {"decode_batch": SAMPLE_DEFAULTS.decode_batch} if len(slices) == 1 else {}
    if (settings.shift or 1, theirs.get("shift") or 1) == (1, 1):
        given["shift"] = None
    if settings.sampler == LCM:
        given["sampler_options"] = {**theirs.get("sampler_options", {}), **settings.sampler_options}
    return settings.model_copy(update=missing | given | usual)


def require_whole_times(settings: Sample, times: Iterable[float], name: str) -> None:
    """Raise `UserError` if the sampler's `times` call a network that takes whole times only, `name`, between them."""
    if fraction := next((time for time in times if time != int(time)), None):
        by = f"spacing {settings.spacing_name}" if settings.sampler == DEFAULT else f"the sampler {settings.sampler}"
        raise UserError(
            f"model.callable: the network of {name} takes whole time indices only, but {by} calls it at {fraction:g}; "
            "choose another spacing or sampler, or have the network embed times as numbers"
        )


def require_decoder_keys(settings: Sample, decoder: Decoder) -> None:
    """Raise `UserError` if a key of `sample` is for a VAE, and the network samples pixels."""
    for key in ("vae_precision", "decode_batch", "keep_latents"):
        if not isinstance(decoder, Vae) and (value := getattr(settings, key)) != getattr(SAMPLE_DEFAULTS, key):
            raise UserError(
                f"sample.{key}: {plain_text(value)} is for latents, but this network samples pixels; remove it"
            )


NOT_IDENTITY = {
    "data": {"root", "download"},
    "train": {"workers", "checkpoint_every", "tensorboard"},
    "sample": {"num_samples", "keep_latents"},
}
"""Keys that do not change a result (`num_samples` only extends it)."""

KEYS_OUTSIDE_IDENTITY = NOT_IDENTITY["sample"] | {
    f"{name}.{key}" for name in ("data", "train") for key in NOT_IDENTITY[name]
}
"""The same, as keys of a grid."""

TRAIN_DEFAULTS = Train(seed=0)

Fingerprint = Callable[..., str]  # like `workers.data.load.content_fingerprint`


def diffusion_identity(diffusion: Diffusion) -> dict[str, Any]:
    return differing_keys(diffusion, DIFFUSION_DEFAULTS)


_HASHED_DEFAULTS = SAMPLE_DEFAULTS.model_copy(update={"batch_size": 256, "shard_evaluations": 50_000})
"""The defaults of the first version: ids of cells leave them out, so that an id never gets another meaning."""


def sample_identity(settings: Sample, code: str | None, labels: LabelRule | None) -> dict[str, Any]:
    """The keys of a resolved `sample` that differ from the hashed defaults and change images, and a sampler's code.
    `labels`: as resolved, where what the network takes is known; of a column its content counts, not its path."""
    differing = differing_keys(settings, _HASHED_DEFAULTS, NOT_IDENTITY["sample"])
    if labels is not None:
        differing["labels"] = labels.said
    return differing if code is None else differing | {"sampler_code": code}


def data_identity(data: Data, fingerprint: Fingerprint, has_labels: bool = False) -> dict[str, Any]:
    """The training data's identity: the keys of a published data set, or else the images and the labels, if used."""
    if not data.dataset.is_published:
        labels = {"labels": fingerprint(data, "labels")} if has_labels else {}
        return {"name": data.name, "shape": list(data.image_shape), "sha256": fingerprint(data), **labels}
    is_usual = data.shape == data.dataset.shape  # whether it was written down or not
    in_ids = data.model_copy(update={"shape": None}) if is_usual else data
    return differing_keys(in_ids, Data(), NOT_IDENTITY["data"])


def differing_keys(section: Section, defaults: Section, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The keys of a section that differ from the defaults, in JSON, as an identity has them; none of `without`."""
    values, base = section.model_dump(mode="json"), defaults.model_dump(mode="json")
    differing = {key: value for key, value in values.items() if key not in without and value != base[key]}
    for key in differing:
        inner = getattr(section, key)
        if isinstance(inner, Section):  # its defaults must stay out too, because it may gain keys
            differing[key] = inner.model_dump(mode="json", exclude_defaults=True)
    return differing
