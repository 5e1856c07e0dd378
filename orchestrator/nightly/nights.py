"""A history of nights as people see it: its nights in lines, and the history as Python holds it.

Verdicts of earlier versions lack some of the fields.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from taugrid.errors import UserError
from taugrid.eval.gate.verdict import INCOMPLETE, NO_BASELINE, UNFINISHED, Verdict
from taugrid.eval.nights import Light, NightLine, NightModel
from taugrid.orchestrator.baseline.text import GOOD, check_lines, sign
from taugrid.orchestrator.nightly.places import History
from taugrid.words import counted, in_columns, listed, short_path

if TYPE_CHECKING:
    import pandas as pd

    from taugrid.orchestrator.view.run import RunView

MOST_CHECKPOINTS = 2
"""Checkpoints that a line names. The rest are counted."""
MOST_NAMED = 5


def nights_of(history: History) -> list[NightLine]:
    """The complete nights, oldest first, and after them the unfinished ones."""
    verdicts = [verdict for night in history.complete_nights() if (verdict := night.verdict) is not None]
    return [*map(night_line, verdicts), *unfinished(history)]


def unfinished(history: History) -> list[NightLine]:
    return [NightLine(night.id, "", UNFINISHED, "grey") for night in history.unfinished_nights()]


def night_line(verdict: Mapping[str, Any]) -> NightLine:
    """A night with a verdict, which is the content of verdict.json."""
    compared, result = verdict["comparison"] or {}, _known(verdict)
    found = Counter(Verdict(cell["result"]) for cell in compared.get("cells", ()))
    return NightLine(
        id=verdict["night"],
        time=verdict["time"],
        verdict=verdict["result"] if result is None else str(result),
        light=_light(verdict, result),
        counts={str(each): found[each] for each in Verdict if found[each]},
        compared=_how_many(compared) if compared else None,
        remarks=tuple(_remarks(verdict, compared)),
        models=tuple(_models(verdict)),
        commit=verdict["software"].get("git_commit"),
        is_dirty=bool(verdict["software"].get("git_dirty")),
    )


def _known(verdict: Mapping[str, Any]) -> Verdict | None:
    return None if verdict["result"] in (NO_BASELINE, INCOMPLETE) else Verdict(verdict["result"])


def _light(verdict: Mapping[str, Any], result: Verdict | None) -> Light:
    """As the first line of the night's summary; grey if that may still change, or there was nothing to compare with."""
    if result is not None and result.is_regression:
        return "red"
    compared = verdict["comparison"]
    return "green" if compared is not None and sign(compared) == GOOD and not verdict["missing"] else "grey"


def _remarks(verdict: Mapping[str, Any], compared: Mapping[str, Any]) -> list[str]:
    """How many cells are missing, what was not judged, and checks that are not clean."""
    missing = [f"{counted(len(verdict['missing']), 'cell')} missing"] if verdict["missing"] else []
    unchecked = ["sampler and scorer not checked"] if compared else []
    checks = check_lines(compared) if "checks" in compared else unchecked
    return [*missing, *verdict.get("not_judged", ()), *checks]


def _how_many(compared: Mapping[str, Any]) -> tuple[int, int]:
    """Cells that were compared, and cells of the baseline."""
    mine = len(compared["cells"])
    known, of_baseline = compared.get("compared") or (mine, mine + len(compared["only_baseline"]))
    return known, of_baseline


def _models(verdict: Mapping[str, Any]) -> list[NightModel]:
    """The networks; earlier verdicts know the hashes alone, of the cells that have a score."""
    if verdict.get("model"):
        return [NightModel(model.get("checkpoint"), model.get("weights_sha256")) for model in verdict["model"]]
    hashes = dict.fromkeys(score["weights_sha256"] for score in verdict["scores"])
    return [NightModel(None, weights) for weights in hashes if weights]


def history_as_dict(history: History, nights: Sequence[NightLine]) -> dict[str, Any]:
    """The history as `taugrid status --json` prints it."""
    return {"dir": history.shown, "nights": [night.as_dict() for night in nights]}


def nights_text(nights: Sequence[NightLine]) -> str:
    """A line for each night, in columns: id, time, verdict, and then cells, checkpoints and remarks."""
    return "\n".join(in_columns((night.id, night.time, night.verdict, "  ".join(_more(night))) for night in nights))


def _more(night: NightLine) -> list[str]:
    checkpoints = listed([short_path(name) for name in night.checkpoints], MOST_CHECKPOINTS)
    remarks = f"({'; '.join(night.remarks)})" if night.remarks else ""
    return [part for part in (night.cells, checkpoints, remarks) if part]


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
    def table(self) -> "pd.DataFrame":
        """history.parquet: a row for each cell of each complete night; `UserError` if it is not written yet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            data = self._history.storage.read(self._history.parquet)
            found: pd.DataFrame = pq.read_table(pa.BufferReader(data)).to_pandas()
        except FileNotFoundError:
            raise UserError(
                f"{self.directory} has no history.parquet yet; `taugrid report {self.directory}` writes it"
            ) from None
        except pa.ArrowException:
            said = f"history.parquet of {self.directory} is damaged; `taugrid report {self.directory}` writes it again"
            raise UserError(said) from None
        return found

    def open(self, night: str) -> "RunView":
        """The run of a night, by the night's id; `UserError` if there is no such night."""
        from taugrid.orchestrator.opened import open_existing
        from taugrid.orchestrator.view.run import RunView

        known = [line.id for line in self.nights]
        if night not in known:
            newest = ", ".join(known[-MOST_NAMED:])
            raise UserError(f"{self.directory} has no night {night!r}; its newest are {newest}")
        return RunView(open_existing(self._history.night(night).run_name))
