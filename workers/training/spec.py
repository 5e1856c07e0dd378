"""What to train: the specification that travels to Ray Train's workers, and the training's folders."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taugrid.config import Data, Diffusion, Train, Unet
from taugrid.run_id import RunId


class Hopeless(Exception):
    """Training would fail in the same way again, so Ray Train must not repeat it. The message is one line."""


@dataclass(frozen=True)
class TrainingSpec:
    """A model to train, and the resources. `diffusion` and `train` are resolved, with no key left `null`."""

    data: Data
    data_sha256: str
    """The `workers.data.load.content_fingerprint` of its images on the driver."""
    unet: Unet
    diffusion: Diffusion
    train: Train
    model_id: str
    models_dir: str
    """Absolute, and the same folder on every node: Ray's workers change directory."""
    cpus_per_worker: float
    gpus_per_worker: float
    label_selector: Mapping[str, str] = field(default_factory=dict)
    """Ray labels that the workers' nodes must have."""
    run: RunId | None = None
    """The run directory, which every worker must see. None: not in one."""

    @property
    def final(self) -> Path:
        """The folder in which the trained model is committed, whole or not at all."""
        return Path(self.models_dir) / self.model_id

    @property
    def running(self) -> Path:
        """Ray Train's folder while the training runs: checkpoints, the live log and TensorBoard's files."""
        return running_folder(self.models_dir, self.model_id)


def running_folder(models_dir: str | Path, model_id: str) -> Path:
    """The folder of an unfinished training's checkpoints and log."""
    return Path(models_dir) / f".training-{model_id}"
