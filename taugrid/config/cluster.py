"""`cluster`: where the work runs."""

from typing import Annotated

from pydantic import Field

from taugrid.config.section import Positive, Section


class Cluster(Section):
    """Where the work runs. Changes no result."""

    workers: Positive | None = None
    """Sampling and evaluation actors; null: as many as the cluster has room for."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """null: 1 where the cluster has GPUs, else 0."""
    max_attempts: Positive = 3
    """A piece of work that failed this often is set aside and said; the rest goes on."""
