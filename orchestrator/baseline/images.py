"""Snapshots of external images: one cell, whose images are paired by their names in place of their noise."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taugrid.errors import UserError
from taugrid.eval.metrics.score import feasible
from taugrid.eval.pairs import named_order
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.compared import DEFAULT_METRICS
from taugrid.orchestrator.baseline.snapshot import (
    ImagesOfNight,
    ImagesRequest,
    Network,
    SamplingEnvironment,
    Snapshot,
    SnapshotCell,
    Software,
    reasons_of,
)
from taugrid.orchestrator.external import OpenedSets, open_sets, section_of, user_errors_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.history import TAUGRID
from taugrid.orchestrator.work.scorer import DRIVER_METRICS, ScorerRecord, halves, record_of, setup_of
from taugrid.protocol import SOFTWARE
from taugrid.versions import versions

if TYPE_CHECKING:
    from taugrid.eval.standalone import ScoredImages

CANARY_IMAGES = 128  # images of the reference whose features are extracted anew for the canary of the scorer


def request_of(baseline: Snapshot, trust_code: bool, **given: Any) -> ImagesRequest:
    """How the images of a baseline file were scored, with what was `given`; `UserError` if it is one of a run."""
    recorded = baseline.accepted and baseline.accepted.images
    if recorded is None:
        raise UserError(f"{baseline.source} is the baseline of a run, not of images; accept images as a baseline")
    return ImagesRequest(**{**recorded.model_dump(), **given}, trust_code=trust_code)


@contextmanager
def opened(request: ImagesRequest, sets: Mapping[str, str], progress: Progress) -> Iterator[OpenedSets]:
    """Sets of images (what messages call each -> its path), opened; raises `UserError` for what can't be used."""
    settings = {key: value for key in ("extractor", "weights") if (value := getattr(request, key)) is not None}
    section = section_of({**settings, "metrics": list(request.metrics or DEFAULT_METRICS)}, ())
    with user_errors_of(progress):
        progress.say("reading images")
        yield open_sets(sets, request.reference, section, request.trust_code)


def snapshot_of_images(place: str, request: ImagesRequest, progress: Progress, called: str = "DIR") -> Snapshot:
    """Score the images in a folder, .npz or Parquet, which messages call `called`, in this process. Raises `UserError`
    if images, reference, weights or settings can't be used."""
    with opened(request, {called: place}, progress) as sets:
        names, order = named_order(sets.sets[0], request.pair_by) or ((), None)
        (scored,) = sets.scored(progress, keep=True, orders=[order])
        canary = _canary(sets)
    source = sets.sets[0]
    images = json_sha256(list(names)) if names else source.sha256
    made_with = canary.made_with if isinstance(canary, ScorerRecord) else None
    cell = cell_of_images(scored, images, names, made_with)
    about = ImagesOfNight(path=place, sha256=source.sha256, **request.model_dump())
    software = Software.model_validate({"versions": versions((TAUGRID, *SOFTWARE))})
    return Snapshot(place, Path(place).name or "images", software, (cell,), scorer=canary, images=about)


def cell_of_images(
    scored: "ScoredImages", images: str, names: tuple[str, ...] = (), made_with: str | None = None
) -> SnapshotCell:
    """Scored images as a cell; those of two cells with the same `images` are paired in their order."""
    document, count = scored.document, scored.images.num_images
    setup = SamplingEnvironment((), {}, "unknown", count)
    return SnapshotCell(
        cell="images",
        name="images",
        settings={"num_samples": count},
        axes={},
        image_shape=scored.images.shape,
        metrics=document["metrics"],
        protocol=document["protocol"],
        network=Network(None, {}, None, None),
        setup=setup,
        first_setup=setup,
        influences=scored.influences,
        unsure=scored.unsure,
        reasons=reasons_of(document, scored.influences),
        load_digests=lambda: scored.digests,
        scored_with=made_with,
        images=images,
        names=names,
    )


def _canary(opened: OpenedSets) -> ScorerRecord | str:
    """The scores of halves of the first images of the reference, whose features today's extractor gives anew."""
    from taugrid.eval.standalone import first_features  # loads torch

    reference, extractor = opened.reference, opened.extractor
    if reference.num_images is None:
        return "only a mean and a covariance of the reference are known"
    features, place = first_features(reference, extractor, CANARY_IMAGES)
    half = len(features) // 2
    wanted = replace(opened.section.metric_settings, metrics=DRIVER_METRICS)
    settings = feasible(wanted, replace(extractor, logits_layer=None), half, half).settings
    try:
        scores = halves(features, None, settings)
    except (ValueError, ArithmeticError) as error:
        return f"a metric fails for the halves of the reference ({error})"
    return record_of(reference.sha256, extractor.describe(), settings, scores, setup_of([place], versions(SOFTWARE)))
