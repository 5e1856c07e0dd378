"""Encodes a shard's images as PNG, beside what samples them, and lays them out in the columns of a file, in order."""

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.hashing import digests_of
from taugrid.images import encode_png
from taugrid.parquet.writer import BYTES_PER_GROUP, ROWS_PER_GROUP, PartWriter
from taugrid.threads import LARGE_BYTES

ENCODERS = 2  # threads that encode. Pillow lets go of Python's lock in zlib, so they use two cores where there are two
MAX_WAITING_BATCHES = 2  # of images to encode: `append` blocks at more, so memory does not grow with the shard
SERVE = "from taugrid.images import serve_encoding; serve_encoding()"


def pictures(batch: NDArray[np.uint8], start: int) -> dict[str, Any]:
    """The columns `image` and `index` for a (B, C, H, W) batch whose first image has index `start`."""
    return _picture_columns(_encoded(batch), start)


def _picture_columns(pngs: Sequence[bytes], start: int) -> dict[str, Any]:
    index = range(start, start + len(pngs))
    return {
        "image": [{"bytes": png, "path": f"{i:07d}.png"} for i, png in zip(index, pngs, strict=True)],
        "index": index,
    }


def _encoded(images: NDArray[np.uint8]) -> list[bytes]:
    return [encode_png(image) for image in images]


class EncodingProcess:
    """A process that encodes images as PNG. It starts with the first ones, imports no torch, and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, images: NDArray[np.uint8]) -> list[bytes]:
        """The PNG bytes of a (B, C, H, W) batch. BrokenPipeError if the process is gone: the next call starts one."""
        with self._lock:
            try:
                answer = self._ask(images)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                self.close()
                raise BrokenPipeError("the process that encodes images is gone, perhaps for lack of memory") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, images: NDArray[np.uint8]) -> list[bytes] | Exception:
        if self._process is None:
            path = os.pathsep.join(filter(None, sys.path))  # of a worker whose taugrid was sent to it, too
            command, pipe = [sys.executable, "-c", SERVE], subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": path})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(images, self._process.stdin, protocol=5)
        self._process.stdin.flush()
        answer: list[bytes] | Exception = pickle.load(self._process.stdout)
        return answer

    @property
    def pid(self) -> int | None:
        """The number of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process, if there is one."""
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.communicate()


encode_elsewhere = EncodingProcess()  # this process's only one


class SampleWriter:
    """Encodes the images of one shard in threads, and writes them in order. Row groups do not depend on timing. With
    `launching`, another thread of this process launches the work of a GPU, and small images are encoded in another
    process: Pillow needs Python's lock for most of their time."""

    def __init__(
        self,
        part: PartWriter,
        settings: Mapping[str, Any],
        start: int,
        launching: bool = False,
        labels: NDArray[np.int32] | None = None,
    ) -> None:
        """`settings`: the columns with one value. `labels`: of the images from `start` on, if the file has any."""
        self._part, self._settings, self._next, self._start = part, settings, start, start
        self._labels, self._launching = labels, launching
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._digests: deque[np.int64] = deque()
        self._latents: deque[NDArray[np.float32]] = deque()
        self.counts: list[int] = []  # the number of images in each row group that was written
        self._encoders, self._scribe = ThreadPoolExecutor(ENCODERS), ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for threads in (self._encoders, self._scribe):
            threads.shutdown(cancel_futures=True)

    def append(self, images: NDArray[np.uint8], latents: NDArray[np.float32] | None = None) -> None:
        """Add a (B, C, H, W) batch, with its latents (B, d) where they are kept. Raises what failed in a thread."""
        self._latents.extend(() if latents is None else latents)
        elsewhere = self._launching and images[0].nbytes < LARGE_BYTES
        encode = encode_elsewhere if elsewhere else _encoded
        parts = [
            (self._encoders.submit(encode, part), self._encoders.submit(digests_of, part))
            for part in np.array_split(images, ENCODERS)
        ]
        self._writing.append(self._scribe.submit(self._write, parts))
        while len(self._writing) > MAX_WAITING_BATCHES:
            self._writing.popleft().result()

    def append_encoded(
        self, pngs: Sequence[bytes], digests: NDArray[np.int64], latents: NDArray[np.float32] | None = None
    ) -> None:
        """Add images that are PNG already, such as those of an earlier file of the same shard, before all others.
        `digests` are `digests_of` them."""
        self._digests.extend(digests)
        self._latents.extend(() if latents is None else latents)
        for png in pngs:
            if self._pending and self._pending_bytes + len(png) > BYTES_PER_GROUP:
                self._flush()
            self._pending.append(png)
            self._pending_bytes += len(png)
            if len(self._pending) == ROWS_PER_GROUP:
                self._flush()

    def finish(self) -> None:
        for written in self._writing:
            written.result()
        self._flush()

    def _write(self, parts: Sequence[tuple[Future[list[bytes]], Future[NDArray[np.int64]]]]) -> None:
        for pngs, digests in parts:
            self.append_encoded(pngs.result(), digests.result())

    def _flush(self) -> None:
        if not (count := len(self._pending)):
            return
        columns = _picture_columns(self._pending, self._next)
        columns["pixels"] = [self._digests.popleft() for _ in range(count)]
        columns |= {name: [value] * count for name, value in self._settings.items()}
        if self._labels is not None:
            first = self._next - self._start
            columns["label"] = self._labels[first : first + count]
        if self._latents:
            columns["latent"] = np.stack([self._latents.popleft() for _ in range(count)])
        self._part.write(columns)
        self.counts.append(count)
        self._next += count
        self._pending, self._pending_bytes = [], 0
