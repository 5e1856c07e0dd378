"""What the driver hands to a worker, and what it gets back: plain data, small enough to travel inside a Ray message."""

from dataclasses import dataclass
from typing import Any

from taugrid.config import Data, Diffusion, Sample
from taugrid.eval.features.names import ExtractorSpec
from taugrid.eval.reference import MomentsFile
from taugrid.eval.sources import Source
from taugrid.metrics import MetricSettings


@dataclass(frozen=True)
class SavedUnet:
    """A `UNet2DModel` in a folder: its config and its weights."""

    folder: str


@dataclass(frozen=True)
class Oracle:
    """The optimal eps for the distribution that `data` names."""

    data: Data


@dataclass(frozen=True)
class CustomNetwork:
    """A user's function that returns a network (`model.callable`), and what was found when it was called."""

    callable: str
    """`package.module:function`."""
    weights: str | None
    """The file whose path is passed to the function. None: the function takes no argument."""
    weights_sha256: str
    """Of that file. Without one: of everything that was loaded, including tensors that the function found by itself."""
    source_sha256: str
    """Of the source files of the function's module and of what it imports (`workers.custom.source.source_sha256`)."""
    tensors_sha256: str
    """Of the network's state (`workers.network.custom.tensors`)."""
    image_shape: tuple[int, int, int]
    """(channels, height, width) of the images that it was tried on."""
    summary: str
    """What the function returned, in a few words."""
    unusable: str | None = None
    """Why it can't be run now. Set where this was read from a run directory because the code or weights are gone."""


Network = SavedUnet | Oracle | CustomNetwork


@dataclass(frozen=True)
class SampleJob:
    """Sample images `start` to `stop` - 1 of a cell into a Parquet file."""

    path: str
    replace: bool
    """Overwrite what is there: a shorter file of the same shard, from when `num_samples` was lower."""
    start: int
    stop: int
    network: Network
    image_shape: tuple[int, int, int]
    settings: Sample
    diffusion: Diffusion
    tau: tuple[int, ...]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ReconstructJob:
    """Encode and decode images `start` to `stop` - 1 of a data set, and write what comes back with its error."""

    path: str
    replace: bool
    """Overwrite what is there: a shorter file of the same shard."""
    start: int
    stop: int
    network: Network
    data: Data
    data_sha256: str
    """Of its images on the driver."""
    batch_size: int
    diffusion: Diffusion
    tau: tuple[int, ...]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class InterpolateJob:
    """Decode what lies between the x_T of samples 0, 1, 2, ...: `pairs` rows, and the square of the first two pairs."""

    path: str
    pairs: int
    steps: int
    """Points from one x_T to another, both included."""
    network: Network
    image_shape: tuple[int, int, int]
    seed: int
    batch_size: int
    diffusion: Diffusion
    tau: tuple[int, ...]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ExtractJob:
    """Extract the features of one sample file (its path), or of a whole reference: a data set, or images elsewhere."""

    path: str
    replace: bool
    images: str | Data | Source
    images_sha256: str | None
    """Of a reference's images on the driver, which those of a data set must be; null: images of this run."""
    extractor: ExtractorSpec
    batch_size: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ReferenceFiles:
    """Where a worker finds what samples are compared with."""

    features: str | MomentsFile
    """A feature file, or only a mean and a covariance."""
    num_images: int | None
    """null: not known."""
    cache: str
    """Folder for its statistics."""
    key: str
    """Their name there."""


@dataclass(frozen=True)
class ScoreJob:
    """Compute a cell's metrics from its feature files and write them as JSON, and its samples' influence beside it."""

    path: str
    influence_path: str
    feature_paths: tuple[str, ...]
    """In the order of sample indices."""
    num_samples: int
    reference: ReferenceFiles
    settings: MetricSettings
    header: dict[str, Any]
    """What the score is of, `protocol` above all: written beside the metrics."""
    notes: tuple[str, ...]
    """Why a metric that was asked for is not given."""
    keep_features: bool
    """False: remove the feature files once the score is in place."""


Job = SampleJob | ReconstructJob | InterpolateJob | ExtractJob | ScoreJob


@dataclass(frozen=True)
class Result:
    """What a worker says of a job it did. `seconds` is time on the device; `first` is false if the file was there."""

    seconds: float
    images: int
    first: bool


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs."""

    node: str
    device: str
    versions: dict[str, str]
