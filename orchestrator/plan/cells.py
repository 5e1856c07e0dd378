"""The parts of a plan: models, cells and their shards, with the names of their files. Pure data."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

from taugrid.config import Data, Diffusion, Sample
from taugrid.grids import BETWEEN, Naming
from taugrid.hashing import SourceFile, identity
from taugrid.orchestrator.plan.sources import ModelSource, Trained
from taugrid.registry.samplers import DEFAULT, SAMPLERS
from taugrid.workers import schedules
from taugrid.workers.conditions import LabelRule, guidance_of, inside
from taugrid.workers.diffusion.decoder import Decoder, Vae
from taugrid.workers.diffusion.denoiser import Guidance
from taugrid.workers.diffusion.process import Point
from taugrid.workers.diffusion.timesteps import remarks
from taugrid.workers.samplers.description import SamplerDescription, describe_sampler
from taugrid.workers.samplers.sampler import find

MAX_NAME_LENGTH = 100
"""The maximum number of characters of a file name that come from settings: file systems allow 255, and a list of times
is long."""


def settings_name(settings: Mapping[str, Any]) -> str:
    """The beginning of a cell's folder name and label: S0010-eta0.2, S0010-sigma_hat, or S0010-<sampler>."""
    name = settings.get("sampler", DEFAULT)
    return _settings_name(settings["steps"], find(name).label(settings) if name in SAMPLERS else name)


def _settings_name(steps: int, label: str) -> str:
    return f"S{steps:04d}-{re.sub(r'[^A-Za-z0-9.+_-]', '_', label)}"


def name_of(parts: Iterable[Any]) -> str:
    """`parts` as part of a file name, or a hash of them if that would be too long."""
    text = "-".join(map(str, parts))
    if len(text) > MAX_NAME_LENGTH:
        return identity({"parts": text})
    return "".join(character if character.isalnum() or character in "=.-_" else "_" for character in text)


@dataclass(frozen=True)
class Model:
    """A network from any source, and its forward process."""

    id: str
    data: Data
    diffusion: Diffusion  # resolved: no key is null
    source: ModelSource
    label: str = field(default="", compare=False)
    """The model's values of the grid's dotted keys, such as "schedule=cosine"; empty for the only model of a plan."""
    lacks: str | None = field(default=None, compare=False)
    """A message on the missing files that its id depends on: `id` is then provisional, unique within the plan."""

    @property
    def shown_id(self) -> str:
        """The id, or `pending` while it is provisional."""
        return self.id if self.lacks is None else PENDING

    @property
    def called(self) -> str:
        """The name in messages: the label or, for the only model of a plan, the id."""
        return self.label or self.shown_id

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one picture."""
        return self.decoder.picture_shape

    @property
    def decoder(self) -> Decoder:
        """What makes pictures of its samples."""
        return self.source.decoder

    @cached_property
    def pace(self) -> str:
        """What it shares with models whose networks take as long: the hash of the architecture, or the id if that is
        unknown."""
        architecture = self.source.architecture
        return self.id if architecture is None else identity(architecture)


PENDING = "pending"  # the id of models and cells as long as it is not known: it is a hash of what is not here yet

_ID = re.compile(r"\b[0-9a-f]{10}\b")


def part_name(number: int) -> str:
    """File name of one of the numbered Parquet files that the rows of a folder are divided into."""
    return f"part-{number:06d}.parquet"


_PART = re.compile(r"part-([0-9]{6}|[1-9][0-9]{6,})\.parquet")  # the names that `part_name` gives, and no others


class Shard(NamedTuple):
    """Images `start` to `stop` - 1 of one cell: a whole number of batches, except at the cell's end."""

    cell: str
    number: int
    start: int
    stop: int
    total_nfe: int  # network evaluations (NFE) of all its images

    @property
    def name(self) -> str:
        return part_name(self.number)

    @property
    def images(self) -> int:
        return self.stop - self.start


TABLE_KEYS = {"steps", "eta", "spacing", "sampler", "clip", "num_samples"}
"""Grid keys that every quality table has a column for."""

COLUMN_NAMES = {"precision": "sample_precision"}
"""Column names of grid keys whose own names are already used by a metric."""


def column(key: str) -> str:
    return COLUMN_NAMES.get(key, key)


@dataclass(frozen=True)
class Cell:
    """A model sampled with one set of settings."""

    id: str
    model: Model
    settings: Sample
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Values of all keys of the grid, in the config's order."""
    naming: Naming = field(default=Naming(), compare=False, repr=False)
    described: SamplerDescription | None = field(default=None, compare=False, repr=False)
    """The description of its sampler when it was planned. None: it is one of taugrid's own, which is asked now."""
    guide: Model | None = field(default=None, compare=False, repr=False)
    """The network of `model.guide`. None: there is none, or guidance is 1."""
    label_rule: LabelRule | None = field(default=None, compare=False, repr=False)
    """The labels of its samples. None: its network is unconditional, or a file that is not here."""
    vae: Vae | None = field(default=None, compare=False, repr=False)
    """The VAE of `model.vae`. None: the model's own decoder is used."""

    @cached_property
    def axes(self) -> dict[str, Any]:
        """The values of the grid keys that tables have no fixed column for, by the names of their columns."""
        return {column(key): value for key, value in self.values.items() if key not in TABLE_KEYS}

    @property
    def decoder(self) -> Decoder:
        """What makes pictures of its samples."""
        return self.vae or self.model.decoder

    @property
    def decoder_block(self) -> dict[str, Any] | None:
        """The VAE's fields in the scoring protocol and in sample files. None: the network samples pixels."""
        if not isinstance(self.decoder, Vae):
            return None
        computed = {"precision": self.settings.vae_precision, "batch": self.settings.decode_batch}
        return self.decoder.identity | computed

    @cached_property
    def label(self) -> str:
        """The name in messages, tables and figures, such as "schedule=cosine · S=50 eta=0"."""
        own, sampler = self.naming.cell(self.values, self.settings.steps, self.eta), self.settings.sampler
        if sampler != DEFAULT and "sampler" not in self.naming.keys:
            own += f" {self.naming.part('sampler', sampler)}"
        return BETWEEN.join(filter(None, [self.model.label, own]))

    @cached_property
    def sampler_description(self) -> SamplerDescription:
        """What its sampler says of it."""
        return self.described or describe_sampler(self.settings, self.model.diffusion)

    @property
    def sampler_block(self) -> dict[str, Any] | None:
        """The sampler's fields in the scoring protocol. None for ddim, which tau and clip describe."""
        settings, described = self.settings, self.sampler_description
        if settings.sampler == DEFAULT:
            return None
        return {
            "name": settings.sampler,
            "options": settings.sampler_options,
            "times": list(described.times),
            "last_sigma": described.last_sigma,
            "clip": settings.clip_in_words if self.honours("clip") else None,
            **described.versions,
            **({} if described.code is None else {"code": described.code}),
        }

    @property
    def conditions_block(self) -> dict[str, Any] | None:
        """Labels and guidance in the scoring protocol and in sample files. None: there are neither."""
        rule, guidance = self.label_rule, self._guidance_block
        labels = {} if rule is None else {"labels": rule.said, "classes": rule.classes}
        return {**labels, **({} if guidance is None else {"guidance": guidance})} or None

    @property
    def _guidance_block(self) -> dict[str, Any] | None:
        settings, interval = self.settings, self.settings.guidance_interval
        if not settings.is_guided:
            return None
        given = {
            "interval": interval,
            "times": interval and schedules.process(self.model.diffusion).told_within(interval),
            "channels": settings.guidance_channels,
            "guide": self.guide and self.guide.id,
        }
        return {
            "scale": settings.guidance,
            **{key: value for key, value in given.items() if value is not None},
            "calls": "two, of one batch each",
        }

    def honours(self, key: str) -> bool:
        """Whether its sampler honours one of `SAMPLER_KEYS`."""
        return key in self.sampler_description.keys

    @property
    def eta(self) -> float | str | None:
        """The value of eta; None if the sampler has none."""
        return self.settings.eta if self.honours("eta") else None

    @property
    def eta_number(self) -> float | None:
        """The number eta as tables record it; None if the sampler has none."""
        return self.settings.eta_number if self.honours("eta") else None

    @property
    def spacing_name(self) -> str | None:
        """The spacing as tables record it; None if the sampler has times of its own."""
        return self.settings.spacing_name if self.honours("spacing") else None

    @property
    def clip(self) -> str | None:
        """The clipping as tables record it; None if the sampler has none, or options of its own for it."""
        return self.settings.clip if self.honours("clip") else None

    @property
    def tau(self) -> tuple[float, ...]:
        """The time steps, increasing, in 1..T."""
        return self.sampler_description.tau

    @property
    def nfe(self) -> int:
        """Network evaluations per image; guided calls count twice."""
        return self.sampler_description.evaluations + self.guided_calls

    @cached_property
    def guided_calls(self) -> int:
        """How many calls are guided for each image."""
        return len(inside(self.settings.guidance_interval, self.points)) if self.settings.is_guided else 0

    @property
    def points(self) -> list[Point]:
        """The points at which the network is called, in the order of the calls."""
        return list(map(schedules.process(self.model.diffusion).told, self.sampler_description.times))

    @property
    def guidance(self) -> Guidance | None:
        """How workers guide its predictions; None: they do not."""
        guide_takes = None if self.guide is None else self.guide.source.conditions
        return guidance_of(self.settings, self.guided_calls, self.model.source.conditions, guide_takes)

    @cached_property
    def name(self) -> str:
        """Folder name: S0010-eta0.2-<id>, S0010-sigma_hat-<id>, or S0010-<sampler>-<id>."""
        return f"{_settings_name(self.settings.steps, self.sampler_description.label)}-{self.id}"

    @property
    def shown_id(self) -> str:
        return self.id if all(model.lacks is None for model in self.networks) else PENDING

    @property
    def networks(self) -> tuple[Model, ...]:
        """The models whose networks workers load for it."""
        return (self.model,) if self.guide is None else (self.model, self.guide)

    @property
    def total_nfe(self) -> int:
        """Network evaluations of all its images."""
        return self.settings.num_samples * self.nfe

    @property
    def shard_images(self) -> int:
        """Images of a full shard: whole batches, about `shard_evaluations` network evaluations. Independent of N."""
        per_batch = self.settings.batch_size * self.nfe
        return self.settings.batch_size * max(1, self.settings.shard_evaluations // per_batch)

    @property
    def num_shards(self) -> int:
        return ceil(self.settings.num_samples / self.shard_images)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The cell's shards; they tile 0..N-1 in order. They are made anew, since a plan may have millions."""
        return self.shards_numbered(range(self.num_shards))

    @property
    def first_shard(self) -> Shard:
        """No other shard has more images."""
        return self.shard(0)

    def shard(self, number: int) -> Shard:
        """One of `shards`."""
        return self.shards_numbered([number])[0]

    def shards_numbered(self, numbers: Iterable[int]) -> tuple[Shard, ...]:
        """Those of `shards` with these numbers."""
        n, size, nfe = self.settings.num_samples, self.shard_images, self.nfe
        return tuple(Shard(self.id, i, a := i * size, b := min(a + size, n), (b - a) * nfe) for i in numbers)

    def shards_in(self, names: Iterable[str]) -> tuple[Shard, ...]:
        """Those of `shards` whose files have one of `names`, in order. The others are not made."""
        end = self.num_shards
        numbers = (int(found[1]) for found in map(_PART.fullmatch, names) if found)
        return self.shards_numbered(sorted(number for number in numbers if number < end))


@dataclass(frozen=True)
class Plan:
    """The models and cells of a config."""

    models: tuple[Model, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()  # remarks on how the config was read
    sampler_modules: frozenset[SourceFile] = frozenset()
    """The user's source files that workers import to sample, besides those of the models."""

    @property
    def pending(self) -> list[Model]:
        """The models whose ids, and so their cells' ids, are unknown yet."""
        return [model for model in (*self.models, *self.guides) if model.lacks is not None]

    @property
    def guides(self) -> tuple[Model, ...]:
        """The networks of `model.guide`, each once."""
        return tuple({cell.guide.id: cell.guide for cell in self.cells if cell.guide is not None}.values())

    @property
    def trained_here(self) -> list[tuple[Model, Trained]]:
        return [(model, model.source) for model in self.models if isinstance(model.source, Trained)]

    def with_cells(self, cells: Iterable[Cell]) -> "Plan":
        """The plan of these cells alone, with their models."""
        kept = tuple(cells)
        models = {cell.model.id for cell in kept}
        return replace(self, cells=kept, models=tuple(model for model in self.models if model.id in models))

    @property
    def num_shards(self) -> int:
        return sum(cell.num_shards for cell in self.cells)

    @property
    def longest(self) -> Cell:
        """The cell with the shards of most network evaluations, which are dispatched first."""
        return max(self.cells, key=lambda cell: cell.first_shard.total_nfe)

    @property
    def remarks(self) -> list[str]:
        """Remarks on how the config was read, on its models, and on the resulting lists tau."""
        spaced = [cell for cell in self.cells if cell.honours("spacing")]
        lists = {(c.settings.spacing_name, c.settings.steps, c.tau, c.nfe): c for c in spaced}
        settings = [(c.settings.spacing, c.settings.steps, c.tau, c.nfe) for c in lists.values()]
        sampled = [cell.settings for cell in self.cells]
        return [
            *self.notes,
            *(f"{model.lacks}; until it is here, the ids of its cells are {PENDING}" for model in self.pending),
            *filter(None, (model.source.warning(model.diffusion) for model in self.models)),
            *(remark for its in settings for remark in remarks(*its)),
            *dict.fromkeys(filter(None, (find(c.sampler).remark(c) for c in sampled if c.sampler in SAMPLERS))),
        ]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Folder name -> label, of every cell."""
        return {cell.name: cell.label for cell in self.cells}

    @cached_property
    def _labels_by_id(self) -> dict[str, str]:
        return {part.id: part.label for parts in (self.models, self.cells) for part in parts}

    def label_in(self, path: str) -> str:
        """The label of the model or cell that a file belongs to, by the ids in its path; empty if there is none."""
        return next((self._labels_by_id[part] for part in _ID.findall(path) if part in self._labels_by_id), "")

    def with_labels(self, text: str) -> str:
        """`text` with labels in the place of cells' ids."""
        labels = {cell.id: cell.label for cell in self.cells}
        return _ID.sub(lambda found: labels.get(found[0], found[0]), text)
