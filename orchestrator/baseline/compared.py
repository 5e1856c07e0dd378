"""The result of comparing a run with a baseline, as `--json` prints it and verdict.json keeps it, and its exit code.

A *second look* samples both networks of a cell once more: with a fresh seed (`fresh`), or with a fresh seed and more
samples (`grown`). Its numbers then replace those of the usual seeds.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, TypeAdapter, model_serializer
from pydantic.dataclasses import dataclass

from taugrid.config import Config
from taugrid.errors import Exit
from taugrid.eval.gate.power import POWER, DetectionPower
from taugrid.eval.gate.rule import ALPHA, MARGIN, MARGIN_FLOOR
from taugrid.eval.gate.verdict import Verdict, exit_of
from taugrid.orchestrator.baseline.canaries import UNCHECKED, Check
from taugrid.orchestrator.baseline.pixels import PixelDistance
from taugrid.registry.metrics import COLUMNS
from taugrid.words import counted

Situation = Literal["same weights and setup", "same weights, other setup", "new weights"]


@dataclass(frozen=True)
class MetricComparison:
    """One metric of a cell compared with the baseline's. Numbers are None where it was not judged."""

    value: float | None
    """None: the cell can't be scored."""
    baseline: float
    size: float
    """What shares are of: `baseline`, or two of its standard errors if they are more."""
    difference: float | None
    """The judged value minus the baseline's."""
    margin: float
    """The regression that is accepted."""
    verdict: Verdict | None = None
    """None: the test did not judge it."""
    se: float | None = None
    """The paired standard error of `difference`."""
    t: float | None = None
    """The test statistic T = (regression - margin) / se; the regression is `difference`, or its negative where higher
    is better."""
    upper: float | None = None
    """The upper end of the confidence interval of the regression."""
    detectable: float | None = None
    """The smallest regression that the test calls worse with probability `POWER`."""
    decisive: int | None = None
    """The N at which an equal network is not worse with probability `POWER` by this margin, if it is above the cell's;
    None: it is not, or no N would do."""
    reach: DetectionPower | None = None
    """The detection power that `detectable` is computed from."""
    judged: tuple[float, float] | None = None
    """The new value and the baseline's in a second look, whose difference is `difference`. None: there was none."""

    def regression(self, name: str) -> tuple[float, float]:
        """The difference of a judged metric with its standard error: positive if the new value is worse."""
        assert self.difference is not None
        assert self.se is not None
        return -self.difference if COLUMNS[name].higher_is_better else self.difference, self.se


FID_KEYS = {
    "fid": "value",
    "baseline_fid": "baseline",
    **{name: name for name in ("difference", "margin", "se", "t", "upper", "detectable", "reach")},
    "judged_fids": "judged",
}
"""The keys of a cell's JSON that hold FID's numbers. They can't change: users' scripts read them."""


@dataclass(frozen=True)
class CellComparison:
    """One cell compared with the baseline's."""

    cell: str
    name: str
    baseline_cell: str
    situation: Situation
    result: Verdict
    """The worst verdict of its metrics, or that of a check."""
    metrics: Mapping[str, MetricComparison]
    """Column of quality.csv -> those that the gate judges, and FID."""
    judging: tuple[str, ...] = ()
    """The columns that the statistical test judges."""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """Column -> why it is not judged, of those that `gate.metrics` names."""
    unsure: Mapping[str, str] = field(default_factory=dict)
    """Column -> why it can only be worse: it has no standard error, and the baseline's has (`Change.only_worse`)."""
    num_samples: int = 0
    seeds: str = "usual"
    """The samples that were judged: `usual`, or those of a second look, `fresh` or `grown`."""
    pixels: PixelDistance | None = None
    """The difference between the images of both sides, if their weights are the same."""
    note: str = ""
    others: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """All metrics but FID: the new value, and the baseline's."""
    label: str = ""
    """The cell's settings, as the history shows them (`labels`)."""
    sampler: Check = UNCHECKED
    """Whether the baseline's network still makes the baseline's images."""
    missing: str = ""
    """The files that the comparison needs and that can still be computed, as a message; empty: it has all."""
    grows: bool = False
    """Whether `--grow-to` of this night samples it with more images, by the same margins, if it is undecided."""

    @property
    def is_judged(self) -> bool:
        """Whether its verdict is the statistical test's, or will be."""
        tested = (Verdict.WORSE, Verdict.UNDECIDED, Verdict.NOT_WORSE, Verdict.BETTER)
        return self.result in tested and not self.missing

    @property
    def judged(self) -> dict[str, MetricComparison]:
        """The metrics that the test has judged, the worst first: its verdict is the cell's."""
        ranked = [(metric.verdict.rank, -(metric.t or 0), name) for name, metric in self.metrics.items()
                  if metric.verdict is not None]  # fmt: skip
        return {name: self.metrics[name] for *_, name in sorted(ranked)}

    @model_serializer(mode="wrap")
    def _with_fid(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = dump(self)
        fid = fields["metrics"].get("fid", {})
        return {**fields, "by": next(iter(self.judged), None), **{key: fid.get(name) for key, name in FID_KEYS.items()}}


@dataclass(frozen=True)
class GateSettings:
    margin: float = MARGIN
    """As a share of the baseline's metric (`MetricComparison.size`)."""
    alpha: float = ALPHA
    """The probability of a false alarm in a whole night."""
    allow_missing: bool = False
    """Cells of the baseline may be missing."""
    sharpness: float | None = None
    """The regression, as a share of the baseline's metric, that must be detectable in half of the cells."""
    metrics: tuple[str, ...] | None = None
    """What is judged, `gate.metrics`; None: `DEFAULT_METRICS`."""
    margin_floor: float = MARGIN_FLOOR
    """`gate.margin_floor`."""


DEFAULT_GATE = GateSettings()


def gate_of(config: Config, **requested: Any) -> GateSettings:
    """The settings of the gate: those of a config, and what the command line asked for."""
    metrics, floor = config.gate.metrics, config.gate.margin_floor
    return GateSettings(metrics=None if metrics is None else tuple(metrics), margin_floor=floor, **requested)


DEFAULT_METRICS = ("fid", "kid")
"""Of these, a cell is judged by the first that has a standard error."""


@dataclass(frozen=True)
class Sharpness:
    """The smallest regression of a metric, as a share of the baseline's, that is detected with probability `POWER`.

    Smaller regressions may go undetected.
    """

    loss: float
    """The median over the judged cells."""
    cells: int
    """The number of judged cells."""


def sharpness_in_words(sharpnesses: Mapping[str, Sharpness]) -> str:
    """The sharpness of each judged metric, such as "detects regressions of 12 % of KID with 80 % probability"."""
    shares = shares_in_words({name: sharpness.loss for name, sharpness in sharpnesses.items()})
    cells = max(sharpness.cells for sharpness in sharpnesses.values())
    median = f" (the median of {cells:,} cells)" if cells > 1 else ""
    return f"detects regressions of {shares} with {100 * POWER:g} % probability{median}"


def shares_in_words(shares: Mapping[str, float]) -> str:
    """Shares of metrics with two digits, such as "140 % of FID and 12 % of KID"; FID alone is not named."""
    of_it = {name: "" if list(shares) == ["fid"] else f" of {COLUMNS[name].title}" for name in shares}
    return " and ".join(f"{float(f'{100 * share:.2g}'):,g} %{of_it[name]}" for name, share in shares.items())


@dataclass(frozen=True)
class BaselineComparison:
    directory: str
    baseline: str
    result: Verdict
    """The worst verdict of the cells."""
    cells: tuple[CellComparison, ...]
    only_new: tuple[str, ...]
    only_baseline: tuple[str, ...]
    marks: tuple[str, ...]
    """Versions and devices that differ between the two sides."""
    notes: tuple[str, ...]
    critical: float | None
    """The value that T had to exceed in the last test; None if no cell was judged."""
    rule: str
    """The decision rule that was applied, with the critical value of each test."""
    checks: Mapping[Literal["sampler", "scorer"], Check]
    """Whether the baseline's network still makes the baseline's images, and the scorer gives them the same scores."""
    usual_critical: float | None = None
    """The value that T had to exceed in the test of the usual seeds."""
    unmatched: Mapping[str, str] = field(default_factory=dict)
    """Name -> label of the scored cells that only one side has."""
    gate: GateSettings = DEFAULT_GATE

    @property
    def compared(self) -> tuple[int, int]:
        """How many of how many cells of the baseline."""
        return len(self.cells), len(self.cells) + len(self.only_baseline)

    @property
    def sharpnesses(self) -> dict[str, Sharpness]:
        """The sharpness of each metric that the statistical test judged in some cell."""
        shares: dict[str, list[float]] = {}
        judged = (item for cell in self.cells if cell.is_judged for item in cell.judged.items())
        for name, metric in judged:
            if metric.detectable is not None:
                shares.setdefault(name, []).append(metric.detectable / metric.size)
        found = {name: shares[name] for name in COLUMNS if name in shares}
        return {name: Sharpness(float(statistics.median(of_it)), len(of_it)) for name, of_it in found.items()}

    @property
    def missing(self) -> dict[str, str]:
        """Cell name -> the files that its comparison needs and that can still be computed."""
        return {cell.name: cell.missing for cell in self.cells if cell.missing}

    @property
    def not_judged(self) -> list[str]:
        """Reasons why the verdict is incomplete."""
        unjudged = sum(cell.result is Verdict.NOT_JUDGED and not cell.missing for cell in self.cells)
        reasons = [f"{counted(unjudged, 'cell')} can't be judged"] if unjudged else []
        if self.only_baseline and not self.gate.allow_missing:
            reasons.append("cells of the baseline are missing (--allow-missing permits it)")
        required = self.gate.sharpness
        blunt = {name: found for name, found in self.sharpnesses.items() if required and found.loss > required}
        if required is not None and blunt and not self.result.is_regression:
            needed = [self._samples_needed(name, required) for name in blunt]
            n = None if None in needed else max(n for n in needed if n is not None)
            fix = "no N detects that, within the margin" if n is None else f"N = {n:,} would do"
            reasons.append(f"--sharpness {required:g}: it {sharpness_in_words(blunt)}; {fix}")
        return reasons

    def _samples_needed(self, column: str, regression: float) -> int | None:
        """The N at which the sharpness of a metric would be `regression`, a share of it; None: no N would do."""
        needed = [
            metric.reach.samples_needed(cell.num_samples, regression * metric.size) or math.inf
            for cell in self.cells
            if cell.is_judged and (metric := cell.judged.get(column)) is not None and metric.reach is not None
        ]
        # The upper median: of an even number of cells, both in the middle must detect it, for their mean to be enough.
        n = statistics.median_high(needed) if needed else math.inf
        return None if math.isinf(n) else int(n)

    @property
    def exit(self) -> Exit:
        return exit_of(self.result, self.missing, self.not_judged)

    @model_serializer(mode="wrap")
    def _with_results(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        sharpnesses = {name: asdict(found) for name, found in self.sharpnesses.items()}
        results = {name: getattr(self, name) for name in ("compared", "not_judged", "missing")}
        return {
            **dump(self),
            **results,
            "alpha": self.gate.alpha,
            "margin": self.gate.margin,
            "sharpness": sharpnesses.get("fid"),
            "sharpnesses": sharpnesses,
        }

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        plain: dict[str, Any] = TypeAdapter(BaselineComparison).dump_python(self, mode="json")
        return plain
