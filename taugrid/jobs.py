"""What travels between the driver and a worker: plain data, small enough for a Ray message.

A concrete job is defined beside the function that does it, in `workers` or `eval`.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Optional

from taugrid.config import Data, Diffusion, Train, Unet
from taugrid.hashing import SourceFile
from taugrid.run_id import RunId, check_run
from taugrid.storage import LOCAL, Storage

if TYPE_CHECKING:
    from taugrid.parquet import PartSummary, PartWriter


@dataclass(frozen=True, slots=True)
class Job:
    """Work that ends in one file. A subclass holds everything that determines the file's content."""

    entry_point: ClassVar[str]
    """`package.module:function`: a worker calls it with the job and its `workers.device.Device`; it returns a `Result`.
    A name, because the driver imports a job's module but must not import torch."""

    path: str  # the file that the job commits
    storage: Storage = field(default=LOCAL, kw_only=True)  # of that file, and of all others of the run directory
    run_id: RunId | None = field(default=None, kw_only=True)  # a worker must see it before it writes; None: in no run
    replaces: str | None = field(default=None, kw_only=True)
    """The version (`Stat.version`) of a shorter file of the same shard, from when there were fewer rows: the job's
    file takes its place. None: there is none. Any other file that is found there is kept."""
    failed_before: bool = field(default=False, kw_only=True)  # perhaps for memory: it begins with empty caches

    @property
    def remedy(self) -> str:
        """A sentence that says what to change if the job does not fit into memory."""
        return (
            "give workers more memory, or start fewer on a node (cluster.cpus_per_worker; for scores beside GPUs "
            "cluster.score.workers_per_node)"
        )

    def check_run(self) -> None:
        """Raise `WorkerRefusal` unless this machine sees the run directory. Call it before writing."""
        if self.run_id is not None:
            check_run(self.run_id, self.storage)


def smaller_batch(key: str) -> str:
    """The `remedy` of a job that computes as many images at once as `key: value` says."""
    return (
        f"{key} is too large for this memory: halve it, which makes other cells, or use devices with more memory "
        "(cluster.label_selector)"
    )


class Conditions(NamedTuple):
    """The labels that a network takes besides x and t."""

    classes: int  # K; labels are 0..K-1
    null_label: int | None = None  # the label that means no class, none of 0..K-1; None: trained without one

    @property
    def in_words(self) -> str:
        return f"{self.classes} classes" + ("" if self.null_label is None else " and a null class")


@dataclass(frozen=True)
class SavedNetwork:
    """A network of diffusers in a folder: its config and its weights, as the driver found them."""

    folder: str
    weights_sha256: str
    config_sha256: str  # hash of the settings in config.json (`workers.network.checkpoint.config_sha256`)
    storage: Storage = LOCAL
    conditions: Conditions | None = None  # None: it is unconditional
    kind: str = "UNet2DModel"  # diffusers' name of its class


@dataclass(frozen=True)
class OracleNetwork:
    """The optimal eps for the distribution that `data` names."""

    data: Data
    conditions: Conditions | None = None


A_FUNCTION = "a function"  # the `summary` of a custom network that is no `nn.Module`

# Why such a network is refused where its weights are to be cast, after its name
NEEDS_MODULE = (
    "returns a function: sample.precision: bf16-weights casts the weights of an nn.Module; return one, or set bf16"
)


@dataclass(frozen=True)
class CustomNetwork:
    """A user's function that returns a network (`model.callable`), and the identity of the network that it returned."""

    callable: str  # `package.module:function`
    weights: str | None  # the file whose path is passed to the function. None: the function takes no argument
    weights_sha256: str
    """Hash of that file. Without one: of everything that was loaded, also tensors that the function loaded itself."""
    source_sha256: str  # of the function's module and its imports (`workers.custom.source.SourceCode`)
    tensors_sha256: str  # hash of the network's state (`workers.network.custom.tensors`)
    image_shape: tuple[int, int, int]  # (channels, height, width) of the images that it was tested on
    summary: str  # a few words about the network, for messages: its class and size
    unusable: str | None = None  # why it can't be run now, if the code or weights of a recorded one are gone
    files: tuple[SourceFile, ...] = ()  # the files that `source_sha256` covers
    takes_fractions: bool = True  # whether it can be called at times between whole ones; True if unknown
    conditions: Conditions | None = None  # the labels that it takes. None: it is a function of x and t
    doubt: str | None = field(default=None, compare=False)  # why it may not be a network of its process

    @property
    def recorded(self) -> dict[str, Any]:
        """Its fields for files."""
        return {key: value for key, value in asdict(self).items() if key != "doubt"}


NetworkSpec = SavedNetwork | OracleNetwork | CustomNetwork  # specifies the network that a worker loads


@dataclass(frozen=True)
class Result:
    """A worker's report about a finished job."""

    seconds: float  # time on the device
    images: int
    created_file: bool  # False if the file already existed
    _: KW_ONLY
    size: int | None = None  # bytes of the job's file on the worker's node; the driver must find the same
    digest: bytes | None = None  # the SHA-256 in the seal of what was written; the driver must find the same
    conflict: str | None = None  # what the file that existed is or has, if it is not what was made now
    evaluations: int | None = None  # network evaluations, where they are not those of the job
    part: Optional["PartSummary"] = None  # content of the Parquet file, so that the driver need not read it

    @classmethod
    def of(cls, part: "PartWriter", created_file: bool, seconds: float, images: int) -> "Result":
        """The report about a job whose file `part` wrote; `created_file` is what its commit returned."""
        digest, conflict = part.digest if created_file else None, part.conflict
        return cls(seconds, images, created_file, size=part.size, digest=digest, conflict=conflict, part=part.content)


@dataclass(frozen=True)
class WorkerInfo:
    node: str  # the node's address
    device: str
    versions: dict[str, str]
    node_id: str = ""  # Ray's id of the node; several nodes may share an address
    threads: int | None = None  # CPU threads that torch uses; None: not known
    accelerator: Mapping[str, str] = field(default_factory=dict)  # `kind` (cuda, rocm, mps), versions; empty: CPU
    processor: str = ""  # the model of a CPU that computes; empty: not known, or a GPU does

    @property
    def made_by(self) -> dict[str, Any]:
        """What is recorded of it, besides its node."""
        recorded = {"device": self.device, "versions": self.versions, "threads": self.threads}
        further = {"accelerator": dict(self.accelerator), "processor": self.processor}
        return recorded | {name: value for name, value in further.items() if value}


class Hopeless(Exception):
    """Training would fail in the same way again, so Ray Train must not repeat it. The message is one line."""


@dataclass(frozen=True)
class TrainingSpec:
    """A model to train, and the resources. `diffusion` and `train` are resolved, with no key left `null`."""

    data: Data
    data_sha256: str  # the `workers.data.load.content_fingerprint` of its images on the driver
    unet: Unet
    diffusion: Diffusion
    train: Train
    model_id: str
    models_dir: str  # absolute, and the same folder on every node: Ray's workers change directory
    cpus_per_worker: float
    gpus_per_worker: float
    label_selector: Mapping[str, str] = field(default_factory=dict)  # Ray labels that the workers' nodes must have
    run_id: RunId | None = None  # the run directory, which every worker must see. None: not in one
    labels_sha256: str | None = None  # the SHA-256 of the images' labels on the driver. None: the network takes none

    @property
    def final(self) -> Path:
        """The folder in which the trained model is committed atomically."""
        return Path(self.models_dir) / self.model_id

    @property
    def running(self) -> Path:
        """Ray Train's folder during the training run: checkpoints, the live log and TensorBoard's files."""
        return running_folder(self.models_dir, self.model_id)


def running_folder(models_dir: str | Path, model_id: str) -> Path:
    """The folder of an unfinished training run's checkpoints and log."""
    return Path(models_dir) / f".training-{model_id}"
