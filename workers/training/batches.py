"""The batches of training, functions of (train.seed, step, position in the batch), and the loss of an output."""

from typing import NamedTuple

import torch
from torch import Tensor

from taugrid import config
from taugrid.jobs import TrainingSpec
from taugrid.workers import schedules
from taugrid.workers.data.load import load_known_images, load_known_labels
from taugrid.workers.diffusion import noise
from taugrid.workers.diffusion.objective import l_gamma, mean_square
from taugrid.workers.diffusion.process import predicted
from taugrid.workers.diffusion.processes import DiscreteVP


class TrainingBatch(NamedTuple):
    """One rank's part of a step's global batch."""

    x_t: Tensor
    """(B, C, H, W), the images with noise added to them, as the network gets them."""
    t: Tensor
    """(B,) times of the process: int64 in 1..T, or float64 if it is continuous."""
    x0: Tensor
    """Shaped like `x_t`: the images in [-1, 1]."""
    eps: Tensor
    """Shaped like `x_t`: the noise."""
    told: Tensor
    """(B,) what the network is told."""
    labels: Tensor | None = None
    """(B,) int64 in 0..K, where K is the null class. None: the network takes none."""


class Loss:
    """The loss of a network's output: the mean square error of its prediction (L_simple for epsilon), or L_gamma on eps
    with Theorem 1's weights."""

    def __init__(self, diffusion: config.Diffusion, weights: config.LossWeights | None, device: str) -> None:
        """Raises ValueError if Theorem 1 has no such weights."""
        self._process = schedules.process(diffusion)
        self._gamma: Tensor | None = None
        if weights is not None:
            self._gamma = torch.from_numpy(schedules.gamma(weights, schedules.alpha_bar(diffusion))).to(device)

    def __call__(self, output: Tensor, batch: TrainingBatch) -> Tensor:
        """(B,) losses of the output (B, C, H, W)."""
        if self._gamma is not None:
            assert isinstance(self._process, DiscreteVP), "the plan refuses loss_weights of other processes"
            alpha_bar = self._process.alpha_bar_at(batch.t)
            eps = predicted(output, batch.x_t, alpha_bar, self._process.prediction).eps
            return l_gamma(eps, batch.eps, self._gamma[batch.t])
        return mean_square(output, self._process.target(batch.x0, batch.eps, batch.t))


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
        self._process = schedules.process(spec.diffusion)
        self._classes, self._label_dropout = spec.unet.num_classes, spec.train.label_dropout
        self._labels: Tensor | None = None
        if spec.labels_sha256 is not None:
            known = load_known_labels(spec.data, spec.labels_sha256).of_images
            self._labels = torch.tensor(known, dtype=torch.int64, device=device)

    def __getitem__(self, step: int) -> TrainingBatch:
        """The images of `step` = 0, 1, ... with noise added to them."""
        process, num_images = self._process, len(self._images)
        draws = noise.training_draws(self._seed, step, self._positions, num_images, process.timesteps, self._antithetic)
        t = process.drawn_time(draws.t)
        if self._on_device is not None:
            pixels = self._on_device[draws.index]
        else:
            pixels = torch.from_numpy(self._images[draws.index.cpu().numpy()]).to(draws.index.device)
        x0 = pixels.float() / 127.5 - 1
        if self._flip:
            x0 = torch.where(draws.flip[:, None, None, None], x0.flip(-1), x0)
        eps = noise.normal(self._seed, self._positions, step, self._shape, domain="train-eps")
        labels = None if self._labels is None else self._dropped(self._labels[draws.index], step)
        return TrainingBatch(process.noised(x0, eps, t), t, x0, eps, process.told_at(t), labels)

    def _dropped(self, labels: Tensor, step: int) -> Tensor:
        """`labels`, of which a share of `train.label_dropout` is the null class."""
        if not self._label_dropout:
            return labels
        assert self._classes is not None, "the plan refuses label_dropout without classes"
        drops = noise.label_drops(self._seed, step, self._positions, self._label_dropout)
        return labels.masked_fill(drops, self._classes)
