"""Encodes a shard's images as PNG, in threads of its own, and writes them in order while the next ones are computed."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from taugrid.images import encode_png
from taugrid.parquet.samples import SampleWriter

ENCODERS = 2
"""Threads that encode. Pillow lets go of Python's lock meanwhile, so they use two cores where there are two."""

MOST_WAITING = 2
"""Batches that wait for their encoding; whoever brings another waits, so memory does not grow with the shard."""


class Encoding:
    """Takes batches of images in order; what is written depends on the images alone, not on timing or threads."""

    def __init__(self, writer: SampleWriter) -> None:
        self._writer = writer
        self._encoders, self._scribe = ThreadPoolExecutor(ENCODERS), ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> "Encoding":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for threads in (self._encoders, self._scribe):
            threads.shutdown(cancel_futures=True)

    def append(self, images: NDArray[np.uint8]) -> None:
        """Add a (B, C, H, W) batch. What failed in a thread is raised here, or by `finish`."""
        parts = [self._encoders.submit(_encoded, part) for part in np.array_split(images, ENCODERS)]
        self._writing.append(self._scribe.submit(self._write, parts))
        while len(self._writing) > MOST_WAITING:
            self._writing.popleft().result()

    def finish(self) -> None:
        """Return once all is written."""
        for written in self._writing:
            written.result()
        self._writer.flush()

    def _write(self, parts: Sequence[Future[list[bytes]]]) -> None:
        for part in parts:
            self._writer.append_encoded(part.result())


def _encoded(images: NDArray[np.uint8]) -> list[bytes]:
    return [encode_png(image) for image in images]
