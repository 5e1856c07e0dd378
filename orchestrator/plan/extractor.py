"""Finds the feature extractor that a config means, without torch."""

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.eval.features.resolve import resolve
from taugrid.registry.extractors import ExtractorSpec


def extractor(config: Config) -> ExtractorSpec:
    """The feature extractor that a config means; `UserError` if there is none or its weights are missing."""
    try:
        evaluate, data = config.evaluate, config.data
        return resolve(evaluate.extractor, data.name, evaluate.weights, data.image_shape)
    except ValueError as error:
        raise UserError(f"evaluate: {error}") from None
