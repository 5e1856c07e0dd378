"""`taugrid evaluate --samples` and `taugrid.evaluate`: score external images in this process."""

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
from taugrid.orchestrator.array_images import VALUE_RANGE, is_float, to_pixels
from taugrid.orchestrator.progress import Progress
from taugrid.protocol import SOFTWARE
from taugrid.registry.extractors import FeaturePrecision
from taugrid.versions import versions
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.data.places import MissingImages, default_root

Images = str | NDArray[Any]
"""A path or another text that means images, or the images as `array_images.to_pixels` takes them, also as a tensor."""

Names = Callable[[str], str]
"""How an argument is called in messages: `--samples` by the command, `samples` by Python."""


def flag(name: str) -> str:
    """`Names` of the command line."""
    return f"--{name}"


def score_images(
    samples: Images,
    reference: Images,
    evaluate: Mapping[str, Any],
    assignments: Sequence[Override],
    progress: Progress,
    names: Names = str,
    value_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Score the images in `samples` against `reference` with the keys of a config's section `evaluate`.

    Without an extractor, it is that of the reference's run or data set, if it is one, else Inception. `value_range` is
    that of arrays of floats.

    Raises:
        UserError: if images, reference, weights or settings can't be used.
    """
    section = _section(evaluate, assignments, names)
    if value_range is not None and not (is_float(samples) or is_float(reference)):
        raise UserError(f"{VALUE_RANGE} is for arrays of floats, and there are none; leave it out")
    with ExitStack() as files:
        try:
            progress.say("reading images")
            sample_file = _as_file("samples", samples, value_range, files)
            reference_file = _as_file("reference", reference, value_range, files)
            scores = _scores(sample_file, reference_file, section, progress, names)
        except (ValueError, DamagedFile) as error:
            raise UserError(_with_names(str(error), evaluate, names)) from None
        finally:
            progress.end()
    for side, images in (("samples", samples), ("reference", reference)):
        if not isinstance(images, str):
            scores[side] |= {"kind": "array", "path": None}
    return scores


def _scores(samples: str, reference: str, section: Evaluate, progress: Progress, names: Names) -> dict[str, Any]:
    found = _opened(names("samples"), open_source, samples)
    goes_with = _opened(names("reference"), meant, reference)
    try:
        compared = _opened(names("reference"), open_reference, goes_with.given)
    except MissingImages as error:
        raise UserError(f"{names('reference')}: {_ways_to(error, goes_with.given, names)}") from None
    spec = resolve(*_extractor(section, goes_with, names), found.shape, precision=_precision(section, goes_with))
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


def _section(evaluate: Mapping[str, Any], assignments: Sequence[Override], names: Names) -> Evaluate:
    values = merge({"evaluate": evaluate}, assignments)
    others = sorted(values.keys() - {"evaluate"})
    if others:
        raise UserError(f"--set {others[0]}: external images only take keys of evaluate")
    try:
        section = validate(Evaluate, values["evaluate"], "evaluate")
    except UserError as error:
        raise UserError(_with_names(str(error), evaluate, names)) from None
    if section.reference is not None or not section.keep_features:
        said = "evaluate.reference and evaluate.keep_features are for a run; leave them out here"
        raise UserError(_with_names(said, (), names))
    return section


def _extractor(section: Evaluate, goes_with: Meant, names: Names) -> tuple[str | None, str, str | None]:
    """The extractor's name, no data set, and its weights: those asked for, or else those of the reference."""
    if section.extractor is not None:
        return section.extractor, "", section.weights
    if goes_with.extractor is not None and ":" in goes_with.extractor:
        raise UserError(
            f"{names('reference')}: the run was scored with the custom extractor {goes_with.extractor}, and code that "
            f"a run directory names is not run here; if you trust it, {_given(names, 'extractor', goes_with.extractor)}"
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


def _as_file(name: str, images: Images, value_range: tuple[float, float] | None, files: ExitStack) -> str:
    """A text as it is, or an `.npz` of an array, which is there until `files` are closed."""
    if isinstance(images, str):
        return images
    path = Path(files.enter_context(TemporaryDirectory(prefix="taugrid-"))) / f"{name}.npz"
    np.savez(path, to_pixels(name, images, value_range))
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


def _ways_to(missing: MissingImages, reference: Data | str, names: Names) -> str:
    """What to say of a data set that is not there: here no config has keys that could tell where it is."""
    place = f"put it in {default_root()}"
    if isinstance(reference, Data) and reference.name == "fashion-mnist":
        split = "train" if reference.split == "all" else reference.split
        place = f"{_given(names, 'reference', f'DIR/{split}')}, DIR being {missing.root}"
    others = [way for way in missing.others if not way.startswith("data.")]
    is_of_run = isinstance(reference, Data) and reference.root is not None
    ways = [place, *others, *([] if is_of_run else ["give a run directory that was scored against it"])]
    return f"{missing.fault}: {', or '.join(ways)}"


def _given(names: Names, name: str, value: str) -> str:
    """How to give an argument: `give --name value`, or `pass name="value"`."""
    return f"give {names(name)} {value}" if names is flag else f'pass {name}="{value}"'


def _with_names(text: str, given: Iterable[str], names: Names) -> str:
    """An error's text with the arguments that the user gave in place of the config's keys."""
    for key in given if names is flag else Evaluate.model_fields:  # in Python every key is an argument
        text = text.replace(f"evaluate.{key}", names(key)).replace(f"evaluate: {key}", names(key))
    return text
