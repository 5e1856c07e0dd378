"""MLflow: a run for the run directory, found again by a tag, and below it a run for each cell."""

import os
import re
import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from taugrid.hashing import json_sha256
from taugrid.orchestrator.trackers.results import LONGEST_TEXT, Losses, TrackedCell, Tracker, flat, write
from taugrid.workers.training.log import SCALARS

DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's own defaults retry a dead server for longer than a session may wait."""

RUN, CELL, DIGEST, FILES = "taugrid.run", "taugrid.cell", "taugrid.digest", "taugrid.files"
"""Tags: the id of the run directory, that of a cell, and digests of what is tracked."""

PARENT = "mlflow.parentRunId"
MOST_RUNS, MOST_STEPS = 50_000, 300
"""Limits of MLflow's search_runs, and of its log_batch (1000 metrics) in steps with three numbers each."""


class MlflowTracker(Tracker):
    def start(self) -> str:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient, get_tracking_uri, set_experiment

        self._client = MlflowClient()
        number, name = os.environ.get("MLFLOW_EXPERIMENT_ID"), os.environ.get("MLFLOW_EXPERIMENT_NAME") or "taugrid"
        experiment = set_experiment(experiment_id=number) if number else set_experiment(name)
        self._experiment = experiment.experiment_id
        found = self._search(f"tags.`{RUN}` = '{self.results.id}'")
        self._run = found[0] if found else self._new_run(self.results.name, {RUN: self.results.id})
        self._id = self._run.info.run_id
        self._cells = {run.data.tags[CELL]: run for run in self._search(f"tags.`{PARENT}` = '{self._id}'")}
        self._last_steps: dict[str, int] = {}
        self._client.update_run(self._id, status="RUNNING")
        address = re.sub("//[^/@]*@", "//", get_tracking_uri())
        return f"{address}, experiment {experiment.name}, run {self.results.name}"

    def cell(self, cell: TrackedCell) -> None:
        run = self._cells.get(cell.id)
        if run is not None and run.data.tags.get(DIGEST) == cell.digest:
            return
        run = run or self._new_run(cell.label, {PARENT: self._id, CELL: cell.id})
        settings = {key: text for key, text in flat(cell.settings).items() if key not in run.data.params}
        self._log(
            run.info.run_id, {0: cell.metrics}, settings, flat(cell.protocol, "protocol.") | {DIGEST: cell.digest}
        )
        self._client.set_terminated(run.info.run_id)
        self._cells[cell.id] = self._client.get_run(run.info.run_id)

    def losses(self, model: str, losses: Losses) -> None:
        if model not in self._last_steps:
            history = self._client.get_metric_history(self._id, f"train/{model}/{SCALARS[0]}")
            self._last_steps[model] = max((metric.step for metric in history), default=0)
        later = [step for step in losses if step > self._last_steps[model]]
        for start in range(0, len(later), MOST_STEPS):
            steps = later[start : start + MOST_STEPS]
            self._log(self._id, {n: {f"train/{model}/{key}": x for key, x in losses[n].items()} for n in steps})
            self._last_steps[model] = steps[-1]

    def shared(self, files: Mapping[str, bytes]) -> None:
        """Store the files as artifacts, unless the last that were stored are the same."""
        digest = json_sha256({name: content.hex() for name, content in files.items()})
        if self._run.data.tags.get(FILES) == digest:
            return
        with TemporaryDirectory() as folder:
            write(files, folder)
            self._client.log_artifacts(self._id, folder)
        self._log(self._id, {}, {}, flat(self.results.protocol, "protocol.") | {FILES: digest})

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")

    def _search(self, where: str) -> list[Any]:
        return list(self._client.search_runs([self._experiment], where, max_results=MOST_RUNS))

    def _new_run(self, name: str, tags: Mapping[str, str]) -> Any:
        about = {"taugrid.directory": self.results.directory[:LONGEST_TEXT]}
        return self._client.create_run(self._experiment, run_name=name, tags={**about, **tags})

    def _log(self, run_id: str, metrics: Losses, params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}) -> None:
        """Log metrics by step, params and tags in one request, so that a kill can't come between them."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for step, values in metrics.items() for name, value in values.items()]
        named, tagged = [Param(*each) for each in params.items()], [RunTag(*each) for each in tags.items()]
        self._client.log_batch(run_id, points, named, tagged)
