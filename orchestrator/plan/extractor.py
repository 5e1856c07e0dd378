"""Finds the feature extractor that a config means, without torch."""

from math import prod

from taugrid.config import Config
from taugrid.errors import NotHere, UserError
from taugrid.eval.features.resolve import chosen, resolve
from taugrid.eval.features.weight_files import MissingWeights
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
