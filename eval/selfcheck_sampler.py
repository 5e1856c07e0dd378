"""The judge of `taugrid selfcheck --sampler`: compares a cell's images with the solution of the ODE, in closed form.

For a Gaussian, the ODE of eq. 14 takes x_T along each eigenvector of Sigma by a factor: x - alpha m grows as the
standard deviation of x does. So the image that all solvers of the ODE converge to is known from (seed, n), whatever
their steps are. Nothing here knows them, nor shares code with them. A sampler that adds noise has no such image, only
the distribution of those images.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.statistics import Array
from taugrid.eval.selfcheck import CellFindings, ComparedFid, frechet_distance, index_problems, standard_normals
from taugrid.words import counted
from taugrid.workers.diffusion.gaussian import Gaussian

STEPS = (25, 100, 200)
"""S of the cells. Limits hold at the last S, orders between the first two: there an image's error falls with the order,
for DDIM from 0.96 to 0.24 grey levels, for UniPC from 0.0047 to 0.00003."""

SLACK = 0.25
"""How far the measured order may fall short. DDIM's was 1.0, Heun's 2.1, that of DPM-Solver++(2M) 2.0; the others end
below `ROUNDING`. DPM-Solver++(3M) with half of its second difference had 2.4, UniPC-2 3.1."""

ROUNDING = 2e-4
"""Grey levels by which float32 may move the mean pixel: it was 1.3e-4 at most in the cells of `selfcheck`."""

NEAR = 1.0
"""Largest mean difference at the last S, in grey levels. Of 100 linear steps of DDIM it was 0.5; a standard deviation
that is 10 % too large makes it 1.0."""

WIDE = 0.02
"""How far the FID may be above that of the ODE's images at the last S, as a share of the data's variance. A standard
deviation that is 14 % off makes it 0.02. Of 200 linear steps of DDPM it was 0.013."""

FAR = 6.0
"""Mean difference of one image, in grey levels, beyond which it is another image. Unrelated ones differ by 15."""

FOLLOWS = 0.9
"""Least correlation of images with the ODE's, for a sampler of unknown order to be judged as its solver. DDIM had
0.9997 at eta = 0, and 0.01 at eta = 1."""


def ode_images(
    data: Gaussian, first: float, last: float, seed: int, index: NDArray[np.int64], start: float = 1.0
) -> Array:
    """(n, d): the ODE's solution for the samples `index`, (n,), and x0 as predicted there.

    It leads from x_T at alpha_bar = `first` to the network's last call at `last`. `start` is the standard deviation of
    x_T, if x has a variance of 1 at the first call where x0 has.
    """
    vectors, m, l = data.eigenvectors, data.mean @ data.eigenvectors, data.eigenvalues  # noqa: E741
    growth = np.sqrt((last * l + 1 - last) / (first * l + 1 - first))
    gain = np.sqrt(last) * l / (last * l + 1 - last) * growth
    x_T = start * standard_normals(seed, index, 0, len(m)) @ vectors
    images: Array = (m + gain * (x_T - np.sqrt(first) * m)) @ vectors.T
    return images


def judge(
    images: NDArray[np.uint8],
    index: NDArray[np.int64],
    num_samples: int,
    exact: Array,
    fid: float,
    reference: NDArray[np.uint8],
    follows: bool,
    is_last: bool,
) -> CellFindings:
    """Judge one cell by its images, as `selfcheck.judge`.

    Args:
        images: (n, C, H, W), from the files, in any order.
        index: (n,), the recorded sample index of each image.
        num_samples: N.
        exact: (n, d), `ode_images` of `index`.
        fid: the FID in the run's table.
        reference: (M, C, H, W), the images that `fid` compares with.
        follows: the sampler solves the ODE; false: its images tell.
        is_last: the cell has the largest S, at which the images should be near the ODE's.
    """
    flat = images.reshape(len(images), -1).astype(np.int64)
    levels = np.clip(np.rint((exact + 1) * 127.5), 0, 255).astype(np.int64)
    difference = np.abs(flat - levels)
    problems = index_problems(index, num_samples)
    mean: float | None = None
    if equal := len(flat) - len(np.unique(flat, axis=0)):
        problems.append(f"{counted(equal, 'image')} equal to another one")
    centre = exact.mean(axis=0)
    if follows or np.corrcoef((flat / 127.5 - 1 - centre).ravel(), (exact - centre).ravel())[0, 1] > FOLLOWS:
        mean = float(difference.mean())
        if far := int((difference.mean(axis=1) > FAR).sum()):
            problems.append(f"{far} of {len(flat)} images not as the ODE takes their noise")
        if is_last and mean > NEAR:
            problems.append(f"pixels are off by {mean:.2g} grey levels on average, {NEAR:g} at most is expected")
    compared = ComparedFid(fid, frechet_distance(images, reference))
    if is_last:
        expected = frechet_distance(levels.astype(np.uint8), reference)
        if (beyond := compared.recomputed - expected) > WIDE * exact.var(axis=0).sum():
            problems.append(f"FID is {beyond:.4f} above {expected:.4f}, that of the ODE's images")
    share, largest = float((difference > 0).mean()), int(difference.max())
    return CellFindings(share, largest, compared, (*problems, *compared.problems), mean)


def order_problems(sampler: str, order: int, differences: Mapping[int, float]) -> list[str]:
    """At most one line, if the mean differences at each S fall more slowly than the sampler's order says."""
    few, many, _ = STEPS
    measured = np.log(differences[few] / max(differences[many], ROUNDING)) / np.log(many / few)
    if differences[many] <= ROUNDING or measured >= order - SLACK:
        return []
    said = f"from {few} to {many} steps the error falls with order {measured:.1f}"
    return [f"{said}, where {sampler} has order {order}"]
