"""The batches of training: images, times and noise as functions of (train.seed, step, position in the batch)."""

import torch
from torch import Tensor

from taugrid.workers import schedules
from taugrid.workers.data.load import load_known_images
from taugrid.workers.diffusion import noise
from taugrid.workers.diffusion.process import diffuse
from taugrid.workers.training.loss import TrainingBatch
from taugrid.workers.training.spec import TrainingSpec

DEVICE_BYTES = 4 * 2**30
"""Data sets up to this size are kept on the device. Larger ones are moved there batch by batch, from a mapped file."""


class Batches:
    """The batches of one rank: a contiguous slice of the positions 0..B-1, a function of the step."""

    def __init__(self, spec: TrainingSpec, rank: int, world_size: int, device: str) -> None:
        assert spec.train.seed is not None
        size = spec.train.batch_size
        self._seed, self._flip, self._shape = spec.train.seed, spec.train.flip, spec.data.image_shape
        self._antithetic = spec.train.antithetic
        self._positions = torch.arange(rank * size // world_size, (rank + 1) * size // world_size, device=device)
        self._images = load_known_images(spec.data, spec.data_sha256)
        fits = device != "cpu" and self._images.nbytes <= DEVICE_BYTES
        self._on_device = torch.tensor(self._images, device=device) if fits else None
        self._alpha_bar = torch.from_numpy(schedules.alpha_bar(spec.diffusion)).to(device)

    def __getitem__(self, step: int) -> TrainingBatch:
        """The images of `step` = 0, 1, ... with noise added to them, eq. 4."""
        timesteps = len(self._alpha_bar) - 1
        draws = noise.training_draws(self._seed, step, self._positions, len(self._images), timesteps, self._antithetic)
        x0 = self._pixels(draws.index).float() / 127.5 - 1
        if self._flip:
            x0 = torch.where(draws.flip[:, None, None, None], x0.flip(-1), x0)
        eps = noise.normal(self._seed, self._positions, step, self._shape, domain="train-eps")
        return TrainingBatch(diffuse(x0, eps, self._alpha_bar[draws.t]), draws.t, x0, eps)

    def _pixels(self, index: Tensor) -> Tensor:
        if self._on_device is not None:
            return self._on_device[index]
        return torch.from_numpy(self._images[index.cpu().numpy()]).to(index.device)
