"""Removes the images of old nights. Their scores and influences stay, and a sealed record takes the images' place."""

from collections.abc import Callable
from pathlib import Path

from taugrid import parquet
from taugrid.orchestrator.baseline.pixels import pixel_digests
from taugrid.orchestrator.nightly.places import CANARY, History, Night
from taugrid.orchestrator.opened import open_existing
from taugrid.words import counted


def remove_old_images(history: History, keep: int | None, say: Callable[[str], None]) -> None:
    """Remove the images of all complete nights but the newest `keep`; None keeps all."""
    if keep is None:
        return
    nights = history.complete_nights()
    for night in nights[: max(0, len(nights) - keep)]:
        removed = sum(_remove(night.named(folder)) for folder in _run_directories(night))
        if removed:
            say(f"night {night.id}: the images of {counted(removed, 'cell')} were removed; its scores stay")


def _run_directories(night: Night) -> list[Path]:
    canaries = [path.parent for path in night.storage.list(night.folder, f"{CANARY}-*/config.json")]
    folders = (night.run, *canaries, night.fresh, night.grown)
    return [path for path in folders if night.storage.exists(path / "config.json")]


def _remove(directory: str) -> int:
    """Remove the images of a run's complete cells; returns of how many."""
    opened = open_existing(directory)
    rundir, count = opened.rundir, 0
    with rundir.lock():
        for cell in opened.plan.cells:
            parts = [rundir.sample_part(cell, shard) for shard in cell.shards]
            there = [path for path in parts if rundir.storage.exists(path)]
            if not there:
                continue
            if rundir.removed_images(cell) is not None:  # a kill came between the record and the last file
                for path in there:
                    rundir.storage.delete(path)
                continue
            digests = pixel_digests(rundir, cell)
            if digests is None:
                continue  # damaged or incomplete: `run` has more to say about it
            first = parquet.inspect(parts[0], every_byte=False, storage=rundir.storage).metadata
            shards = [{"file": shard.name, "start": shard.start, "stop": shard.stop} for shard in cell.shards]
            rundir.remove_images(cell, {**first, "shards": shards}, digests)
            count += 1
    return count
