"""The jobs that compute images, as the driver builds them: `workers.sample` and `workers.ode` do them. No torch."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data, Diffusion, Sample
from taugrid.jobs import Job, NetworkSpec, smaller_batch
from taugrid.workers.conditions import LabelRule
from taugrid.workers.diffusion.decoder import Decoder, Vae
from taugrid.workers.diffusion.denoiser import Guidance
from taugrid.workers.samplers.sampler import SamplingSpec


@dataclass(frozen=True, slots=True)
class SampleJob(Job):
    """Sample images `start` to `stop` - 1 of a cell into a Parquet file."""

    entry_point = "taugrid.workers.sample:run"

    start: int
    stop: int
    network: NetworkSpec
    decoder: Decoder
    settings: Sample
    diffusion: Diffusion
    tau: tuple[float, ...]
    nfe: int  # network evaluations per image (NFE): a guided call is two
    metadata: dict[str, Any]
    kept: int = 0
    """Number of images that are copied from the file that it replaces, if that is intact. They are complete batches
    from its start, so all others are sampled in the same batches as in an uninterrupted run."""

    guidance: Guidance | None = None  # None: predictions are the network's
    guide: NetworkSpec | None = None
    """The second network. None: there is none, or the first one guides itself."""
    sampler_code: str | None = None
    """Identifies the code of a custom sampler (`samplers.sampler.code_hash`); None for built-ins."""
    latents_of: str | None = None
    """The file of a cell that keeps the same latents, to be decoded here. If it can't be read, they are sampled."""
    label_rule: LabelRule | None = None
    """The labels of its images. None: the network is unconditional."""

    @property
    def spec(self) -> SamplingSpec:
        """What determines its images, besides the network and their indices."""
        return SamplingSpec(self.decoder, self.diffusion, self.settings, self.tau, self.nfe, self.guidance)

    @property
    def labels(self) -> NDArray[np.int32] | None:
        """The labels of its images, (stop - start,)."""
        return None if self.label_rule is None else self.label_rule.at(np.arange(self.start, self.stop))

    @property
    def remedy(self) -> str:
        key = f"sample.batch_size: {self.settings.batch_size}"
        if isinstance(self.decoder, Vae):
            key += f" or sample.decode_batch: {self.settings.decode_batch}"
        return smaller_batch(key)


@dataclass(frozen=True)
class OdeJob(Job):
    """What both jobs need to follow the ODE of a network."""

    entry_point = "taugrid.workers.ode:run"

    _: KW_ONLY
    network: NetworkSpec
    batch_size: int
    diffusion: Diffusion
    tau: tuple[float, ...]
    metadata: dict[str, Any]

    @property
    def remedy(self) -> str:
        return smaller_batch(f"sample.batch_size: {self.batch_size}")


@dataclass(frozen=True)
class ReconstructJob(OdeJob):
    """Encode and decode images `start` to `stop` - 1 of a data set, and write the results with their errors."""

    start: int
    stop: int
    data: Data
    data_sha256: str  # SHA-256 of these images on the driver (`workers.data.load.fingerprint`)


@dataclass(frozen=True)
class InterpolateJob(OdeJob):
    """Decode points between the x_T of samples 0, 1, 2, ...: `pairs` rows, and the square of the first two pairs."""

    pairs: int
    steps: int  # number of points from one x_T to another, both included
    decoder: Decoder
    seed: int
