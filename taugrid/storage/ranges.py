"""An object as an open file that fetches only what is read of it."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple


class FetchedEnd(NamedTuple):
    """Some bytes of an object, and what the store said of it."""

    data: bytes
    start: int
    size: int
    """Of the whole object."""
    e_tag: str | None


END_BYTES = 2**16
"""How much of the end is fetched first: the footer of a Parquet file, and often all of a small one."""


class RangeFile(io.RawIOBase):
    """An object, read by ranges; all of them are of one version of it.

    The first request fetches the end, where Parquet keeps its footer, and tells the size. A file of up to `END_BYTES`
    needs no other.
    """

    def __init__(self, end: FetchedEnd, fetch: Callable[[int, int], bytes]) -> None:
        """A file of which the end is known; `fetch(start, stop)` gets other bytes of the same version."""
        self._end, self._fetch, self._at = end, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end.size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        start = min(self._at, self._end.size)
        stop = self._end.size if size is None or size < 0 else min(start + size, self._end.size)
        self._at = stop
        if stop <= start:
            return b""
        if start >= self._end.start:
            return self._end.data[start - self._end.start : stop - self._end.start]
        fetched = self._fetch(start, min(stop, self._end.start))
        return fetched if stop <= self._end.start else fetched + self._end.data[: stop - self._end.start]
