"""Weights & Biases: one run for the run directory, which later sessions resume.

Offline, W&B can't say what it has. So the run directory records what was tracked, in tracked/wandb.json.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import wandb

from taugrid.orchestrator.trackers.results import TrackedCell, Tracker
from taugrid.registry.metrics import METRICS
from taugrid.storage import read_json, write_json

BEST = {
    column.name: "max" if column.higher_is_better else "min" for metric in METRICS.values() for column in metric.columns
}
"""What the summary of a curve shows of it."""

LONGEST_TAG = 64


class WandbTracker(Tracker):
    def start(self) -> str:
        self._settings = wandb.setup().settings
        project = self._settings.project or "taugrid"
        self._project = "/".join(filter(None, [self._settings.entity, project]))
        self._record = self.results.rundir.root / "tracked" / "wandb.json"
        self._run: Any = None
        self._sent: dict[str, dict[str, Any]] = {"cells": {}, "losses": {}, "files": {}}
        before = read_json(self._record, self.results.rundir.storage)
        if isinstance(before, dict) and before.get("project") == self._project:
            self._sent |= before["sent"]
        if self._settings.mode == "disabled":
            return "WANDB_MODE is disabled, so nothing is tracked"
        if self._settings.mode in ("offline", "dryrun"):
            return f"project {self._project}, offline in {self._settings.wandb_dir}; `wandb sync` sends it"
        wandb.login()  # without a terminal it asks nothing
        return f"project {self._project}, run {self.results.id}"

    def cell(self, cell: TrackedCell) -> None:
        if self._sent["cells"].get(cell.id) == cell.digest:
            return
        run, x = self._opened(), self.results.x
        row = _key(cell.row)
        for name in cell.metrics:
            run.define_metric(f"{name}/{row}", step_metric=x, summary=BEST.get(name))
        point = {name: cell.settings[name] for name in ("steps", "network_evaluations")}
        run.log({**point, **{f"{name}/{row}": value for name, value in cell.metrics.items()}})
        self._sent["cells"][cell.id] = cell.digest

    def finish(self, is_reported: bool) -> None:
        logs = self.results.losses()
        for called, log in logs.items():
            prefix = f"train_{_key(called)}" if len(logs) > 1 else "train"
            if later := list(log.after(self._sent["losses"].get(called, 0))):
                self._opened().define_metric(f"{prefix}/*", step_metric="train_step")
            for step, values in later:
                numbers = {f"{prefix}/{name}": value for name, value in values.items()}
                self._opened().log({"train_step": step, **numbers})
                self._sent["losses"][called] = step
        if not is_reported:
            return
        for cell in self.results.cells():
            self.cell(cell)
        files, figures = self.results.files(), self.results.figures()
        with TemporaryDirectory() as folder:
            for name, path in self.results.write(self._new(figures), folder).items():
                self._opened().log({f"figures/{_key(Path(name).stem)}": wandb.Image(path)})
            if self._new(files):
                self._log_tables(self.results.write(files, folder))
        if self._run is not None:
            self._run.config.update({"protocol": self.results.protocol}, allow_val_change=True)
            self._run.tags = tuple(dict.fromkeys([*(self._run.tags or ()), *self._tags()]))

    def close(self, finished: bool) -> None:
        if self._run is not None:
            if self._settings.mode != "disabled":
                record = {"project": self._project, "sent": self._sent}
                write_json(self._record, record, self.results.rundir.storage)
            self._run.finish(exit_code=0 if finished else 1)

    def _opened(self) -> Any:
        """The run, which is opened for the first thing to track: a session with nothing new leaves no trace."""
        if self._run is None:
            self._run = wandb.init(
                project=self._settings.project or "taugrid",
                id=self.results.id,
                name=self.results.name,
                resume="allow",
                config={**self.results.config, "directory": self.results.directory},
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
            )
            self._run.define_metric("train_step", hidden=True)
        return self._run

    def _log_tables(self, files: Mapping[str, str]) -> None:
        columns, rows = self.results.table()
        self._opened().log({"quality": wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})
        artifact = wandb.Artifact(f"taugrid-{self.results.id}", type="tables", metadata=dict(self.results.protocol))
        for name, path in files.items():
            artifact.add_file(path, name)
        self._opened().log_artifact(artifact)

    def _new(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The files that were not tracked before as they are; they count as tracked from now on."""
        digests = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in files.items()}
        new = {name: content for name, content in files.items() if self._sent["files"].get(name) != digests[name]}
        self._sent["files"] |= digests
        return new

    def _tags(self) -> list[str]:
        shared = self.results.protocol
        fields = {"": "extractor.name", "vs ": "reference.dataset", "N=": "num_samples"}
        return ["taugrid", *(f"{text}{shared[key]}"[:LONGEST_TAG] for text, key in fields.items() if key in shared)]


def _key(text: str) -> str:
    """`text` as part of a metric's name: W&B sorts and filters only by names of letters, digits and underscores."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)
