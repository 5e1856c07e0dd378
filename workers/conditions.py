"""What a network is told besides x and t: class labels, by a rule or from a column, and guidance. Imports no torch.

Labels are a pure function of a rule, the seed and the sample's number n. Runs depend on every one: the golden values in
the tests must never change.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taugrid.config import Sample
from taugrid.config.sample import LabelColumn
from taugrid.errors import MissingInput, UserError, joined_lines
from taugrid.jobs import Conditions
from taugrid.workers.diffusion.denoiser import Guidance
from taugrid.workers.diffusion.process import Point

DOMAIN = "label"  # the stream of random words: its key is a hash of this name and the seed, as for noise

WORDS = 4  # words of 64 bits that Philox makes for one value of its counter


@dataclass(frozen=True)
class LabelRule:
    """Which class each sample is asked for. It travels with jobs."""

    said: Any
    """The rule as ids, protocols and files have it: `balanced`, `random`, a class, a list of classes, or the SHA-256 of
    a column's values."""
    seed: int
    classes: int  # K; labels are 0..K-1
    column: NDArray[np.int32] | None = field(default=None, compare=False, repr=False)
    """The column's values from sample number `first` on. None: of another rule, or the file is gone."""
    first: int = 0

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        """The labels (n,) of the samples `indices` (n,).

        - `balanced`: of each K samples in turn, every class one, in the order of a permutation of (seed, n // K).
        - `random`: each class with a probability of 1 / K up to K / 2^64, by a word of (seed, n).
        - a list of classes is repeated; of a column, sample n has row n.

        `MissingInput` if the rule's column is gone.
        """
        if self.said == "balanced":
            return _by_blocks(indices, self.classes, self.seed, lambda words: np.argsort(words, axis=1, kind="stable"))
        if self.said == "random":
            return _by_blocks(indices, WORDS, self.seed, lambda words: _uniform(words, self.classes))
        if not isinstance(self.said, dict):
            classes = np.atleast_1d(np.array(self.said, np.int32))
            return classes[indices % len(classes)]
        if self.column is None:
            raise MissingInput("the Parquet file of sample.labels is gone; put it back")
        return self.column[indices - self.first]

    @property
    def rows(self) -> int | None:
        """The number of samples that have a label; None: all."""
        return None if self.column is None else self.first + len(self.column)

    def of_rows(self, start: int, stop: int) -> "LabelRule":
        """The rule for the samples `start` to `stop` - 1, with no other rows of a column."""
        if self.column is None:
            return self
        return replace(self, column=self.column[start - self.first : stop - self.first], first=start)


def _by_blocks(indices: NDArray[np.int64], size: int, seed: int, labels: Any) -> NDArray[np.int32]:
    """Labels of samples in blocks of `size`: `labels` makes (blocks, size) of them from as many random words. The words
    are NumPy's Philox4x64-10, whose stream never changes, drawn for each run of neighbouring blocks at once."""
    key = int.from_bytes(hashlib.sha256(f"taugrid/{DOMAIN}/{seed}".encode()).digest()[:16], "little")
    block, place = np.divmod(np.asarray(indices, np.int64), size)
    needed, row = np.unique(block, return_inverse=True)
    counts, drawn = -(-size // WORDS), []
    for run in np.split(needed, np.flatnonzero(np.diff(needed) != 1) + 1):
        if len(run):
            first, blocks = int(run[0]), len(run)
            words = np.random.Philox(key=key, counter=first * counts).random_raw(blocks * counts * WORDS)
            drawn.append(words.reshape(blocks, -1)[:, :size])
    found: NDArray[np.int32] = labels(np.concatenate(drawn))[row, place].astype(np.int32)
    return found


def _uniform(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """floor(w n / 2^64) of each word w, exactly: uniform in [0, n) for n below 2^31."""
    n_, half = np.uint64(n), np.uint64(32)
    high, low = words >> half, words & np.uint64(2**32 - 1)
    return (high * n_ + (low * n_ >> half)) >> half


class Column(NamedTuple):
    """Labels in a column of a Parquet file that a user names."""

    sha256: str  # of its values, as int64
    values: NDArray[np.int64] | None
    """(rows,). None: the file is gone, but a run has recorded the hash."""


def read_column(section: LabelColumn) -> Column:
    """The whole numbers in a column, read on the driver. Raises `MissingInput` if there is no such file; `UserError` if
    it has no such column, or the column holds anything but whole numbers."""
    path, name = Path(section.parquet), section.column
    if not path.is_file():
        raise MissingInput(f"sample.labels.parquet: there is no file {path}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            found = file.read(columns=[name]).column(name) if names.count(name) == 1 else None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"sample.labels.parquet: {path} can't be read: {joined_lines(error)}") from None
    where = f"sample.labels.column: {name} of {path}"
    if found is None:
        raise UserError(f"{where} is missing; the file's columns are {', '.join(names)}")
    if not pa.types.is_integer(found.type):
        raise UserError(f"{where} holds {found.type}, but labels must be whole numbers, such as int32")
    if found.null_count:
        raise UserError(f"{where} has {found.null_count} nulls, but each sample needs a label; fill them in")
    try:
        values = found.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise UserError(f"{where} has numbers beyond 2^63") from None
    return Column(hashlib.sha256(values.astype("<i8").tobytes()).hexdigest(), values)


def inside(interval: Sequence[float] | None, points: Iterable[Point]) -> list[Point]:
    """Those of the `points` at which calls are guided."""
    return [point for point in points if interval is None or point.is_within(interval)]


def guidance_of(
    settings: Sample, guided_calls: int, takes: Conditions | None, guide_takes: Conditions | None = None
) -> Guidance | None:
    """How a cell is guided that `settings` (resolved) describe; None: it is not. `guided_calls` are those for each
    image; `takes` and `guide_takes` are the labels of the network and the guide."""
    if not settings.is_guided:
        return None
    null_label = None if takes is None else takes.null_label
    ends, channels = settings.guidance_interval, settings.guidance_channels
    interval = None if ends is None else (ends[0], ends[1])
    return Guidance(settings.guidance, guided_calls, interval, channels, null_label, guide_takes is not None)
