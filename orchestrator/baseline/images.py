"""Snapshots of images from anywhere: one cell, whose images are paired by their names in place of their noise."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.errors import UserError
from taugrid.eval.metrics.score import feasible
from taugrid.eval.pairs import named_order
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.canaries import Check
from taugrid.orchestrator.baseline.compared import DEFAULT_METRICS, GateSettings
from taugrid.orchestrator.baseline.snapshot import Network, SamplingEnvironment, Snapshot, SnapshotCell, reasons_of
from taugrid.orchestrator.external import OpenedSets, open_sets, section_of, user_errors_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.history import TAUGRID
from taugrid.orchestrator.work.scorer import DRIVER_METRICS, FEATURES, ScoredWith, ScorerRecord, halves
from taugrid.protocol import SOFTWARE
from taugrid.versions import versions

CANARY_IMAGES = 2 * FEATURES
"""Images of the reference whose features are extracted anew for the canary of the scorer."""

NOT_OURS = Check(
    "not applicable", "the images come from elsewhere: no sampler, weights or fresh seed to check, only their scores"
)
"""The canary of the sampler."""


class ImagesRequest(NamedTuple):
    """How images are scored; a baseline file of images has it, and later images are scored alike."""

    reference: str
    extractor: str | None = None
    weights: str | None = None
    metrics: tuple[str, ...] = ()
    """The metrics that judge; none: FID where it has a standard error, else KID."""
    pair_by: str | None = None
    trust_code: bool = False

    @property
    def recorded(self) -> dict[str, Any]:
        """For a baseline file. Whether code is trusted is said each time."""
        return {key: value for key, value in self._asdict().items() if key != "trust_code"}

    @property
    def options(self) -> str:
        """The options of `baseline accept` that score images in this way."""
        given = {key: ",".join(value) if key == "metrics" else value for key, value in self.recorded.items() if value}
        return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in given.items())

    @classmethod
    def of_baseline(cls, baseline: Snapshot, trust_code: bool, **given: Any) -> "ImagesRequest":
        """That of a baseline file, with what was `given`; `UserError` if it is one of a run."""
        recorded = (baseline.accepted or {}).get("images")
        if recorded is None:
            raise UserError(
                f"{baseline.source} is the baseline of a run, and these are images: compare them with images "
                "(compare A B --reference R), or accept images as a baseline (baseline accept DIR --reference R)"
            )
        return cls(**{**recorded, "metrics": tuple(recorded["metrics"]), **given}, trust_code=trust_code)

    @contextmanager
    def opened(self, sets: Mapping[str, str], progress: Progress) -> Iterator[OpenedSets]:
        """Sets of images (what messages call each -> its path), opened.

        Raises:
            UserError: if images, reference, weights or settings can't be used.
        """
        settings = {key: value for key in ("extractor", "weights") if (value := getattr(self, key)) is not None}
        section = section_of({**settings, "metrics": list(self.metrics or DEFAULT_METRICS)}, ())
        with user_errors_of(progress):
            progress.say("reading images")
            yield open_sets(sets, self.reference, section, self.trust_code)

    def gate(self, **requested: Any) -> GateSettings:
        """The settings of the gate with these metrics."""
        return GateSettings(metrics=self.metrics or None, **requested)


def snapshot_of_images(place: str, request: ImagesRequest, progress: Progress, called: str = "DIR") -> Snapshot:
    """Score the images in a folder, .npz or Parquet, which messages call `called`, in this process.

    Raises:
        UserError: if images, reference, weights or settings can't be used.
    """
    with request.opened({called: place}, progress) as opened:
        names = named_order(opened.sets[0], request.pair_by)
        (scored,) = opened.scored(progress, keep=True, orders=[names.order if names else None])
        canary = _canary(opened)
    place_of_scoring = canary.made_with.places if isinstance(canary, ScorerRecord) else ()
    document, source = scored.document, opened.sets[0]
    cell = SnapshotCell(
        cell="images",
        name="images",
        settings={"num_samples": source.num_images},
        axes={},
        image_shape=source.shape,
        metrics=document["metrics"],
        protocol=document["protocol"],
        network=Network(None, {}, None, None),
        environment=SamplingEnvironment((), {}, "unknown", source.num_images),
        influences=scored.influences,
        unsure=scored.unsure,
        reasons=reasons_of(document, scored.influences),
        load_digests=lambda: scored.digests,
        scored_with=ScoredWith.of(place_of_scoring, document["protocol"]),
        images=json_sha256(list(names.names)) if names else source.sha256,
        names=names.names if names else (),
    )
    name = Path(place).name or "images"
    about = {"path": place, "sha256": source.sha256, **request.recorded, "options": request.options}
    software = {"versions": versions((TAUGRID, *SOFTWARE)), "git_commit": None}
    return Snapshot(place, name, software, (cell,), load_scorer=lambda: canary, images=about)


def _canary(opened: OpenedSets) -> ScorerRecord | str:
    """The features that today's extractor gives for the first images of the reference, and the scores of halves."""
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
    made_with = ScoredWith.of([place], {"versions": versions(SOFTWARE)})
    about, used = json.loads(json.dumps([extractor.describe(), settings.as_dict()]))
    return ScorerRecord(reference.sha256, about, used, made_with, features[:FEATURES], scores)
