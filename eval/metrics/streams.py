"""Features that arrive in pieces, cut into runs of one size, so that no number depends on how they arrived."""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.eval.metrics.statistics import ROWS_AT_ONCE, Moments, merge
from taugrid.workers.heartbeat import alive

Features = NDArray[np.float32]
"""(n, d), as they are extracted."""

FloatFeatures = NDArray[np.floating[Any]]
"""(n, d), of any precision."""

Stream = Callable[[], Iterator[Features]]
"""Starts at the first sample whenever it is called, and yields (n, d) float32 in the order of the samples' indices, cut
anywhere."""


def runs(stream: Iterable[Features], count: int) -> Iterator[Features]:
    """The rows of `stream` in runs of `ROWS_AT_ONCE`: a sum over runs does not depend on how the stream was cut.

    A run that lies in one chunk is a view of it.

    Raises:
        ValueError: if there are more or fewer than `count`.
    """
    pending: list[Features] = []
    waiting = seen = 0
    for chunk in stream:
        alive()
        seen += len(chunk)
        while waiting + len(chunk) >= ROWS_AT_ONCE:
            cut = ROWS_AT_ONCE - waiting
            yield _joined([*pending, chunk[:cut]])
            chunk, pending, waiting = chunk[cut:], [], 0
        if len(chunk):
            pending.append(chunk)
        waiting += len(chunk)
    if seen != count:
        raise ValueError(f"there must be {count} feature vectors, not {seen}")
    if waiting:
        yield _joined(pending)


def _joined(parts: list[Features]) -> Features:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def moments(stream: Iterable[Features], count: int) -> Moments:
    """The moments of `count` feature vectors, merged over runs of `ROWS_AT_ONCE`. ValueError as from `runs`."""
    return reduce(merge, map(Moments.of, runs(stream, count)))


def hold(stream: Stream, count: int) -> Features:
    """All of a stream as one array (count, d), without a second copy. ValueError as from `runs`, or if it is empty."""
    held: Features | None = None
    filled = 0
    for run in runs(stream(), count):
        if held is None:
            held = np.empty((count, run.shape[1]), np.float32)
        held[filled : filled + len(run)] = run
        filled += len(run)
    if held is None:
        raise ValueError("there are no features")
    return held
