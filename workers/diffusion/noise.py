"""Noise as a pure function of (seed, sample, time): Philox4x32-10 in integer tensor arithmetic, on any device.

Philox (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a 128-bit counter and a
64-bit key into four 32-bit words without any state, so no number depends on which others were drawn. Here the key
selects the stream (domain and seed) and the counter is the position in it. Existing runs depend on every bit of this
file: the golden values in its tests must never change.
"""

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices on which torch has no float64: there, noise and interpolation are computed on the CPU."""

Words4 = tuple[Tensor, Tensor, Tensor, Tensor]


def in_float64(x: Tensor) -> Tensor:
    """A tensor in float64: on its device or, if that has none, on the CPU."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


class TrainingDraws(NamedTuple):
    """The draws of a training step for each image of its batch, besides the noise."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    """(B,) int64 in [0, num_images): which image."""
    t: Tensor
    """(B,) int64 in 1..T: the paper's time. Of continuous processes, float64 in (0, 1)."""
    flip: Tensor  # (B,) bool: whether to mirror the image, if flips are on


def normal(seed: int, indices: Tensor, time: int, shape: tuple[int, ...], domain: str = "sample") -> Tensor:
    """(B, *shape) float32 standard normals for the samples `indices`, (B,) int64 >= 0, on their device.

    Element e of a sample, in C order, depends only on (domain, seed, index, time, e). `time` is t in 1..T, or 0 for
    x_T; in training, the step. Each `domain`, a purpose, is a separate stream. The Box-Muller transform is computed in
    float64 from words that are the same everywhere, so devices whose libraries differ in float64's last digits agree
    after rounding to float32, except for a rare last bit (below 1e-6). No value exceeds sqrt(66 ln 2) = 6.76.
    `ValueError` unless `time` is in [0, 2^32)."""
    dims, device = math.prod(shape), indices.device
    if device.type in WITHOUT_FLOAT64:
        indices = indices.cpu()
    w = words(seed, domain, indices, time, blocks=-(-dims // 4))
    u = (w.double() + 0.5) * 2.0**-32  # exact in float64, and never 0 or 1
    radius, angle = (-2 * u[:, 0::2].log()).sqrt(), 2 * math.pi * u[:, 1::2]
    z = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).float()
    return z.flatten(1)[:, :dims].reshape(len(indices), *shape).to(device)


def training_draws(
    seed: int, step: int, positions: Tensor, num_images: int, timesteps: int | None, antithetic: bool = False
) -> TrainingDraws:
    """The image, time and flip for each of the `positions`, (B,) int64, in the global batch of a training step.

    The noise for them is `normal(seed, positions, step, shape, domain="train-eps")`. With `antithetic`, the time at
    position 2k + 1 is T + 1 - t, where t is the time at 2k, as in the released code of the DDIM paper. Without
    `timesteps`, the same words give uniform numbers in (0, 1) as times, and 1 - t in antithetic pairs."""
    w = words(seed, "train", positions, step, blocks=2).unbind(dim=1)
    t = _times(w[2], w[3], timesteps)
    if antithetic:
        odd = positions % 2
        w_even = words(seed, "train", positions - odd, step, blocks=1).unbind(dim=1)  # may belong to another rank
        t_even = _times(w_even[2], w_even[3], timesteps)
        t = torch.where(odd.bool(), 1 - t_even if timesteps is None else timesteps + 1 - t_even, t)
    return TrainingDraws(index=uniform_integers(w[0], w[1], num_images), t=t, flip=(w[4] & 1).bool())


def label_drops(seed: int, step: int, positions: Tensor, share: float) -> Tensor:
    """(B,) bool: whether each of the `positions` in the batch of a training step loses its label, with odds `share`.
    Its stream is its own, so that no other draw depends on `share`."""
    return words(seed, "train-label", positions, step, blocks=1)[:, 0] < int(share * 2**32)


def _times(high: Tensor, low: Tensor, timesteps: int | None) -> Tensor:
    """Uniform in 1..T or, without T, in (0, 1): odd multiples of 2^-53, of which 1 - t is one too."""
    if timesteps is None:
        return ((high << 20 | low >> 12).double() + 0.5) * 2.0**-52
    return 1 + uniform_integers(high, low, timesteps)


def uniform_integers(high: Tensor, low: Tensor, n: int) -> Tensor:
    """floor(w n / 2^64) for the 64-bit w = (`high`, `low`), int64 words in [0, 2^32): uniform in [0, n) up to n / 2^64.
    n is at most 2^31, so that the products fit int64."""
    return (high * n + (low * n >> 32)) >> 32


def words(seed: int, domain: str, a: Tensor, b: Tensor | int, blocks: int) -> Tensor:
    """(B, 4 * blocks) random words, int64 in [0, 2^32), on the device of `a`, (B,) int64 >= 0; `b` is a number or (B,).
    Lane e % 4 of the block with counter (e // 4, b, a mod 2^32, a div 2^32) is word e of the stream of `seed` and
    `domain`. `ValueError` if `b` is a number that is not in [0, 2^32)."""
    if isinstance(b, int):
        if not 0 <= b <= MASK:
            raise ValueError(f"time or step {b} is out of range; the noise is defined for 0 to 2^32 - 1")
        b = torch.full((1,), b, dtype=torch.int64, device=a.device)
    block = torch.arange(blocks, device=a.device)
    # The shapes are (blocks,) and (B, 1): the first two of the ten rounds broadcast all four lanes to (B, blocks).
    lanes = philox4x32((block, b[:, None], (a & MASK)[:, None], (a >> 32)[:, None]), stream_key(seed, domain))
    return torch.stack(lanes, dim=-1).flatten(1)


def stream_key(seed: int, domain: str) -> tuple[int, int]:
    """The Philox key of a stream: the first 8 bytes of SHA-256 over its name, as two little-endian words."""
    digest = hashlib.sha256(f"taugrid/{domain}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Philox4x32-10 of `counter`: int64 tensors of 32-bit words, least significant first, which broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product of two words needs 64 unsigned bits. int64 wraps, which keeps every bit; the shift extends the sign
        # bit, and the mask removes it again.
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3
