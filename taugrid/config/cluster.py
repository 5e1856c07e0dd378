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
    """A task that has failed on so many nodes, or on all if there are fewer, is set aside and reported; the rest goes
    on. On a single node it has so many attempts. What a node is to blame for does not count."""
    scratch: str | None = None
    """A folder that all nodes see, for checkpoints of a training whose run directory is in an object store. null: this
    user's cache, if all training workers are on this machine."""
    hang_seconds: Annotated[float, Field(gt=0)] = 600
    """A worker whose job has not given a sign of life for so long is killed, and its task goes to another."""
