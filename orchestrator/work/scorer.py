"""The canary of the scorer: what it gives for the reference itself, which no new network can change.

It is the features of the first reference images, and the scores of even images against odd ones, of the reference's
first part (`eval.sources.part_bounds`): a few thousand images, which takes seconds. Each session that scores cells
writes it as scorer.json, and a baseline file holds it.
"""

import base64
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from taugrid import parquet
from taugrid.config import Config
from taugrid.errors import DamagedFile
from taugrid.eval.metrics.frechet import SAMPLES_PER_DIMENSION
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics, of_feature_files, of_features, read_all
from taugrid.eval.metrics.score import feasible, score
from taugrid.eval.sources import part_bounds
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.orchestrator.rundir.origins import REFERENCE, TAUGRID, scorers
from taugrid.protocol import SOFTWARE, canonical
from taugrid.registry.metrics import MetricSettings
from taugrid.storage import Storage, read_sealed, write_sealed
from taugrid.versions import versions

FILE = "scorer.json"

FEATURES = 64
"""Reference images whose features are kept."""

EQUAL = 1e-9
"""Relative tolerance for the same versions, devices and threads: rounding differs by far less."""

IN_THE_DRIVER = ("fid", "isc", "kid")
"""Metrics that need no torch."""

SUBSETS = 10
"""Subsets of KID: a fault of its formula shows in one."""

ALIKE = 1e-3
"""Relative tolerance for others: kernels and libraries differ by far less, and a fault of 1 % by far more."""


@dataclass(frozen=True)
class ScoredWith:
    """What a score depends on besides images, reference and settings."""

    places: tuple[str, ...]
    """Devices and threads that extracted and scored."""
    versions: Mapping[str, str]
    """Of the software, without taugrid: its own version never counts as other software."""

    @classmethod
    def of(cls, places: Iterable[str], protocol: Mapping[str, Any]) -> "ScoredWith":
        """From the places and the protocol of a score."""
        versions = canonical(protocol).get("versions") or {}
        return cls(tuple(sorted(places)), {name: value for name, value in versions.items() if name != TAUGRID})

    @classmethod
    def read(cls, value: Mapping[str, Any] | None) -> "ScoredWith | None":
        """From JSON; None stays None."""
        return None if value is None else cls(tuple(value["places"]), value["versions"])


def tolerance(one: ScoredWith | None, other: ScoredWith | None) -> float:
    """How far two scores of the same features may be apart, relatively."""
    known = one is not None and len(one.places) == 1 and "unknown" not in one.places[0]
    return EQUAL if known and one == other else ALIKE


@dataclass(frozen=True, eq=False)
class ScorerRecord:
    """What a scorer gave for a reference."""

    reference: str
    """SHA-256 of the reference."""
    extractor: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Of the metrics."""
    made_with: ScoredWith
    features: NDArray[np.float32]
    """(n, d), of its first images."""
    scores: Mapping[str, float]
    """Of its even images against its odd ones, and of what the cells are scored against."""
    mixed: tuple[str, ...] = ()
    """How the scorer changed between the sessions that scored the cells."""

    def is_comparable(self, other: "ScorerRecord") -> bool:
        """Whether both are of one reference and extractor."""
        return (self.reference, self.extractor) == (other.reference, other.extractor)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        coded = base64.b64encode(self.features.astype("<f4").tobytes()).decode()
        plain = {name: getattr(self, name) for name in ("reference", "extractor", "settings", "scores")}
        about = {"made_with": asdict(self.made_with), "mixed": list(self.mixed), "shape": list(self.features.shape)}
        return {**plain, **about, "features": coded}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "ScorerRecord":
        """What `as_dict` gave."""
        features = np.frombuffer(base64.b64decode(value["features"]), "<f4").reshape(value["shape"])
        made_with = ScoredWith.read(value["made_with"])
        assert made_with is not None
        given = {name: value[name] for name in ("reference", "extractor", "settings", "scores")}
        return cls(**given, made_with=made_with, features=features, mixed=tuple(value["mixed"]))


def changes(new: ScorerRecord, old: ScorerRecord) -> list[str]:
    """How the scorer of `new` differs from that of `old`, beyond rounding; empty if it does not.

    Both must be of the same reference and extractor.
    """
    allowed, found = tolerance(new.made_with, old.made_with), []
    scale = float(np.abs(old.features).max())
    if new.features.shape != old.features.shape:
        return ["the features of the reference have another shape"]
    apart = float(np.abs(new.features.astype(np.float64) - old.features).max())
    if not apart <= allowed * scale:  # nan is no agreement
        found.append(f"the features of the first {len(old.features)} reference images differ by up to {apart:.3g}")
    names = old.scores.keys() & new.scores.keys()
    if new.settings != old.settings:
        names = {name for name in names if not name.startswith("kid")}
    for name in sorted(names):
        if differs(new.scores[name], old.scores[name], allowed):
            found.append(f"{name} of the reference's halves is {new.scores[name]:.6g}, it was {old.scores[name]:.6g}")
    return found


def differs(new: float, old: float, allowed: float) -> bool:
    """Whether two scores are further apart than `allowed`, relatively to the larger one."""
    return not abs(new - old) <= allowed * max(abs(new), abs(old), ALIKE)  # nan is no agreement


def kept_record(rundir: RunDir) -> ScorerRecord | str:
    """The record that the last session with scores wrote; a text says why there is none."""
    found = read_sealed(rundir.root / FILE, rundir.storage)
    if found is None and rundir.storage.exists(rundir.root / FILE):
        return f"{FILE} was changed or is damaged"
    if found is None:
        return "none was recorded; a run that is scored by this version has one"
    return ScorerRecord.read(found) if "features" in found else str(found["reason"])


def keep_record(config: Config, rundir: RunDir, evaluation: Evaluation) -> None:
    """Write what the scorer gives for the reference now, at the end of a session that has scored cells.

    If an earlier session of the same evaluation had a scorer that gave something else, the record says so.
    """
    record = _record(config, rundir, evaluation)
    before = kept_record(rundir)
    if isinstance(record, ScorerRecord) and isinstance(before, ScorerRecord) and record.is_comparable(before):
        record = replace(record, mixed=tuple(dict.fromkeys((*before.mixed, *changes(record, before)))))
    value = {"reason": record} if isinstance(record, str) else record.as_dict()
    write_sealed(rundir.root / FILE, value, rundir.storage)


def _record(config: Config, rundir: RunDir, evaluation: Evaluation) -> ScorerRecord | str:
    reference, folder = evaluation.reference, rundir.extractor_folder(evaluation.extractor)
    if reference.num_images is None:
        return "only a mean and a covariance of the reference are known"
    parts = range(len(part_bounds(reference.num_images)))
    paths = [rundir.reference_part(folder, reference.sha256, number) for number in parts]
    wanted = config.evaluate.metric_settings
    metrics = tuple(metric.name for metric in wanted.chosen if metric.name in IN_THE_DRIVER)
    few = replace(wanted, metrics=metrics, kid_subsets=min(wanted.kid_subsets, SUBSETS))
    try:
        features = np.concatenate(list(read_all(paths[:1], rundir.storage)))
        logits = _logits(paths[0], rundir.storage) if few.need("logits") else None
        half = len(features) // 2
        settings = feasible(few, evaluation.extractor, half, half).settings
        with threadpool_limits(1):  # so that a machine with other cores gives the same
            known = of_feature_files(
                paths, reference.num_images, paths[0].parent, evaluation.reference_key, rundir.storage
            )
            scores = _halves(features, logits, settings) | _narrow(features) | _totals(known)
    except (FileNotFoundError, DamagedFile) as error:
        return f"the features of the reference are not at hand ({error})"
    except (ValueError, ArithmeticError) as error:
        return f"a metric fails for the halves of the reference ({error})"
    places = scorers(read_events(rundir)).get(REFERENCE, set())
    made_with = ScoredWith.of(places, {"versions": versions(SOFTWARE) | {"cpu": _cpu()}})
    about, used = json.loads(json.dumps([evaluation.extractor.describe(), settings.as_dict()]))
    return ScorerRecord(reference.sha256, about, used, made_with, features[:FEATURES], scores)


def _logits(path: Path, storage: Storage) -> NDArray[np.float32]:
    return np.concatenate([values for _, values in parquet.read_features(path, "logits", storage)])


def _halves(
    features: NDArray[np.float32], logits: NDArray[np.float32] | None, settings: MetricSettings
) -> dict[str, float]:
    """The scores of the even rows against the odd ones."""
    half = len(features) // 2
    even, odd = features[: 2 * half : 2], features[1 : 2 * half : 2]
    reference = of_features(lambda: iter((odd,)), half, None, "", lambda: odd)
    of_even = None if logits is None else logits[: 2 * half : 2]
    stream = None if of_even is None else lambda: iter((of_even,))
    return score(lambda: iter((even,)), stream, half, reference, settings).values


def _narrow(features: NDArray[np.float32]) -> dict[str, float]:
    """FID of the halves over so few features that it has a standard error: the influences are checked with it."""
    width = max(1, min(features.shape[1], len(features) // 2 // SAMPLES_PER_DIMENSION))
    scores = _halves(np.ascontiguousarray(features[:, :width]), None, MetricSettings(metrics=("fid",)))
    return {f"{name} of {width} features": value for name, value in scores.items()}


def _totals(known: ReferenceStatistics) -> dict[str, float]:
    """What the cells are scored against, in three numbers."""
    covariance = known.moments.covariance
    return {
        "length of the reference's mean": float(np.linalg.norm(known.moments.mean)),
        "trace of the reference's covariance": float(np.trace(covariance)),
        "trace of its root": float(np.trace(known.root)),
    }


def _cpu() -> str:
    """The kind of processor for which NumPy's linear algebra chose its code: another rounds differently."""
    kinds = {str(found["architecture"]) for found in threadpool_info() if "architecture" in found}
    return " ".join((platform.machine(), *sorted(kinds)))
