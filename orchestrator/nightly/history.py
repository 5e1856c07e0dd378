"""A history of nights: its lines, its Python object, its files, and the removal of images of old nights.

history.parquet has a row for each metric of each cell of each complete night. pandas and duckdb read it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from taugrid import parquet
from taugrid.errors import DamagedFile, UserError
from taugrid.eval.gate.verdict import REGRESSIONS, UNFINISHED, UNREADABLE, Verdict
from taugrid.eval.nights import Light, NightLine, NightModel
from taugrid.orchestrator.baseline.compared import NightVerdict
from taugrid.orchestrator.baseline.snapshot import pixel_digests
from taugrid.orchestrator.baseline.text import GOOD, check_lines, sign, titles
from taugrid.orchestrator.nightly.places import History, Night, Nights
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.registry.metrics import COLUMNS
from taugrid.registry.samplers import DEFAULT
from taugrid.storage import replacing, write_text
from taugrid.words import counted, in_columns, listed, short_path, with_urls

if TYPE_CHECKING:
    import pandas as pd

    from taugrid.orchestrator.view.run import RunView

MAX_CHECKPOINTS = 2  # the number of checkpoints that a line names; the rest are counted
MAX_NIGHTS_NAMED = 5  # the number of nights that an error message names

COLUMNS_ABOUT = (
    ("night", pa.string(), "the night's id"),
    ("time", pa.string(), "when its verdict was reached, UTC, ISO 8601"),
    ("night_result", pa.string(), "the verdict on the night: the worst of its cells', or 'no baseline'"),
    ("label", pa.string(), "the cell's name, the same every night, such as S0010-eta0.2"),
    ("cell", pa.string(), "the cell's id in tonight's run directory"),
    ("steps", pa.int64(), "S; null of images from elsewhere"),
    ("eta", pa.string(), "eta of ddim as a number, or sigma_hat; empty for other samplers"),
    ("num_samples", pa.int64(), "N"),
    ("settings", pa.string(), "all settings of `sample`, as JSON"),
    ("weights_sha256", pa.string(), "of the network"),
    ("baseline", pa.string(), "SHA-256 of the baseline's Parquet file, or the path of a run directory"),
    ("situation", pa.string(), "same weights and setup, same weights, other setup, or new weights"),
    ("result", pa.string(), "the verdict on the cell: changed pixels, worse, undecided, not worse, identical, ..."),
    ("by", pa.string(), "the metric whose verdict `result` is; null if no test judged the cell"),
    ("seeds", pa.string(), "the samples that the differences are of: usual, fresh (a second look) or grown"),
    ("metric", pa.string(), "the metric of this row, by its column in quality.csv; null of a cell without scores"),
    ("value", pa.float64(), "the metric with the usual seeds"),
    ("se", pa.float64(), "one standard error of sampling at this N"),
    ("baseline_value", pa.float64(), "the baseline's, as recorded"),
    ("difference", pa.float64(), "the judged difference: with a fresh seed after a second look"),
    ("difference_se", pa.float64(), "its paired standard error"),
    ("margin", pa.float64(), "the loss that is accepted"),
    ("t", pa.float64(), "(difference - margin) / difference_se; where higher is better, of the negative difference"),
    ("upper", pa.float64(), "the upper end of the interval of the loss"),
    ("detectable", pa.float64(), "the loss that would be called worse in 4 of 5 nights"),
    ("verdict", pa.string(), "the test's verdict on this metric; null if it did not judge it"),
)
"""Name, type and meaning of each column."""

SCHEMA = pa.schema([pa.field(name, kind, metadata={b"about": about.encode()}) for name, kind, about in COLUMNS_ABOUT])


def nights_of(history: History) -> list[NightLine]:
    """Nights whose verdict can't be read, the complete ones, oldest first, and then the unfinished ones."""
    nights = history.read()
    return [*_unreadable(nights), *(night_line(verdict) for _, verdict in nights.judged), *_unfinished(nights)]


def _unreadable(nights: Nights) -> list[NightLine]:
    return [NightLine(night, "", UNREADABLE, "grey", remarks=(why,)) for night, why in nights.unreadable.items()]


def _unfinished(nights: Nights) -> list[NightLine]:
    return [NightLine(night.id, "", UNFINISHED, "grey") for night in nights.unfinished]


def night_line(verdict: NightVerdict) -> NightLine:
    """The line of a night with this verdict."""
    comparison = verdict.comparison
    light: Light = "grey"
    remarks = [f"{counted(len(verdict.missing), 'cell')} missing"] if verdict.missing else []
    remarks += verdict.not_judged
    if comparison is not None:
        # Grey, if the verdict may still change.
        light = "green" if sign(comparison) == GOOD and not verdict.missing else "grey"
        remarks += check_lines(comparison, ("clean", "not applicable"))
        remarks += [f"judged by {name}" for name in [titles(comparison.cells)] if name not in ("", "FID")]
    if verdict.result in REGRESSIONS:
        light = "red"
    counts = Counter(cell.result for cell in comparison.cells) if comparison else Counter[Verdict]()
    return NightLine(
        id=verdict.night,
        time=verdict.time,
        verdict=str(verdict.result),
        light=light,
        counts={str(result): counts[result] for result in Verdict if counts[result]},
        compared=comparison.compared if comparison else None,
        remarks=tuple(remarks),
        models=(NightModel(verdict.images.path, None),) if verdict.images else verdict.model,
        commit=verdict.software.git_commit,
        is_dirty=bool(verdict.software.git_dirty),
    )


def history_as_dict(history: History, nights: Sequence[NightLine]) -> dict[str, Any]:
    """The history as plain data, which `taugrid status --json` prints."""
    return {"dir": history.shown, "nights": [night.as_dict() for night in nights]}


def nights_text(nights: Sequence[NightLine]) -> str:
    """A line for each night, in columns: id, time, verdict, and then cells, checkpoints and remarks."""
    rows = []
    for night in nights:
        checkpoints = listed([short_path(name) for name in night.checkpoints], MAX_CHECKPOINTS)
        remarks = f"({'; '.join(night.remarks)})" if night.remarks else ""
        rows.append((night.id, night.time, night.verdict, "  ".join(filter(None, (night.cells, checkpoints, remarks)))))
    return "\n".join(in_columns(rows))


class HistoryView:
    """One history, read only: no method starts a run, runs code that a config names, or writes a file."""

    def __init__(self, history: History) -> None:
        self._history = history

    def __repr__(self) -> str:
        count = counted(len(self.nights), "night")
        newest = next((f"newest verdict: {line.verdict} ({line.id})" for line in self.nights[::-1] if line.time), "")
        return f"<history of {count} in {self.directory}; {newest or 'no verdict yet'}>"

    @property
    def directory(self) -> str:
        """The path or URL of the history."""
        return self._history.shown

    @cached_property
    def nights(self) -> Sequence[NightLine]:
        """Nights whose verdict can't be read, the complete ones, oldest first, and then the unfinished ones."""
        return tuple(nights_of(self._history))

    @property
    def table(self) -> "pd.DataFrame":
        """history.parquet: a row for each metric of each cell of each complete night; `UserError` if there is none."""
        try:
            table: pd.DataFrame = parquet.read_table(self._history.storage.read(self._history.parquet)).to_pandas()
        except (FileNotFoundError, DamagedFile):
            report = f"`taugrid report {self.directory}` writes it"
            raise UserError(f"{self.directory} has no history.parquet, or a damaged one; {report}") from None
        return table

    def open(self, night: str) -> "RunView":
        """The run of a night, by the night's id; `UserError` if there is no such night."""
        from taugrid.orchestrator.view.run import RunView

        ids = [line.id for line in self.nights]
        if night not in ids:
            newest = ", ".join(ids[-MAX_NIGHTS_NAMED:])
            raise UserError(f"{self.directory} has no night {night!r}; its newest are {newest}")
        found = self._history.night(night)
        if (verdict := found.verdict) is not None and verdict.images:
            raise UserError(f"night {night} judged images from elsewhere, so it has no run")
        return RunView(open_existing(found.run_name))


def write_history(history: History) -> Sequence[Night]:
    """Write history.parquet, the trend figures and the page from the verdicts of all complete nights. Returns these,
    oldest first."""
    from taugrid.eval.figures.drawing import save  # matplotlib, which only the end of a night needs
    from taugrid.eval.pages.history import history_html, judged_metrics, trend_figure

    found = history.read()
    verdicts = [verdict for _, verdict in found.judged]
    nights = [night_line(verdict) for verdict in verdicts]
    rows = [row for verdict in verdicts for row in _night_rows(verdict)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with replacing(history.parquet, history.storage) as temporary:
        texts = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
        pq.write_table(table, temporary, compression="none", use_dictionary=texts)  # as `read_table` demands
    frame, lights = table.to_pandas(), {night.id: night.light for night in nights}
    with history.storage.local_folder(history.root) as folder:
        for number, metric in enumerate(judged_metrics(frame)):
            name = "trend" if number == 0 else f"trend-{metric.name}"
            save(trend_figure(frame, lights, {}, metric), folder / name)
    files: dict[str, dict[str, str]] = {}  # night -> "report" or "summary" -> its path
    for kind, pattern in (("report", "*/run/report.html"), ("summary", "*/summary.md")):
        for path in history.storage.list(history.nights, pattern):
            files.setdefault(path.relative_to(history.nights).parts[0], {})[kind] = history.relative(path)
    name = verdicts[-1].name if verdicts else history.root.name
    with replacing(history.index, history.storage) as temporary:
        lines = [*_unreadable(found), *nights, *_unfinished(found)]
        write_text(temporary, history_html(name, lines, rows, files))
    return [night for night, _ in found.judged]


def _night_rows(verdict: NightVerdict) -> Iterator[dict[str, Any]]:
    """A row for each metric of each cell, and one for a cell without metrics."""
    compared = {cell.cell: cell for cell in verdict.comparison.cells} if verdict.comparison else {}
    for score in verdict.scores:
        cell, settings = compared.get(score.cell), score.settings
        eta = settings.get("eta") if settings.get("sampler", DEFAULT) == DEFAULT else None
        about = {
            "night": verdict.night,
            "time": verdict.time,
            "night_result": str(verdict.result),
            "label": score.label,
            "cell": score.cell,
            "steps": settings.get("steps"),
            "eta": f"{eta:g}" if isinstance(eta, int | float) else eta,
            "num_samples": settings["num_samples"],
            "settings": json.dumps(settings, sort_keys=True),
            "weights_sha256": score.weights_sha256,
            "baseline": verdict.baseline and (verdict.baseline.id or verdict.baseline.place),
        }
        if cell is not None:
            by = next(iter(cell.judged), None)
            about |= {"situation": cell.situation, "result": str(cell.result), "by": by, "seeds": cell.seeds}
        names: list[str | None] = [name for name in COLUMNS if name in score.metrics]
        for name in names or [None]:
            row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | about | {"metric": name}
            if name is not None:
                row |= {"value": score.metrics[name], "se": score.metrics.get(COLUMNS[name].sampling_error or "")}
                if cell is not None:
                    row["baseline_value"] = cell.others.get(name, (None, None))[1]
            if name is not None and cell is not None and (metric := cell.metrics.get(name)) is not None:
                row |= {key: getattr(metric, key) for key in ("difference", "margin", "t", "upper", "detectable")}
                row |= {"baseline_value": metric.baseline, "difference_se": metric.se}
                row["verdict"] = metric.verdict and str(metric.verdict)
                row["seeds"] = "usual" if metric.judged is None else cell.seeds
            yield row


def without_newest(nights: Sequence[Night], keep: int) -> Sequence[Night]:
    """All but the newest `keep` of nights in their order."""
    return nights[: max(0, len(nights) - keep)]


def since_last_removal(nights: Sequence[Night]) -> Sequence[Night]:
    """The nights after the last one whose images were removed, of `nights`, which are oldest first.

    A removal takes the images of all nights up to one, so earlier nights need no look. In a bucket each look costs
    requests, and there are more such nights every day."""
    for number in reversed(range(len(nights))):
        if nights[number].has_lost_images:
            return nights[number + 1 :]
    return nights


def remove_images(nights: Sequence[Night], say: Callable[[str], None]) -> None:
    """Remove the images of complete nights, the first one's first. Their scores and influences stay, and a sealed
    record takes the images' place. Nights without images are left as they are."""
    for night in nights:
        removed = sum(map(_remove, night.directories_with_images))
        if removed:
            say(f"night {night.id}: the images of {counted(removed, 'cell')} were removed; its scores stay")


def _remove(directory: Path) -> int:
    """Remove the images of a run's complete cells; returns the number of these cells."""
    run = open_existing(with_urls(str(directory)))
    rundir, count = run.rundir, 0
    with rundir.lock():
        listing = Listing(rundir)
        for cell in run.plan.cells:
            there = cell.shards_in(listing.samples(cell.name))
            existing = [rundir.sample_part(cell, shard) for shard in there]
            if not existing:
                continue
            if rundir.removed_images(cell) is not None:  # a kill came between the record and the last file
                for path in existing:
                    rundir.storage.delete(path)
                continue
            digests = pixel_digests(rundir, cell)
            if digests is None:
                continue  # damaged or incomplete: `taugrid run` reports it
            first = parquet.inspect(existing[0], every_byte=False, storage=rundir.storage).metadata
            shards = [{"file": shard.name, "start": shard.start, "stop": shard.stop} for shard in cell.shards]
            rundir.remove_images(cell, {**first, "shards": shards}, digests)
            count += 1
    return count
