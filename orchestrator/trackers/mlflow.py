"""MLflow: a run for the run directory, found again by a tag, and below it a run for each cell."""

import os
import re
import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from taugrid.hashing import json_sha256
from taugrid.orchestrator.trackers.results import LONGEST_TEXT, TrackedCell, Tracker, flat
from taugrid.workers.training.log import SCALARS

DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's own would have a session's end wait for a server that is down for as long as it may."""

RUN, CELL, DIGEST, FILES = "taugrid.run", "taugrid.cell", "taugrid.digest", "taugrid.files"
"""Tags: the id of the run directory, that of a cell, and digests of what is tracked."""

PARENT = "mlflow.parentRunId"
MOST_METRICS, MOST_TAGS = 1000, 100
"""Of one request."""


class MlflowTracker(Tracker):
    def start(self) -> str:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient, get_tracking_uri

        self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "taugrid"
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment_named(experiment)
        found = self._search(f"tags.`{RUN}` = '{self.results.id}'")
        self._run = found[0] if found else self._new_run(self.results.name, {RUN: self.results.id})
        self._id = self._run.info.run_id
        self._cells = {run.data.tags[CELL]: run for run in self._search(f"tags.`{PARENT}` = '{self._id}'")}
        self._client.update_run(self._id, status="RUNNING")
        return f"{re.sub('//[^/@]*@', '//', get_tracking_uri())}, experiment {experiment}, run {self.results.name}"

    def cell(self, cell: TrackedCell) -> None:
        from mlflow.entities import Param

        run, tags = self._cells.get(cell.id), {f"protocol.{key}": text for key, text in flat(cell.protocol).items()}
        if run is not None and run.data.tags.get(DIGEST) == cell.digest:
            return
        if run is None:
            run = self._new_run(cell.label, {PARENT: self._id, CELL: cell.id})
            params = [Param(key, text) for key, text in flat(cell.settings).items()]
            self._client.log_batch(run.info.run_id, params=params)
        self._log(run.info.run_id, {0: cell.metrics})
        self._tag(run.info.run_id, tags | {DIGEST: cell.digest})
        self._client.set_terminated(run.info.run_id)
        self._cells[cell.id] = self._client.get_run(run.info.run_id)

    def finish(self, is_reported: bool) -> None:
        logs = self.results.losses()
        for called, log in logs.items():
            prefix = f"train/{re.sub(r'[^-a-zA-Z0-9_. ]', '_', called)}" if len(logs) > 1 else "train"
            history = self._client.get_metric_history(self._id, f"{prefix}/{SCALARS[0]}")
            last = max((metric.step for metric in history), default=0)
            self._log(self._id, {step: _prefixed(prefix, values) for step, values in log.after(last)})
        if not is_reported:
            return
        for cell in self.results.cells():
            self.cell(cell)
        self._tag(self._id, {f"protocol.{key}": text for key, text in self.results.protocol.items()})
        self._upload(self.results.files() | self.results.figures())

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")

    def _experiment_named(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _search(self, where: str) -> list[Any]:
        found: list[Any] = []
        token: str | None = None
        while token != "":
            page = self._client.search_runs([self._experiment], where, page_token=token)
            found += page
            token = page.token or ""
        return found

    def _new_run(self, name: str, tags: Mapping[str, str]) -> Any:
        about = {"taugrid.directory": self.results.directory[:LONGEST_TEXT]}
        return self._client.create_run(self._experiment, run_name=name, tags={**about, **tags})

    def _log(self, run_id: str, by_step: Mapping[int, Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for step, values in by_step.items() for key, value in values.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        every = [RunTag(key, text) for key, text in tags.items()]
        for start in range(0, len(every), MOST_TAGS):
            self._client.log_batch(run_id, tags=every[start : start + MOST_TAGS])

    def _upload(self, files: Mapping[str, bytes]) -> None:
        """Store the files as artifacts, unless the last that were stored are the same."""
        digest = json_sha256({name: content.hex() for name, content in files.items()})
        if self._client.get_run(self._id).data.tags.get(FILES) == digest:
            return
        with TemporaryDirectory() as folder:
            self.results.write(files, folder)
            self._client.log_artifacts(self._id, folder)
        self._client.set_tag(self._id, FILES, digest)


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
