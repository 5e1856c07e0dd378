"""What a plan asks of the devices that will compute it, and what would be faster there. Pure."""

from taugrid.errors import UserError
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.sources import Oracle
from taugrid.workers.accelerator.policy import faster, lacks

NO_GPU = "workers have none here", "join a cluster with such GPUs (--address)"
"""Why a plan can't compute what needs a GPU, and the way out."""


def require_no_gpu(plan: Plan) -> None:
    """Raise `UserError` if a cell wants TF32 or CUDA graphs from workers without a GPU."""
    for cell in plan.cells:
        if (need := lacks("cpu", cell.settings.precision, cell.settings.compile)) is not None:
            raise UserError(need.refused(*NO_GPU))


def faster_on_gpus(plan: Plan) -> str | None:
    """`policy.faster` of the cells whose network torch computes."""
    settings = [cell.settings for cell in plan.cells if not isinstance(cell.model.source, Oracle)]
    return faster([(each.precision, each.compile) for each in settings])
