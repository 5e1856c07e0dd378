"""Writes what a night leaves: summary.md, junit.xml, and the history of all nights with its page and trend figure."""

from taugrid.orchestrator.nightly.history import history_rows, history_table, nights_in, write_parquet
from taugrid.orchestrator.nightly.junit import junit_xml
from taugrid.orchestrator.nightly.places import History, Night
from taugrid.orchestrator.nightly.shown.nights import night_line, unfinished
from taugrid.orchestrator.nightly.summary import summary
from taugrid.storage import replacing, write_text


def write_night(night: Night, verdict: dict[str, object]) -> None:
    """Write summary.md and junit.xml."""
    for path, text in ((night.summary, summary(verdict)), (night.junit, junit_xml(verdict))):
        with replacing(path, night.storage) as temporary:
            write_text(temporary, text)


def is_current(history: History) -> bool:
    """Whether history.parquet has the nights that are complete, and the trend figure and the page are there."""
    return nights_in(history.parquet, history.storage) == {night.id for night in history.complete_nights()} and all(
        history.storage.exists(history.root / name) for name in ("trend.png", "trend.svg", history.index.name)
    )


def write_history(history: History) -> None:
    """Make history.parquet, the trend figure and the page anew, from the verdicts of all complete nights."""
    from taugrid.eval.figures.drawing import save  # matplotlib, which only the end of a night needs
    from taugrid.eval.figures.trend import trend_figure
    from taugrid.eval.pages.history import history_html

    verdicts = [verdict for night in history.complete_nights() if (verdict := night.verdict) is not None]
    nights, rows = [night_line(verdict) for verdict in verdicts], history_rows(verdicts)
    write_parquet(history.parquet, history_table(rows), history.storage)
    with history.storage.local_folder(history.root) as folder:
        lights = {night.id: night.light for night in nights}
        save(trend_figure(history_table(rows).to_pandas(), lights), folder / "trend")
    name = verdicts[-1]["name"] if verdicts else history.root.name
    page = history_html(name, [*nights, *unfinished(history)], rows, _files(history))
    with replacing(history.index, history.storage) as temporary:
        write_text(temporary, page)


def _files(history: History) -> dict[str, dict[str, str]]:
    """Night -> its report and summary, as far as they are there, as seen from the history."""
    found: dict[str, dict[str, str]] = {}
    for what, pattern in (("report", "*/run/report.html"), ("summary", "*/summary.md")):
        for path in history.storage.list(history.nights, pattern):
            night = path.relative_to(history.nights).parts[0]
            found.setdefault(night, {})[what] = history.relative(path)
    return found
