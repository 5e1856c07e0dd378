"""Which images that a run would need are not where its config says, or do not go with its extractor."""

from pathlib import Path

from taugrid.config import Config, Data
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.reference import reference_of_moments
from taugrid.eval.reference_names import meant
from taugrid.eval.sources import nothing_there
from taugrid.orchestrator.plan.cells import Model
from taugrid.orchestrator.plan.extractor import Foreseen
from taugrid.workers.data.cifar import FIDELITY_NAMES
from taugrid.workers.data.load import require_files
from taugrid.workers.data.places import MissingImages


def missing_images(config: Config, untrained: list[Model]) -> list[str]:
    """One line for each data set or reference that is not there. Nothing is downloaded or decoded.

    Args:
        config: its reference is looked for.
        untrained: models that the run would train, on data that are looked for.
    """
    reference = config.data if config.evaluate.reference is None else config.evaluate.reference
    if isinstance(reference, str):
        try:
            reference = meant(reference).given
        except UserError as error:
            return [f"evaluate.reference: {error}"]
    sections = dict.fromkeys((model.data for model in untrained), "data")
    if isinstance(reference, Data):
        sections.setdefault(reference, "data" if reference == config.data else "evaluate.reference")
    found = [_missing_data(data, section) for data, section in sections.items()]
    if isinstance(reference, str) and reference not in FIDELITY_NAMES and not Path(reference).exists():
        found.append(f"evaluate.reference: {nothing_there(reference)}")
    return [line for line in found if line is not None]


def _missing_data(data: Data, section: str) -> str | None:
    """What to say of a section of a config that names images; None if they are there."""
    try:
        require_files(data)
    except MissingImages as error:
        return str(error.of(section))
    except UserError as error:
        return str(error)
    return None


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
