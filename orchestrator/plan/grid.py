"""From a config to models, cells and shards: frozen pure data, identities from content, no clock and no disk but the
checkpoints that the config names.

Ids are the first 10 hex digits of SHA-256 over canonical JSON of the values that differ from defaults, so that a new
key orphans no old run. What enters them can never change: tests/unit/test_grid.py pins some.
"""

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from taugrid.config import (
    DIFFUSION_DEFAULTS,
    GRID_SECTIONS,
    SCHEDULE_KEYS,
    Config,
    Data,
    Diffusion,
    ModelSection,
    Sample,
    Section,
    Train,
    Unet,
    validate,
)
from taugrid.errors import UserError
from taugrid.hashing import identity
from taugrid.jobs import CustomNetwork
from taugrid.workers import schedules
from taugrid.workers.diffusion.timesteps import remarks, tau
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import Checkpoint, read_checkpoint

NOT_IDENTITY = {
    "data": {"root", "download"},
    "train": {"workers", "checkpoint_every", "tensorboard"},
    "sample": {"num_samples"},
}
"""Keys that change no result (or, for `num_samples`, only how much there is of it)."""

NOT_CELLS = {"num_samples"} | {f"{name}.{key}" for name in ("data", "train") for key in NOT_IDENTITY[name]}
"""The same, as keys of a grid."""

TABLE_KEYS = {"steps", "eta", "spacing", "sampler", "clip", "num_samples", "precision"}
"""Grid keys that every quality table has a column for anyway, and `precision`: there a metric has that name."""

LONGEST_NAME = 100
"""Characters of a figure's name that are made of settings: file systems end at 255, and a list of times can be long."""

SAMPLE_DEFAULTS = Sample(clip="none", clip_range=1.0, steps_offset=0, seed=0)
TRAIN_DEFAULTS = Train(seed=0)


@dataclass(frozen=True)
class Model:
    """A network and its forward process: trained here (`unet`, `train`), or a `checkpoint`, an `oracle` or `own`."""

    id: str
    data: Data
    diffusion: Diffusion
    unet: Unet | None
    train: Train | None
    checkpoint: Checkpoint | None
    oracle: str | None = None
    """The oracle's name; it belongs to the distribution that `data` names."""
    own: CustomNetwork | None = None
    """What `model.callable` returns."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.checkpoint.image_shape if self.checkpoint else self.data.image_shape


@dataclass(frozen=True)
class Shard:
    """Images `start` to `stop` - 1 of one cell: a whole number of batches, except at the cell's end."""

    cell: str
    number: int
    start: int
    stop: int
    evaluations: int

    @property
    def name(self) -> str:
        """File name in the cell's folders."""
        return f"part-{self.number:06d}.parquet"

    @property
    def images(self) -> int:
        """Number of images."""
        return self.stop - self.start


@dataclass(frozen=True)
class Cell:
    """A model sampled with one group of settings."""

    id: str
    model: Model
    settings: Sample
    axes: dict[str, Any]
    """Values of the grid keys that have no column of their own in the tables."""

    @cached_property
    def tau(self) -> tuple[int, ...]:
        """The time steps, increasing, in 1..T."""
        return _tau(self.settings, self.model.diffusion)

    @property
    def name(self) -> str:
        """Folder name: S0010-eta0.2-<id>, or S0010-sigma_hat-<id>."""
        eta = self.settings.eta
        return f"S{self.settings.steps:04d}-{eta if eta == 'sigma_hat' else f'eta{eta:g}'}-{self.id}"

    @property
    def shard_images(self) -> int:
        """Images of a full shard: whole batches, about `shard_evaluations` network evaluations; not a function of N."""
        per_batch = self.settings.batch_size * len(self.tau)
        return self.settings.batch_size * max(1, self.settings.shard_evaluations // per_batch)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The cell's shards; they tile 0..N-1 in order."""
        n, size = self.settings.num_samples, self.shard_images
        bounds = [(start, min(start + size, n)) for start in range(0, n, size)]
        return tuple(Shard(self.id, i, a, b, (b - a) * len(self.tau)) for i, (a, b) in enumerate(bounds))


@dataclass(frozen=True)
class Plan:
    """Everything that a config asks for."""

    models: tuple[Model, ...]
    cells: tuple[Cell, ...]

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, longest first, as they are dispatched."""
        every = (shard for cell in self.cells for shard in cell.shards)
        return tuple(sorted(every, key=lambda shard: -shard.evaluations))

    @property
    def remarks(self) -> list[str]:
        """What people should know of the lists tau that they asked for."""
        lists = {(cell.settings.spacing_name, cell.settings.steps, cell.tau): cell for cell in self.cells}
        settings = [(cell.settings.spacing, cell.settings.steps, cell.tau) for cell in lists.values()]
        return [remark for spacing, steps, times in settings for remark in remarks(spacing, steps, times)]

    @property
    def axes(self) -> list[str]:
        """Grid keys without a table column of their own."""
        return list(self.cells[0].axes)


def name_of(parts: Iterable[Any]) -> str:
    """`parts` as part of a file's name, or a hash of them where that would be too long for one."""
    text = "-".join(map(str, parts))
    if len(text) > LONGEST_NAME:
        return identity({"parts": text})
    return "".join(character if character.isalnum() or character in "=.-_" else "_" for character in text)


DescribeNetwork = Callable[[str, str | None, tuple[int, int, int], int], CustomNetwork]
"""As `custom_process.describe`."""

Fingerprint = Callable[[Data], str]
"""As `content_fingerprint`."""


def content_fingerprint(data: Data) -> str:
    """SHA-256 of a data set's images, which are read for it; `UserError` where they are missing."""
    from taugrid.workers.data import load as datasets

    return datasets.content_fingerprint(data)


def plan(
    config: Config,
    read_checkpoint: Callable[[str], Checkpoint] = read_checkpoint,
    describe_network: DescribeNetwork = custom_process.describe,
    fingerprint: Fingerprint = content_fingerprint,
) -> Plan:
    """The models and cells of `config`, in the order of its grid.

    Raises:
        UserError: unknown grid key, bad value, S > T, a point named twice, a model without a source.
    """
    read_once: dict[str, Checkpoint] = {}

    def read(path: str) -> Checkpoint:
        if path not in read_once:
            read_once[path] = read_checkpoint(path)
        return read_once[path]

    describe_once = cache(describe_network)
    mappings = config.grid or [{}]
    axes = [key for key in dict.fromkeys(key for mapping in mappings for key in mapping) if key not in TABLE_KEYS]
    models: dict[str, Model] = {}
    cells: dict[str, Cell] = {}
    for point in _points(mappings):
        sections = _sections_at(config, point)
        model = _model(sections, read, describe_once, fingerprint)
        model = models.setdefault(model.id, model)
        cell = _cell(model, sections, axes)
        if cell.id in cells:
            idle = sorted(NOT_CELLS & set(point))
            hint = f" ({', '.join(idle)} makes no other cell)" if idle else ""
            raise UserError(f"grid: the point {_describe(point)} is named twice{hint}; remove one of them")
        cells[cell.id] = cell
    return Plan(tuple(models.values()), tuple(cells.values()))


def _points(mappings: list[dict[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    for mapping in mappings:
        for values in itertools.product(*mapping.values()):
            yield dict(zip(mapping, values, strict=True))


def _describe(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "(the only one)"


def _sections_at(config: Config, point: Mapping[str, Any]) -> dict[str, Section]:
    """The sections that make a model and a cell, with the grid point's values put in."""
    sections: dict[str, Section] = {name: getattr(config, name) for name in (*GRID_SECTIONS, "sample")}
    dumps = {name: section.model_dump() for name, section in sections.items()}
    for key, value in point.items():
        name, path = _locate(key)
        node = dumps[name]
        for part in path[:-1]:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[path[-1]] = value
    where = f"grid, at {_describe(point)}"
    return {name: validate(type(section), dumps[name], f"{where}: {name}") for name, section in sections.items()}


def _locate(key: str) -> tuple[str, list[str]]:
    """(section, path in it) that a grid key means."""
    head, *rest = key.split(".")
    if rest and head in GRID_SECTIONS:
        return head, rest
    if not rest and head in Sample.model_fields:
        return "sample", [head]
    if head == "sample":
        raise UserError(f"grid: keys of sample are written bare: {'.'.join(rest)!r}, not {key!r}")
    near = difflib.get_close_matches(key, [*Sample.model_fields, *(f"{name}." for name in GRID_SECTIONS)], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "a key of sample, or a dotted one such as diffusion.schedule"
    raise UserError(f"grid: unknown key {key!r} ({hint})")


def _model(
    sections: Mapping[str, Section],
    read: Callable[[str], Checkpoint],
    describe_network: DescribeNetwork,
    fingerprint: Fingerprint,
) -> Model:
    data, source, diffusion, train = (sections[name] for name in GRID_SECTIONS)
    assert isinstance(data, Data)
    assert isinstance(source, ModelSection)
    assert isinstance(diffusion, Diffusion)
    assert isinstance(train, Train)
    content: dict[str, Any]
    if source.checkpoint is not None:
        checkpoint = read(source.checkpoint)
        resolved = _filled(_filled(diffusion, checkpoint.diffusion), DIFFUSION_DEFAULTS)
        content = {
            "weights": checkpoint.weights_sha256,
            "unet": checkpoint.unet_config,
            "diffusion": _differing(resolved, DIFFUSION_DEFAULTS),
        }
        _require_signal(resolved)
        return Model(identity(content), data, resolved, None, None, checkpoint)
    resolved = _filled(diffusion, DIFFUSION_DEFAULTS)
    _require_signal(resolved)
    if source.oracle is not None:
        if data.name != source.oracle:
            raise UserError(f"model.oracle: {source.oracle} is the optimum for data.name: {source.oracle}; set both")
        if resolved.prediction != "epsilon":
            raise UserError(f"model.oracle predicts epsilon; leave diffusion.prediction out, not {resolved.prediction}")
        content = {
            "oracle": source.oracle,
            "shape": list(data.image_shape),
            "diffusion": _differing(resolved, DIFFUSION_DEFAULTS),
        }
        return Model(identity(content), data, resolved, None, None, None, source.oracle)
    if source.callable is not None:
        assert resolved.timesteps is not None
        own = describe_network(source.callable, source.weights, data.image_shape, resolved.timesteps)
        content = {
            "callable": own.callable,
            "source": own.source_sha256,
            "weights": own.weights_sha256,
            "tensors": own.tensors_sha256,  # the function may read more than the one file that it is given
            "shape": list(own.image_shape),
            "diffusion": _differing(resolved, DIFFUSION_DEFAULTS),
        }
        return Model(identity(content), data, resolved, None, None, None, own=own)
    if source.unet is None:
        raise UserError(
            "model: give unet: {...} to train a network, checkpoint: FOLDER to load one, callable: MODULE:FUNCTION for "
            "one's own, or oracle: NAME"
        )
    _check_loss_weights(train, resolved)
    if source.unet.dropout and train.most_workers > 1:
        raise UserError("model.unet.dropout: masks depend on the number of workers, so it needs train.workers: 1")
    content = {
        "data": _data_content(data, fingerprint),
        "unet": _differing(source.unet, Unet()),
        "diffusion": _differing(resolved, DIFFUSION_DEFAULTS),
        "train": _differing(train, TRAIN_DEFAULTS, NOT_IDENTITY["train"]),
    }
    return Model(identity(content), data, resolved, source.unet, train, None)


def _data_content(data: Data, fingerprint: Fingerprint) -> dict[str, Any]:
    """What a model was trained on: a published data set is identified by its name, others by their images."""
    if not data.dataset.is_published:
        return {"name": data.name, "shape": list(data.image_shape), "sha256": fingerprint(data)}
    return _differing(data.in_ids, Data(), NOT_IDENTITY["data"])


def _cell(model: Model, sections: Mapping[str, Section], axes: list[str]) -> Cell:
    settings = sections["sample"]
    assert isinstance(settings, Sample)
    if model.own is not None and settings.weights != "ema":
        raise UserError(f"sample.weights: {settings.weights}, but one's own network has one set of them; leave it out")
    settings = _resolved(settings, model.checkpoint)
    _tau(settings, model.diffusion)  # refused here, not when the first worker asks
    resolved = {**sections, "sample": settings, "diffusion": model.diffusion}
    return Cell(_cell_id(model, settings), model, settings, {key: _value_at(resolved, key) for key in axes})


def _resolved(settings: Sample, checkpoint: Checkpoint | None) -> Sample:
    """`settings` with what they leave to a loaded pipeline; what can play no part has its default, and so one id."""
    if settings.weights == "raw" and checkpoint is not None and checkpoint.raw_folder is None:
        raise UserError(
            f"sample.weights: raw, but {checkpoint.path} has no unet_raw/ beside unet/, as pipelines that taugrid "
            "trained have; set sample.weights: ema, which is the network that is there"
        )
    theirs = checkpoint.sample if checkpoint else {}
    own = {key: value for key, value in theirs.items() if getattr(settings, key) is None and value is not None}
    defaults = {key: getattr(SAMPLE_DEFAULTS, key) for key in ("clip", "clip_range", "steps_offset")}
    missing = {key: value for key, value in defaults.items() if getattr(settings, key) is None}
    found = settings.model_copy(update=missing | own)
    idle = {"clip_range": 1.0} if found.clip == "none" else {}
    idle |= {} if found.spacing == "leading" else {"steps_offset": 0}
    return found.model_copy(update=idle)


def with_settings(cell: Cell, changes: Mapping[str, Any]) -> Cell:
    """The cell of the same model with some of its settings changed, which are no axes of it any more."""
    settings = _resolved(cell.settings.model_copy(update=dict(changes)), cell.model.checkpoint)
    axes = {key: value for key, value in cell.axes.items() if key not in changes}
    return Cell(_cell_id(cell.model, settings), cell.model, settings, axes)


def _cell_id(model: Model, settings: Sample) -> str:
    return identity({"model": model.id, "sample": _differing(settings, SAMPLE_DEFAULTS, NOT_IDENTITY["sample"])})


def _value_at(sections: Mapping[str, Section], key: str) -> Any:
    name, path = _locate(key)
    value: Any = sections[name].model_dump(mode="json")
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _filled(section: Diffusion, fallback: Diffusion) -> Diffusion:
    """`section` with what it leaves null from `fallback`, where a schedule and a list of betas replace each other."""
    given = {key: value for key, value in section.model_dump().items() if value is not None}
    replaced: dict[str, Any] = {}
    if section.trained_betas is not None:
        replaced = {**dict.fromkeys(SCHEDULE_KEYS), "timesteps": len(section.trained_betas)}
    elif given.keys() & set(SCHEDULE_KEYS):
        replaced = {"trained_betas": None}
    filled = fallback.model_copy(update=replaced | given)
    if filled.trained_betas is not None and filled.timesteps != len(filled.trained_betas):
        raise UserError(
            f"diffusion.timesteps: {filled.timesteps}, but there are {len(filled.trained_betas)} trained_betas; leave "
            "timesteps out, or give a schedule in place of them"
        )
    return filled


def _differing(section: Section, defaults: Section, without: Set[str] = frozenset()) -> dict[str, Any]:
    values, base = section.model_dump(mode="json"), defaults.model_dump(mode="json")
    differing = {key: value for key, value in values.items() if key not in without and value != base[key]}
    for key in differing:
        inner = getattr(section, key)
        if isinstance(inner, Section):  # its defaults must not enter either: it may gain keys
            differing[key] = inner.model_dump(mode="json", exclude_defaults=True)
    return differing


def _require_signal(diffusion: Diffusion) -> None:
    try:
        alpha_bar = schedules.alpha_bar(diffusion)
    except ValueError as error:
        raise UserError(f"diffusion: {error}") from None
    ends_at_1 = diffusion.set_alpha_to_one is False  # alpha_0 = alpha_1 then
    if alpha_bar[-2] <= 0 or (np.diff(alpha_bar[int(ends_at_1) :]) >= 0).any():
        raise UserError(
            f"diffusion: with {diffusion.named_betas} and timesteps {diffusion.timesteps}, alpha does not fall from "
            "step to step, or reaches 0 before the last: choose other betas or fewer timesteps"
        )
    if diffusion.prediction == "epsilon" and alpha_bar[-1] == 0:
        cause = f"schedule: {diffusion.schedule}" if diffusion.schedule else "trained_betas"
        cause = "rescale_betas_zero_snr" if diffusion.rescale_betas_zero_snr else cause
        raise UserError(
            f"diffusion.{cause} leaves no signal at T (alpha_T = 0), where epsilon can't tell x0: eq. 9 divides by "
            "zero; set diffusion.prediction: v_prediction (or sample), or another schedule"
        )


def _check_loss_weights(train: Train, diffusion: Diffusion) -> None:
    if train.loss_weights is not None:
        try:
            schedules.gamma(train.loss_weights, schedules.alpha_bar(diffusion))
        except ValueError as error:
            raise UserError(f"train.loss_weights: {error}") from None


def _tau(settings: Sample, diffusion: Diffusion) -> tuple[int, ...]:
    assert diffusion.timesteps is not None, "a planned model's diffusion section is resolved"
    try:
        return tau(settings.spacing, settings.steps, diffusion.timesteps, settings.steps_offset or 0)
    except ValueError as error:
        raise UserError(f"sample.steps, sample.spacing: {error}") from None
