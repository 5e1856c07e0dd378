"""The result of comparing a run with a baseline, and the exit code that follows.

A *second look* samples both networks of a cell once more: with a fresh seed (`fresh`), or with a fresh seed and more
samples (`grown`). Its numbers then replace those of the usual seeds.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from taugrid.errors import Exit
from taugrid.eval.gate.power import POWER, DetectionPower
from taugrid.eval.gate.rule import ALPHA, MARGIN
from taugrid.eval.gate.verdict import Verdict, exit_of
from taugrid.orchestrator.baseline.canaries import UNCHECKED, Check, worst_check
from taugrid.orchestrator.baseline.pixels import PixelDistance
from taugrid.words import counted

Situation = Literal["same weights and setup", "same weights, other setup", "new weights"]


@dataclass(frozen=True)
class CellComparison:
    """One cell compared with the baseline's. Numbers are None where there is no standard error, or nothing to judge."""

    cell: str
    name: str
    baseline_cell: str
    situation: Situation
    result: Verdict
    fid: float | None
    """None: the cell can't be scored."""
    baseline_fid: float
    difference: float | None
    """The judged FID minus the baseline's, positive for a regression."""
    margin: float
    """The FID regression that is accepted."""
    se: float | None = None
    """The paired standard error of `difference`."""
    t: float | None = None
    """The test statistic T = (difference - margin) / se."""
    upper: float | None = None
    """The upper end of the confidence interval of `difference`."""
    detectable: float | None = None
    """The smallest FID regression that the test calls worse with probability `POWER`."""
    reach: DetectionPower | None = None
    """The detection power that `detectable` is computed from."""
    num_samples: int = 0
    judged_fids: tuple[float, float] | None = None
    """The new FID and the baseline's in a second look, whose difference is `difference`. None: there was none."""
    seeds: str = "usual"
    """The samples that were judged: `usual`, or those of a second look, `fresh` or `grown`."""
    pixels: PixelDistance | None = None
    """The difference between the images of both sides, if their weights are the same."""
    note: str = ""
    others: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Metrics without a standard error: the new value, and the baseline's."""
    label: str = ""
    """The cell's settings, as the history shows them (`labels`)."""
    sampler_check: Check = UNCHECKED
    """Whether the baseline's network still makes the baseline's images."""
    missing_inputs: str = ""
    """The files that the comparison needs and that can still be computed, as a message; empty: it has all."""

    @property
    def is_judged(self) -> bool:
        """Whether its verdict is the statistical test's, or will be."""
        return self.result in (Verdict.UNDECIDED, Verdict.WORSE, Verdict.NOT_WORSE) and not self.missing_inputs

    def as_dict(self) -> dict[str, Any]:
        pixels = self.pixels and self.pixels._asdict()
        return _renamed(asdict(self)) | {"pixels": pixels, "sampler": self.sampler_check._asdict()}


JSON_KEYS = {
    "sampler_check": "sampler",
    "missing_inputs": "missing",
    "environment_differences": "marks",
    "regression": "loss",
}
"""The JSON keys of fields that have other names here. The keys can't change: users' scripts read them."""


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {JSON_KEYS.get(name, name): value for name, value in fields.items()}


class GateSettings(NamedTuple):
    margin: float = MARGIN
    """As a share of the baseline's FID."""
    alpha: float = ALPHA
    """The probability of a false alarm in a whole night."""
    allow_missing: bool = False
    """Cells of the baseline may be missing."""
    sharpness: float | None = None
    """The FID regression, as a share of the baseline's FID, that must be detectable in half of the cells."""


DEFAULT_GATE = GateSettings()


class Sharpness(NamedTuple):
    """The smallest FID regression, as a share of the baseline's FID, that is detected with probability `POWER`.

    Smaller regressions may go undetected.
    """

    regression: float
    """The median over the judged cells."""
    cells: int
    """The number of judged cells."""

    @property
    def message(self) -> str:
        median = f" (the median of {self.cells:,} cells)" if self.cells > 1 else ""
        share = f"{100 * self.regression:.2g} %"
        return f"detects regressions of {share} with {100 * POWER:g} % probability{median}"

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Sharpness":
        return cls(value["loss"], value["cells"])


@dataclass(frozen=True)
class BaselineComparison:
    directory: str
    baseline: str
    result: Verdict
    """The worst verdict of the cells."""
    cells: tuple[CellComparison, ...]
    only_new: tuple[str, ...]
    only_baseline: tuple[str, ...]
    environment_differences: tuple[str, ...]
    """Versions and devices that differ between the two sides."""
    notes: tuple[str, ...]
    alpha: float
    margin: float
    """As a share of the baseline's FID."""
    critical: float | None
    """The value that T had to exceed in the last test; None if no cell was judged."""
    rule: str
    """The decision rule that was applied, with the critical value of each test."""
    usual_critical: float | None = None
    """The value that T had to exceed in the test of the usual seeds."""
    unmatched: Mapping[str, str] = field(default_factory=dict)
    """Name -> label of the scored cells that only one side has."""
    scorer_check: Check = UNCHECKED
    """Whether today's scorer gives the same scores as the baseline's."""
    gate: GateSettings = DEFAULT_GATE

    @property
    def sampler_check(self) -> Check:
        return worst_check(cell.sampler_check for cell in self.cells)

    @property
    def sharpness(self) -> Sharpness | None:
        """None if the statistical test judged no cell."""
        shares = [
            cell.detectable / cell.baseline_fid for cell in self.cells if cell.is_judged and cell.detectable is not None
        ]
        return Sharpness(float(statistics.median(shares)), len(shares)) if shares else None

    @property
    def coverage(self) -> tuple[int, int]:
        """The number of the baseline's cells that were compared, and the number of all of them."""
        return len(self.cells), len(self.cells) + len(self.only_baseline)

    @property
    def missing_inputs(self) -> dict[str, str]:
        """Cell name -> the files that its comparison needs and that can still be computed."""
        return {cell.name: cell.missing_inputs for cell in self.cells if cell.missing_inputs}

    @property
    def not_judged(self) -> list[str]:
        """Reasons why the verdict is incomplete."""
        unjudged = sum(cell.result is Verdict.NOT_JUDGED and not cell.missing_inputs for cell in self.cells)
        reasons = [f"{counted(unjudged, 'cell')} can't be judged"] if unjudged else []
        if self.only_baseline and not self.gate.allow_missing:
            reasons.append("cells of the baseline are missing (--allow-missing permits it)")
        required, sharpness = self.gate.sharpness, self.sharpness
        if required is not None and sharpness is not None and sharpness.regression > required:
            n = self._samples_needed(required)
            fix = "no N detects that, within the margin" if n is None else f"N = {n:,} would do"
            reasons.append(f"--sharpness {required:g}: it {sharpness.message}; {fix}")
        return reasons

    def _samples_needed(self, regression: float) -> int | None:
        """The N at which `sharpness` would be `regression`, a share of FID; None: no N would do."""
        needed = [
            cell.reach.samples_needed(cell.num_samples, regression * cell.baseline_fid) or math.inf
            for cell in self.cells
            if cell.is_judged and cell.reach is not None
        ]
        # The upper median: of an even number of cells, both in the middle must detect it, for their mean to be enough.
        n = statistics.median_high(needed) if needed else math.inf
        return None if math.isinf(n) else int(n)

    @property
    def exit(self) -> Exit:
        return exit_of(self.result, self.missing_inputs, self.not_judged)

    def as_dict(self) -> dict[str, Any]:
        fields = _renamed(asdict(self))
        del fields["scorer_check"]  # it is among the checks
        return fields | {
            "cells": [cell.as_dict() for cell in self.cells],
            "compared": list(self.coverage),
            "checks": {"sampler": self.sampler_check._asdict(), "scorer": self.scorer_check._asdict()},
            "sharpness": None if self.sharpness is None else _renamed(self.sharpness._asdict()),
            "not_judged": self.not_judged,
            "missing": self.missing_inputs,
            "gate": self.gate._asdict(),
        }
