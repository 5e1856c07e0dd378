"""Extracts the features of one sample file, or of a part of the reference.

Torch is imported when a job runs, not with this module, because the driver builds jobs without it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError, WorkerRefusal, is_out_of_memory
from taugrid.eval.sources import Batch, ImageSet, batches
from taugrid.jobs import Job, Result
from taugrid.registry.extractors import ExtractorSpec
from taugrid.threads import one_ahead
from taugrid.words import this_node
from taugrid.workers.data.decoding import SourceError

if TYPE_CHECKING:
    from torch import Tensor

    from taugrid.eval.features.load import Extraction
    from taugrid.workers.device import Device


@dataclass(frozen=True, slots=True)
class ExtractJob(Job):
    """Extract the features of one sample file (its path), or of a part of a set of images."""

    entry_point = "taugrid.eval.extract:run"

    images: str | ImageSet
    images_sha256: str | None
    """SHA-256 of the reference's images as the driver read them, for the worker to check. None: images of this run."""
    extractor: ExtractorSpec
    batch_size: int
    metadata: dict[str, Any]
    start: int = 0
    """The first of the reference's images."""
    stop: int = 0
    """The last of the reference's images, plus 1."""
    at_once: int = parquet.ROWS_PER_GROUP
    """How many of the reference's images are read at once: no batch goes beyond them."""


def run(job: ExtractJob, device: "Device") -> Result:
    """Extract the job's features and commit their file.

    While a GPU works on a batch, the next one is decoded and sent to it, also beyond the end of a row group.

    Raises:
        taugrid.errors.DamagedFile: if the images can't be read.
        ValueError: if the extractor does not accept such images.
    """
    import torch

    from taugrid.eval.features.load import load
    from taugrid.workers.accelerator.transfer import completed

    extractor = device.extractor(job.extractor, lambda: load(job.extractor, device.name))
    sampled = device.last_sampled.take(job.images, job.storage) if isinstance(job.images, str) else None
    row_groups = _batches(job) if sampled is None else (Batch(*group) for group in sampled)
    number = _number_of_images(job) if sampled is None else sum(len(index) for index, _ in sampled)
    extracted = InBatches(extractor, job.batch_size, device, number)
    began, count = time.perf_counter(), 0  # excludes loading the extractor, as times of networks do
    schema = parquet.feature_schema(job.metadata, job.extractor.dimensions, job.extractor.classes)
    with parquet.PartWriter(Path(job.path), schema, job.storage, job.check_run) as part:
        groups: deque[NDArray[np.int64]] = deque()
        for chunks in _whole(completed(_begun(row_groups, extracted, groups)), groups):
            index = groups.popleft()
            columns: dict[str, Any] = {"index": index, "features": torch.cat([c.features for c in chunks]).numpy()}
            if job.extractor.classes is not None:
                columns["logits"] = torch.cat([c.logits for c in chunks if c.logits is not None]).numpy()
            part.write(columns)
            count += len(index)
        created = part.commit_over(job.replaces)
    seconds = time.perf_counter() - began
    return Result.of(part, created, seconds, count)


def _begun(
    row_groups: Iterator[Batch], extracted: "InBatches", groups: "deque[NDArray[np.int64]]"
) -> "Iterator[Extraction]":
    """The extractions, each once its work was begun. The indices of their row groups are added to `groups`."""
    import torch

    for index, images in one_ahead(row_groups):
        groups.append(index)
        yield from extracted(torch.tensor(images))


def _whole(extractions: "Iterable[Extraction]", groups: "deque[NDArray[np.int64]]") -> "Iterator[list[Extraction]]":
    """The extractions of each row group in turn; the next to be complete is always `groups[0]`."""
    held: list[Extraction] = []
    rows = 0
    for extraction in extractions:
        held.append(extraction)
        rows += len(extraction.features)
        if rows == len(groups[0]):
            yield held
            held, rows = [], 0


class InBatches:
    """An extractor that works in batches, and in smaller ones after a batch did not fit into memory.

    What sampling kept on the device goes first: the same batch is then tried again. Not on a GPU, where cuDNN keeps the
    kernels that it took for batches of this size while memory was short: no larger ones are extracted there either, as
    long as the process lives.

    An image's features do not depend on its batch, except for rounding (docs/decisions.md has how much).
    """

    def __init__(
        self, extractor: "Callable[[Tensor], Extraction]", size: int, device: "Device", number_of_images: int = 0
    ) -> None:
        from taugrid.workers.accelerator.transfer import Submitted

        self._extractor = extractor
        self._size = size
        self._device = device
        self._submitted = Submitted(lambda finished: device.heartbeat(finished, number_of_images))  # 0: not known

    def __call__(self, images: "Tensor") -> "Iterator[Extraction]":
        """The extractions of `images` (N, C, H, W), batch by batch, each once its work was begun."""
        start = 0
        while start < len(images):
            self._submitted.make_room()
            most = min(self._size, self._device.most_to_extract or self._size)
            batch = images[start : start + _even(len(images) - start, most)]
            if (extraction := self._try(batch)) is not None:
                start += len(batch)
                self._submitted.add(extraction.copied, len(batch))
                yield extraction

    def _try(self, batch: "Tensor") -> "Extraction | None":
        """The extraction of a batch; None if it did not fit into memory, and the next one is half as large.

        The next one has the same size if there was something else to be freed and this is no GPU.
        """
        on_gpu = self._device.kind == "cuda"
        try:
            extraction = self._extractor(batch)
            self._device.shortages.require_none()
        except Exception as error:
            if not is_out_of_memory(error) or (len(batch) == 1 and (on_gpu or not self._device.held_networks)):
                raise
        else:
            return extraction
        freed = self._device.clear_networks()  # after the error, which holds what was computed so far
        if on_gpu:
            self._device.most_to_extract = len(batch) // 2
            self._device.shortages.forget()
        elif not freed:
            self._size = len(batch) // 2
        return None


def _even(left: int, most: int) -> int:
    """The size of the next batch where `left` images are split evenly into batches of at most `most`."""
    return math.ceil(left / math.ceil(left / most))


def _number_of_images(job: ExtractJob) -> int:
    """The number of images of a job.

    Raises:
        DamagedFile: if its file has those of a different cell.
    """
    if not isinstance(job.images, str):
        return job.stop - job.start
    part = parquet.inspect(Path(job.images), every_byte=False, storage=job.storage)
    cell = part.metadata.get("cell")
    if cell != job.metadata["cell"]:
        raise DamagedFile(f"{job.images}: these are images of cell {cell}, not of {job.metadata['cell']}")
    return part.stop - part.start


def _batches(job: ExtractJob) -> Iterator[Batch]:
    if isinstance(job.images, str):
        for index, images in parquet.read_images(Path(job.images), storage=job.storage):
            yield Batch(index, images)
        return
    try:
        yield from batches(job.images, job.at_once, job.start, job.stop, job.images_sha256)
    except (SourceError, UserError) as error:  # the driver read these images without an error
        raise WorkerRefusal(f"node {this_node()}: {error}") from error
