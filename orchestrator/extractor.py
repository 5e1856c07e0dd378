"""The feature extractor that a config means, found without torch."""

from eval.extractor_names import ExtractorSpec, resolve
from orchestrator.config import Config
from orchestrator.errors import UserError


def extractor(config: Config) -> ExtractorSpec:
    """The feature extractor that a config means; `UserError` where there is none or its weights are missing."""
    try:
        return resolve(config.evaluate.extractor, config.data.name, config.evaluate.weights)
    except ValueError as error:
        raise UserError(f"evaluate: {error}") from None
