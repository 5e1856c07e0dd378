"""Finds the feature extractor that a config means, without torch."""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from taugrid.config import Config
from taugrid.errors import NotHere, UserError
from taugrid.eval.features.resolve import MissingWeights, chosen, resolve
from taugrid.registry.extractors import EXTRACTORS, ExtractorSpec


def extractor(config: Config, download: bool = True) -> ExtractorSpec:
    """The feature extractor that a config means.

    Raises:
        NotHere: if its weights are missing, or not downloaded yet and `download` is not set.
        UserError: if there is none by that name, or it can't be used.
    """
    try:
        evaluate, data = config.evaluate, config.data
        return resolve(evaluate.extractor, data.name, evaluate.weights, data.image_shape, download, evaluate.precision)
    except MissingWeights as error:
        raise NotHere(_with_key(error)) from None
    except ValueError as error:
        raise UserError(_with_key(error)) from None


def _with_key(error: ValueError) -> str:
    said = str(error)
    return said if said.startswith("evaluate.") else f"evaluate: {said}"


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
    """What must be fetched first, in a line; None if everything is here."""


def foreseen(config: Config, find: Callable[[Config], ExtractorSpec]) -> Foreseen:
    """The extractor that a config means and `find` returns, or what is known of it if its weights are missing.

    Raises:
        UserError: if there is none by that name, or it can't be used.
    """
    name, dimensions = name_and_dimensions(config)
    try:
        return Foreseen(name, find(config).dimensions, None)
    except NotHere as error:
        return Foreseen(name, dimensions, str(error))
