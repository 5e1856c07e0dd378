"""The metrics: the name of each, the numbers it gives, what it needs, and the functions that compute it.

A new metric is one file in eval/metrics/ and one entry in `METRICS`. Its columns are appended to the tables.
"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

SAMPLE_COLUMNS = ("index", "seed", "steps", "eta")  # of numbers, in every sample file; images from elsewhere have none
LABEL_COLUMNS = ("label", "guidance")  # those that sample files of a class-conditional network have besides


class PerSample(NamedTuple):
    """What is known of each sample besides its image."""

    columns: tuple[str, ...] = SAMPLE_COLUMNS
    label_order: str | None = None  # whose labels they are, as `KnownExtractor.label_order`; None: not known, or none


UNLABELLED = PerSample()


@dataclass(frozen=True)
class MetricColumn:
    """A number that tables show, and the column with its error."""

    name: str  # the column in quality.csv
    title: str  # the name that people read
    error: str | None = None  # the column with its error or spread; None: it has none
    error_means: str = ""  # the meaning of the number after ±
    higher_is_better: bool = False
    scale: float = 1.0  # the factor that tables multiply it by
    sampling_error: str | None = None  # the column with its standard error of drawing these samples; None: it has none
    unbiased: bool = False  # its expectation is the same at every N, so that sets of different sizes can be compared
    further: tuple[str, ...] = ()  # more columns of quality.csv, which tables don't show
    unchanged_by: tuple[str, ...] = ()  # the settings of its metric that change only `further`

    @property
    def may_be_zero(self) -> bool:
        """Whether it estimates a distance without bias, so that of a perfect network is 0 on average."""
        return self.unbiased and not self.higher_is_better

    @property
    def heading(self) -> str:
        """The title, and which direction is better."""
        return f"{self.title} ({'higher' if self.higher_is_better else 'lower'} is better)"

    @property
    def names(self) -> tuple[str, ...]:
        """Its columns in quality.csv: the number, its errors, and what belongs to it."""
        errors = (self.error, self.sampling_error, *self.further)
        return tuple(dict.fromkeys((self.name, *filter(None, errors))))


@dataclass(frozen=True)
class Metric:
    """A metric. Functions are named as `package.module:function`, so that this file imports no other layer."""

    name: str  # the name in `evaluate.metrics`
    about: str
    columns: tuple[MetricColumn, ...]
    compute: str  # called with `eval.metrics.score.MetricInputs`, returns `eval.metrics.score.MetricResult`
    limits: str | None = None
    """Called by the driver, so without torch, with `MetricSettings` and `Sizes`; returns `Limits`. None: only the
    fields below limit it."""
    settings: tuple[str, ...] = ()  # the fields of `MetricSettings` that change its numbers
    needs_logits: bool = False
    needs_all_features: bool = False  # those of the samples are held in memory, which then grows with N
    needs_reference: bool = True
    needs_reference_features: bool = False  # whether it needs more of the reference than mean and covariance
    sample_columns: tuple[str, ...] = ()  # the columns of `PerSample` that it reads, a number for each sample
    needs_label_order: bool = False  # whether logit k must be of label k
    least_images: int = 1  # the minimum number of samples, and of reference images if it needs the reference
    floor_up_to: int = sys.maxsize  # the largest N at which its floor is computed: more would take too long


class Sizes(NamedTuple):
    """The numbers that decide whether a metric can be computed."""

    num_samples: int
    num_reference: int | None  # None: only the mean and covariance of the reference are known
    dimensions: int  # dimensions of the features

    @property
    def fewest(self) -> int:
        """The number of images on the smaller side."""
        return self.num_samples if self.num_reference is None else min(self.num_samples, self.num_reference)


class Limits(NamedTuple):
    """Why a metric can't be computed, or which settings are used instead."""

    reason: str | None = None  # None: it can be computed
    changes: Mapping[str, Any] = {}  # the changed fields of `MetricSettings`
    remark: str | None = None  # a message to the user about the changes


# The meaning of the number after ±: from the samples' influences, and of a share of the samples
OF_SAMPLING = "one standard error of sampling at this N"
BINOMIAL = "its binomial standard error at this N"


def _sampled(name: str, title: str, *further: str, means: str = OF_SAMPLING, **fields: Any) -> MetricColumn:
    """A number whose ± is its standard error of drawing these samples."""
    error = f"{name}_se"
    return MetricColumn(name, title, error, means, sampling_error=error, further=further, **fields)


_OF_SUBSETS = ("kid_subsets", "kid_subset_size")  # `kid` is of all pairs; of very many, of some that the seed draws

_OF_KID: dict[str, Any] = {
    "limits": "taugrid.eval.metrics.kernel:kid_limits",
    "settings": ("seed", *_OF_SUBSETS),
    "needs_all_features": True,
    "needs_reference_features": True,
    "least_images": 2,
    "floor_up_to": 10_000,
}

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "fid",
            "Frechet Inception Distance",
            (_sampled("fid", "FID"),),
            compute="taugrid.eval.metrics.frechet:compute_fid",
            least_images=2,
        ),
        Metric(
            "isc",
            "Inception Score",
            (
                MetricColumn(
                    "isc_mean",
                    "Inception Score",
                    "isc_std",
                    "the standard deviation over splits",
                    higher_is_better=True,
                    sampling_error="isc_se",
                ),
            ),
            compute="taugrid.eval.metrics.logits:compute_isc",
            limits="taugrid.eval.metrics.logits:isc_limits",
            settings=("seed", "isc_splits"),
            needs_logits=True,
            needs_reference=False,
        ),
        Metric(
            "kid",
            "Kernel Inception Distance",
            (
                _sampled(
                    "kid",
                    "KID",
                    "kid_reference_se",
                    "kid_mean",
                    "kid_std",
                    unbiased=True,
                    unchanged_by=_OF_SUBSETS,
                ),
            ),
            compute="taugrid.eval.metrics.kernel:compute_kid",
            **_OF_KID,
        ),
        Metric(
            "kid_mean",
            "KID over random subsets, as torch-fidelity's, which kid leaves to quality.csv",
            (MetricColumn("kid_mean", "KID over subsets", "kid_std", "the standard deviation over subsets"),),
            compute="taugrid.eval.metrics.kernel:compute_kid_mean",
            **_OF_KID | {"limits": "taugrid.eval.metrics.kernel:kid_mean_limits"},
        ),
        Metric(
            "prc",
            "precision and recall",
            (
                _sampled("precision", "Precision", higher_is_better=True, unbiased=True),
                MetricColumn("recall", "Recall", higher_is_better=True),
            ),
            compute="taugrid.eval.metrics.neighbours:compute_prc",
            limits="taugrid.eval.metrics.neighbours:prc_limits",
            settings=("prc_neighborhood",),
            needs_all_features=True,
            needs_reference_features=True,
            floor_up_to=5_000,
        ),
        Metric(
            "fid_infinity",
            "FID extrapolated to infinitely many samples, Chong & Forsyth 2020",
            (MetricColumn("fid_infinity", "FID extrapolated to infinite N"),),
            compute="taugrid.eval.metrics.frechet:compute_fid_infinity",
            limits="taugrid.eval.metrics.frechet:fid_infinity_limits",
            settings=("seed",),
            needs_all_features=True,
            floor_up_to=0,
        ),
        Metric(
            "cmmd",
            "maximum mean discrepancy of unit features with a Gaussian kernel, CMMD where they are CLIP's",
            (_sampled("cmmd", "CMMD", "cmmd_reference_se", "cmmd_biased", unbiased=True),),
            compute="taugrid.eval.metrics.kernel:compute_cmmd",
            needs_all_features=True,
            needs_reference_features=True,
            least_images=3,
            floor_up_to=5_000,
        ),
        Metric(
            "mind",
            "Monge Inception Distance",
            (_sampled("mind", "MIND", "mind_reference_se"),),
            compute="taugrid.eval.metrics.projections:compute_mind",
            settings=("seed", "mind_projections"),
            needs_all_features=True,
            needs_reference_features=True,
            least_images=2,
        ),
        Metric(
            "agreement",
            "share of images that the extractor, a classifier, puts in the class that was asked for",
            (_sampled("agreement", "Agreement", means=BINOMIAL, higher_is_better=True, unbiased=True),),
            compute="taugrid.eval.metrics.logits:compute_agreement",
            needs_logits=True,
            needs_reference=False,
            needs_label_order=True,
            sample_columns=("label",),
        ),
    )
}
"""Name -> metric, in the order in which they are computed."""

COLUMNS = {column.name: column for metric in METRICS.values() for column in metric.columns}  # of quality.csv

SAMPLED = tuple(column for column in COLUMNS.values() if column.sampling_error)  # can have an error of sampling

DEFAULT_METRICS = ("fid", "isc", "kid")


def settings_of(columns: Collection[str]) -> list[str]:
    """The fields of `MetricSettings` that change these columns of quality.csv, each once. Scores with other values of
    them can't be compared; other columns can."""
    changing: dict[str, None] = {}
    for metric in METRICS.values():
        for column in metric.columns:
            if any(name in columns for name in column.names):
                changing |= dict.fromkeys(name for name in metric.settings if name not in column.unchanged_by)
    return list(changing)


@dataclass(frozen=True)
class MetricSettings:
    """Which metrics, and their settings; the defaults are torch-fidelity's."""

    metrics: tuple[str, ...] = DEFAULT_METRICS
    seed: int = 2020
    isc_splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    prc_neighborhood: int = 3
    mind_projections: int = 1000

    @property
    def chosen(self) -> list[Metric]:
        """The metrics, in the order of `METRICS`."""
        return [metric for name, metric in METRICS.items() if name in self.metrics]

    def need(self, what: Literal["logits", "all_features", "reference", "reference_features"]) -> bool:
        """Whether a chosen metric needs it, as its `needs_...` says."""
        return any(getattr(metric, f"needs_{what}") for metric in self.chosen)

    @property
    def sample_columns(self) -> list[str]:
        """The columns of the sample files that the metrics need, each once."""
        return list(dict.fromkeys(column for metric in self.chosen for column in metric.sample_columns))

    def as_dict(self) -> dict[str, Any]:
        """The fields of a protocol: the metrics, and the settings that they use."""
        used = {name: getattr(self, name) for metric in self.chosen for name in metric.settings}
        return {"metrics": sorted(self.metrics), "seed": self.seed, **used}
