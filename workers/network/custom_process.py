"""Describes a custom network (`model.callable`) in another process, so that the caller needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taugrid.config import Data, Diffusion
from taugrid.errors import CustomCodeError, MissingInput, UserError
from taugrid.hashing import SourceFile
from taugrid.jobs import Conditions, CustomNetwork
from taugrid.workers.custom.describe import ask
from taugrid.workers.network import checkpoint


def describe(
    name: str,
    weights: str | None,
    image_shape: tuple[int, int, int],
    diffusion: Diffusion,
    data: Data | None = None,
) -> CustomNetwork:
    """What the function `name` returns, tried by another process on noise and a few images (`custom.describe`). The
    function is looked up in the current folder and on Python's path. `diffusion` is resolved. Raises `MissingInput` if
    there is no file `weights`; `UserError` if the network can't be used."""
    path = weights_path(weights)
    if path is not None:
        _require_file(path)
        checkpoint.refuse_pickle("model.weights", str(path))
    arguments: dict[str, Any] = {"name": name, "weights": path and str(path), "image_shape": image_shape}
    for key, section in (("diffusion", diffusion), ("data", data)):  # short: errors show them
        arguments[key] = section and section.model_dump(mode="json", exclude_defaults=True)
    trial = "be loaded and to predict a few images on a CPU"
    try:
        fields = ask("taugrid.workers.network.custom:describe", arguments, f"model.callable: {name}", trial)
    except CustomCodeError as error:
        raise UserError(str(error)) from None
    return restored(fields, image_shape)


def restored(fields: Mapping[str, Any], image_shape: tuple[int, int, int]) -> CustomNetwork:
    """A description from JSON, where tuples are lists. `image_shape` is (channels, height, width). `UserError` if
    fields are missing or unknown: the JSON may come from elsewhere."""
    try:
        files = tuple(SourceFile(*file) for file in fields["files"])
        takes = fields["conditions"] and Conditions(*fields["conditions"])
        return CustomNetwork(**{**fields, "image_shape": image_shape, "files": files, "conditions": takes})
    except (KeyError, TypeError) as error:
        raise UserError(f"the record of {fields.get('callable')} in models/ can't be read: {error}") from None


def weights_path(weights: str | None) -> Path | None:
    """The absolute path of the file `model.weights`: Ray's workers run in other folders."""
    return None if weights is None else Path(weights).expanduser().absolute()


def weights_sha256(path: Path) -> str:
    """SHA-256 of the file `model.weights`; MissingInput if there is none."""
    _require_file(path)
    return checkpoint.weights_sha256(path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise MissingInput(f"model.weights: there is no file {path}")
