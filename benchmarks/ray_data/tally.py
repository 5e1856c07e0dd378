"""What a program did, from the files that it left and from what the stand-in network recorded of its calls."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.ray_data.user.stand_in import RECORD

Row = tuple[int, int]
"""The number of steps and the index of an image."""


class Work(NamedTuple):
    """A grid over the number of steps. A shard is as many whole batches as `evaluations` network evaluations allow."""

    steps: tuple[int, ...]
    images: int
    """Of each number of steps."""
    batch: int
    evaluations: int
    seconds: float
    """Of a call of the network."""
    workers: int
    slow: float = 1.0
    """How many times longer the calls of one of the workers take."""
    cpus: int = 1
    """Of each worker."""

    def with_workers(self, workers: int) -> "Work":
        """As many shards a second."""
        return self._replace(workers=workers, seconds=self.seconds * workers / self.workers)

    @property
    def shards(self) -> int:
        sizes = [self.batch * max(1, self.evaluations // (steps * self.batch)) for steps in self.steps]
        return sum(math.ceil(self.images / size) for size in sizes)

    @property
    def network_evaluations(self) -> int:
        return self.images * sum(self.steps)

    @property
    def ideal(self) -> float:
        """Seconds, if no worker ever waited and each call took what it says."""
        calls = math.ceil(self.images / self.batch) * sum(self.steps)
        return calls * self.seconds / (self.workers - 1 + 1 / self.slow)

    @property
    def rows(self) -> Iterable[Row]:
        return ((steps, index) for steps in self.steps for index in range(self.images))


class Counts(NamedTuple):
    """How what there is differs from what there should be."""

    lost: int
    """Images that are in no file."""
    doubled: int
    """Images too many: in two files, or asked for by nobody."""
    twice: int
    """Network evaluations beyond those that the images need."""


class Timing(NamedTuple):
    """Seconds, from the start of the first call."""

    wall: float
    """Until the last file was there."""
    tail: float
    """Since the first worker ran out of work, until then."""


def rows_of(files: Iterable[Path]) -> Counter[Row]:
    found: Counter[Row] = Counter()
    for path in files:
        table = pq.ParquetFile(path).read(columns=["steps", "index"])
        found.update(zip(table["steps"].to_pylist(), table["index"].to_pylist(), strict=True))
    return found


def read_records(folder: Path) -> list[NDArray[Any]]:
    """The calls of each process that made any."""
    found = [np.fromfile(path, RECORD) for path in sorted(folder.iterdir())]
    return [calls for calls in found if len(calls)]


def count(work: Work, found: Mapping[Row, int], records: list[NDArray[Any]]) -> Counts:
    wanted = set(work.rows)
    doubled = sum(number - (row in wanted) for row, number in found.items())
    evaluations = sum(int(calls["images"].sum()) for calls in records)
    return Counts(len(wanted - set(found)), doubled, evaluations - work.network_evaluations)


def timing(records: list[NDArray[Any]], files: Iterable[Path]) -> Timing:
    began = min(float(calls["end"][0] - calls["seconds"][0]) for calls in records)
    end = max(path.stat().st_mtime for path in files)
    return Timing(end - began, end - min(float(calls["end"][-1]) for calls in records))


def code_lines(text: str) -> int:
    """Lines that are neither blank, nor a comment, nor within a docstring of their own."""
    lines, quoted = 0, False
    for line in map(str.strip, text.splitlines()):
        if quoted or line.startswith('"""'):
            quoted = (line.count('"""') % 2 == 1) != quoted
        elif line and not line.startswith("#"):
            lines += 1
    return lines


def check() -> None:
    """That faults are counted where they belong, all planted at once, so that a lost row can't hide a doubled one."""
    work = Work(steps=(2, 4), images=6, batch=2, evaluations=8, seconds=0.5, workers=2)
    found = Counter(work.rows)
    found.subtract([(2, 4), (2, 5)])
    found.update([(4, 0), (4, 1), (4, 2), (7, 0)])  # doubled three, and one that nobody asked for
    records = [np.array([(100, 0.5, 2)] * calls, RECORD) for calls in (6, 12, 5)]  # the last five are too many
    assert count(work, +found, records) == (2, 4, 10)
    assert (work.shards, work.ideal) == (5, 3 * (2 + 4) * 0.5 / 2)
