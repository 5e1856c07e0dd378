"""The whole config: its sections, the grid, and the schema for editors."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from taugrid.config.cluster import Cluster
from taugrid.config.data import Data
from taugrid.config.diffusion import Diffusion
from taugrid.config.evaluate import Evaluate, Gate, Report
from taugrid.config.model import ModelSection
from taugrid.config.sample import Sample
from taugrid.config.section import Section, Seed
from taugrid.config.train import Train
from taugrid.grids.points import normalised

GRID_SECTIONS = ("data", "model", "diffusion", "train")


NAME_FORM = "letters, digits, dots, hyphens and underscores that begins with a letter or a digit"


def _or_one_mapping(schema: dict[str, Any]) -> None:
    """Have the schema say that a mapping alone is a grid too, with `zip` and `exclude` among its values."""
    mapping = {"type": "object"}
    del schema["type"], schema["items"]
    schema["anyOf"] = [mapping, {"type": "array", "items": mapping}]


TrackerName = Literal["mlflow", "wandb", "tensorboard"]


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
    track: list[TrackerName] = []
    """Experiment trackers that follow sessions; their own environment variables say where to. Changes no result."""

    @property
    def reference(self) -> Data | str:
        """What samples are compared with: `evaluate.reference`, else `data`."""
        return self.data if self.evaluate.reference is None else self.evaluate.reference

    @field_validator("track")
    @classmethod
    def _trackers_are_named_once(cls, track: list[TrackerName]) -> list[TrackerName]:
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
