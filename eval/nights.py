"""A summary of one night of a history, for its page, `taugrid status` and `taugrid.open`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from taugrid.words import counted

Light = Literal["red", "green", "grey"]
"""The colour of a verdict: red for a regression, green for nothing worse, grey for undecided."""

DIGITS = 10  # digits of a hash that are shown


@dataclass(frozen=True)
class NightModel:
    """The network of a night; None for what its verdict does not record."""

    checkpoint: str | None
    weights_sha256: str | None


class NightLine(NamedTuple):
    """A night, finished or not."""

    id: str
    time: str  # when its verdict was reached, UTC, ISO 8601; empty if there is none
    verdict: str  # the worst verdict of its cells, "no baseline", "unfinished" or "unreadable"
    light: Light
    counts: Mapping[str, int] = {}  # verdict -> number of cells, worst first
    compared: tuple[int, int] | None = None  # the number of compared cells, and of the baseline's cells
    remarks: tuple[str, ...] = ()  # cells and checks that were not judged, and why
    models: tuple[NightModel, ...] = ()
    commit: str | None = None  # the commit of taugrid's repository
    is_dirty: bool = False  # whether there were uncommitted changes

    @property
    def cells(self) -> str:
        """The number of cells with each verdict, in words."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        if self.compared is None or self.compared[0] == self.compared[1]:
            return counts
        return f"{counts}; {self.compared[0]} of {counted(self.compared[1], 'baseline cell')} compared"

    @property
    def checkpoints(self) -> list[str]:
        return list(dict.fromkeys(model.checkpoint for model in self.models if model.checkpoint))

    @property
    def weights(self) -> list[str]:
        """The first digits of the hash of each network's weights."""
        return list(dict.fromkeys(model.weights_sha256[:DIGITS] for model in self.models if model.weights_sha256))

    @property
    def code(self) -> str:
        return f"{self.commit[:DIGITS]}{' and changes' if self.is_dirty else ''}" if self.commit else ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "night": self.id,
            "time": self.time or None,
            "verdict": self.verdict,
            "cells": dict(self.counts),
            "compared": None if self.compared is None else list(self.compared),
            "remarks": list(self.remarks),
            "models": [asdict(model) for model in self.models],
            "git_commit": self.commit,
            "git_dirty": self.is_dirty,
        }
