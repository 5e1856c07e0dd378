"""`evaluate`, `gate` and `report`: how cells are scored and judged, and what tables and figures show."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from taugrid.config.data import Data
from taugrid.config.section import Positive, Section, Seed, one_of
from taugrid.registry.extractors import FeaturePrecision
from taugrid.registry.metrics import DEFAULT_METRICS, METRICS, MetricSettings

MetricName = Annotated[str, AfterValidator(one_of(METRICS)), Field(json_schema_extra={"enum": list(METRICS)})]


class Evaluate(Section):
    """How cells are scored."""

    extractor: str | None = None
    """Name of a feature extractor; null: the data set's default (`digits-convnet` for digits, for instance)."""
    weights: str | None = None
    """Path of the extractor's weights, if they don't ship with taugrid."""
    reference: Data | str | None = None
    """What samples are compared with: null is `data`; a data section ({name: digits, split: test}); or a folder of PNG
    or JPEG, Parquet, or an .npz of images or of mu and sigma."""
    metrics: list[MetricName] = Field(
        default=list(DEFAULT_METRICS),
        description=f"Any of {', '.join(f'{name} ({metric.about})' for name, metric in METRICS.items())}.",
    )
    batch_size: Positive = 250
    """The most images that the extractor sees at once."""
    precision: FeaturePrecision = "float32"
    """How the extractor's network computes: float32 is never TF32; bf16 is autocast's. The two are never compared."""
    isc_splits: Positive = 10
    """Parts into which samples are divided for the Inception Score; torch-fidelity's default."""
    kid_subsets: Positive = 100
    """Random subsets over which KID is averaged; torch-fidelity's default."""
    kid_subset_size: Positive = 1_000
    """Reduced to N or to the reference's size if that is smaller; the size used is recorded."""
    prc_neighborhood: Positive = 3
    """k: precision and recall use balls that reach to the k-th nearest neighbour."""
    mind_projections: Positive = 1_000
    """Random directions along which MIND compares samples and reference; torch-fidelity's default."""
    keep_features: bool = True
    """Keep the features of scored cells; without them, another metric has to extract them again."""
    seed: Seed = 2020
    """Seeds IS's shuffle, the subsets of KID and fid_infinity and MIND's directions; torch-fidelity's default."""

    @property
    def metric_settings(self) -> MetricSettings:
        """The settings that metrics take."""
        return MetricSettings(
            metrics=tuple(self.metrics),
            seed=self.seed,
            isc_splits=self.isc_splits,
            kid_subsets=self.kid_subsets,
            kid_subset_size=self.kid_subset_size,
            prc_neighborhood=self.prc_neighborhood,
            mind_projections=self.mind_projections,
        )


JUDGING = tuple(name for name, metric in METRICS.items() if any(column.sampling_error for column in metric.columns))
"""The metrics that can have a standard error of sampling."""


JudgingMetric = Annotated[str, AfterValidator(one_of(JUDGING)), Field(json_schema_extra={"enum": list(JUDGING)})]


class Gate(Section):
    """What `taugrid nightly` and `compare DIR BASELINE` judge. Changes no cell and no score."""

    metrics: Annotated[list[JudgingMetric], Field(min_length=1)] | None = None
    """A cell is worse if one of these is worse, as in [fid, kid]; null: fid where it has a standard error, else kid."""

    margin_floor: Annotated[float, Field(ge=0)] = 0.15
    """The smallest margin of kid and cmmd, in standard errors of the baseline. Their values may be near 0, where a
    share means nothing."""


class Report(Section):
    """What the tables and figures show."""

    images_per_cell: Positive = 8
    """Images of each cell in figures/samples.png."""
    join_protocols: bool = False
    """Put cells whose protocols differ (in versions, say) in one table, and mark the minority; else separate tables."""
    reconstructed_images: Positive = 1_000
    """Number of held-out images, from the first, that `taugrid reconstruct` encodes and decodes."""
    interpolated_pairs: Positive = 4
    """Rows of figures/interpolations-<cell>.png."""
    rows: list[str] | None = None
    """Keys of the grid that a table's rows are, in this order; null: all that vary, and eta at the end. What is neither
    in rows nor in columns makes separate tables."""
    columns: Annotated[str, Field(min_length=1)] = "steps"
    """The key that a table's columns are. `steps` becomes network evaluations where samplers differ in evaluations a
    step, unless x is steps."""
    x: Literal["steps", "evaluations", "seconds"] | None = None
    """The horizontal axis of figures/quality: S, network evaluations per image, or measured device seconds; null:
    evaluations if a cell's number of them is not S, else steps."""
    by: Literal["label"] | None = None
    """`label`: also score the images of each label by themselves, against the reference's of that label, in
    tables/by_label; for class-conditional cells."""
    base: dict[str, Any] = {}
    """Key -> the value that effects are differences to, as in {schedule: linear}; otherwise the first of the grid.
    `steps` and `eta` have effects only if they are named here."""
