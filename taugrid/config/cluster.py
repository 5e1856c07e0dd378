"""`cluster`: where the work runs."""

from typing import Annotated

from pydantic import AfterValidator, Field

from taugrid.config.section import Positive, Section

SMALLEST_SHARE = 0.0001
"""Ray counts CPUs and GPUs in ten-thousandths."""

LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


def _whole_beyond_one(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise ValueError("must be a whole number if it is more than 1")
    if 0 < gpus < SMALLEST_SHARE:
        raise ValueError(f"must be 0 or at least {SMALLEST_SHARE}")
    return gpus


Cpus = Annotated[float, Field(ge=SMALLEST_SHARE)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_beyond_one)]
LabelKey = Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{LABEL}$")]
LabelValue = Annotated[str, Field(pattern=rf"^!?({LABEL}|in\({LABEL}(, ?{LABEL})*\))$")]


class TrainingWorker(Section):
    """What a training worker takes, if it is not what other workers take."""

    cpus_per_worker: Cpus | None = None
    """null: as `cluster.cpus_per_worker`."""
    gpus_per_worker: Gpus | None = None
    """null: as `cluster.gpus_per_worker`."""


class ScoringWorker(Section):
    """What a worker of `cluster.use_cpus` takes."""

    cpus_per_worker: Cpus | None = None
    """null: as `cluster.cpus_per_worker`."""


class Cluster(Section):
    """Where the work runs. Changes no result."""

    workers: Positive | None = None
    """The most sampling and evaluation workers at a time. On a cluster that one joins, Ray's autoscaler hears of that
    many even if they do not fit yet, and can add nodes; null: as many as fit, also on nodes that join later."""
    trainings: Positive | None = None
    """The most trainings at a time. On a cluster that one joins, so many begin even if they do not fit yet, and Ray's
    autoscaler hears of them; null: as many as fit; half of the driver's memory, at 500 MiB each, is a limit too."""
    cpus_per_worker: Cpus = 1
    """CPUs that a worker takes."""
    gpus_per_worker: Gpus | None = None
    """A fraction shares a GPU: five workers of 0.2. null: 1 if, when a stage begins, a node has a GPU that torch there
    can use, else 0; say 1 if such nodes are yet to join."""
    label_selector: dict[LabelKey, LabelValue] = {}
    """Ray labels of the nodes to use, such as {ray.io/accelerator-type: A100}. A value may be x, !x, in(x, y) or
    !in(x, y)."""
    use_cpus: bool = False
    """Workers with GPUs are joined by workers without one, on nodes that have none; those only compute scores. This
    uses CPU nodes that are there; it asks for none. `label_selector` holds for them too: one that only nodes with GPUs
    match leaves none."""
    max_wait_seconds: Annotated[float, Field(gt=0)] = 600
    """On a cluster that one joins: how long a run waits for room for a worker while it has none."""
    train: TrainingWorker = TrainingWorker()
    """What a training worker takes, if it is not what other workers take."""
    score: ScoringWorker = ScoringWorker()
    """What a worker of `use_cpus` takes, if it is not what other workers take."""
    max_attempts: Positive = 3
    """A task that has failed on so many nodes, or on all if there are fewer, is set aside and reported; the rest goes
    on. On a single node it has so many attempts. What a node is to blame for does not count."""
    scratch: str | None = None
    """A folder that all nodes see, for checkpoints of a training whose run directory is in an object store. null: this
    user's cache, if all training workers are on this machine."""
    hang_seconds: Annotated[float, Field(gt=0)] = 600
    """A worker whose job has not given a sign of life for so long is killed, and its task goes to another."""
