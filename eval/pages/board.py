"""The board as one page: the cells of many runs, to filter, sort and compare. It loads nothing from elsewhere."""

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from taugrid.eval.pages.environment import rendered

SCRIPTS = ("copy.js", "board.js", "board_table.js", "board_panel.js", "board_start.js")
KEYS = {
    "↑ ↓": "move to another cell",
    "Page Up, Page Down, Home, End": "move further",
    "Space": "pick the cell, or unpick it",
    "Enter": "show its details and report; on a heading: sort",
    "/": "filter by text",
    "Esc": "close a menu",
    "?": "show these keys",
}


def board_html(document: Mapping[str, Any], live: bool) -> str:
    """The page of a board.

    Args:
        document: as orchestrator/board/document.py makes it: plain JSON.
        live: whether the page asks for newer documents and paired differences where it came from.

    Raises:
        ValueError: if the document has NaN or infinity, which no browser reads.
    """
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    return rendered(
        "board.html",
        ("report.css", "history.css", "board.css"),
        SCRIPTS,
        "img-src 'self' file: data:; connect-src 'self'",
        data=Markup(text),
        live=live,
        keys=KEYS.items(),
    )
