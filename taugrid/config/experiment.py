"""The whole config: how cells are scored and judged, what is shown, where the work runs, and the schema for editors."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from taugrid.config.model import Data, Diffusion, ModelSection, Train
from taugrid.config.sample import Sample
from taugrid.config.section import Positive, Section, Seed, one_of
from taugrid.grids import normalised
from taugrid.registry.extractors import FeaturePrecision
from taugrid.registry.metrics import DEFAULT_METRICS, METRICS, MetricSettings

GRID_SECTIONS = ("data", "model", "diffusion", "train")

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

    @field_validator("metrics")
    @classmethod
    def _metrics_are_named_once(cls, metrics: list[str]) -> list[str]:
        if len(set(metrics)) < len(metrics):
            raise ValueError("must be a list that names each metric once")
        return metrics

    @property
    def metric_settings(self) -> MetricSettings:
        """The settings that metrics take."""
        settings = {field.name: getattr(self, field.name) for field in fields(MetricSettings)}
        return MetricSettings(**settings | {"metrics": tuple(self.metrics)})


JUDGING = tuple(name for name, metric in METRICS.items() if any(column.sampling_error for column in metric.columns))
"""The metrics that can have a standard error of sampling."""
JudgingMetric = Annotated[str, AfterValidator(one_of(JUDGING)), Field(json_schema_extra={"enum": list(JUDGING)})]


class Gate(Section):
    """What `taugrid nightly` and `compare DIR BASELINE` judge. Changes no cell and no score."""

    metrics: Annotated[list[JudgingMetric], Field(min_length=1)] | None = None
    """A cell is worse if one of these is worse, as in [fid, kid]; null: fid where it has a standard error, else kid."""
    margin_floor: Annotated[float, Field(ge=0)] = 0.15
    """The smallest margin of kid and cmmd, which may be near 0, in standard errors of the baseline."""


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
    """Keys of the grid that a table's rows are, in this order; null: all that vary, and eta at the end. Others that
    vary make separate tables."""
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


SMALLEST_SHARE = 0.0001  # Ray counts CPUs and GPUs in ten-thousandths
LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


def _share_of_one(gpus: float) -> float:
    if gpus != 0 and not SMALLEST_SHARE <= gpus <= 1:
        raise ValueError(f"must be 0, or from {SMALLEST_SHARE} to 1: a worker computes on one GPU")
    return gpus


Cpus = Annotated[float, Field(ge=SMALLEST_SHARE)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_share_of_one)]
LabelKey = Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{LABEL}$")]
LabelValue = Annotated[str, Field(pattern=rf"^!?({LABEL}|in\({LABEL}(, ?{LABEL})*\))$")]


class TrainingWorker(Section):
    """What a training worker takes, if it is not what other workers take."""

    cpus_per_worker: Cpus | None = None
    """null: as `cluster.cpus_per_worker`."""
    gpus_per_worker: Gpus | None = None
    """null: as `cluster.gpus_per_worker`."""


class ScoringWorker(Section):
    """The workers without a GPU that compute scores beside workers with one. Each takes 2 GB of memory."""

    cpus_per_worker: Cpus | None = None
    """The threads of each; null: as `cluster.cpus_per_worker`. Ray does not count these CPUs."""
    workers_per_node: Annotated[int, Field(ge=0)] = 8
    """At most so many on a node with GPUs, one for two of its CPUs. 0: none, so workers with GPUs compute scores."""


class Cluster(Section):
    """Where the work runs. Changes no result."""

    workers: Positive | None = None
    """The maximum number of sampling and evaluation workers. On a cluster that a run joins, Ray's autoscaler is asked
    for this number even if they do not fit yet; null: as many as fit, also on nodes that join later."""
    trainings: Positive | None = None
    """How many models train at a time. Those that do not fit wait for room, for which Ray's autoscaler is asked on a
    cluster that a run joins; null: one. Each takes about 600 MiB of the driver's memory."""
    cpus_per_worker: Cpus = 1
    """CPUs that a worker takes."""
    gpus_per_worker: Gpus | None = None
    """At most 1. A fraction shares a GPU: five workers of 0.2. null: 1 if a node has a GPU that its torch can use when
    a stage begins, else 0. Set it to 1 if nodes with GPUs join later."""
    label_selector: dict[LabelKey, LabelValue] = {}
    """Ray labels of the nodes to use, such as {ray.io/accelerator-type: A100}. A value may be x, !x, in(x, y) or
    !in(x, y)."""
    use_cpus: bool = False
    """Scores are computed on the CPUs of nodes with GPUs; with this, on the nodes without a GPU that are there, too.
    `label_selector` holds for them as well."""
    max_wait_seconds: Annotated[float, Field(gt=0)] = 600
    """How long a run waits for a worker to start, and on a cluster that it joins for free resources."""
    train: TrainingWorker = TrainingWorker()
    """What a training worker takes, if it is not what other workers take."""
    score: ScoringWorker = ScoringWorker()
    """What a worker without a GPU takes that computes scores beside workers with one, and how many a node has."""
    max_attempts: Positive = 3
    """Number of nodes that a task must fail on (all nodes, if there are fewer) before it is quarantined and reported;
    on a single node, its number of attempts. Failures that are the node's fault do not count."""
    scratch: str | None = None
    """A folder that all nodes see, for checkpoints of a training whose run directory is in an object store. null: this
    user's cache, if all training workers are on this machine."""
    hang_seconds: Annotated[float, Field(gt=0)] = 600
    """A worker is killed, and its task requeued, if its job sends no heartbeat for this long."""


NAME_FORM = "letters, digits, dots, hyphens and underscores that begins with a letter or a digit"


def _or_one_mapping(schema: dict[str, Any]) -> None:
    """Have the schema say that a mapping alone is a grid too, with `zip` and `exclude` among its values."""
    mapping = {"type": "object"}
    del schema["type"], schema["items"]
    schema["anyOf"] = [mapping, {"type": "array", "items": mapping}]


class Config(Section):
    """An experiment: everything that `taugrid run` needs."""

    later_keys = {"track": []}

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", json_schema_extra={"form": NAME_FORM})]
    """The name of the experiment; without --out, its run directory is runs/<name>."""
    seed: Seed = 0
    """The default of `train.seed` and `sample.seed`."""
    data: Data = Data()
    """The images that a model learns and that samples are compared with."""
    model: ModelSection = ModelSection()
    """The network: trained, loaded, custom, or an oracle."""
    diffusion: Diffusion = Diffusion()
    """The forward process, and what the network predicts."""
    train: Train = Train()
    """How `model.unet` is trained."""
    sample: Sample = Sample()
    """How cells are sampled, where the grid does not say it."""
    grid: Annotated[list[dict[str, list[Any]]], Field(json_schema_extra=_or_one_mapping)] = []
    """A mapping from keys to lists of values, or a list of such mappings, whose products are joined. A bare key belongs
    to `sample`; a dotted key (`diffusion.schedule`) makes more models. `zip: {...}` holds keys that vary together, and
    `exclude: [{schedule: cosine, steps: 1000}]` leaves points out."""
    evaluate: Evaluate = Evaluate()
    """How cells are scored."""
    gate: Gate = Gate()
    """What nights and comparisons with a baseline are judged by."""
    report: Report = Report()
    """What tables and figures show."""
    cluster: Cluster = Cluster()
    """Where the work runs. Changes no result."""
    track: list[Literal["mlflow", "wandb", "tensorboard"]] = []
    """Experiment trackers that follow sessions; their own environment variables say where to. Changes no result."""

    @property
    def reference(self) -> Data | str:
        """What samples are compared with: `evaluate.reference`, else `data`."""
        return self.data if self.evaluate.reference is None else self.evaluate.reference

    @field_validator("track")
    @classmethod
    def _trackers_are_named_once(cls, track: list[str]) -> list[str]:
        if len(set(track)) < len(track):
            raise ValueError("must be a list that names each tracker once")
        return track

    @field_validator("grid", mode="before")
    @classmethod
    def _grid_is_a_list_of_mappings(cls, grid: Any) -> Any:
        mappings = [grid] if isinstance(grid, Mapping) else grid
        if not isinstance(mappings, list):
            return mappings
        return [normalised(mapping) if isinstance(mapping, Mapping) else mapping for mapping in mappings]


def schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    return Config.model_json_schema() | {"patternProperties": {"^x-": {"description": "Ignored; for anchors."}}}
