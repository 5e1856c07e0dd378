"""The result of comparing a run with a baseline, as `--json` prints it, and the verdict of a night, verdict.json.

A *second look* samples both networks of a cell once more: with a fresh seed (`fresh`), or with a fresh seed and more
samples (`grown`). Its numbers then replace those of the usual seeds.
"""

import math
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer
from pydantic.dataclasses import dataclass

from taugrid.config import Config
from taugrid.errors import Exit, UserError
from taugrid.eval.gate.rule import ALPHA, MARGIN, MARGIN_FLOOR, POWER, DetectionPower
from taugrid.eval.gate.verdict import Verdict, exit_of
from taugrid.eval.nights import NightModel
from taugrid.orchestrator.baseline.canaries import UNCHECKED, Check
from taugrid.orchestrator.baseline.snapshot import ImagesOfNight, Software
from taugrid.registry.metrics import COLUMNS
from taugrid.run_id import FORMAT
from taugrid.words import counted, with_urls

Situation = Literal["same weights and setup", "same weights, other setup", "new weights"]

DEFAULT_METRICS = ("fid", "kid")  # of these, a cell is judged by the first that has a standard error

FID_KEYS = {
    "fid": "value",
    "baseline_fid": "baseline",
    **{name: name for name in ("difference", "margin", "se", "t", "upper", "detectable", "reach")},
    "judged_fids": "judged",
}
"""The keys of a cell's JSON that hold FID's numbers. They can't change: users' scripts read them."""

VERDICT = "verdict.json"  # the file beside the run of a complete night


@dataclass(frozen=True)
class PixelDistance:
    """How many of the images differ, and by how many grey levels; None if the baseline's images are gone."""

    images: int
    differing: int
    largest: int | None
    mean: float | None  # over the pixels of the images that differ


@dataclass(frozen=True)
class MetricComparison:
    """One metric of a cell compared with the baseline's. Numbers are None where it was not judged."""

    value: float | None  # None: the cell can't be scored
    baseline: float
    size: float  # what shares are of: `baseline`, or two of its standard errors if they are more
    difference: float | None  # the judged value minus the baseline's
    margin: float  # the regression that is accepted
    verdict: Verdict | None = None
    se: float | None = None  # the paired standard error of `difference`
    # (regression - margin) / se, where the regression is `difference`, or its negative where higher is better.
    t: float | None = None
    upper: float | None = None  # the upper end of the confidence interval of the regression
    detectable: float | None = None  # the smallest regression that the test calls worse with probability `POWER`
    # The N at which an equal network is not worse with probability `POWER`; None: the cell's, or no N would do.
    decisive: int | None = None
    reach: DetectionPower | None = None  # `detectable` is computed from it
    judged: tuple[float, float] | None = None  # the new value and the baseline's in a second look, if there was one

    def regression(self, name: str) -> tuple[float, float]:
        """The difference of a judged metric with its standard error: positive if the new value is worse."""
        assert self.difference is not None
        assert self.se is not None
        return -self.difference if COLUMNS[name].higher_is_better else self.difference, self.se


@dataclass(frozen=True)
class CellComparison:
    """One cell compared with the baseline's. Mappings are by column of quality.csv."""

    cell: str
    name: str
    baseline_cell: str
    situation: Situation
    result: Verdict  # the worst verdict of its metrics, or that of a check
    metrics: Mapping[str, MetricComparison]  # those that the gate judges, and FID
    judging: tuple[str, ...] = ()  # the columns that the statistical test judges
    unjudged: Mapping[str, str] = field(default_factory=dict)  # why one of `gate.metrics` is not judged
    unsure: Mapping[str, str] = field(default_factory=dict)  # why one can only be worse (`Change.only_worse`)
    num_samples: int = 0
    seeds: str = "usual"  # the samples that were judged: `usual`, or those of a second look, `fresh` or `grown`
    pixels: PixelDistance | None = None  # between the images of both sides, if their weights are the same
    note: str = ""
    others: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)  # all but FID: (new, baseline)
    label: str = ""  # as the history shows the cell (`labels`)
    sampler: Check = UNCHECKED
    missing: str = ""  # the files that the comparison needs and that can still be computed, as a message
    grows: bool = False  # `--grow-to` samples it with more images, by the same margins, if it is undecided

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
    margin: float = MARGIN  # as a share of `MetricComparison.size`
    alpha: float = ALPHA  # the probability of a false alarm in a whole night
    allow_missing: bool = False  # cells of the baseline may be missing
    sharpness: float | None = None  # the regression, a share as `margin`, that half of the cells must detect
    metrics: tuple[str, ...] | None = None  # `gate.metrics`; None: `DEFAULT_METRICS`
    margin_floor: float = MARGIN_FLOOR  # `gate.margin_floor`


DEFAULT_GATE = GateSettings()


def gate_of(config: Config, **requested: Any) -> GateSettings:
    """The settings of the gate: those of a config, and what the command line asked for."""
    metrics, floor = config.gate.metrics, config.gate.margin_floor
    return GateSettings(metrics=None if metrics is None else tuple(metrics), margin_floor=floor, **requested)


class Sharpness(NamedTuple):
    """The smallest regression of a metric, as a share of the baseline's, that is detected with probability `POWER`."""

    loss: float  # the median over the judged cells
    cells: int  # the number of judged cells


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
    result: Verdict  # the worst verdict of the cells
    cells: tuple[CellComparison, ...]
    only_new: tuple[str, ...]
    only_baseline: tuple[str, ...]
    marks: tuple[str, ...]  # versions and devices that differ between the two sides
    notes: tuple[str, ...]
    critical: float | None  # the value that T had to exceed in the last test; None if no cell was judged
    rule: str  # the decision rule that was applied, with the critical value of each test
    checks: Mapping[Literal["sampler", "scorer"], Check]
    usual_critical: float | None = None  # as `critical`, in the test of the usual seeds
    unmatched: Mapping[str, str] = field(default_factory=dict)  # name -> label of cells that only one side has
    gate: GateSettings = DEFAULT_GATE

    @property
    def compared(self) -> tuple[int, int]:
        """How many of how many cells of the baseline."""
        return len(self.cells), len(self.cells) + len(self.only_baseline)

    @property
    def sharpnesses(self) -> dict[str, Sharpness]:
        """The sharpness of each metric that the statistical test judged in some cell."""
        shares: dict[str, list[float]] = {}
        for name, metric in (item for cell in self.cells if cell.is_judged for item in cell.judged.items()):
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
            needed = max(self._samples_needed(name, required) for name in blunt)
            fix = "no N detects that, within the margin" if math.isinf(needed) else f"N = {int(needed):,} would do"
            reasons.append(f"--sharpness {required:g}: it {sharpness_in_words(blunt)}; {fix}")
        return reasons

    def _samples_needed(self, column: str, regression: float) -> float:
        """The N at which the sharpness of a metric would be `regression`, a share of it; infinite: no N would do."""
        needed = [
            metric.reach.samples_needed(cell.num_samples, regression * metric.size) or math.inf
            for cell in self.cells
            if cell.is_judged and (metric := cell.judged.get(column)) is not None and metric.reach is not None
        ]
        # The upper median: of an even number of cells, both in the middle must detect it, for their mean to be enough.
        return statistics.median_high(needed) if needed else math.inf

    @property
    def exit(self) -> Exit:
        return exit_of(self.result, self.missing, self.not_judged)

    @model_serializer(mode="wrap")
    def _with_results(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        sharpnesses = {name: found._asdict() for name, found in self.sharpnesses.items()}
        return {
            **dump(self),
            **{name: getattr(self, name) for name in ("compared", "not_judged", "missing")},
            "alpha": self.gate.alpha,
            "margin": self.gate.margin,
            "sharpness": sharpnesses.get("fid"),
            "sharpnesses": sharpnesses,
        }

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        plain: dict[str, Any] = TypeAdapter(BaselineComparison).dump_python(self, mode="json")
        return plain


@dataclass(frozen=True)
class NightScore:
    """A scored cell of a night."""

    cell: str
    name: str
    label: str  # its settings, the same every night (`matching.labels`)
    settings: dict[str, Any]
    metrics: dict[str, float]
    weights_sha256: str | None


@dataclass(frozen=True)
class NightBaseline:
    """What a night was compared with."""

    place: str  # a baseline file or a run directory
    id: str | None  # SHA-256 of the baseline's Parquet file; None for a run
    accepted: str | None
    reason: str | None
    model: tuple[NightModel, ...]
    git_commit: str | None


@dataclass(frozen=True)
class NightVerdict:
    """verdict.json, from which the summary of a night, the history and the pages are made."""

    night: str
    name: str
    time: str  # when it was reached, UTC, ISO 8601
    result: Verdict | Literal["no baseline", "incomplete"]
    missing: dict[str, str]  # cells that could not be finished -> why; the same command goes on with them
    failed: dict[str, str]  # labels of cells that can never be scored -> why
    not_judged: tuple[str, ...]  # reasons for exit code 5
    baseline: NightBaseline | None
    model: tuple[NightModel, ...]
    images: ImagesOfNight | None
    scores: tuple[NightScore, ...]
    comparison: BaselineComparison | None
    software: Software
    next: str | None = None  # the next step, in words
    strips: Mapping[str, str] | None = None  # label -> path from the summary, of the pictures of the worst cells
    format: int = FORMAT

    @property
    def exit(self) -> Exit:
        return exit_of(self.result, self.missing, self.not_judged)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        plain: dict[str, Any] = TypeAdapter(NightVerdict).dump_python(self, mode="json")
        return plain

    @classmethod
    def read(cls, value: Mapping[str, Any], folder: Path) -> "NightVerdict":
        """The verdict in the JSON of a night's folder; `UserError` if another version of taugrid wrote it."""
        if value.get("format") == FORMAT:
            with suppress(ValidationError):
                return TypeAdapter(cls).validate_python(value)
        judged = f"{with_urls(str(folder))} was judged by another version of taugrid"
        raise UserError(f"{judged}; use that version, or remove the folder")
