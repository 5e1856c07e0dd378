"""Extracts the features of one sample file, or of a part of the reference.

Torch is imported when a job runs, not with this module, because the driver builds jobs without it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
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
    """Extract the features of one sample file (its path), or of images `start` to `stop` - 1 of a set."""

    entry_point = "taugrid.eval.extract:run"

    images: str | ImageSet
    images_sha256: str | None
    """SHA-256 of the reference's images as the driver read them, for the worker to check. None: images of this run."""
    extractor: ExtractorSpec
    batch_size: int
    metadata: dict[str, Any]
    start: int = 0
    stop: int = 0
    at_once: int = parquet.ROWS_PER_GROUP
    """How many of the reference's images are read at once: no batch goes beyond them."""


def run(job: ExtractJob, device: "Device") -> Result:
    """Extract the job's features and commit their file. While a GPU works on a batch, the next one is decoded and sent
    to it, also beyond the end of a row group. Raises `DamagedFile` if the images can't be read, ValueError if the
    extractor does not accept them."""
    import torch

    from taugrid.eval.features.load import load
    from taugrid.workers.accelerator.transfer import completed

    extractor = device.extractor(job.extractor, lambda: load(job.extractor, device.name))
    sampled = device.last_sampled.take(job.images, job.storage) if isinstance(job.images, str) else None
    if sampled is None:
        number, row_groups = _opened(job)
    else:
        number, row_groups = sum(len(index) for index, _ in sampled), (Batch(*group) for group in sampled)
    extracted = InBatches(extractor, job.batch_size, device, number)
    groups: deque[NDArray[np.int64]] = deque()  # the indices of row groups whose work was begun

    def begun() -> "Iterator[Extraction]":
        for index, images in one_ahead(row_groups):
            groups.append(index)
            yield from extracted(torch.tensor(images))

    began, count = time.perf_counter(), 0  # excludes loading the extractor, as times of networks do
    schema = parquet.feature_schema(job.metadata, job.extractor.dimensions, job.extractor.classes)
    with parquet.PartWriter(Path(job.path), schema, job.storage, job.check_run) as part:
        chunks: list[Extraction] = []
        for extraction in completed(begun()):
            chunks.append(extraction)
            if sum(len(chunk.features) for chunk in chunks) < len(groups[0]):
                continue
            index = groups.popleft()
            columns: dict[str, Any] = {"index": index, "features": torch.cat([c.features for c in chunks]).numpy()}
            if job.extractor.classes is not None:
                columns["logits"] = torch.cat([c.logits for c in chunks if c.logits is not None]).numpy()
            part.write(columns)
            count += len(index)
            chunks = []
        created = part.commit_over(job.replaces)
    return Result.of(part, created, time.perf_counter() - began, count)


class InBatches:
    """An extractor that works in batches, and in smaller ones after a batch did not fit into memory.

    What sampling kept on the device goes first: the same batch is then tried again. Not on a GPU, where cuDNN keeps the
    kernels that it took for batches of this size while memory was short: no larger ones are extracted there either, as
    long as the process lives.

    An image's features do not depend on its batch, except for rounding (docs/decisions.md has how much)."""

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
            left, most = len(images) - start, min(self._size, self._device.most_to_extract or self._size)
            batch = images[start : start + math.ceil(left / math.ceil(left / most))]  # batches of even sizes
            if (extraction := self._try(batch)) is not None:
                start += len(batch)
                self._submitted.add(extraction.copied, len(batch))
                yield extraction

    def _try(self, batch: "Tensor") -> "Extraction | None":
        """The extraction of a batch; None if it did not fit into memory, and the next one is half as large. The next
        one has the same size if there was something else to be freed and this is no GPU."""
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


def _opened(job: ExtractJob) -> tuple[int, Iterator[Batch]]:
    """The number of images of a job, and the images; DamagedFile if its file has those of a different cell."""
    if isinstance(job.images, str):
        path = Path(job.images)
        part = parquet.inspect(path, every_byte=False, storage=job.storage)
        cell = part.metadata.get("cell")
        if cell != job.metadata["cell"]:
            raise DamagedFile(f"{job.images}: these are images of cell {cell}, not of {job.metadata['cell']}")
        return part.stop - part.start, (Batch(*group) for group in parquet.read_images(path, storage=job.storage))
    return job.stop - job.start, _of_reference(job, job.images)


def _of_reference(job: ExtractJob, images: ImageSet) -> Iterator[Batch]:
    try:
        yield from batches(images, job.at_once, job.start, job.stop, job.images_sha256)
    except (SourceError, UserError) as error:  # the driver read these images without an error
        raise WorkerRefusal(f"node {this_node()}: {error}") from error
