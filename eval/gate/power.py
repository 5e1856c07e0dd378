"""How much a night can see: the smallest loss that it catches, the N that catches a given loss, and the share missed.

A network that is worse by D has another influence function than the baseline, so the paired error grows with D:

    se(D)^2 = se^2 + growth * D,    growth = `SHARE_OF_OWN_ERROR` * fid_se^2 / fid, both of the baseline alone.

Where FID is |delta|^2 for a distance delta of two means, moving the mean by Delta at right angles to delta gives
D = |Delta|^2 and changes the influences by 2 Delta^T (x - m), whose variance is to that of 2 delta^T (x - m) as D is to
FID. `python -m benchmarks.gate --parts power` measures how well this holds for other changes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from scipy.optimize import brentq
from scipy.stats import nct, norm

POWER = 0.80
"""The probability of being called worse at the change that `Reach.detectable` gives."""

SHARE_OF_OWN_ERROR = 0.7
"""The growth of the paired error's square with D / FID, in units of the square of the baseline's own error."""

FROZEN = 3.0
"""Standard errors of the change by which `frozen_seeds_remark` says what frozen seeds hide."""


class Variance(NamedTuple):
    """The variance of a difference as a function of the true change D, in units of FID."""

    at_zero: float
    slope: float = 0.0

    def at(self, change: float) -> float:
        """The variance if the network is worse by `change`; a better one has that of an equal one."""
        return self.at_zero + self.slope * max(0.0, change)


@dataclass(frozen=True)
class Reach:
    margin: float
    errors: float
    """By how many standard errors a true change must exceed the margin, to be called worse with probability `POWER`."""
    sampling: Variance
    """From drawing N samples; it shrinks with N."""
    training: Variance
    """From the training of a recipe's networks, which no N reduces."""

    @property
    def detectable(self) -> float:
        """The smallest true change D that is called worse with probability `POWER`.

        It solves D - margin = errors * (sampling.at(D) + training.at(D))^1/2.
        """
        square = self.errors**2
        half = square * (self.sampling.slope + self.training.slope) / 2
        return (
            self.margin
            + half
            + math.sqrt(half**2 + square * (self.sampling.at(self.margin) + self.training.at(self.margin)))
        )

    def samples_needed(self, num_samples: int, loss: float) -> int | None:
        """The N at which a true change of `loss` is called worse with probability `POWER`, two digits, rounded up.

        Args:
            num_samples: the N that this reach is of.
            loss: in units of FID.

        Returns:
            N, or None if no N would do: the loss is not beyond the margin, or too small for so few trainings.
        """
        left = ((loss - self.margin) / self.errors) ** 2 - self.training.at(loss)
        if loss <= self.margin or left <= 0:
            return None
        return rounded_up(num_samples * self.sampling.at(loss) / left)


def errors_for_power(critical: float, degrees: int | None = None) -> float:
    """By how many standard errors a true T must exceed 0, so that T exceeds `critical` with probability `POWER`.

    T is normal, or follows a noncentral t with `degrees` of freedom.
    """
    if degrees is None:
        return critical + float(norm.ppf(POWER))
    return float(brentq(lambda shift: nct.sf(critical, degrees, shift) - POWER, 0, 10 * critical))


def samples_to_halve_misses(critical: float, num_samples: int) -> int:
    """The N at which half as many blocks of noise hide a change that is `FROZEN` standard errors at `num_samples`.

    Errors shrink with the root of N. `critical` is what T has to exceed in the first look of a night.
    """
    halved = critical - float(norm.ppf(missed_share(critical) / 2))
    return rounded_up(num_samples * (halved / FROZEN) ** 2)


def missed_share(critical: float) -> float:
    """The share of blocks of noise in which a change of `FROZEN` standard errors does not exceed `critical`."""
    return float(norm.cdf(critical - FROZEN))


def frozen_seeds_remark(critical: float, num_samples: int) -> str:
    """One sentence for undecided cells: what frozen seeds hide, and the N that halves it."""
    return (
        "the usual seeds are the same every night, so a change that they miss tonight they are likely to miss every "
        f"night: {100 * missed_share(critical):.0f} % of seeds hide a change of {FROZEN:g} standard errors; "
        f"N = {samples_to_halve_misses(critical, num_samples):,} halves that share"
    )


def rounded_up(n: float) -> int:
    """`n` with two significant digits, rounded up."""
    unit: int = 10 ** max(0, math.floor(math.log10(n)) - 1)
    return math.ceil(n / unit) * unit
