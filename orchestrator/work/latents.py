"""Kept latents: which files of a run hold those of a cell, whoever made them and whatever decoded them."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.words import some_of


class Keeping(NamedTuple):
    """A sample file with the latents of its images."""

    path: Path
    stop: int
    """Its last image's index + 1."""
    task: str | None = None
    """The task that is to write it; None: it is there."""


def kept_latents(rundir: RunDir) -> dict[tuple[str, str], Keeping]:
    """What its latents are (`sample_metadata`) and a file's name -> the file with most of them in samples/."""
    kept: dict[tuple[str, str], Keeping] = {}
    for path, stat in rundir.storage.stats(rundir.samples, "*/part-*.parquet").items():
        with suppress(DamagedFile, FileNotFoundError, NotADirectoryError):
            part = rundir.ledger.find(path, stat.version) or parquet.inspect(path, False, rundir.storage)
            key = (part.metadata.get("latents", ""), path.name)
            if key[0] and (key not in kept or kept[key].stop < part.stop):
                kept[key] = Keeping(path, part.stop)
    return kept


def without_latents(plan: Plan, rundir: RunDir) -> Iterator[str]:
    """A remark for each cell that shall keep its latents, but has finished shards from before without them."""
    cells = [cell for cell in plan.cells if cell.settings.keep_latents]
    kept, listing = kept_latents(rundir) if cells else {}, Listing(rundir)
    for cell in cells:
        done = rundir.sampled(cell, None, every_byte=False, on_damage=lambda damage: None, listing=listing)
        with suppress(UserError):  # its weights are gone
            latents = rundir.sample_metadata(cell)["latents"] if done else ""
            lacking = [shard for shard in cell.shards_numbered(done) if (latents, shard.name) not in kept]
            if lacking:
                yield (
                    f"sample.keep_latents: of {cell.label}, {some_of(len(lacking), cell.num_shards, 'shard')} "
                    "finished without latents, so another VAE has them sampled anew; to keep them, remove "
                    f"{rundir.relative(rundir.samples / cell.name)} and sample again"
                )
