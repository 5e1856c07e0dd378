"""The judge of `taugrid selfcheck --sampler`: compares a cell's images with the solution of the ODE, in closed form.

For a Gaussian, the ODE of eq. 14 takes x_T along each eigenvector of Sigma by a factor: x - alpha m grows as the
standard deviation of x does. So the image that all solvers of the ODE converge to is known from (seed, n), whatever
their steps are. Nothing here knows them, nor shares code with them. A sampler that adds noise has no such image; it is
judged by the moments of its images alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.statistics import Array
from taugrid.eval.selfcheck import CellFindings, beyond_limit, compared, equal_images, index_problems, standard_normals
from taugrid.registry.samplers import SAMPLERS
from taugrid.words import counted
from taugrid.workers.diffusion.gaussian import Gaussian
from taugrid.workers.samplers.sampler import find

STEPS = (25, 100, 200)
"""S of the cells. Moments are compared at the last S, orders between the first two: there an image's error falls with
the order, for DDIM from 0.96 to 0.24 grey levels, for UniPC from 0.0047 to 0.00003."""

SLACK = 0.25
"""How far the measured order may fall short. DDIM's was 1.0, Heun's 2.1, that of DPM-Solver++(2M) 2.0; the others end
below `ROUNDING`. DPM-Solver++(3M) with half of its second difference had 2.4, UniPC-2 3.1."""

ROUNDING = 2e-4
"""Grey levels by which float32 may move the mean pixel: it was 1.3e-4 at most in the cells of `selfcheck`."""

NEAR = 1.0
"""Largest mean difference at the last S, in grey levels, of a sampler of unknown order. Of 100 linear steps of DDIM it
was 0.5; a standard deviation that is 10 % too large makes it 1.0."""

WIDE = 0.02
"""How far the FID of a sampler of unknown order may be beyond what is expected, as a share of the data's variance. A
standard deviation that is 14 % off makes it 0.02. Of 200 linear steps of DDPM it was 0.013."""

FAR = 6.0
"""Mean difference of one image, in grey levels, beyond which it is another image. Unrelated ones differ by 15."""

FOLLOWS = 0.9
"""Least correlation of images with the ODE's, for a sampler of unknown order to be judged as its solver. DDIM had
0.9997 at eta = 0, and 0.01 at eta = 1."""


@dataclass(frozen=True, eq=False)
class Limit:
    """What a cell's images converge to: the ODE's solution between the network's first and last call, then x0 there."""

    data: Gaussian
    first: float
    """alpha_bar at the first call, where x is x_T."""
    last: float
    """alpha_bar at the last call, whose prediction of x0 is the image."""
    seed: int
    num_samples: int
    start: float = 1.0
    """The standard deviation of x_T, if x has a variance of 1 at the first call where x0 has."""

    @property
    def _gain(self) -> Array:
        """(d,): of x0 in x_T - sqrt(first) m, along each eigenvector."""
        a, b, l = self.first, self.last, self.data.eigenvalues  # noqa: E741
        growth = np.sqrt((b * l + 1 - b) / (a * l + 1 - a))
        gain: Array = np.sqrt(b) * l / (b * l + 1 - b) * growth
        return gain

    def distribution(self) -> Gaussian:
        """Of the images."""
        vectors, m = self.data.eigenvectors, self.data.mean @ self.data.eigenvectors
        return Gaussian(vectors @ (m - self._gain * np.sqrt(self.first) * m), (self.start * self._gain) ** 2, vectors)

    def images(self, index: NDArray[np.int64]) -> Array:
        """(n, d): the image of each sample."""
        vectors, m = self.data.eigenvectors, self.data.mean @ self.data.eigenvectors
        x_T = self.start * standard_normals(self.seed, index, 0, len(m)) @ vectors
        found: Array = (m + self._gain * (x_T - np.sqrt(self.first) * m)) @ vectors.T
        return found


class Approach(NamedTuple):
    """How near a cell's images are to their limit."""

    findings: CellFindings
    mean_difference: float | None
    """In grey levels; None if the images do not follow the ODE. Its expectation is the mean absolute error of a pixel,
    as rounding is unbiased, so it shows errors far below a level."""


def judge(
    pictures: NDArray[np.uint8],
    index: NDArray[np.int64],
    limit: Limit,
    fid: float,
    reference: NDArray[np.uint8],
    follows: bool,
    is_last: bool,
) -> Approach:
    """Judge one cell by its images.

    Args:
        pictures: (n, C, H, W), from the files, in any order.
        index: (n,), the recorded sample index of each image.
        limit: what they should be near.
        fid: the FID in the run's table.
        reference: (M, C, H, W), the images that `fid` compares with.
        follows: the sampler solves the ODE; false: its images tell.
        is_last: the cell has the largest S, at which images and moments should be near the limit.
    """
    exact = limit.images(index)
    levels = np.clip(np.rint((exact + 1) * 127.5), 0, 255).astype(np.int64)
    flat = pictures.reshape(len(pictures), -1).astype(np.int64)
    centre = exact.mean(axis=0)
    correlation = np.corrcoef((flat / 127.5 - 1 - centre).ravel(), (exact - centre).ravel())[0, 1]
    difference = np.abs(flat - levels)
    problems = index_problems(index, limit.num_samples) + equal_images(pictures, index)
    mean = None
    if follows or correlation > FOLLOWS:
        mean = float(difference.mean())
        if far := int((difference.mean(axis=1) > FAR).sum()):
            problems.append(f"{far} of {len(flat)} images not as the ODE takes their noise")
        if is_last and mean > NEAR:
            problems.append(f"pixels are off by {mean:.2g} grey levels on average, {NEAR:g} at most is expected")
    moments, table = compared(pictures, limit.distribution(), limit.data, fid, reference)
    if is_last and follows:
        problems += beyond_limit(*moments)
    elif is_last and (beyond := moments.fid.measured - moments.fid.exact) > WIDE * limit.data.eigenvalues.sum():
        problems.append(f"FID is {beyond:.4f} above the expected {moments.fid.exact:.4f}")
    share, largest = float((difference > 0).mean()), int(difference.max())
    shown = moments if is_last else (None, None, None)
    return Approach(CellFindings(share, largest, shown[0], shown[1], shown[2], (*problems, *table)), mean)


def order_of(sampler: str) -> int | None:
    """How fast the images of one of taugrid's own solvers approach the solution; None for other samplers."""
    return find(sampler).order if sampler in SAMPLERS else None


def order_problems(sampler: str, differences: Mapping[int, float | None]) -> list[str]:
    """At most one line, if the mean differences at each S fall more slowly than the sampler's order says."""
    order, (few, many, _) = order_of(sampler), STEPS
    before, after = differences[few], differences[many]
    if order is None or before is None or after is None:
        return []
    measured = np.log(before / max(after, ROUNDING)) / np.log(many / few)
    if after <= ROUNDING or measured >= order - SLACK:
        return []
    return [
        f"from {few} to {counted(many, 'step')} the error falls with order {measured:.1f}, "
        f"where {sampler} has order {order}"
    ]
