"""A history of nights as text lines, and as a Python object. A night is one run of `taugrid nightly`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from taugrid.errors import DamagedFile, UserError
from taugrid.eval.gate.verdict import INCOMPLETE, NO_BASELINE, UNFINISHED, Verdict
from taugrid.eval.nights import Light, NightLine, NightModel
from taugrid.orchestrator.baseline.text import GOOD, check_lines, sign, titles
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
    verdicts = [verdict for night in history.complete_nights() if (verdict := night.verdict) is not None]
    return [*map(night_line, verdicts), *unfinished(history)]


def unfinished(history: History) -> list[NightLine]:
    return [NightLine(night.id, "", UNFINISHED, "grey") for night in history.unfinished_nights()]


def night_line(verdict: Mapping[str, Any]) -> NightLine:
    """The line of a night with `verdict`, the content of verdict.json."""
    comparison, result = verdict["comparison"] or {}, _result(verdict)
    networks = [NightModel(model["checkpoint"], model["weights_sha256"]) for model in verdict["model"]]
    counts = Counter(Verdict(cell["result"]) for cell in comparison.get("cells", ()))
    return NightLine(
        id=verdict["night"],
        time=verdict["time"],
        verdict=verdict["result"] if result is None else str(result),
        light=_traffic_light(verdict, result),
        counts={str(result): counts[result] for result in Verdict if counts[result]},
        compared=tuple(comparison["compared"]) if comparison else None,
        remarks=tuple(_remarks(verdict, comparison)),
        models=(NightModel(verdict["images"]["path"], None),) if "images" in verdict else tuple(networks),
        commit=verdict["software"].get("git_commit"),
        is_dirty=bool(verdict["software"].get("git_dirty")),
    )


def _result(verdict: Mapping[str, Any]) -> Verdict | None:
    """The verdict; None if there was no baseline, or no cell was scored."""
    return None if verdict["result"] in (NO_BASELINE, INCOMPLETE) else Verdict(verdict["result"])


def _traffic_light(verdict: Mapping[str, Any], result: Verdict | None) -> Light:
    """The colour of the night's headline; grey if the verdict may still change, or there was no baseline."""
    if result is not None and result.is_regression:
        return "red"
    comparison = verdict["comparison"]
    return "green" if comparison is not None and sign(comparison) == GOOD and not verdict["missing"] else "grey"


def _remarks(verdict: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    """The number of missing cells, what was not judged, and the checks that are not clean."""
    missing = [f"{counted(len(verdict['missing']), 'cell')} missing"] if verdict["missing"] else []
    checks = check_lines(comparison, ("clean", "not applicable")) if comparison else []
    judged = [f"judged by {name}"] if (name := titles(comparison.get("cells", ()))) not in ("", "FID") else []
    return [*missing, *verdict["not_judged"], *checks, *judged]


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
        """history.parquet: a row for each cell of each complete night; `UserError` if it is not written yet."""
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
        if (found.verdict or {}).get("images"):
            raise UserError(f"night {night} judged images from elsewhere, so it has no run")
        return RunView(open_existing(found.run_name))
