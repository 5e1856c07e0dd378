"""The known-input check of the scorer, its canary: it scores the reference itself, which no new network can change.

It is the scores of even images against odd ones, of the reference's first part file (`eval.sources.part_bounds`): a few
thousand images, which takes seconds. Each session that scores cells writes it as scorer.json, and a baseline file holds
it.
"""

import json
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from threadpoolctl import threadpool_info, threadpool_limits

from taugrid import parquet
from taugrid.config import Config
from taugrid.errors import DamagedFile
from taugrid.eval.metrics.frechet import SAMPLES_PER_DIMENSION
from taugrid.eval.metrics.reference_statistics import of_feature_files, of_features, read_all
from taugrid.eval.metrics.score import feasible, score
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.history import REFERENCE, TAUGRID, Maker, RunHistory
from taugrid.protocol import SOFTWARE
from taugrid.registry.metrics import MetricSettings
from taugrid.storage import read_sealed, write_sealed
from taugrid.versions import versions

FILE = "scorer.json"

# Relative tolerance for the same versions, devices and threads: rounding differs by far less.
SAME_SETUP_TOLERANCE = 1e-9

# Relative tolerance when versions, devices or threads differ: they change far less, and a fault of 1 % far more.
TOLERANCE = 1e-3

DRIVER_METRICS = ("fid", "isc", "kid")  # which need no torch, so that the driver computes them

KID_SUBSETS = 10  # the number of subsets of KID: enough, since a fault of its formula shows in one


def places(makers: Iterable[Maker]) -> set[str]:
    """Their devices, with the threads."""
    return {f"{maker.device}, threads: {maker.threads or 'unknown'}" for maker in makers}


def setup_of(places: Collection[str], versions: Mapping[str, str]) -> str | None:
    """The place and the software, but for taugrid, that a score depends on; None: they are several, or not known."""
    software = (f"{name} {version}" for name, version in sorted(versions.items()) if name != TAUGRID)
    text = ", ".join((*places, *software))
    return text if len(places) == 1 and "unknown" not in next(iter(places)) else None


def tolerance(one: str | None, other: str | None) -> float:
    """The relative tolerance for two scores of the same features, by their setups."""
    return SAME_SETUP_TOLERANCE if one is not None and one == other else TOLERANCE


class ScorerRecord(BaseModel):
    """The scores that a scorer gave for the halves of a reference; scorer.json."""

    model_config = ConfigDict(frozen=True)

    reference: str  # SHA-256 of the reference
    extractor: dict[str, Any]
    settings: dict[str, Any]  # the settings of the metrics
    # The scores of its even images against its odd ones, and three numbers of the reference statistics.
    scores: dict[str, float]
    mixed: tuple[str, ...] = ()  # the changes of the scorer between the sessions that scored the cells
    made_with: str | None = None  # as `setup_of`

    def is_comparable(self, other: "ScorerRecord") -> bool:
        return (self.reference, self.extractor) == (other.reference, other.extractor)


def changes(new: ScorerRecord, old: ScorerRecord) -> list[str]:
    """The differences between the scorers of `new` and `old` beyond rounding, as phrases. Both must have the same
    reference and extractor."""
    names, allowed = old.scores.keys() & new.scores.keys(), tolerance(new.made_with, old.made_with)
    if new.settings != old.settings:
        names = {name for name in names if not name.startswith("kid")}
    return [
        f"{name} of the reference's halves is {new.scores[name]:.6g}, it was {old.scores[name]:.6g}"
        for name in sorted(names)
        if differs(new.scores[name], old.scores[name], allowed)
    ]


def differs(new: float, old: float, allowed: float) -> bool:
    """Whether two scores are further apart than `allowed`, relatively to the larger one."""
    return not abs(new - old) <= allowed * max(abs(new), abs(old), TOLERANCE)  # NaN never agrees


def kept_record(rundir: RunDir) -> ScorerRecord | str:
    """The record that the last session with scores wrote, or the reason why there is none."""
    value = read_sealed(rundir.root / FILE, rundir.storage)
    if rundir.is_changed(FILE):
        return f"{FILE} was changed or is damaged"
    if value is None:
        return "no record; `taugrid run` scores and writes one"
    return str(value["reason"]) if "reason" in value else ScorerRecord.model_validate(value)


def keep_record(config: Config, rundir: RunDir, scoring: Scoring) -> None:
    """Write the record of the scorer, at the end of a session that has scored cells. If the scorer has changed since an
    earlier session of the same scoring, the record has the changes (`mixed`)."""
    record, before = _record(config, rundir, scoring), kept_record(rundir)
    if isinstance(record, ScorerRecord) and isinstance(before, ScorerRecord) and record.is_comparable(before):
        mixed = tuple(dict.fromkeys((*before.mixed, *changes(record, before))))
        record = record.model_copy(update={"mixed": mixed})
    value = {"reason": record} if isinstance(record, str) else record.model_dump(mode="json")
    write_sealed(rundir.root / FILE, value, rundir.storage)


def _record(config: Config, rundir: RunDir, scoring: Scoring) -> ScorerRecord | str:
    reference = scoring.reference
    if reference.num_images is None:
        return "only a mean and a covariance of the reference are known"
    paths = rundir.reference_parts(rundir.extractor_folder(scoring.extractor), reference)
    settings = config.evaluate.metric_settings
    metrics = tuple(metric.name for metric in settings.chosen if metric.name in DRIVER_METRICS)
    few = replace(settings, metrics=metrics, kid_subsets=min(settings.kid_subsets, KID_SUBSETS))
    try:
        features = np.concatenate(list(read_all(paths[:1], rundir.storage)))
        wanted = parquet.read_features(paths[0], "logits", rundir.storage) if few.need("logits") else None
        logits = None if wanted is None else np.concatenate([values for _, values in wanted])
        half = len(features) // 2
        settings = feasible(few, scoring.extractor, half, half).settings
        with threadpool_limits(1):  # so that the result does not depend on the number of cores
            statistics = of_feature_files(
                paths, reference.num_images, paths[0].parent, scoring.reference_key, rundir.storage
            )
            scores = halves(features, logits, settings)
            # FID over few enough features that it has a standard error checks the influences too.
            width = max(1, min(features.shape[1], len(features) // 2 // SAMPLES_PER_DIMENSION))
            narrow = halves(np.ascontiguousarray(features[:, :width]), None, MetricSettings(metrics=("fid",)))
            scores |= {f"{name} of {width} features": value for name, value in narrow.items()}
            moments = statistics.moments
            scores["length of the reference's mean"] = float(np.linalg.norm(moments.mean))
            scores["trace of the reference's covariance"] = float(np.trace(moments.covariance))
            scores["trace of its root"] = float(np.trace(statistics.root))
    except (FileNotFoundError, DamagedFile) as error:
        return f"the features of the reference are missing ({error})"
    except (ValueError, ArithmeticError) as error:
        return f"a metric fails for the halves of the reference ({error})"
    kinds = {str(pool["architecture"]) for pool in threadpool_info() if "architecture" in pool}
    cpu = " ".join((platform.machine(), *sorted(kinds)))  # for which NumPy chose its code: others round differently
    made_with = setup_of(places(RunHistory.read(rundir).scored_by[REFERENCE]), versions(SOFTWARE) | {"cpu": cpu})
    return record_of(reference.sha256, scoring.extractor.describe(), settings, scores, made_with)


def record_of(
    reference: str,
    extractor: Mapping[str, Any],
    settings: MetricSettings,
    scores: dict[str, float],
    made_with: str | None,
) -> ScorerRecord:
    """A record whose texts are those that JSON gives back."""
    about, used = json.loads(json.dumps([extractor, settings.as_dict()]))
    return ScorerRecord(reference=reference, extractor=about, settings=used, scores=scores, made_with=made_with)


def halves(
    features: NDArray[np.float32], logits: NDArray[np.float32] | None, settings: MetricSettings
) -> dict[str, float]:
    """The scores of the even rows against the odd ones."""
    half = len(features) // 2
    even, odd = features[: 2 * half : 2], features[1 : 2 * half : 2]
    reference = of_features(lambda: iter((odd,)), half, None, "", lambda: odd)
    of_even = None if logits is None else logits[: 2 * half : 2]
    stream = None if of_even is None else lambda: iter((of_even,))
    return score(lambda: iter((even,)), stream, half, reference, settings).values
