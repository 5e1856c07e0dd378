"""How a run's cells are scored: reference, extractor and metrics."""

from collections.abc import Callable
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
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.protocol import SOFTWARE, Protocol
from taugrid.registry.extractors import EXTRACTORS, IMAGENET_1K, IMAGENET_LITE0, ExtractorSpec
from taugrid.registry.metrics import LABEL_COLUMNS, SAMPLE_COLUMNS, UNLABELLED, PerSample
from taugrid.versions import versions
from taugrid.workers.data.labels import Labels, load_labels
from taugrid.workers.data.load import MissingImages


def extractor(config: Config, download: bool = True) -> ExtractorSpec:
    """The feature extractor that a config means.

    Raises:
        MissingInput: if its weights are missing, or not downloaded yet and `download` is not set.
        UserError: if there is none by that name, or it can't be used.
    """
    try:
        evaluate, data = config.evaluate, config.data
        return resolve(evaluate.extractor, data.name, evaluate.weights, data.image_shape, download, evaluate.precision)
    except MissingWeights as error:
        raise MissingInput(_with_key(error)) from None
    except ValueError as error:
        raise UserError(_with_key(error)) from None


def _with_key(error: ValueError) -> str:
    message = str(error)
    return message if message.startswith("evaluate.") else f"evaluate: {message}"


def name_and_dimensions(config: Config) -> tuple[str, int | None]:
    """The extractor's name and the width of its features, as far as they are known without its weights or its code."""
    name = chosen(config.evaluate.extractor, config.data.name)
    if name not in EXTRACTORS:
        return name, None
    width = EXTRACTORS[name].dimensions
    return name, prod(config.data.image_shape) if width is None else width


class Foreseen(NamedTuple):
    """An extractor as far as it is known now."""

    name: str
    dimensions: int | None
    """The width of its features."""
    lacks: str | None
    """A message on what must be downloaded first; None if everything exists on this machine."""
    spec: ExtractorSpec | None = None
    """None if something must be downloaded first."""


def foreseen(config: Config, find: Callable[[Config], ExtractorSpec]) -> Foreseen:
    """The extractor of a config, by `find`, or what is known of it while its weights are missing.

    Raises:
        UserError: if there is none by that name, or it can't be used.
    """
    name, dimensions = name_and_dimensions(config)
    try:
        spec = find(config)
        return Foreseen(name, spec.dimensions, None, spec)
    except MissingInput as error:
        return Foreseen(name, dimensions, str(error))


def classes_of(cell: Cell) -> int | None:
    """The number of classes that its network knows; None: it takes no labels."""
    return None if cell.label_rule is None else cell.label_rule.classes


def per_sample(data: Data, classes: int | None) -> PerSample:
    """What sample files hold of a network with so many classes, whose data set is `data`.

    They are those of a data set by name that has as many classes. Otherwise, 1000 are taken to be ImageNet's.
    """
    if classes is None:
        return UNLABELLED
    order = IMAGENET_1K if classes == EXTRACTORS[IMAGENET_LITE0].classes else None
    if len(data.dataset.classes) == classes:
        order = data.name
    return PerSample((*SAMPLE_COLUMNS, *LABEL_COLUMNS), order)


NO_LABELS = "report.by: label, but no network of this grid takes labels"

MANY_SAMPLES = 10**9
"""A number of samples that is enough for any metric."""


def impossible_agreement(
    config: Config, plan: Plan, extractor: ExtractorSpec, num_reference: int | None = MANY_SAMPLES
) -> set[str]:
    """Why labels can't be held against the classes of this extractor, if that is asked for.

    Raises:
        UserError: if no metric can be computed of a cell, at any N.
    """
    kinds = {per_sample(cell.model.data, classes_of(cell)) for cell in plan.cells if cell.model.lacks is None}
    found = [feasible(config.evaluate.metric_settings, extractor, MANY_SAMPLES, num_reference, each) for each in kinds]
    for left, reasons, _ in found:
        if not left.metrics:
            details = "; ".join(f"{metric}: {reason}" for metric, reason in reasons.items())
            none = f"none of them can be computed at any N ({details})"
            raise UserError(f"evaluate.metrics: {none if details else 'it is empty; name at least one metric'}")
    return {f"no agreement: {each.reasons['agreement']}" for each in found if "agreement" in each.reasons}


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
        """The labels of the reference's images; None: they are not known.

        Raises:
            UserError: if its files of labels are missing or damaged.
        """
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


def singular_samples(plan: Plan, dimensions: int) -> list[str]:
    """A line if cells have no more samples than there are features."""
    few = sorted(n for cell in plan.cells if singular(n := cell.settings.num_samples, "samples", dimensions))
    return [f"sample.num_samples: {singular(few[0], 'samples', dimensions)}"] if few else []


class TooFew(NamedTuple):
    """Numbers of samples that give FID no standard error if all features vary."""

    found: list[int]
    """The distinct numbers of a plan's cells, ascending."""
    minimum: int
    """The smallest number that gives one."""


def too_few_samples(plan: Plan, dimensions: int) -> TooFew:
    """The cells' N that are too few for a standard error of FID with this number of features."""
    minimum = SAMPLES_PER_DIMENSION * dimensions
    return TooFew(sorted({n for cell in plan.cells if (n := cell.settings.num_samples) < minimum}), minimum)


def check_shapes(plan: Plan) -> None:
    """Raise `UserError` if a model's images differ in shape from its data set's."""
    for model in plan.models:
        if model.image_shape != model.data.image_shape:
            raise UserError(
                f"data.name: {model.data.name} has images of {model.data.image_shape} (channels, height, width), but "
                f"the model makes {model.image_shape}; choose its data, or only `taugrid sample` it"
            )


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

    Raises:
        MissingInput: if the reference or the extractor's weights are missing.
        UserError: unknown extractor, a reference that can't be read, or images of a different shape.
    """
    given = config.reference
    try:
        reference = find_reference(given)
    except MissingImages as error:
        raise error.for_section("data" if given == config.data else "evaluate.reference") from None
    except (ValueError, DamagedFile) as error:
        raise UserError(f"evaluate.reference: {error}") from None
    for model in plan.models:
        if reference.shape is not None and model.image_shape != reference.shape:
            raise UserError(
                f"the reference has images of {reference.shape} (channels, height, width), but a model makes "
                f"{model.image_shape}; choose its data or evaluate.reference, or only `taugrid sample` it"
            )
    spec = find_extractor(config)
    try:
        reference.require_same_features(spec.name, spec.dimensions, spec.precision)
    except ValueError as error:
        raise UserError(f"evaluate.reference: {error}") from None
    scoring = Scoring(config, spec, reference)
    impossible_agreement(config, plan, spec, reference.num_images)
    if config.report.by is not None:
        _check_labels(scoring, plan)
    return scoring


def _check_labels(scoring: Scoring, plan: Plan) -> None:
    """Raise `UserError` if labels of samples can't be those of the reference, or no cell has any."""
    networks = {classes for cell in plan.cells if (classes := classes_of(cell)) is not None}
    if not networks:
        raise UserError(f"{NO_LABELS}; leave out report.by")
    reference = None if scoring.labels is None else len(scoring.labels.classes)
    if reference is not None and networks != {reference}:
        raise UserError(
            f"report.by: label, but a network has {min(networks - {reference})} classes and the reference has "
            f"{reference}; set evaluate.reference to images of the same classes, or leave out report.by"
        )
