"""`cluster`: where the work runs."""

from typing import Annotated

from pydantic import AfterValidator, Field

from taugrid.config.section import Positive, Section

SMALLEST_SHARE = 0.0001
"""Ray counts CPUs and GPUs in ten-thousandths."""

LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


def _one_at_most(gpus: float) -> float:
    if gpus > 1:
        raise ValueError(
            "must be at most 1 (a worker computes on one GPU: more workers use more; networks larger than the memory "
            "of one GPU are not supported)"
        )
    if 0 < gpus < SMALLEST_SHARE:
        raise ValueError(f"must be 0 or at least {SMALLEST_SHARE}")
    return gpus


Cpus = Annotated[float, Field(ge=SMALLEST_SHARE)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_one_at_most)]
LabelKey = Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{LABEL}$")]
LabelValue = Annotated[str, Field(pattern=rf"^!?({LABEL}|in\({LABEL}(, ?{LABEL})*\))$")]


class TrainingWorker(Section):
    """What a training worker takes, if it is not what other workers take."""

    cpus_per_worker: Cpus | None = None
    """null: as `cluster.cpus_per_worker`."""
    gpus_per_worker: Gpus | None = None
    """null: as `cluster.gpus_per_worker`."""


class ScoringWorker(Section):
    """The workers without a GPU that compute scores beside workers with one. Each takes 2 GB of memory."""

    cpus_per_worker: Cpus | None = None
    """The threads of each; null: as `cluster.cpus_per_worker`. Ray does not count these CPUs."""
    workers_per_node: Annotated[int, Field(ge=0)] = 8
    """At most so many on a node with GPUs, one for two of its CPUs. 0: none, so workers with GPUs compute scores."""


class Cluster(Section):
    """Where the work runs. Changes no result."""

    workers: Positive | None = None
    """The maximum number of sampling and evaluation workers. On a cluster that a run joins, Ray's autoscaler is asked
    for this number even if they do not fit yet; null: as many as fit, also on nodes that join later."""
    trainings: Positive | None = None
    """How many models train at a time. Those that do not fit wait for room, for which Ray's autoscaler is asked on a
    cluster that a run joins; null: one. Each takes about 600 MiB of the driver's memory."""
    cpus_per_worker: Cpus = 1
    """CPUs that a worker takes."""
    gpus_per_worker: Gpus | None = None
    """At most 1. A fraction shares a GPU: five workers of 0.2. null: 1 if a node has a GPU that its torch can use when
    a stage begins, else 0. Set it to 1 if nodes with GPUs join later."""
    label_selector: dict[LabelKey, LabelValue] = {}
    """Ray labels of the nodes to use, such as {ray.io/accelerator-type: A100}. A value may be x, !x, in(x, y) or
    !in(x, y)."""
    use_cpus: bool = False
    """Scores are computed on the CPUs of nodes with GPUs; with this, on nodes without a GPU too. It uses CPU nodes that
    are there and asks for none. `label_selector` holds for them too: one that only nodes with GPUs match leaves none.
    """
    max_wait_seconds: Annotated[float, Field(gt=0)] = 600
    """How long a run waits for a worker to start, and on a cluster that it joins for free resources."""
    train: TrainingWorker = TrainingWorker()
    """What a training worker takes, if it is not what other workers take."""
    score: ScoringWorker = ScoringWorker()
    """What a worker without a GPU takes that computes scores beside workers with one, and how many a node has."""
    max_attempts: Positive = 3
    """Number of nodes that a task must fail on (all nodes, if there are fewer) before it is quarantined and reported;
    on a single node, its number of attempts. Failures that are the node's fault do not count."""
    scratch: str | None = None
    """A folder that all nodes see, for checkpoints of a training whose run directory is in an object store. null: this
    user's cache, if all training workers are on this machine."""
    hang_seconds: Annotated[float, Field(gt=0)] = 600
    """A worker is killed, and its task requeued, if its job sends no heartbeat for this long."""
