"""One's own network as a config names it (`model.callable`), described by another process, because it needs torch."""

from dataclasses import dataclass
from pathlib import Path

from taugrid.errors import UserError
from taugrid.workers.custom.process import ask
from taugrid.workers.network import checkpoint as checkpoints

DESCRIBE_TIMEOUT_SECONDS = 600.0
"""For a network to be made twice and tried on a few images on a CPU; not to wait for ever."""


@dataclass(frozen=True)
class OwnNetwork:
    """A function that returns a network, and what was found when it was called."""

    callable: str
    """`package.module:function`."""
    weights: str | None
    """The file whose path the function is called with; None: it is called with nothing."""
    weights_sha256: str
    """Of that file. Without one: of all that was loaded, the tensors that the function found by itself included."""
    source_sha256: str
    """Of the source files of the function's module and of what it imports (`workers.custom.source.source_sha256`)."""
    tensors_sha256: str
    """Of the state of the network (`workers.network.custom.tensors`)."""
    image_shape: tuple[int, int, int]
    """(channels, height, width) of the images that it was tried on."""
    summary: str
    """What the function returned, in a few words."""
    unusable: str | None = None
    """Why it can't be run now, where this was read from a run directory because the code or the weights are gone."""


def describe(name: str, weights: str | None, image_shape: tuple[int, int, int], timesteps: int) -> OwnNetwork:
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
        return OwnNetwork(name, None, content, image_shape=image_shape, **found)
    return OwnNetwork(name, str(path), of_file, image_shape=image_shape, **found)


def weights_path(weights: str | None) -> Path | None:
    """The file `model.weights` wherever it is asked for: Ray's workers change directory."""
    return None if weights is None else Path(weights).expanduser().absolute()


def weights_sha256(path: Path) -> str:
    """SHA-256 of the file `model.weights`; `UserError` if there is none."""
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path}")
    return checkpoints.weights_sha256(path)
