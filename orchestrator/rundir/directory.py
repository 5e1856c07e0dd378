"""The run directory: its names, atomic writes, what is complete in it, and what is damaged.

The truth is on disk: a shard is done when its file is in place and whole. No state lives anywhere else.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from taugrid import parquet
from taugrid.config import Data, Diffusion
from taugrid.errors import DamagedFile, UserError
from taugrid.jobs import CustomNetwork, NetworkSpec
from taugrid.orchestrator.plan.cells import Cell, Model, Shard
from taugrid.orchestrator.plan.grid import content_fingerprint
from taugrid.orchestrator.plan.sources import RECORD
from taugrid.storage import read_json, read_sealed, write_json
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import Checkpoint, read_checkpoint

READERS = 8
"""Files that are read at a time."""

SAMPLE_IDENTITY = ("cell", "model", "weights_sha256")
"""What a sample file must agree on. The id of a cell stands for its settings, so the blob may gain keys later."""


class Damage(NamedTuple):
    """A file that is not what it should be."""

    path: Path
    reason: str


class RunDir:
    """Names and states of the files under one run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.config = self.root / "config.json"
        self.provenance = self.root / "provenance.json"
        self.models = self.root / "models"
        self.samples = self.root / "samples"
        self.features = self.root / "features"
        self.scores = self.root / "scores"
        self.reconstructions = self.root / "reconstructions"
        self.interpolations = self.root / "interpolations"
        self.tables = self.root / "tables"
        self.figures = self.root / "figures"
        self.events = self.root / "events"
        self.logs = self.root / "logs"
        self.damaged = self.root / "damaged"

    def relative(self, path: Path) -> str:
        """`path` as seen from the run directory, for messages."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def sample_part(self, cell: Cell, shard: Shard) -> Path:
        """Where a shard's images lie."""
        return self.samples / cell.name / shard.name

    def feature_part(self, extractor: str, cell: Cell, shard: Shard) -> Path:
        """Where a shard's features lie; `extractor` is its folder's name."""
        return self.features / extractor / cell.name / shard.name

    def reference_part(self, extractor: str, reference: str) -> Path:
        """Where the reference's features lie."""
        return self.features / extractor / reference / "part-000000.parquet"

    def score(self, cell: Cell, evaluation: str) -> Path:
        """Where a cell's score by one evaluation lies."""
        return self.scores / f"{cell.id}-{evaluation}.json"

    def influence(self, cell: Cell, evaluation: str) -> Path:
        """Where it lies how far each sample moves the FID of that score."""
        return self.score(cell, evaluation).with_suffix(".parquet")

    def remove_features(self, extractor: str, cell: Cell) -> None:
        """Remove a cell's features."""
        shutil.rmtree(self.features / extractor / cell.name, ignore_errors=True)

    def model_folder(self, model: Model) -> Path:
        """Where a trained model lies, or the record of another."""
        return self.models / model.id

    def weights_file(self, model: Model, weights: str) -> Path:
        """The file of a model's weights, or the record that stands for it."""
        return model.source.weights_file(self.model_folder(model), weights)

    def network(self, model: Model, weights: str) -> NetworkSpec:
        """What a worker loads to run a model; `UserError` if a custom network can't be had any more."""
        return model.source.network(self.model_folder(model), weights)

    def record_model(self, model: Model) -> None:
        """Write models/<id>/model.json: what a loaded or custom model is, in case its files are gone later."""
        record = model.source.record()
        if record is not None:
            write_json(self.model_folder(model) / RECORD, record)

    def describe_network(
        self, name: str, weights: str | None, image_shape: tuple[int, int, int], timesteps: int
    ) -> CustomNetwork:
        """What a custom network is (`custom_process.describe`) or, where it can't be used now, what it was."""
        try:
            return custom_process.describe(name, weights, image_shape, timesteps)
        except UserError as error:
            path = custom_process.weights_path(weights)
            wanted = {"callable": name, "weights": path and str(path), "image_shape": list(image_shape)}
            for file in self.models.glob(f"*/{RECORD}"):
                recorded = read_json(file)
                if recorded and wanted.items() <= recorded.items():
                    return CustomNetwork(**{**recorded, "image_shape": image_shape, "unusable": str(error)})
            raise

    def fingerprint(self, data: Data) -> str:
        """SHA-256 of a data set's images or, where they are gone, what it was when a model was trained on them."""
        try:
            return content_fingerprint(data)
        except UserError:
            recorded = (read_json(self.provenance) or {}).get("dataset") or {}
            section = data.model_dump(mode="json", exclude={"download"})
            if recorded and section.items() <= recorded.items():
                return str(recorded["sha256"])
            raise

    def read_checkpoint(self, path: str) -> Checkpoint:
        """What a loaded model's files say or, where they are gone, what they said when it was sampled.

        Of a repository on the hub the commit stays the one that was sampled first.
        """
        recorded = self._recorded_checkpoint(path)
        try:
            return read_checkpoint(path, recorded.commit if recorded else None)
        except UserError:
            if recorded is None:
                raise
            return recorded

    def _recorded_checkpoint(self, path: str) -> Checkpoint | None:
        for file in self.models.glob(f"*/{RECORD}"):
            recorded = read_json(file)
            if recorded and recorded.get("path") == path:
                if "clip" in recorded:  # written before there were other keys of `sample`
                    clip = recorded.pop("clip")
                    raw = Path(recorded["unet_folder"]).with_name("unet_raw")
                    recorded |= {"sample": {"clip": clip} if clip else {}, "raw_folder": str(raw)}
                return Checkpoint(**recorded | {"diffusion": Diffusion.model_validate(recorded["diffusion"])})
        return None

    def is_ready(self, model: Model) -> bool:
        """The model can be sampled: it is trained, or need not be."""
        return model.source.is_ready(self.model_folder(model))

    def weights_sha256(self, model: Model, weights: str) -> str:
        """SHA-256 of a model's weights, or of what stands for them; `UserError` if there is no such file."""
        return model.source.weights_sha256(self.model_folder(model), weights)

    def sample_metadata(self, cell: Cell) -> dict[str, Any]:
        """The JSON blob in every sample file of a cell; the same however many samples there are."""
        return {
            "cell": cell.id,
            "model": cell.model.id,
            "settings": cell.settings.model_dump(mode="json", exclude={"num_samples"}),
            "diffusion": cell.model.diffusion.model_dump(mode="json"),
            "tau": list(cell.tau),
            "weights_sha256": self.weights_sha256(cell.model, cell.settings.weights),
        }

    def sampled(
        self, cell: Cell, metadata: dict[str, Any] | None, every_byte: bool, on_damage: Callable[[Damage], None]
    ) -> set[int]:
        """Numbers of the cell's shards whose files are whole; damaged files are reported. A short file is not done.

        `metadata` is what the files' blobs must say (null: anything). A file whose weights differ is a `UserError`:
        images of two networks would end up in one cell.
        """
        done = set()
        paths = [self.sample_part(cell, shard) for shard in cell.shards]
        for shard, path, part in zip(cell.shards, paths, _inspect_all(cell, paths, every_byte, on_damage), strict=True):
            if part is None:
                continue
            recorded = part.metadata.get("weights_sha256")
            if metadata is not None and any(part.metadata.get(key) != metadata[key] for key in SAMPLE_IDENTITY):
                if recorded != metadata["weights_sha256"]:
                    now = metadata["weights_sha256"]
                    raise UserError(
                        f"{self.relative(path)} was made with weights {str(recorded)[:8]}, but {cell.model.id} has "
                        f"{now[:8]} now: replaced, or damaged. Put the old weights back (or remove that model "
                        f"to train it again), remove {self.relative(path.parent)}, or give another --out"
                    )
                on_damage(Damage(path, "its metadata is not this cell's"))
            elif part.stop >= shard.stop:
                done.add(shard.number)
        return done

    def extracted(self, extractor: str, cell: Cell, every_byte: bool, on_damage: Callable[[Damage], None]) -> set[int]:
        """Numbers of the cell's shards whose features are complete."""
        paths = [self.feature_part(extractor, cell, shard) for shard in cell.shards]
        parts = zip(cell.shards, _inspect_all(cell, paths, every_byte, on_damage), strict=True)
        return {shard.number for shard, part in parts if part is not None and part.stop >= shard.stop}

    def set_aside(self, damage: Damage) -> Path:
        """Move a damaged file to `damaged/`, under a name that tells where it was and doesn't clash."""
        self.damaged.mkdir(parents=True, exist_ok=True)
        name = self.relative(damage.path).replace(os.sep, "__")
        target = next(p for i in range(10**6) if not (p := self.damaged / f"{i:04d}-{name}").exists())
        damage.path.replace(target)
        return target

    def is_whole(self, path: Path, stop: int, on_damage: Callable[[Damage], None], start: int = 0) -> bool:
        """A file with rows `start` to `stop` - 1 is there; a damaged one is reported."""
        part = _inspect(path, start, True, on_damage)
        return part is not None and part.stop >= stop

    def forget_derived(self, cell: Cell, shard: Shard) -> None:
        """Remove what was computed from a shard that is gone: its features, and the scores that it was part of."""
        scores = []
        for path in self.scores.glob(f"{cell.id}-*.json"):
            score = read_sealed(path)
            if score is None or score["protocol"]["num_samples"] > shard.start:
                scores += [path, path.with_suffix(".parquet")]
        # Scores first: a kill in between leaves what will be found missing.
        for path in [*scores, *self.features.glob(f"*/{cell.name}/{shard.name}")]:
            path.unlink(missing_ok=True)

    def committed_cells(self) -> dict[str, str]:
        """Cell id -> folder name, of every cell with at least one sample file in place."""
        folders = sorted({path.parent for path in self.samples.glob("*/part-*.parquet")})
        return {folder.name.rsplit("-", 1)[-1]: folder.name for folder in folders}

    def remove_temporaries(self) -> None:
        """Remove what killed writers left behind; for when no writer is at work."""
        for folder in (".", "samples/*", "features/*/*", "scores", "reconstructions/*", "interpolations/*"):
            for path in self.root.glob(f"{folder}/.*.tmp"):
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second driver out of this directory for as long as this one lives (a killed one lets go by itself)."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            opened = (self.root / ".lock").open("w")
        except OSError as error:
            raise UserError(f"can't write to {self.root}: {error.strerror}; give another --out") from None
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another taugrid command is at work in {self.root}; wait for it, stop it, or give another --out"
                ) from None
            except OSError:
                pass  # some network file systems have no locks; commits are atomic and idempotent all the same
            yield


def _inspect_all(
    cell: Cell, paths: list[Path], every_byte: bool, on_damage: Callable[[Damage], None]
) -> list[parquet.Part | None]:
    """`_inspect` of a file for each shard, several at a time: reading and hashing leave Python's lock alone."""
    damages: list[Damage] = []
    starts = [shard.start for shard in cell.shards]
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda path, start: _inspect(path, start, every_byte, damages.append), paths, starts))
    for damage in sorted(damages):
        on_damage(damage)
    return parts


def _inspect(path: Path, start: int, every_byte: bool, on_damage: Callable[[Damage], None]) -> parquet.Part | None:
    try:
        part = parquet.inspect(path, every_byte)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFile as error:
        on_damage(Damage(path, str(error)))
        return None
    if part.start != start:
        on_damage(Damage(path, f"it starts at image {part.start}, not {start}"))
        return None
    return part


class Events:
    """events/NNNN.jsonl: what happened in one driver session, a line each, with the time in UTC."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in folder.glob("[0-9]*.jsonl")), default=0) + 1
        self.path = folder / f"{number:04d}.jsonl"
        self._file = self.path.open("x", encoding="utf-8", buffering=1)

    def add(self, event: str, **values: Any) -> None:
        """Append one event."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps({"time": time, "event": event, **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """All events of all sessions, in order; a line cut short by a kill is passed over."""
    for path in sorted(folder.glob("[0-9]*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict):
                yield event
