"""Which files of a loaded or custom model differ from what was recorded when it was sampled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taugrid.hashing import SourceFile
from taugrid.orchestrator.plan.sources import Custom, Loaded, ModelSource
from taugrid.workers.custom.source import differences


def changed_files(source: ModelSource, record: Mapping[str, Any]) -> list[str]:
    """What differs between a model and the record of one with the same name, a phrase for each file."""
    if isinstance(source, Loaded) and record.get("path") == source.checkpoint.path:
        return _of_checkpoint(source, record)
    if isinstance(source, Custom) and record.get("callable") == source.spec.callable:
        return _of_code(source, record)
    return []


def _of_checkpoint(source: Loaded, record: Mapping[str, Any]) -> list[str]:
    folder, loaded = Path(source.checkpoint.unet_folder), source.checkpoint
    files = {
        source.weights_file(folder, "ema"): record.get("weights_sha256") == loaded.weights_sha256,
        folder / "config.json": record.get("unet_config") == loaded.unet_config,
    }
    return [f"{file} differs" for file, is_same in files.items() if not is_same]


def _of_code(source: Custom, record: Mapping[str, Any]) -> list[str]:
    spec, found = source.spec, []
    if spec.source_sha256 != record.get("source_sha256"):
        before = [SourceFile(*file) for file in record.get("files", ())]
        found += differences(before, spec.files) or [f"the source of {spec.callable} differs"]
    if spec.weights is not None and spec.weights_sha256 != record.get("weights_sha256"):
        found.append(f"{spec.weights} differs")
    elif not found and spec.tensors_sha256 != record.get("tensors_sha256"):
        found.append(f"the weights that {spec.callable} returns differ")
    return found
