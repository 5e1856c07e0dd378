"""A history of nights as Python holds it."""

from collections.abc import Sequence
from functools import cached_property

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from taugrid.errors import UserError
from taugrid.eval.nights import NightLine
from taugrid.orchestrator.nightly.places import History
from taugrid.orchestrator.nightly.shown.nights import nights_of
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.view.run import RunView
from taugrid.words import counted

MOST_NAMED = 5


class HistoryView:
    """One history. Looking at it starts nothing, runs no code and writes nothing."""

    def __init__(self, history: History) -> None:
        self._history = history

    def __repr__(self) -> str:
        count = counted(len(self.nights), "night")
        newest = next((f"newest verdict: {line.verdict} ({line.id})" for line in self.nights[::-1] if line.time), "")
        return f"<history of {count} in {self.directory}; {newest or 'no verdict yet'}>"

    @property
    def directory(self) -> str:
        """Its path or URL."""
        return self._history.shown

    @cached_property
    def nights(self) -> Sequence[NightLine]:
        """The nights with their `id`, `verdict`, cells and checkpoints: oldest first, and then unfinished ones."""
        return tuple(nights_of(self._history))

    @property
    def table(self) -> pd.DataFrame:
        """history.parquet: a row for each cell of each complete night; `UserError` if it is not written yet."""
        try:
            data = self._history.storage.read(self._history.parquet)
        except FileNotFoundError:
            raise UserError(
                f"{self.directory} has no history.parquet yet; `taugrid report {self.directory}` writes it"
            ) from None
        try:
            found: pd.DataFrame = pq.read_table(pa.BufferReader(data)).to_pandas()
        except pa.ArrowException:
            said = f"history.parquet of {self.directory} is damaged; `taugrid report {self.directory}` writes it again"
            raise UserError(said) from None
        return found

    def open(self, night: str) -> RunView:
        """The run of a night, by the night's id; `UserError` if there is no such night."""
        known = [line.id for line in self.nights]
        if night not in known:
            newest = ", ".join(known[-MOST_NAMED:])
            raise UserError(f"{self.directory} has no night {night!r}; its newest are {newest}")
        place = self._history.night(night)
        return RunView(open_existing(place.named(place.run)))
