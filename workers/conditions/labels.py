"""The class that each sample is asked for: a pure function of a rule, the seed and the sample's number n.

Runs depend on every label: the golden values in the tests must never change. Imports no torch.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid.errors import MissingInput

DOMAIN = "label"
"""The stream of random words: its key is a hash of this name and the seed, as for noise."""

WORDS = 4
"""Words of 64 bits that Philox makes for one value of its counter."""


@dataclass(frozen=True)
class LabelRule:
    """Which class each sample is asked for. It travels with jobs."""

    said: Any
    """The rule as ids, protocols and files have it: `balanced`, `random`, a class, a list of classes, or the SHA-256 of
    a column's values."""
    seed: int
    classes: int
    """K; labels are 0..K-1."""
    column: NDArray[np.int32] | None = field(default=None, compare=False, repr=False)
    """The column's values from sample number `first` on. None: of another rule, or the file is gone."""
    first: int = 0

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        """The labels (n,) of the samples `indices` (n,).

        - `balanced`: of each K samples in turn, every class one, in the order of a permutation of (seed, n // K).
        - `random`: each class with a probability of 1 / K up to K / 2^64, by a word of (seed, n).
        - a list of classes is repeated; of a column, sample n has row n.

        Raises:
            MissingInput: if the rule's column is gone.
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
    """Labels of samples in blocks of `size`: `labels` makes (blocks, size) of them from as many random words."""
    block, place = np.divmod(np.asarray(indices, np.int64), size)
    needed, row = np.unique(block, return_inverse=True)
    runs = np.split(needed, np.flatnonzero(np.diff(needed) != 1) + 1)
    words = np.concatenate([_words(seed, int(run[0]), len(run), size) for run in runs if len(run)])
    found: NDArray[np.int32] = labels(words)[row, place].astype(np.int32)
    return found


def _words(seed: int, first: int, blocks: int, size: int) -> NDArray[np.uint64]:
    """Random words (blocks, size) of the blocks from `first` on: NumPy's Philox4x64-10, whose stream never changes."""
    key = int.from_bytes(hashlib.sha256(f"taugrid/{DOMAIN}/{seed}".encode()).digest()[:16], "little")
    counts = -(-size // WORDS)
    words = np.random.Philox(key=key, counter=first * counts).random_raw(blocks * counts * WORDS)
    return words.reshape(blocks, -1)[:, :size]


def _uniform(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """floor(w n / 2^64) of each word w, exactly: uniform in [0, n) for n below 2^31."""
    n_, half = np.uint64(n), np.uint64(32)
    high, low = words >> half, words & np.uint64(2**32 - 1)
    return (high * n_ + (low * n_ >> half)) >> half
