"""index.html of a history: the trend with the verdicts, and a table of the nights. It loads nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
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


def history_html(
    name: str,
    nights: Sequence[NightLine],
    rows: Sequence[Mapping[str, Any]],
    files: Mapping[str, Mapping[str, str]],
) -> str:
    """The page.

    Args:
        name: of the history.
        nights: the complete ones, oldest first, and after them the unfinished ones.
        rows: those of history.parquet, with None where there is nothing.
        files: night -> what it has ("report", "summary") -> the file's path, as seen from the page.
    """
    complete = [night for night in nights if night.verdict != UNFINISHED]
    style, script = asset("tables.css") + asset("report.css") + asset("history.css"), asset("report.js")
    links = {night: {what: quote(path) for what, path in its.items()} for night, its in files.items()}
    page = {
        "name": name,
        "style": style,
        "script": script,
        "policy": policy(style, script),
        "size": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "newest": complete[-1] if complete else None,
        "answer": _answer(complete, len(nights) - len(complete)),
        "trend": trend(rows, complete),
        "most_nights": MOST_NIGHTS,
        "nights": nights[::-1][:MOST_ROWS],
        "left_out": max(0, len(nights) - MOST_ROWS),
        "files": links,
        "leads_to": {night: next(iter(its.values())) for night, its in links.items()},
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
