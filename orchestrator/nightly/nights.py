"""A history of nights as text lines, and as a Python object. A night is one run of `taugrid nightly`."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from taugrid.errors import DamagedFile, UserError
from taugrid.eval.gate.verdict import REGRESSIONS, UNFINISHED, Verdict
from taugrid.eval.nights import Light, NightLine, NightModel
from taugrid.orchestrator.baseline.text import GOOD, check_lines, sign, titles
from taugrid.orchestrator.baseline.verdict import NightVerdict
from taugrid.orchestrator.nightly.places import History
from taugrid.parquet import read_table
from taugrid.words import counted, in_columns, listed, short_path

if TYPE_CHECKING:
    import pandas as pd

    from taugrid.orchestrator.view.run import RunView

MAX_CHECKPOINTS = 2
"""The number of checkpoints that a line names. The rest are counted."""

MAX_NIGHTS_NAMED = 5
"""The number of nights that an error message names."""


def nights_of(history: History) -> list[NightLine]:
    """The complete nights, oldest first, and after them the unfinished ones."""
    return [*map(night_line, history.verdicts()), *unfinished(history)]


def unfinished(history: History) -> list[NightLine]:
    return [NightLine(night.id, "", UNFINISHED, "grey") for night in history.unfinished_nights()]


def night_line(verdict: NightVerdict) -> NightLine:
    """The line of a night with this verdict."""
    comparison = verdict.comparison
    light: Light = "grey"
    remarks = [f"{counted(len(verdict.missing), 'cell')} missing"] if verdict.missing else []
    remarks += verdict.not_judged
    if comparison is not None:
        # Grey, if the verdict may still change.
        light = "green" if sign(comparison) == GOOD and not verdict.missing else "grey"
        remarks += check_lines(comparison, ("clean", "not applicable"))
        remarks += [f"judged by {name}" for name in [titles(comparison.cells)] if name not in ("", "FID")]
    if verdict.result in REGRESSIONS:
        light = "red"
    counts = Counter(cell.result for cell in comparison.cells) if comparison else Counter[Verdict]()
    return NightLine(
        id=verdict.night,
        time=verdict.time,
        verdict=str(verdict.result),
        light=light,
        counts={str(result): counts[result] for result in Verdict if counts[result]},
        compared=comparison.compared if comparison else None,
        remarks=tuple(remarks),
        models=(NightModel(verdict.images.path, None),) if verdict.images else verdict.model,
        commit=verdict.software.git_commit,
        is_dirty=bool(verdict.software.git_dirty),
    )


def history_as_dict(history: History, nights: Sequence[NightLine]) -> dict[str, Any]:
    """The history as plain data, which `taugrid status --json` prints."""
    return {"dir": history.shown, "nights": [night.as_dict() for night in nights]}


def nights_text(nights: Sequence[NightLine]) -> str:
    """A line for each night, in columns: id, time, verdict, and then cells, checkpoints and remarks."""
    return "\n".join(in_columns((night.id, night.time, night.verdict, "  ".join(_details(night))) for night in nights))


def _details(night: NightLine) -> list[str]:
    checkpoints = listed([short_path(name) for name in night.checkpoints], MAX_CHECKPOINTS)
    remarks = f"({'; '.join(night.remarks)})" if night.remarks else ""
    return [part for part in (night.cells, checkpoints, remarks) if part]


class HistoryView:
    """One history, read only: no method starts a run, runs code that a config names, or writes a file."""

    def __init__(self, history: History) -> None:
        self._history = history

    def __repr__(self) -> str:
        count = counted(len(self.nights), "night")
        newest = next((f"newest verdict: {line.verdict} ({line.id})" for line in self.nights[::-1] if line.time), "")
        return f"<history of {count} in {self.directory}; {newest or 'no verdict yet'}>"

    @property
    def directory(self) -> str:
        """The path or URL of the history."""
        return self._history.shown

    @cached_property
    def nights(self) -> Sequence[NightLine]:
        """The complete nights, oldest first, and then the unfinished ones."""
        return tuple(nights_of(self._history))

    @property
    def table(self) -> "pd.DataFrame":
        """history.parquet: a row for each metric of each cell of each complete night; `UserError` if there is none."""
        try:
            table: pd.DataFrame = read_table(self._history.storage.read(self._history.parquet)).to_pandas()
        except FileNotFoundError:
            raise UserError(
                f"{self.directory} has no history.parquet yet; `taugrid report {self.directory}` writes it"
            ) from None
        except DamagedFile:
            raise UserError(
                f"history.parquet of {self.directory} is damaged; `taugrid report {self.directory}` writes it again"
            ) from None
        return table

    def open(self, night: str) -> "RunView":
        """The run of a night, by the night's id; `UserError` if there is no such night."""
        from taugrid.orchestrator.opened import open_existing
        from taugrid.orchestrator.view.run import RunView

        ids = [line.id for line in self.nights]
        if night not in ids:
            newest = ", ".join(ids[-MAX_NIGHTS_NAMED:])
            raise UserError(f"{self.directory} has no night {night!r}; its newest are {newest}")
        found = self._history.night(night)
        if (verdict := found.verdict) is not None and verdict.images:
            raise UserError(f"night {night} judged images from elsewhere, so it has no run")
        return RunView(open_existing(found.run_name))
