"""`data`: the images that a model learns and that samples are compared with."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from taugrid.config.section import Positive, Section, either
from taugrid.registry.datasets import DATASETS, KEYS, Dataset
from taugrid.words import did_you_mean


def _known(name: Any) -> Any:
    if not isinstance(name, str) or name not in DATASETS:
        hint = did_you_mean(name, DATASETS) if isinstance(name, str) else ""
        raise ValueError(f"must be {either(DATASETS)}{hint and f' ({hint})'}")
    return name


def _name_schema(schema: dict[str, Any]) -> None:
    described = []
    for dataset in DATASETS.values():
        required = [key for key in KEYS if key in dataset.required]
        other = " or another" if "shape" in dataset.keys else ""
        shape = f" Shape: {list(dataset.shape)}{other}." if dataset.shape else ""
        needs = f" Requires {', '.join(required)}." if required else ""
        splits = ", ".join(dataset.splits)
        described.append(f"`{dataset.name}`: {dataset.description}.{shape}{needs} Splits: {splits}.")
    schema["enum"] = list(DATASETS)
    schema["description"] = "\n".join(described)


class Data(Section):
    """The images that a model learns and that samples are compared with."""

    name: Annotated[str, BeforeValidator(_known), Field(json_schema_extra=_name_schema)] = "digits"
    """One of `taugrid.registry.datasets.DATASETS`."""
    shape: tuple[Positive, Positive, Positive] | None = None
    """[channels, height, width]; null: the data set's default. Larger images are resized and cropped to it."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which part of the data set."""
    category: str | None = None
    """A part of the data set by what it shows: bedroom, church_outdoor, ... of `lsun`, which requires it."""
    limit: Positive | None = None
    """Use only the first `limit` images; null: all."""
    root: str | None = None
    """Where the files are; null: the usual place. Not part of any id."""
    download: bool = False
    """Download what is missing, if its publishers allow that."""

    @property
    def dataset(self) -> Dataset:
        """The registered properties of the data set that `name` names."""
        return DATASETS[self.name]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        shape = self.shape or self.dataset.shape
        assert shape is not None, "a data set without a default shape requires one"
        return shape

    @property
    def full_name(self) -> str:
        """The data set's name, with its category if there is one: lsun/bedroom."""
        return f"{self.name}/{self.category}" if self.category else self.name

    @property
    def name_and_split(self) -> str:
        """The data set's full name and its split: lsun/bedroom/train."""
        return f"{self.full_name}/{self.split}"

    @property
    def held_out(self) -> "Data":
        """Images that a model trained on this has not seen: for `train`, the whole held-out split. Otherwise this."""
        if self.split != "train":
            return self
        return self.model_copy(update={"split": self.dataset.held_out, "limit": None})

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: str | None) -> str | None:
        if root is None or "://" in root:
            return root
        return str(Path(root).expanduser().absolute())  # Ray's workers change directory

    @model_validator(mode="after")
    def _keys_fit_the_data_set(self) -> "Data":
        given = {key for key in KEYS if getattr(self, key) not in (None, False)}
        if refused := [key for key in KEYS if key in given - self.dataset.keys]:
            hint = "" if "name" in self.model_fields_set else " (data.name is digits unless you set it)"
            raise ValueError(f"{self.name} takes no {' and no '.join(refused)}{hint}")
        missing = [key for key in KEYS if key in self.dataset.required - given]
        if missing:
            raise ValueError(f"{self.name} requires " + " and ".join(f"{key} ({KEYS[key]})" for key in missing))
        return self

    @model_validator(mode="after")
    def _values_fit_the_data_set(self) -> "Data":
        if self.shape is not None and self.shape[0] not in (1, 3):
            raise ValueError(f"shape must begin with 1 channel (grey) or 3 (RGB), not {self.shape[0]}")
        if self.split not in self.dataset.splits:
            raise ValueError(f"split of {self.name} must be one of {', '.join(self.dataset.splits)}, not {self.split}")
        if "://" in (self.root or "") and not self.dataset.is_on_hub:
            on_hub = ", ".join(name for name, dataset in DATASETS.items() if dataset.is_on_hub)
            raise ValueError(f"root of {self.name} must be a folder, not {self.root}; hf:// is for {on_hub}")
        return self
