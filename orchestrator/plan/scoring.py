"""How a run's cells are scored: reference, extractor and metrics."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from taugrid.config import Config, Data
from taugrid.errors import DamagedFile, MissingInput, UserError
from taugrid.eval.features.resolve import MissingWeights, chosen, resolve
from taugrid.eval.metrics.frechet import SAMPLES_PER_DIMENSION, singular
from taugrid.eval.metrics.score import Feasible, feasible
from taugrid.eval.reference import Reference, open_reference
from taugrid.hashing import identity
from taugrid.orchestrator.plan.cells import Cell, Model, Plan
from taugrid.protocol import SOFTWARE, Protocol
from taugrid.registry.extractors import EXTRACTORS, IMAGENET_1K, IMAGENET_LITE0, ExtractorSpec
from taugrid.registry.metrics import LABEL_COLUMNS, SAMPLE_COLUMNS, UNLABELLED, PerSample
from taugrid.versions import versions
from taugrid.workers.data.load import Labels, MissingImages, load_labels


def extractor(config: Config, download: bool = True) -> ExtractorSpec:
    """The feature extractor that a config means. Raises `MissingInput` if its weights are missing, or not downloaded
    yet and `download` is not set; `UserError` if there is none by that name, or it can't be used."""
    try:
        evaluate, data = config.evaluate, config.data
        return resolve(evaluate.extractor, data.name, evaluate.weights, data.image_shape, download, evaluate.precision)
    except ValueError as error:
        text = str(error) if str(error).startswith("evaluate.") else f"evaluate: {error}"
        raise (MissingInput if isinstance(error, MissingWeights) else UserError)(text) from None


class Problem(NamedTuple):
    """Something in a config that its user should change."""

    key: str  # the key of the config
    text: str
    fatal: bool = True
    """Whether a run refuses it. If not, it is a remark."""

    @property
    def line(self) -> str:
        return f"{self.key}: {self.text}"


def check(problems: Iterable[Problem]) -> None:
    """Raise `UserError` with the first problem that is fatal."""
    for problem in problems:
        if problem.fatal:
            raise UserError(problem.line)


class Foreseen(NamedTuple):
    """An extractor as far as it is known now."""

    name: str
    dimensions: int | None  # the width of its features
    lacks: str | None  # a message on what must be downloaded first; None if everything exists on this machine
    spec: ExtractorSpec | None = None  # None if something must be downloaded first


def foreseen(config: Config, find: Callable[[Config], ExtractorSpec]) -> Foreseen:
    """The extractor of a config, by `find`, or what is known of it while its weights are missing. Raises `UserError` if
    there is none by that name, or it can't be used."""
    name = chosen(config.evaluate.extractor, config.data.name)
    dimensions: int | None = None
    if name in EXTRACTORS:
        width = EXTRACTORS[name].dimensions
        dimensions = prod(config.data.image_shape) if width is None else width
    try:
        spec = find(config)
        return Foreseen(name, spec.dimensions, None, spec)
    except MissingInput as error:
        return Foreseen(name, dimensions, str(error))


def classes_of(cell: Cell) -> int | None:
    """The number of classes that its network knows; None: it takes no labels."""
    return None if cell.label_rule is None else cell.label_rule.classes


def per_sample(data: Data, classes: int | None) -> PerSample:
    """What sample files hold of a network with so many classes, whose data set is `data`. They are those of a data set
    by name that has as many classes. Otherwise, 1000 are taken to be ImageNet's."""
    if classes is None:
        return UNLABELLED
    order = IMAGENET_1K if classes == EXTRACTORS[IMAGENET_LITE0].classes else None
    if len(data.dataset.classes) == classes:
        order = data.name
    return PerSample((*SAMPLE_COLUMNS, *LABEL_COLUMNS), order)


MANY_SAMPLES = 10**9  # a number of samples that is enough for any metric


def problems(
    config: Config,
    plan: Plan,
    extractor: Foreseen,
    reference: Reference | Data | None,
    classes: int | None = None,
) -> Iterator[Problem]:
    """What is wrong with scoring the cells of `plan`, fatal or not, as far as extractor and reference are known.
    `classes`: how many its labels have, where they were read."""
    known = reference if isinstance(reference, Reference) else None
    shape = reference.image_shape if isinstance(reference, Data) else None if known is None else known.shape
    for model in plan.models:
        yield from other_shapes(model, "data" if config.evaluate.reference is None else "evaluate.reference", shape)
    if known is not None:
        try:
            known.require_same_features(extractor.name, extractor.dimensions, config.evaluate.precision)
        except ValueError as error:
            yield Problem("evaluate.reference", str(error))
    if extractor.spec is not None:
        num_reference = MANY_SAMPLES if known is None else known.num_images
        yield from _impossible_metrics(config, plan, extractor.spec, num_reference)
    if config.report.by is not None:
        networks = {of_network for cell in plan.cells if (of_network := classes_of(cell)) is not None}
        if not networks:
            yield Problem("report.by", "label, but no network of this grid takes labels; leave out report.by")
        elif classes is not None and networks != {classes}:
            yield Problem(
                "report.by",
                f"label, but a network has {min(networks - {classes})} classes and the reference has {classes}; set "
                "evaluate.reference to images of the same classes, or leave out report.by",
            )
    if extractor.lacks is not None:
        key, _, text = extractor.lacks.partition(": ")
        yield Problem(key, text)
    if extractor.dimensions is not None and "fid" in config.evaluate.metrics:
        yield from few_samples(plan, extractor.name, extractor.dimensions)


def other_shapes(model: Model, key: str, shape: tuple[int, int, int] | None) -> Iterator[Problem]:
    """A problem if a model's images differ in shape from those that `key` names, (channels, height, width)."""
    if shape is not None and model.lacks is None and model.image_shape != shape:
        yield Problem(
            key,
            f"its images are {shape} (channels, height, width), but {model.label or 'the model'} makes "
            f"{model.image_shape}; choose images of that shape, or only `taugrid sample` it",
        )


def _impossible_metrics(
    config: Config, plan: Plan, extractor: ExtractorSpec, num_reference: int | None
) -> Iterator[Problem]:
    """A problem if no metric can be computed of a cell at any N, and why labels can't be held against the classes."""
    kinds = {per_sample(cell.model.data, classes_of(cell)) for cell in plan.cells if cell.model.lacks is None}
    found = [feasible(config.evaluate.metric_settings, extractor, MANY_SAMPLES, num_reference, each) for each in kinds]
    for left, reasons, _ in found:
        if not left.metrics:
            details = "; ".join(f"{metric}: {reason}" for metric, reason in reasons.items())
            none = f"none of them can be computed at any N ({details})"
            yield Problem("evaluate.metrics", none if details else "it is empty; name at least one metric")
    for reason in sorted({each.reasons["agreement"] for each in found if "agreement" in each.reasons}):
        yield Problem("no agreement", reason, fatal=False)


def few_samples(plan: Plan, extractor: str, dimensions: int) -> Iterator[Problem]:
    """Remarks if cells have no more samples than there are features, or too few for a standard error of FID."""
    smallest = min((cell.settings.num_samples for cell in plan.cells), default=MANY_SAMPLES)
    if (line := singular(smallest, "samples", dimensions)) is not None:
        yield Problem("sample.num_samples", line, fatal=False)
    small, minimum = too_few_samples(plan, dimensions)
    if small:
        more = f" (and {len(small) - 1} larger)" if len(small) > 1 else ""
        yield Problem(
            "sample.num_samples",
            f"{small[0]}{more} may be too few for FID's ±, which needs at least N = {minimum} if all {dimensions} "
            f"features of {extractor} vary",
            fatal=False,
        )


@dataclass(frozen=True)
class Scoring:
    """How a run's cells are scored."""

    config: Config
    extractor: ExtractorSpec
    reference: Reference

    @property
    def reference_key(self) -> str:
        return self.reference.cache_key(self.extractor)

    def feasible(self, num_samples: int, samples: PerSample = UNLABELLED) -> Feasible:
        """The metrics that can be computed at N with their settings, and why others can't."""
        wanted = self.config.evaluate.metric_settings
        return feasible(wanted, self.extractor, num_samples, self.reference.num_images, samples)

    @cached_property
    def labels(self) -> Labels | None:
        """The labels of the reference's images; None: they are not known. Raises `UserError` if its files of labels are
        missing or damaged."""
        data = self.reference.data
        return load_labels(data) if data is not None and data.dataset.labels else None

    def by_label_id(self, cell: Cell) -> str:
        """A hash of what is measured label by label, which names the file."""
        labels = None if self.labels is None else self.labels.sha256
        return identity({"evaluation": self.id(cell), "labels": labels})

    def of_cell(self, cell: Cell) -> Feasible:
        """As `feasible`, of a cell."""
        return self.feasible(cell.settings.num_samples, per_sample(cell.model.data, classes_of(cell)))

    def id(self, cell: Cell) -> str:
        """A hash of what is measured, which names the score file. Without versions: upgrades keep scores."""
        n = cell.settings.num_samples
        spec = self.extractor
        extractor = {"name": spec.name, "weights": spec.weights_sha256, **spec.other_precision}
        if spec.source_sha256 is not None:
            extractor["source"] = spec.source_sha256
        settings = self.of_cell(cell).settings.as_dict()
        return identity({"reference": self.reference.sha256, "N": n, "extractor": extractor, **settings})

    def protocol(self, cell: Cell) -> Protocol:
        return Protocol(
            reference=self.reference.identity(),
            num_samples=cell.settings.num_samples,
            weights=cell.settings.weights,
            tau=cell.tau if cell.sampler_block is None else None,
            clip=cell.settings.clip_in_words,
            precision=cell.settings.precision_in_words,
            rounding=cell.settings.rounding_in_words,
            decoder=cell.decoder_block,
            extractor=self.extractor.describe(),
            metrics=self.of_cell(cell).settings,
            versions=versions(SOFTWARE),
            compile=None if cell.settings.compile == "none" else cell.settings.compile,
            sampler=cell.sampler_block,
            conditions=cell.conditions_block,
        )


def too_few_samples(plan: Plan, dimensions: int) -> tuple[list[int], int]:
    """The cells' N that give FID no standard error if all of so many features vary, ascending; the least that does."""
    minimum = SAMPLES_PER_DIMENSION * dimensions
    return sorted({n for cell in plan.cells if (n := cell.settings.num_samples) < minimum}), minimum


def without_downloads(config: Config) -> Config:
    """The config with data and reference that are not downloaded."""
    no_download, reference = {"download": False}, config.evaluate.reference
    if isinstance(reference, Data):
        reference = reference.model_copy(update=no_download)
    evaluate = config.evaluate.model_copy(update={"reference": reference})
    return config.model_copy(update={"data": config.data.model_copy(update=no_download), "evaluate": evaluate})


def scoring_of(
    config: Config,
    plan: Plan,
    find_extractor: Callable[[Config], ExtractorSpec] = extractor,
    find_reference: Callable[[Data | str], Reference] = open_reference,
) -> Scoring:
    """How `config` has `plan` scored, with the extractor and the reference that these functions find.

    Opens the reference and the extractor's weights, so that mistakes are found before any accelerator time is spent.

    Raises `MissingInput` if the reference or the extractor's weights are missing; `UserError` (unknown extractor, a
    reference that can't be read, or images of a different shape)."""
    given = config.reference
    try:
        reference = find_reference(given)
    except MissingImages as error:
        raise error.for_section("data" if given == config.data else "evaluate.reference") from None
    except (ValueError, DamagedFile) as error:
        raise UserError(f"evaluate.reference: {error}") from None
    spec = find_extractor(config)
    scoring = Scoring(config, spec, reference)
    labels = scoring.labels if config.report.by is not None and any(map(classes_of, plan.cells)) else None
    known = Foreseen(spec.name, spec.dimensions, None, spec)
    check(problems(config, plan, known, reference, None if labels is None else len(labels.classes)))
    return scoring
