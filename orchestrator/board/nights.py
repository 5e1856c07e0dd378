"""What the board knows of a night: its line in the history."""

from typing import Any

from taugrid.orchestrator.board.files import UNREADABLE, text
from taugrid.orchestrator.board.find import FoundFolder
from taugrid.storage import read_sealed

NightEntry = dict[str, Any]


def read_night(found: FoundFolder, before: NightEntry | None) -> NightEntry:
    """id, time, verdict and light of a night; `before` if its verdict has not changed. Nothing raises."""
    entry: NightEntry = {"id": text(found.night), "time": "", "verdict": "unfinished", "light": "grey"}
    if "verdict.json" not in found.level.files:
        return {**entry, "version": ""}
    path = found.root / "verdict.json"
    try:
        version = (found.level.files["verdict.json"] or found.storage.stat(path)).version
        if before is not None and before.get("version") == version:
            return before
        if (verdict := read_sealed(path, found.storage)) is None:
            return {**entry, "version": version, "verdict": "damaged verdict.json"}
        from taugrid.orchestrator.nightly.nights import night_line  # the first night loads what judges

        line = night_line(verdict)
        return {
            **entry,
            "version": version,
            "time": text(line.time),
            "verdict": text(line.verdict),
            "light": line.light,
        }
    except UNREADABLE as error:
        return {**entry, "version": "", "verdict": text(f"verdict.json can't be read ({type(error).__name__})")}
