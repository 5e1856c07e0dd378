"""The result of a comparison with a baseline, and how a command ends with it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from taugrid.errors import Exit
from taugrid.eval.gate.power import DetectionPower
from taugrid.eval.gate.rule import ALPHA, MARGIN
from taugrid.eval.gate.verdict import Verdict, exit_of
from taugrid.orchestrator.baseline.canaries import UNCHECKED, Check, worst_check
from taugrid.orchestrator.baseline.pixels import PixelDistance
from taugrid.words import counted

Situation = Literal["same weights and setup", "same weights, other setup", "new weights"]


@dataclass(frozen=True)
class Compared:
    """One cell beside the baseline's. Numbers are None where there is no standard error, or nothing to judge."""

    cell: str
    name: str
    baseline_cell: str
    situation: Situation
    result: Verdict
    fid: float | None
    """None: the cell can't be scored."""
    baseline_fid: float
    difference: float | None
    margin: float
    se: float | None = None
    t: float | None = None
    upper: float | None = None
    """The upper end of the interval of the difference."""
    detectable: float | None = None
    """The smallest change that would have been called worse with a probability of 80 %."""
    reach: DetectionPower | None = None
    """From which `detectable` is computed."""
    num_samples: int = 0
    judged_fids: tuple[float, float] | None = None
    """The new FID and the baseline's with the seeds of a second look, whose difference is `difference`."""
    seeds: str = "usual"
    """Which samples the difference is of: `usual`, or those of a second look, `fresh` or `grown`."""
    pixels: PixelDistance | None = None
    """Where the weights are the same."""
    note: str = ""
    others: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Metrics without a standard error: the new value, and the baseline's."""
    label: str = ""
    """Its settings, as the history has them (`labels`)."""
    sampler: Check = UNCHECKED
    """Whether the baseline's network still makes the baseline's images."""
    missing: str = ""
    """What the comparison lacks that can still be computed; empty: nothing."""

    @property
    def is_judged(self) -> bool:
        """Whether the rule judges it, or has."""
        return self.result in (Verdict.UNDECIDED, Verdict.WORSE, Verdict.NOT_WORSE) and not self.missing


class GateSettings(NamedTuple):
    margin: float = MARGIN
    """As a share of the baseline's FID."""
    alpha: float = ALPHA
    """Of the whole night."""
    allow_missing: bool = False
    """Cells of the baseline may be missing."""
    sharpness: float | None = None
    """The loss, as a share of the baseline's FID, that must be seen in half of the cells."""


DEFAULTS = GateSettings()


class Sharpness(NamedTuple):
    """The smallest loss that would be called worse in 4 of 5 nights, as a share of the baseline's FID."""

    loss: float
    """In half of the judged cells."""
    cells: int
    """How many cells were judged."""

    @property
    def in_words(self) -> str:
        where = f" (the median of {self.cells:,} cells)" if self.cells > 1 else ""
        return f"would miss losses below {100 * self.loss:.2g} %{where}"


@dataclass(frozen=True)
class BaselineComparison:
    directory: str
    baseline: str
    result: Verdict
    """The worst of its cells'."""
    cells: tuple[Compared, ...]
    only_new: tuple[str, ...]
    only_baseline: tuple[str, ...]
    marks: tuple[str, ...]
    """Versions and devices that differ."""
    notes: tuple[str, ...]
    alpha: float
    margin: float
    """As a share of the baseline's FID."""
    critical: float | None
    """The value that T had to exceed in the last look; None if no cell was judged."""
    rule: str
    """In words, with the value of each look."""
    usual_critical: float | None = None
    """The value that T had to exceed with the usual seeds."""
    unmatched: Mapping[str, str] = field(default_factory=dict)
    """Name -> label of the cells that only one side has, as far as they are scored."""
    scorer: Check = UNCHECKED
    gate: GateSettings = DEFAULTS

    @property
    def sampler(self) -> Check:
        return worst_check(cell.sampler for cell in self.cells)

    @property
    def sharpness(self) -> Sharpness | None:
        """The smallest loss that it would have seen; None if the rule judged no cell."""
        judged = [(cell.detectable, cell.baseline_fid) for cell in self.cells if cell.is_judged]
        losses = [found / base for found, base in judged if found is not None]
        return Sharpness(float(np.median(losses)), len(losses)) if losses else None

    @property
    def compared(self) -> tuple[int, int]:
        """How many cells of the baseline were compared, and how many it has."""
        return len(self.cells), len(self.cells) + len(self.only_baseline)

    @property
    def missing(self) -> dict[str, str]:
        """Name -> what its comparison lacks that can still be computed."""
        return {cell.name: cell.missing for cell in self.cells if cell.missing}

    @property
    def not_judged(self) -> list[str]:
        """Why this is no verdict on everything that was asked for, in sentences."""
        unjudged = sum(cell.result is Verdict.NOT_JUDGED and not cell.missing for cell in self.cells)
        said = [f"{counted(unjudged, 'cell')} can't be judged"] if unjudged else []
        if self.only_baseline and not self.gate.allow_missing:
            said.append("cells of the baseline are missing (--allow-missing permits it)")
        wanted, sharp = self.gate.sharpness, self.sharpness
        if wanted is not None and sharp is not None and sharp.loss > wanted:
            n = self._samples_needed(wanted)
            way_out = "no N sees that, within the margin" if n is None else f"N = {n:,} would do"
            said.append(f"--sharpness {wanted:g}: it {sharp.in_words}; {way_out}")
        return said

    def _samples_needed(self, loss: float) -> int | None:
        """The N at which half of the judged cells would see a loss, a share of FID; None: no N would do."""
        judged = [(cell.reach, cell.num_samples, loss * cell.baseline_fid) for cell in self.cells if cell.is_judged]
        needed = [reach.samples_needed(n, fid) or math.inf for reach, n, fid in judged if reach is not None]
        found = sorted(needed)[(len(needed) - 1) // 2] if needed else math.inf
        return None if math.isinf(found) else int(found)

    @property
    def exit(self) -> Exit:
        return exit_of(self.result, self.missing, self.not_judged)

    def as_dict(self) -> dict[str, Any]:
        sharp, plain = self.sharpness, asdict(self)
        del plain["scorer"]  # it is among the checks
        return plain | {
            "cells": [_compared_dict(cell) for cell in self.cells],
            "compared": list(self.compared),
            "checks": {"sampler": self.sampler._asdict(), "scorer": self.scorer._asdict()},
            "sharpness": None if sharp is None else sharp._asdict(),
            "not_judged": self.not_judged,
            "missing": self.missing,
            "gate": self.gate._asdict(),
        }


def _compared_dict(cell: Compared) -> dict[str, Any]:
    return asdict(cell) | {"pixels": cell.pixels and cell.pixels._asdict(), "sampler": cell.sampler._asdict()}
