"""What a run's table says, without computing anything: for cards, Markdown and LaTeX."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from taugrid import __version__
from taugrid.errors import UserError
from taugrid.eval.tables.entries import shown_number
from taugrid.eval.tables.long_form import score_columns
from taugrid.eval.tables.quality import QualityTable, to_latex, to_markdown
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.report.collect import with_unscored
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.selection import find_cell
from taugrid.protocol import ProtocolFields
from taugrid.registry.metrics import MetricColumn
from taugrid.storage import read_json

OTHER_LETTERS = re.compile("[^\n\x20-\x7e\u00a1-\u017e\u2013\u2014\u2018-\u201d\u2026]")
"""What pdflatex can't set without further packages."""
TASK = {"type": "unconditional-image-generation", "name": "Image generation"}
"""The Hub has no task of its own for samples of classes."""


class Results(NamedTuple):
    """The scores that a run's tables have."""

    table: QualityTable
    cells: dict[str, Cell]
    """By id; those of all rows of the table."""

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        return self.table.rows

    def protocol(self, row: Mapping[str, Any]) -> ProtocolFields:
        return self.table.protocols.get(row["protocol"], {})


def results(run: Run, name: str | None = None) -> Results | None:
    """The results of a run as quality.json has them, of all cells or of the one that `name` fits; None if none has any.

    Raises:
        UserError: if no cell or several fit.
    """
    document = read_json(run.rundir.tables / "quality.json", run.rundir.storage) or {}
    cells = {cell.id: cell for cell in run.configured.cells}
    rows = [row for row in document.get("rows", []) if row["cell"] in cells]
    shown = [] if name else with_unscored(run.configured, rows, document.get("protocols", {}))
    if name is not None:
        wanted = find_cell(run.configured, name).id
        rows = [row for row in rows if row["cell"] == wanted]
    layout = requested.layout(run.config, run.configured)
    return Results(QualityTable.read(document | {"rows": rows}, layout, shown), cells) if rows else None


def require_results(run: Run, name: str | None) -> Results:
    """The same; `UserError` if there are none."""
    if (found := results(run, name)) is None:
        of = f"{name} of " if name else ""
        raise UserError(f"the tables of {of}{run.rundir.shown} have no score; `taugrid evaluate` makes them")
    return found


def latex(run: Run, name: str | None) -> str:
    """A fragment of LaTeX for a document that loads booktabs and siunitx: a table of each metric."""
    text = to_latex(require_results(run, name).table, siunitx=True)
    return OTHER_LETTERS.sub(lambda found: f"U+{ord(found[0]):04X}", text)


def model_card(run: Run, name: str | None) -> str:
    """The results as the Hub reads them from a model's README.md (`model-index`), as tables, and how to repeat them."""
    found = require_results(run, name)
    index = [{"name": run.config.name, "results": [_result(found, row) for row in found.rows]}]
    config = run.config.model_dump(mode="json", exclude_defaults=True)
    lines = [
        front_matter({"tags": ["taugrid", "diffusion"], "model-index": index}),
        f"# {run.config.name}",
        found.table.about,
        to_markdown(found.table).strip(),
        *([] if not found.table.notes else ["\n".join(f"- {markdown(note)}" for note in found.table.notes)]),
        "## How to repeat it",
        f"Scored with [taugrid](https://pypi.org/project/taugrid) {_version(run)}. This is `config.yaml`:",
        fenced(config),
        f"    pip install taugrid=={_version(run)}\n    taugrid run config.yaml",
    ]
    return "\n\n".join(lines) + "\n"


def _version(run: Run) -> str:
    """The version of taugrid that wrote the run."""
    recorded = read_json(run.rundir.provenance, run.rundir.storage)
    versions = recorded.get("versions") if isinstance(recorded, dict) else None
    return str((versions or {}).get("taugrid", __version__))


def _result(found: Results, row: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a cell as an element of `results`."""
    protocol, label = found.protocol(row), found.cells[row["cell"]].label
    reference = dict(protocol.get("reference", {}))
    known = reference.get("dataset")
    dataset = {"type": known or "custom", "name": known or "custom", "split": reference.get("split"), "args": reference}
    about = {
        "cell": row["cell"],
        "num_samples": row["num_samples"],
        "network_evaluations": row["network_evaluations"],
        "features": protocol.get("extractor", {}).get("name"),
        "protocol": row["protocol"],
    }
    metrics = [
        {
            "type": column.name,
            "value": row[column.name],
            "name": f"{column.title}, {label}",
            "args": errors(column, row) | about,
        }
        for column in scores(row)
    ]
    return {"task": TASK, "dataset": {k: v for k, v in dataset.items() if v is not None}, "metrics": metrics}


def scores(row: Mapping[str, Any]) -> list[MetricColumn]:
    """The numbers that a row has."""
    return [column for column in score_columns() if row.get(column.name) is not None]


def errors(column: MetricColumn, row: Mapping[str, Any]) -> dict[str, float]:
    """The standard error of a number, and its errors of another meaning by their columns."""
    names = {name: name for name in (column.error, *column.further) if name}
    if column.sampling_error:
        names[column.sampling_error] = "standard_error"
    return {shown: row[name] for name, shown in names.items() if row.get(name) is not None}


def scores_table(found: Results | None, cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """The headings of all metrics that a table shows, and for each of `cells` its scores with their errors as text."""
    metrics = [] if found is None else found.table.metrics
    rows = {} if found is None else {(row["cell"], row["num_samples"]): row for row in found.rows}
    texts = [
        [shown_number(row.get(metric.name), row.get(metric.error or "")) for metric in metrics]
        for row in (rows.get((cell.id, cell.settings.num_samples), {}) for cell in cells)  # a cell may have grown since
    ]
    return [metric.title for metric in metrics], texts


def front_matter(values: Mapping[str, Any]) -> str:
    """Values as the YAML at the top of a card, without YAML's references to what was said before."""
    return f"---\n{yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, width=1000)}---"


def fenced(values: Mapping[str, Any]) -> str:
    """Values as a block of YAML in Markdown."""
    text = yaml.safe_dump(
        json.loads(json.dumps(values)), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    return f"~~~~~~yaml\n{text}~~~~~~"


def markdown(text: str) -> str:
    """A text in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_\[\]<>#&~])", r"\\\1", " ".join(text.split()))
