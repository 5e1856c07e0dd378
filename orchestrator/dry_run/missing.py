"""Which images that a run would need are not where its config says."""

from pathlib import Path

from taugrid.config import Config, Data
from taugrid.errors import UserError
from taugrid.eval.reference_names import meant
from taugrid.eval.sources import nothing_there
from taugrid.orchestrator.plan.cells import Model
from taugrid.workers.data.load import require_files
from taugrid.workers.data.places import MissingImages
from taugrid.workers.data.readers.torch_fidelity import NAMES


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
    if isinstance(reference, str) and reference not in NAMES and not Path(reference).exists():
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
