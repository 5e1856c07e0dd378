"""`taugrid evaluate --samples` and `taugrid.evaluate`: score external images in this process."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Evaluate, validate
from taugrid.config.load import Override, merge
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.features.resolve import resolve
from taugrid.eval.reference import Reference, open_reference, resolve_reference
from taugrid.eval.sources import ImageSet, open_images
from taugrid.orchestrator.progress import Progress
from taugrid.protocol import SOFTWARE
from taugrid.registry.extractors import ExtractorSpec
from taugrid.storage import user_cache
from taugrid.versions import versions
from taugrid.words import counted

if TYPE_CHECKING:
    from taugrid.eval.standalone import ScoredImages

KEPT_DAYS = 30  # how long the features of compared images stay in the user's cache

FORMS = "(N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
Images = str | NDArray[Any]
"""A path or another text that means images, or the images as `to_pixels` takes them, also as a tensor."""


@dataclass(frozen=True)
class OpenedSets:
    """Sets of images and their reference, opened and checked: nothing costly has begun."""

    sets: tuple[ImageSet, ...]
    reference: Reference
    extractor: ExtractorSpec
    section: Evaluate

    def scored(
        self, progress: Progress, keep: bool, orders: Sequence[NDArray[np.int64] | None] = ()
    ) -> "list[ScoredImages]":
        """The scores of each set, as `eval.standalone.score_sets` gives them. With `keep`, features stay in the user's
        cache: what one set cost is not lost if another can't be scored."""
        from taugrid.eval import standalone  # with torch, which no error of opening should wait for
        from taugrid.workers.accelerator import arithmetic
        from taugrid.workers.device import usual_device

        features = user_cache() / "features" if keep else None
        if features is not None:
            for path in features.glob("*.parquet"):  # nights would fill the disk with theirs
                if path.stat().st_mtime < time.time() - KEPT_DAYS * 24 * 3600:
                    path.unlink(missing_ok=True)
        stage = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal stage
            if what != stage:
                stage = what
                progress.say(f"extracting the features of {counted(total, 'image')} ({what})")
                progress.begin(what, total, "images")
            progress.update(done)

        with arithmetic.restored():
            options = standalone.Options(
                versions=versions(SOFTWARE),
                device=usual_device(),
                batch_size=self.section.batch_size,
                cache=user_cache() / "references",
                features=features,
                progress=tell,
            )
            settings = self.section.metric_settings
            return standalone.score_sets(self.sets, self.reference, self.extractor, settings, options, orders)


def score_images(
    samples: Sequence[Images],
    reference: Images,
    evaluate: Mapping[str, Any],
    assignments: Sequence[Override],
    progress: Progress,
    value_range: tuple[float, float] | None = None,
    trust_code: bool = False,
) -> list[dict[str, Any]]:
    """Score each set of images in `samples` against `reference` with the keys of a config's section `evaluate`.

    Without an extractor, it is that of the reference's run or data set, if it is one, else Inception. `value_range` is
    that of arrays of floats. `trust_code` allows the extractor that a run directory names to be custom code.

    Raises `UserError` if images, reference, weights or settings can't be used."""
    section = section_of(evaluate, assignments)
    arrays = [_as_array(images) for images in (*samples, reference) if not isinstance(images, str)]
    if value_range is not None and not any(np.issubdtype(array.dtype, np.floating) for array in arrays):
        raise UserError("value_range is for arrays of floats, and there are none; leave it out")
    with TemporaryDirectory(prefix="taugrid-") as folder, user_errors_of(progress):
        progress.say("reading images")

        def as_path(name: str, images: Images) -> str:
            if isinstance(images, str):
                return images
            path = Path(folder) / f"{name}.npz"
            np.savez(path, to_pixels(name, images, value_range))
            return str(path)

        several = len(samples) > 1
        paths = {f"samples {images}" if several else "samples": as_path("samples", images) for images in samples}
        opened = open_sets(paths, as_path("reference", reference), section, trust_code)
        found = [scored.document for scored in opened.scored(progress, keep=several)]
    for document, images in zip(found, samples, strict=True):
        for side, given in (("samples", images), ("reference", reference)):
            if not isinstance(given, str):
                document[side] |= {"kind": "array", "path": None}
    return found


def of_all(documents: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """The lines of documents (name -> `ScoredImages.document`), each once, with the names if not all have it."""
    lines = dict.fromkeys(line for document in documents.values() for line in document[key])
    of = {line: [name for name, document in documents.items() if line in document[key]] for line in lines}
    return [line if len(names) == len(documents) else f"{', '.join(names)}: {line}" for line, names in of.items()]


@contextmanager
def user_errors_of(progress: Progress) -> Iterator[None]:
    """Errors of the block as a `UserError`; progress ends with the block."""
    try:
        yield
    except (ValueError, DamagedFile) as error:
        raise UserError(str(error)) from None
    finally:
        progress.end()


def open_sets(samples: Mapping[str, str], reference: str, section: Evaluate, trust_code: bool = False) -> OpenedSets:
    """Open sets of images and their reference, decode all images, and find the extractor.

    `samples` is what messages call a set (`samples`, `A`) -> its path. Without an extractor in `section`, it is that of
    the reference's run or data set, else Inception. Raises `UserError`, `ValueError` or `DamagedFile` if images,
    reference, weights or settings can't be used."""
    sets = {}
    for called, path in samples.items():
        with _naming(called):
            sets[called] = open_images(path)
    with _naming("reference"):
        resolved = resolve_reference(reference)
        compared = open_reference(resolved.given)
    # The extractor and its precision: what is asked for, or else that of the reference.
    is_asked = section.extractor is not None
    precision = section.precision if is_asked or "precision" in section.model_fields_set else resolved.precision
    extractor = (section.extractor, "", section.weights)
    if not is_asked:
        extractor = (resolved.extractor, "", section.weights or resolved.weights)
        if resolved.extractor is not None and ":" in resolved.extractor and not trust_code:
            raise UserError(
                f"reference: the run was scored with the custom extractor {resolved.extractor}, and code that a run "
                f"directory names is not run here; if you trust it, add --trust-code, or give extractor "
                f"{resolved.extractor}"
            )
    specs = {images.shape: resolve(*extractor, images.shape, precision=precision) for images in sets.values()}
    if len(set(specs.values())) > 1:
        shapes = " and ".join(f"{called} {images.shape}" for called, images in sets.items())
        raise UserError(f"{extractor[0]} compares images of one (channels, height, width) only, not {shapes}")
    return OpenedSets(tuple(sets.values()), compared, next(iter(specs.values())), section)


@contextmanager
def _naming(argument: str) -> Iterator[None]:
    """Errors of the block begin with the name of the argument."""
    try:
        yield
    except (ValueError, DamagedFile, UserError) as error:
        raise UserError(f"{argument}: {error}") from None


def section_of(evaluate: Mapping[str, Any], assignments: Sequence[Override]) -> Evaluate:
    """The section `evaluate` of external images; UserError for settings that are wrong, or for a run only."""
    values = merge({"evaluate": evaluate}, assignments)
    others = sorted(values.keys() - {"evaluate"})
    if others:
        raise UserError(f"--set {others[0]}: external images only take keys of evaluate")
    section = validate(Evaluate, values["evaluate"], "evaluate")
    if section.reference is not None or not section.keep_features:
        raise UserError("evaluate.reference and evaluate.keep_features are for a run; leave them out here")
    return section


def to_pixels(name: str, images: Any, value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Images as (N, H, W, 1 or 3) uint8 in C order; floats are rounded to nearest. `images` are the argument `name`: an
    array or a tensor on any device, uint8 or floating point, in one of `FORMS`. `value_range`: the values of black and
    white in floats. Raises `UserError` for another type or shape, floats without a range, or values beyond it."""
    array = _as_array(images)
    wrong_shape = UserError(f"{name}: an array of images is {FORMS}, not of shape {array.shape}")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise wrong_shape
    pixels = array if array.dtype == np.uint8 else _rounded(name, array, value_range)
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels[..., None])
    channels_first, channels_last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
    if channels_first and channels_last:
        raise UserError(
            f"{name}: {pixels.shape} may be (N, C, H, W) or (N, H, W, C); pass images of more than 3 pixels a side"
        )
    if not channels_first and not channels_last:
        raise wrong_shape
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if channels_first else pixels)


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
            "value_range=(0, 1) or value_range=(-1, 1), or uint8"
        )
    black, white = value_range
    low, high = float(array.min()), float(array.max())
    if not (black <= low and high <= white):  # NaN fails, too
        raise UserError(f"{name}: values are from {low:g} to {high:g}, beyond value_range={value_range}; clip them")
    share = (array.astype(np.float32, copy=False) - np.float32(black)) / np.float32(white - black)
    grey: NDArray[np.uint8] = np.rint(share * np.float32(255)).astype(np.uint8)
    return grey
