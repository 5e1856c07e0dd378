"""Weights & Biases: one run for the run directory, which later sessions resume.

Offline, W&B can't say what it has. So the run directory records what was tracked, in tracked/wandb.json.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import wandb

from taugrid.orchestrator.trackers.results import Losses, TrackedCell, Tracker, write
from taugrid.storage import read_json, write_json


class WandbTracker(Tracker):
    def start(self) -> str:
        self._settings = wandb.setup().settings
        self._project = "/".join(filter(None, [self._settings.entity, self._settings.project or "taugrid"]))
        self._record = self.results.rundir.root / "tracked" / "wandb.json"
        self._run: Any = None
        self._sent: dict[str, dict[str, Any]] = {"cells": {}, "losses": {}, "files": {}}
        before = read_json(self._record, self.results.rundir.storage)
        if isinstance(before, dict) and before.get("project") == self._project:
            self._sent |= before["sent"]
        if self._settings.mode in ("offline", "dryrun"):
            return f"project {self._project}, offline in {self._settings.wandb_dir}; `wandb sync` sends it"
        if self._settings.mode == "disabled":
            return "WANDB_MODE is disabled, so nothing is tracked"
        wandb.login()  # without a terminal it asks nothing
        return f"project {self._project}, run {self.results.id}"

    def cell(self, cell: TrackedCell) -> None:
        if self._sent["cells"].get(cell.id) == cell.digest:
            return
        run, row = self._opened(), _key(cell.row)
        for name in cell.metrics:
            run.define_metric(f"{name}/{row}", step_metric="steps")
        point = {name: cell.settings[name] for name in ("steps", "network_evaluations")}
        run.log({**point, **{f"{name}/{row}": value for name, value in cell.metrics.items()}})
        self._sent["cells"][cell.id] = cell.digest

    def losses(self, model: str, losses: Losses) -> None:
        for step, values in losses.items():
            if step > self._sent["losses"].get(model, 0):
                self._opened().define_metric(f"train_{model}/*", step_metric="train_step")
                self._opened().log({"train_step": step, **{f"train_{model}/{key}": x for key, x in values.items()}})
                self._sent["losses"][model] = step

    def shared(self, files: Mapping[str, bytes]) -> None:
        digests = {name: sha256(content).hexdigest()[:16] for name, content in files.items()}
        new = {name: content for name, content in files.items() if self._sent["files"].get(name) != digests[name]}
        self._sent["files"] |= digests
        with TemporaryDirectory() as folder:
            pictures = {name: path for name, path in write(files, folder).items() if name.endswith(".png")}
            for name in new.keys() & pictures:
                self._opened().log({f"figures/{_key(Path(name).stem)}": wandb.Image(pictures[name])})
            if new.keys() - pictures:
                rows = pd.DataFrame(self.results.document["rows"])
                self._opened().log({"quality": wandb.Table(dataframe=rows, allow_mixed_types=True)})
                artifact = wandb.Artifact(f"taugrid-{self.results.id}", type="tables")
                artifact.add_dir(folder)
                self._opened().log_artifact(artifact)
        if self._run is not None:
            self._run.config.update({"protocol": self.results.protocol}, allow_val_change=True)

    def close(self, finished: bool) -> None:
        """End the run, and record what was sent only then: this is what waits for the server."""
        if self._run is not None:
            self._run.finish(exit_code=0 if finished else 1)
            if self._settings.mode != "disabled":
                record = {"project": self._project, "sent": self._sent}
                write_json(self._record, record, self.results.rundir.storage)

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


def _key(text: str) -> str:
    """`text` as part of a metric's name: W&B sorts and filters only by names of letters, digits and underscores."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)
