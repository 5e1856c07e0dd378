"""`cluster`: where the work runs."""

from typing import Annotated

from pydantic import Field

from taugrid.config.section import Positive, Section


class Cluster(Section):
    """Where the work runs. Changes no result."""

    workers: Positive | None = None
    """Sampling and evaluation actors; null: as many as fit on the cluster."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """null: 1 where the cluster has GPUs, else 0."""
    max_attempts: Positive = 3
    """A task that has failed this often is set aside and reported; the rest goes on."""
