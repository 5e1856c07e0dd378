"""Describes a custom network (`model.callable`) by asking another process, so that the caller needs no torch."""

from pathlib import Path

from taugrid.errors import UserError
from taugrid.jobs import CustomNetwork
from taugrid.workers.custom.process import ask
from taugrid.workers.network import checkpoint

DESCRIBE_TIMEOUT_SECONDS = 600.0
"""Enough to make a network twice and try it on a few images on a CPU."""


def describe(name: str, weights: str | None, image_shape: tuple[int, int, int], timesteps: int) -> CustomNetwork:
    """What the function `name` returns, which another process tries on noise of `image_shape` at two of `timesteps`.

    It is looked for in the current folder and on Python's path.

    Raises:
        UserError: one line, for weights that are not there, or a network that can't be used.
    """
    arguments = [name, *map(str, (*image_shape, timesteps))]
    path = weights_path(weights)
    if path is not None:
        of_file = weights_sha256(path)
        arguments += ["--weights", str(path)]
    trial = "be loaded and to predict a few images on a CPU"
    try:
        found = ask(
            "taugrid.workers.network.describe", arguments, f"model.callable: {name}", trial, DESCRIBE_TIMEOUT_SECONDS
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    content = found.pop("content_sha256")
    if path is None:
        return CustomNetwork(name, None, content, image_shape=image_shape, **found)
    return CustomNetwork(name, str(path), of_file, image_shape=image_shape, **found)


def weights_path(weights: str | None) -> Path | None:
    """The file `model.weights` wherever it is asked for: Ray's workers change directory."""
    return None if weights is None else Path(weights).expanduser().absolute()


def weights_sha256(path: Path) -> str:
    """SHA-256 of the file `model.weights`; `UserError` if there is none."""
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path}")
    return checkpoint.weights_sha256(path)
