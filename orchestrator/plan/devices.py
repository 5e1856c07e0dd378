"""What a plan asks of the devices that will compute it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from taugrid.errors import UserError
from taugrid.orchestrator.plan.cells import Cell, Model, Plan
from taugrid.workers.accelerator.arithmetic import lacks
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.network.checkpoint import parameters, weights_file

NO_GPU = "workers have none here", "join a cluster with such GPUs (--address)"
"""Why a plan can't compute what needs a GPU, and the way out."""


def require_no_gpu(plan: Plan) -> None:
    """Raise `UserError` if a cell wants TF32 from workers without a GPU."""
    for cell in plan.cells:
        if (need := lacks("cpu", cell.settings.precision)) is not None:
            raise UserError(need.refused(*NO_GPU))


WeightsFile = Callable[[Model, str], Path]
"""Like `ModelRecords.weights_file`."""


def weights_bytes(plan: Plan, file: WeightsFile) -> dict[str, int]:
    """Bytes of the weights that a worker holds for the cell with most of them, by what they belong to.

    Estimated from files that are here: a cell counts what it has. A worker may keep the networks of the cell before.
    """
    count = cache(_parameters)  # a plan has many cells of a model
    every = (_weights_of(cell, file, count) for cell in plan.cells)
    return max(every, key=lambda weights: sum(weights.values()), default={})


def _weights_of(cell: Cell, file: WeightsFile, count: Callable[[Path], int | None]) -> dict[str, int]:
    width = 2 if cell.settings.precision == "bf16-weights" else 4
    models = {"network": cell.model, "guide": cell.guide}
    files = {
        name: (file(model, cell.settings.weights if model is cell.model else "ema"), width)
        for name, model in models.items()
        if model is not None and model.lacks is None
    }
    if isinstance(vae := cell.decoder, Vae):  # its precision is autocast's
        files["VAE"] = weights_file(Path(vae.saved.folder)), 4
    return {name: number * each for name, (path, each) in files.items() if (number := count(path))}


def _parameters(path: Path) -> int | None:
    return None if path.suffix == ".json" else parameters(path)  # the record of a model without a file
