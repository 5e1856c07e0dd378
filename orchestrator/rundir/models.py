"""The networks of a run: where their weights are, and records of those that may be gone later."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taugrid.config import Data, Diffusion
from taugrid.errors import UserError
from taugrid.jobs import CustomNetwork, NetworkSpec
from taugrid.orchestrator.plan.cells import Cell, Model
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import read_json, write_json
from taugrid.workers.data.load import content_fingerprint
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import Checkpoint, read_checkpoint


class ModelRecords(Paths):
    """models/: trained networks, and the records of loaded and custom ones."""

    def weights_file(self, model: Model, weights: str) -> Path:
        """The file of a model's weights, or the record that stands for it."""
        return model.source.weights_file(self.model_folder(model), weights)

    def network(self, model: Model, weights: str) -> NetworkSpec:
        """What a worker loads to run a model; `UserError` if a custom network is gone."""
        return model.source.network(self.model_folder(model), weights)

    def record_model(self, model: Model) -> None:
        """Write models/<id>/model.json: what a loaded or custom model is, in case its files are gone later."""
        record = model.source.record()
        if record is not None:
            write_json(self.model_record(model.id), record, self.storage)

    def _records(self) -> Sequence[Path]:
        return self.storage.list(self.models, str(self.model_record("*").relative_to(self.models)))

    def describe_network(
        self, name: str, weights: str | None, image_shape: tuple[int, int, int], timesteps: int
    ) -> CustomNetwork:
        """The description of a custom network (`custom_process.describe`), or the recorded one if it can't be used."""
        try:
            return custom_process.describe(name, weights, image_shape, timesteps)
        except UserError as error:
            path = custom_process.weights_path(weights)
            wanted = {"callable": name, "weights": path and str(path), "image_shape": list(image_shape)}
            for file in self._records():
                recorded = read_json(file, self.storage)
                if recorded and wanted.items() <= recorded.items():
                    return CustomNetwork(**{**recorded, "image_shape": image_shape, "unusable": str(error)})
            raise

    def fingerprint(self, data: Data) -> str:
        """SHA-256 of a data set's images or, if they are gone, the one recorded when a model was trained on them."""
        try:
            return content_fingerprint(data)
        except UserError:
            recorded = (read_json(self.provenance, self.storage) or {}).get("dataset") or {}
            section = data.model_dump(mode="json", exclude={"download"})
            if recorded and section.items() <= recorded.items():
                return str(recorded["sha256"])
            raise

    def read_checkpoint(self, path: str) -> Checkpoint:
        """A loaded model's files or, if they are gone, their content when it was sampled.

        For a repository on the hub, the commit stays the one that was sampled first.
        """
        recorded = self._recorded_checkpoint(path)
        try:
            return read_checkpoint(path, recorded.commit if recorded else None)
        except UserError:
            if recorded is None:
                raise
            return recorded

    def _recorded_checkpoint(self, path: str) -> Checkpoint | None:
        for file in self._records():
            recorded = read_json(file, self.storage)
            if recorded and recorded.get("path") == path:
                if "clip" in recorded:  # written before there were other keys of `sample`
                    clip = recorded.pop("clip")
                    raw = Path(recorded["unet_folder"]).with_name("unet_raw")
                    recorded |= {"sample": {"clip": clip} if clip else {}, "raw_folder": str(raw)}
                return Checkpoint(**recorded | {"diffusion": Diffusion.model_validate(recorded["diffusion"])})
        return None

    def is_ready(self, model: Model) -> bool:
        """Whether the model can be sampled: it is trained, or needs no training."""
        return model.source.is_ready(self.model_folder(model))

    def weights_sha256(self, model: Model, weights: str) -> str:
        """SHA-256 of a model's weights, or its substitute; `UserError` if there is no such file."""
        return model.source.weights_sha256(self.model_folder(model), weights)

    def sample_metadata(self, cell: Cell) -> dict[str, Any]:
        """The JSON blob in every sample file of a cell. It does not depend on the number of samples."""
        return {
            "cell": cell.id,
            "model": cell.model.id,
            "settings": cell.settings.model_dump(mode="json", exclude={"num_samples"}),
            "diffusion": cell.model.diffusion.model_dump(mode="json"),
            "tau": list(cell.tau),
            "weights_sha256": self.weights_sha256(cell.model, cell.settings.weights),
        }
