"""Writes what a night leaves: summary.md, junit.xml, and the history of all nights with its trend figure."""

from taugrid.disk import write_text
from taugrid.orchestrator.nightly.history import history_rows, history_table, nights_in, write_parquet
from taugrid.orchestrator.nightly.junit import junit_xml
from taugrid.orchestrator.nightly.places import History, Night
from taugrid.orchestrator.nightly.summary import summary
from taugrid.storage import replacing


def write_night(night: Night, verdict: dict[str, object]) -> None:
    """Write summary.md and junit.xml."""
    for path, text in ((night.summary, summary(verdict)), (night.junit, junit_xml(verdict))):
        with replacing(path, night.storage) as temporary:
            write_text(temporary, text)


def is_current(history: History) -> bool:
    """Whether history.parquet has the nights that are complete, and the trend figure is there."""
    return nights_in(history.parquet, history.storage) == {night.id for night in history.complete_nights()} and all(
        history.storage.exists(history.root / f"trend.{kind}") for kind in ("png", "svg")
    )


def write_history(history: History) -> None:
    """Make history.parquet and the trend figure anew, from the verdicts of all complete nights."""
    from taugrid.eval.figures.drawing import save  # matplotlib, which only the end of a night needs
    from taugrid.eval.figures.trend import trend_figure

    verdicts = [verdict for night in history.complete_nights() if (verdict := night.verdict) is not None]
    rows = history_rows(verdicts)
    write_parquet(history.parquet, history_table(rows), history.storage)
    with history.storage.local_folder(history.root) as folder:
        save(trend_figure(history_table(rows).to_pandas()), folder / "trend")
