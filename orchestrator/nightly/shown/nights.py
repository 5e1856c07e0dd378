"""The nights of a history in lines, from their verdicts. Verdicts of earlier versions lack some of the fields."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.eval.nights import UNFINISHED, Light, NightLine, NightModel
from taugrid.orchestrator.baseline.text import GOOD, check_lines, sign
from taugrid.orchestrator.baseline.verdict import Verdict
from taugrid.orchestrator.nightly.places import History
from taugrid.words import counted, short_path

WITHOUT_A_COMPARISON = ("no baseline", "incomplete")
"""What a night's `result` may be besides a `Verdict`."""
MOST_CHECKPOINTS = 2
"""Checkpoints that a line names. The rest are counted."""


def nights_of(history: History) -> list[NightLine]:
    """The complete nights, oldest first, and after them the unfinished ones."""
    verdicts = [verdict for night in history.complete_nights() if (verdict := night.verdict) is not None]
    return [*map(night_line, verdicts), *unfinished(history)]


def unfinished(history: History) -> list[NightLine]:
    """The nights without a verdict."""
    return [NightLine(night.id, "", UNFINISHED, "grey") for night in history.unfinished_nights()]


def night_line(verdict: Mapping[str, Any]) -> NightLine:
    """A night with a verdict, which is what verdict.json holds."""
    compared = verdict["comparison"] or {}
    found = Counter(Verdict(cell["result"]) for cell in compared.get("cells", ()))
    result = verdict["result"] if verdict["result"] in WITHOUT_A_COMPARISON else Verdict(verdict["result"])
    return NightLine(
        id=verdict["night"],
        time=verdict["time"],
        verdict=str(result),
        light=_light(verdict),
        counts={str(each): found[each] for each in Verdict if found[each]},
        compared=_how_many(compared) if compared else None,
        remarks=tuple(_remarks(verdict)),
        models=tuple(_models(verdict)),
        commit=verdict["software"].get("git_commit"),
        is_dirty=bool(verdict["software"].get("git_dirty")),
    )


def _light(verdict: Mapping[str, Any]) -> Light:
    """As the first line of the night's summary; grey if that may still change, or there was nothing to compare with."""
    compared, result = verdict["comparison"], verdict["result"]
    if result not in WITHOUT_A_COMPARISON and Verdict(result).is_regression:
        return "red"
    is_green = compared is not None and sign(compared) == GOOD and not verdict["missing"]
    return "green" if is_green else "grey"


def _remarks(verdict: Mapping[str, Any]) -> list[str]:
    """How many cells are missing, what was not judged, and checks that are not clean."""
    compared, missing = verdict["comparison"] or {}, verdict["missing"]
    of_checks = check_lines(compared) if "checks" in compared else ["sampler and scorer not checked"] * bool(compared)
    return [*[f"{counted(len(missing), 'cell')} missing"] * bool(missing), *verdict.get("not_judged", ()), *of_checks]


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
    rows = [(night.id, night.time, night.verdict, "  ".join(_more(night))) for night in nights]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{wide}}" for text, wide in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _more(night: NightLine) -> list[str]:
    named = [short_path(name) for name in night.checkpoints]
    left_out = len(named) - MOST_CHECKPOINTS
    checkpoints = ", ".join(named[:MOST_CHECKPOINTS]) + (f" and {left_out} more" if left_out > 0 else "")
    remarks = f"({'; '.join(night.remarks)})" if night.remarks else ""
    return [part for part in (night.cells, checkpoints, remarks) if part]
