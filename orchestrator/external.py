"""`taugrid evaluate --samples`: scores external images in this process."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from taugrid.config import Evaluate, validate
from taugrid.config.load import merge
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.features.resolve import resolve
from taugrid.eval.metrics.reference_statistics import default_cache
from taugrid.eval.reference import open_reference
from taugrid.eval.sources import open_source
from taugrid.orchestrator.progress import Progress
from taugrid.protocol import SOFTWARE
from taugrid.versions import versions


def score_images(
    samples: str, reference: str, evaluate: dict[str, Any], assignments: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """Score the images in `samples` against `reference` with the keys of a config's section `evaluate`.

    Raises:
        UserError: if images, reference, weights or settings can't be used.
    """
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
    try:
        progress.say("reading images")
        found = _opened("--samples", open_source, samples)
        compared = _opened("--reference", open_reference, reference)
        spec = resolve(section.extractor, "", section.weights, found.shape)
        import torch

        from taugrid.eval import standalone

        stage = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal stage
            if what != stage:
                stage = what
                progress.begin(what, total, "images")
                progress.started()
            progress.update(done, done)

        return standalone.evaluate(
            found,
            compared,
            spec,
            section.metric_settings,
            batch_size=section.batch_size,
            versions=versions(SOFTWARE),
            device="cuda" if torch.cuda.is_available() else "cpu",
            cache=default_cache(),
            progress=tell,
        )
    except (ValueError, DamagedFile) as error:
        raise UserError(_with_flags(str(error), evaluate)) from None
    finally:
        progress.end()


Images = TypeVar("Images")


def _opened(flag: str, open_images: Callable[[str], Images], path: str) -> Images:
    try:
        return open_images(path)
    except (ValueError, DamagedFile) as error:
        raise UserError(f"{flag}: {error}") from None


def _with_flags(text: str, given: Iterable[str]) -> str:
    """An error's text with the flags that the user gave in place of the config's keys."""
    for key in given:
        text = text.replace(f"evaluate.{key}", f"--{key}").replace(f"evaluate: {key}", f"--{key}")
    return text
