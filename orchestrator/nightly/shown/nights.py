"""The nights of a history in lines, from their verdicts. Verdicts of earlier versions lack some of the fields."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.eval.nights import UNFINISHED, Light, NightLine, NightModel
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
    """Green only for a night in which nothing is worse, all was judged and no check is in doubt."""
    if verdict["result"] in WITHOUT_A_COMPARISON:
        return "grey"
    result, checks = Verdict(verdict["result"]), _checks(verdict)
    if result.is_regression or any(check["result"] == "changed" for check in checks.values()):
        return "red"
    is_sure = all(check["result"] == "clean" for check in checks.values())
    is_whole = not (verdict.get("not_judged") or verdict["missing"] or _lacks_cells(verdict["comparison"]))
    return "green" if result in (Verdict.NOT_WORSE, Verdict.IDENTICAL) and is_sure and is_whole else "grey"


def _lacks_cells(compared: Mapping[str, Any]) -> bool:
    """Whether an earlier version said nothing of cells that the baseline has; today `not_judged` has them."""
    known, of_baseline = _how_many(compared)
    return "compared" not in compared and known < of_baseline


def _checks(verdict: Mapping[str, Any]) -> Mapping[str, Mapping[str, str]]:
    """Whether today's sampler and scorer still do what they did for the baseline; empty in earlier verdicts."""
    return (verdict["comparison"] or {}).get("checks") or {}


def _remarks(verdict: Mapping[str, Any]) -> list[str]:
    """What was not judged; checks that are not clean; how many cells are missing."""
    missing = verdict["missing"]
    checks = [f"{name} {check['result']}: {check['reason']}" for name, check in _checks(verdict).items()]
    unclean = [
        text for text, check in zip(checks, _checks(verdict).values(), strict=True) if check["result"] != "clean"
    ]
    return [
        *([f"{counted(len(missing), 'cell')} missing"] if missing else []),
        *verdict.get("not_judged", ()),
        *unclean,
    ]


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
