"""What a plan asks of the devices that will compute it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from taugrid.errors import UserError
from taugrid.orchestrator.plan.cells import Model, Plan
from taugrid.workers.accelerator.policy import lacks
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.network.checkpoint import parameters, weights_file

NO_GPU = "workers have none here", "join a cluster with such GPUs (--address)"
"""Why a plan can't compute what needs a GPU, and the way out."""


def require_no_gpu(plan: Plan) -> None:
    """Raise `UserError` if a cell wants TF32 from workers without a GPU."""
    for cell in plan.cells:
        if (need := lacks("cpu", cell.settings.precision)) is not None:
            raise UserError(need.refused(*NO_GPU))


def weights_bytes(plan: Plan, file: Callable[[Model, str], Path]) -> dict[str, int]:
    """Bytes of the weights that a worker holds for the cell with most of them, by what they belong to.

    Estimated from files that are here: a cell counts what it has. A worker may keep the networks of the cell before.
    `file` is `ModelRecords.weights_file`.
    """
    count = cache(parameters)  # a plan has many cells of a model
    most: dict[str, int] = {}
    for cell in plan.cells:
        width = 2 if cell.settings.precision == "bf16-weights" else 4
        files: dict[str, tuple[Path, int]] = {}
        for name, model in {"network": cell.model, "guide": cell.guide}.items():
            if model is not None and model.lacks is None:
                path = file(model, cell.settings.weights if model is cell.model else "ema")
                if path.suffix != ".json":  # the record of a model without a file
                    files[name] = path, width
        if isinstance(vae := cell.decoder, Vae):  # its precision is autocast's
            files["VAE"] = weights_file(Path(vae.saved.folder)), 4
        weights = {name: number * each for name, (path, each) in files.items() if (number := count(path))}
        most = max(most, weights, key=lambda found: sum(found.values()))
    return most
