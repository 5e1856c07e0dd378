"""Images that Python code holds as a NumPy array or a torch tensor, as the 8-bit pixels that are scored."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.errors import UserError

VALUE_RANGE = "value_range"
"""The argument of `taugrid.evaluate` that says which values black and white have in floats."""

FORMS = "(N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"


def to_pixels(name: str, images: Any, value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Images as (N, H, W, 1 or 3) uint8 in C order; floats are rounded to nearest.

    Args:
        name: of the argument that `images` are.
        images: an array or a tensor on any device, uint8 or floating point, in one of `FORMS`.
        value_range: the values of black and white in floats.

    Raises:
        UserError: for another type or shape, floats without a range, or values beyond it.
    """
    array = _as_array(images)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(f"{name}: an array of images is {FORMS}, not of shape {array.shape}")
    pixels = array if array.dtype == np.uint8 else _rounded(name, array, value_range)
    return np.ascontiguousarray(_channels_last(name, pixels))


def is_float(images: Any) -> bool:
    """Whether images are an array or a tensor of floats."""
    return not isinstance(images, str) and np.issubdtype(_as_array(images).dtype, np.floating)


def _as_array(images: Any) -> NDArray[Any]:
    if hasattr(images, "detach"):  # a tensor; torch need not be imported to know one
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()  # NumPy has no bfloat16
    return np.asarray(images)


def _rounded(name: str, array: NDArray[Any], value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{name}: an array of images is uint8 or floats, not {array.dtype}; convert it")
    if value_range is None:
        raise UserError(
            f"{name}: an array of {array.dtype} does not say which values are black and white; pass "
            f"{VALUE_RANGE}=(0, 1) or {VALUE_RANGE}=(-1, 1), or uint8"
        )
    black, white = value_range
    low, high = float(array.min()), float(array.max())
    if not (black <= low and high <= white):  # NaN fails, too
        raise UserError(f"{name}: values are from {low:g} to {high:g}, beyond {VALUE_RANGE}={value_range}; clip them")
    share = (array.astype(np.float32, copy=False) - np.float32(black)) / np.float32(white - black)
    grey: NDArray[np.uint8] = np.rint(share * np.float32(255)).astype(np.uint8)
    return grey


def _channels_last(name: str, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim == 3:
        return pixels[..., None]
    first, last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
    if first and last:
        raise UserError(
            f"{name}: {pixels.shape} may be (N, C, H, W) or (N, H, W, C); pass images of more than 3 pixels a side"
        )
    if not first and not last:
        raise UserError(f"{name}: an array of images is {FORMS}, not of shape {pixels.shape}")
    return pixels.transpose(0, 2, 3, 1) if first else pixels
