"""index.html of a history: the trend with the verdicts, and a table of the nights. It loads nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from taugrid.eval.nights import UNFINISHED, Light, NightLine
from taugrid.eval.pages.charts.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from taugrid.eval.pages.charts.trend import MOST_NIGHTS, trend
from taugrid.eval.pages.environment import asset, environment, policy
from taugrid.words import counted

MOST_ROWS = 1000
"""Nights in the table. All are in history.parquet."""
SHAPES: Mapping[Light, str] = {
    "red": "M-4.5,-4.5L4.5,4.5M4.5,-4.5L-4.5,4.5",
    "green": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "grey": "M-4,-4h8v8h-8Z",
}
"""Outlines around (0, 0), so that verdicts can be told apart without colours."""


class HistoryFacts(NamedTuple):
    """What the page shows."""

    name: str
    nights: Sequence[NightLine]
    """The complete ones, oldest first, and after them the unfinished ones."""
    rows: Sequence[Mapping[str, Any]]
    """Rows of history.parquet, with None where there is nothing."""
    files: Mapping[str, Mapping[str, str]]
    """Night -> "report" and "summary", as far as it has them -> the file's path, as seen from the page."""


def history_html(found: HistoryFacts) -> str:
    """The page."""
    complete = [night for night in found.nights if night.verdict != UNFINISHED]
    style, script = asset("tables.css") + asset("report.css") + asset("history.css"), asset("report.js")
    files = {night: {what: quote(path) for what, path in its.items()} for night, its in found.files.items()}
    page = {
        "name": found.name,
        "style": style,
        "script": script,
        "policy": policy(style, script),
        "size": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "newest": complete[-1] if complete else None,
        "answer": _answer(complete, len(found.nights) - len(complete)),
        "trend": trend(found.rows, complete),
        "most_nights": MOST_NIGHTS,
        "nights": found.nights[::-1][:MOST_ROWS],
        "left_out": max(0, len(found.nights) - MOST_ROWS),
        "files": files,
        "leads_to": {night: next(iter(its.values())) for night, its in files.items()},
        "shapes": SHAPES,
    }
    return environment().get_template("history.html").render(**page)


def _answer(nights: Sequence[NightLine], unfinished: int) -> list[str]:
    """The newest verdict, and how many nights there are of each colour."""
    if not nights:
        return ["No night has a verdict yet."]
    newest, found = nights[-1], Counter(night.light for night in nights)
    cells = f" ({newest.cells})" if newest.cells else ""
    lights = ", ".join(f"{found[light]} {light}" for light in SHAPES if found[light])
    more = f"; {counted(unfinished, 'night')} unfinished" if unfinished else ""
    return [f"Newest night, {newest.id}: {newest.verdict}{cells}.", f"{counted(len(nights), 'night')}: {lights}{more}."]
