"""`taugrid evaluate --samples`: scores external images in this process."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from taugrid.config import Data, Evaluate, validate
from taugrid.config.load import Override, merge
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.features.resolve import resolve
from taugrid.eval.metrics.reference_statistics import default_cache
from taugrid.eval.reference import open_reference
from taugrid.eval.reference_names import Meant, meant
from taugrid.eval.sources import open_source
from taugrid.orchestrator.progress import Progress
from taugrid.protocol import SOFTWARE
from taugrid.registry.extractors import FeaturePrecision
from taugrid.versions import versions
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.data.places import MissingImages, default_root

Images = str | NDArray[np.uint8]
"""A path or another text that means images, or the images as (N, H, W) or (N, H, W, 1 or 3)."""


def score_images(
    samples: Images,
    reference: Images,
    evaluate: Mapping[str, Any],
    assignments: Sequence[Override],
    progress: Progress,
) -> dict[str, Any]:
    """Score the images in `samples` against `reference` with the keys of a config's section `evaluate`.

    Without an extractor, it is that of the reference's run or data set, if it is one, else Inception.

    Raises:
        UserError: if images, reference, weights or settings can't be used.
    """
    section = _section(evaluate, assignments)
    with ExitStack() as files:
        try:
            progress.say("reading images")
            sample_file, reference_file = _as_file("samples", samples, files), _as_file("reference", reference, files)
            scores = _scores(sample_file, reference_file, section, progress)
        except (ValueError, DamagedFile) as error:
            raise UserError(_with_flags(str(error), evaluate)) from None
        finally:
            progress.end()
    for side, images in (("samples", samples), ("reference", reference)):
        if not isinstance(images, str):
            scores[side] |= {"kind": "array", "path": None}
    return scores


def _scores(samples: str, reference: str, section: Evaluate, progress: Progress) -> dict[str, Any]:
    found = _opened("--samples", open_source, samples)
    goes_with = _opened("--reference", meant, reference)
    try:
        compared = _opened("--reference", open_reference, goes_with.given)
    except MissingImages as error:
        raise UserError(f"--reference: {_ways_to(error, goes_with.given)}") from None
    spec = resolve(*_extractor(section, goes_with), found.shape, precision=_precision(section, goes_with))
    from taugrid.eval import standalone  # loads torch, which no error above should wait for

    with arithmetic.restored():
        return standalone.evaluate(
            found,
            compared,
            spec,
            section.metric_settings,
            batch_size=section.batch_size,
            versions=versions(SOFTWARE),
            device=_device(),
            cache=default_cache(),
            progress=_teller(progress),
        )


def _section(evaluate: Mapping[str, Any], assignments: Sequence[Override]) -> Evaluate:
    values = merge({"evaluate": evaluate}, assignments)
    others = sorted(values.keys() - {"evaluate"})
    if others:
        raise UserError(f"--set {others[0]}: external images only take keys of evaluate")
    try:
        section = validate(Evaluate, values["evaluate"], "evaluate")
    except UserError as error:
        raise UserError(_with_flags(str(error), evaluate)) from None
    if section.reference is not None or not section.keep_features:
        raise UserError("--set evaluate.reference and evaluate.keep_features are for a run; give --reference PATH here")
    return section


def _extractor(section: Evaluate, goes_with: Meant) -> tuple[str | None, str, str | None]:
    """The extractor's name, no data set, and its weights: those asked for, or else those of the reference."""
    if section.extractor is not None:
        return section.extractor, "", section.weights
    if goes_with.extractor is not None and ":" in goes_with.extractor:
        raise UserError(
            f"--reference: the run was scored with the custom extractor {goes_with.extractor}, and code that a run "
            f"directory names is not run here; if you trust it, give --extractor {goes_with.extractor}"
        )
    return goes_with.extractor, "", section.weights or goes_with.weights


def _precision(section: Evaluate, goes_with: Meant) -> FeaturePrecision:
    """The precision that is asked for, or else that of the reference's run, if its extractor is used."""
    given = section.extractor is not None or "precision" in section.model_fields_set
    return section.precision if given else goes_with.precision


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _teller(progress: Progress) -> Callable[[str, int, int], None]:
    """What `standalone.evaluate` calls, as stages of `progress`."""
    stage = ""

    def tell(what: str, done: int, total: int) -> None:
        nonlocal stage
        if what != stage:
            stage = what
            progress.begin(what, total, "images")
            progress.started()
        progress.update(done)

    return tell


def _as_file(name: str, images: Images, files: ExitStack) -> str:
    """A text as it is, or an `.npz` of an array, which is there until `files` are closed."""
    if isinstance(images, str):
        return images
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise UserError(
            f"{name}: an array of images is uint8, (N, H, W) or (N, H, W, 1 or 3), not {images.dtype} of shape "
            f"{images.shape}"
        )
    path = Path(files.enter_context(TemporaryDirectory(prefix="taugrid-"))) / f"{name}.npz"
    np.savez(path, images.reshape(*images.shape[:3], -1))
    return str(path)


Text = TypeVar("Text")
Side = TypeVar("Side")


def _opened(flag: str, open_images: Callable[[Text], Side], given: Text) -> Side:
    try:
        return open_images(given)
    except MissingImages:
        raise
    except (ValueError, DamagedFile, UserError) as error:
        raise UserError(f"{flag}: {error}") from None


def _ways_to(missing: MissingImages, reference: Data | str) -> str:
    """What to say of a data set that is not there: here no config has keys that could tell where it is."""
    place = f"put it in {default_root()}"
    if isinstance(reference, Data) and reference.name == "fashion-mnist":
        split = "train" if reference.split == "all" else reference.split
        place = f"give --reference DIR/{split}, DIR being {missing.root}"
    others = [way for way in missing.others if not way.startswith("data.")]
    is_of_run = isinstance(reference, Data) and reference.root is not None
    ways = [place, *others, *([] if is_of_run else ["give a run directory that was scored against it"])]
    return f"{missing.fault}: {', or '.join(ways)}"


def _with_flags(text: str, given: Iterable[str]) -> str:
    """An error's text with the flags that the user gave in place of the config's keys."""
    for key in given:
        text = text.replace(f"evaluate.{key}", f"--{key}").replace(f"evaluate: {key}", f"--{key}")
    return text
