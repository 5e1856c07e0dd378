"""A run as a piece of HTML, for notebooks."""

from collections.abc import Mapping
from typing import Any

from taugrid.eval.pages.environment import asset, environment
from taugrid.eval.pages.pivots import shaded_tables
from taugrid.eval.tables.entries import legend, marked_pivots
from taugrid.eval.tables.long_form import FID, long_form


def run_html(name: str, directory: str, state: str, document: Mapping[str, Any]) -> str:
    """The FID tables of a run.

    Args:
        name: the run's.
        directory: its path or URL.
        state: how far it is, in words.
        document: quality.json; empty if there is none.
    """
    rows = document.get("rows", [])
    alike, joined = (frozenset(document.get(key, [])) for key in ("indistinguishable", "joined"))
    marks = (document.get("protocols", {}), alike, joined)
    frame = long_form(rows) if rows else None
    return (
        environment()
        .get_template("run.html")
        .render(
            name=name,
            directory=directory,
            state=state,
            css=asset("tables.css"),
            heading=FID.heading,
            tables=[] if frame is None else shaded_tables(frame, FID, *marks),
            legend=[] if frame is None else legend(marked_pivots(frame, FID, *marks), FID),
        )
    )
