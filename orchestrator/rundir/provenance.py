"""provenance.json: the software, weights, data and machines that made a run's files."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import taugrid
from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.hashing import canonical_json
from taugrid.orchestrator.plan.cells import Model, Plan
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.plan.sources import Trained
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.storage import write_json
from taugrid.versions import versions
from taugrid.workers.data.load import content_fingerprint, load_images

PACKAGE = Path(taugrid.__file__).parent

PACKAGES = ("taugrid", "ray", "torch", "diffusers", "torch-fidelity", "pyarrow", "pandas", "numpy", "scipy", "pillow")


def software() -> dict[str, Any]:
    """Versions, the commit of the checkout that taugrid runs from (None if it is not a checkout), its code's hash."""
    software = {"python": sys.version.split()[0], "versions": versions(PACKAGES), **_checkout()}
    return software | {"code_sha256": code_sha256()}


@cache
def code_sha256() -> str:
    """SHA-256 of taugrid's source files, which may change between the sessions of an interrupted night."""
    digest = hashlib.sha256()
    walk = os.walk(PACKAGE, followlinks=True)  # a checkout has links to the layers
    files = [Path(folder, name) for folder, _, names in walk for name in names if name.endswith(".py")]
    for path in sorted(files):
        digest.update(path.relative_to(PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _checkout() -> dict[str, Any]:
    """The commit that this process runs. Cached, since loaded modules do not change with the files."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write(rundir: RunDir, plan: Plan, scoring: Scoring | None) -> None:
    """Write provenance.json. Data and extractor stay as earlier sessions recorded them, if they are unknown now."""
    before = rundir.read_provenance()
    joined = RunHistory.read(rundir).joined
    found = [{key: event[key] for key in ("node", "device", "accelerator") if key in event} for event in joined]
    machines = {(machine["node"], machine["device"], canonical_json(machine)): machine for machine in found}
    value: dict[str, Any] = {
        **software(),
        "models": {
            model.id: weights
            for model in plan.models
            if rundir.is_ready(model) and (weights := _weights(rundir, plan, model, before))
        },
        "dataset": _dataset(rundir, plan, scoring, before),
        "reference": before.get("reference") if scoring is None else asdict(scoring.reference.identity()),
        "extractor": before.get("extractor") if scoring is None else scoring.extractor.describe(),
        "machines": [machines[key] for key in sorted(machines)],
    }
    write_json(rundir.provenance, value, rundir.storage)


def _dataset(
    rundir: RunDir, plan: Plan, scoring: Scoring | None, before: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The config's data set, if a model was trained on it or samples are scored against it; else as recorded."""
    if scoring is not None and scoring.reference.data == scoring.config.data:
        with suppress(UserError):  # a report of earlier scores needs no images
            return _describe(scoring.config.data, plan)
    recorded: Mapping[str, Any] | None = before.get("dataset")
    recorded_models = before.get("models") or {}
    for model in plan.models:
        if isinstance(model.source, Trained) and rundir.is_ready(model) and model.id not in recorded_models:
            try:
                return _describe(model.data, plan)
            except UserError:
                return recorded  # trained on another machine, or the images are gone: nothing needs them now
    return recorded


def _describe(data: Data, plan: Plan) -> dict[str, Any]:
    content = {"num_images": len(load_images(data)), "sha256": content_fingerprint(data)}
    if any(isinstance(m.source, Trained) and m.source.unet.num_classes and m.data == data for m in plan.models):
        content["labels_sha256"] = content_fingerprint(data, "labels")
    return data.model_dump(mode="json", exclude={"download"}) | content


def _weights(rundir: RunDir, plan: Plan, model: Model, before: Mapping[str, Any]) -> Mapping[str, str]:
    """SHA-256 by kind of weights; as recorded before, if the weights are gone."""
    kinds = {cell.settings.weights for cell in plan.cells if cell.model.id == model.id}
    try:
        return {kind: rundir.weights_sha256(model, kind) for kind in sorted(kinds)}
    except UserError:
        recorded: Mapping[str, str] = (before.get("models") or {}).get(model.id) or {}
        return recorded
