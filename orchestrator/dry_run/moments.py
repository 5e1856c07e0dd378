"""Whether a mean and a covariance as the reference go with the extractor."""

from taugrid.config import Config
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.reference import reference_of_moments
from taugrid.eval.reference_names import meant
from taugrid.orchestrator.plan.extractor import Foreseen


def other_features(config: Config, extractor: Foreseen) -> list[str]:
    """A line if a run would refuse its file of moments, in the words of the run."""
    given = config.evaluate.reference
    try:
        given = meant(given).given if isinstance(given, str) else None
    except UserError:
        return []  # `missing_images` says it
    if not isinstance(given, str):
        return []
    try:
        if (reference := reference_of_moments(given)) is not None:
            reference.require_same_features(extractor.name, extractor.dimensions, config.evaluate.precision)
    except (ValueError, DamagedFile) as error:
        return [f"evaluate.reference: {error}"]
    return []
