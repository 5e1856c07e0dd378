"""What a run's table says, without computing anything: for cards, Markdown and LaTeX."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from taugrid import __version__
from taugrid.errors import UserError
from taugrid.eval.tables.long_form import Row, shown_columns, with_notes
from taugrid.eval.tables.quality import QualityTable
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.report.collect import with_unscored
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.selection import find_cell
from taugrid.registry.metrics import MetricColumn
from taugrid.storage import read_json
from taugrid.yaml_text import to_yaml

OTHER_LETTERS = re.compile("[^\n -~\xc0-\xcf\xd1-\xdd\xdf-\xef\xf1-\xfd\u2018\u2019\u201c\u201d\u2026]")
"""What pdflatex can't set without further packages: all but ASCII, most accented letters, quotes and dots."""
TASK = {"type": "unconditional-image-generation", "name": "Image generation"}
"""The Hub has no task of its own for samples of classes."""


def results(run: Run, name: str | None = None) -> QualityTable:
    """The table that quality.json holds, of all cells or of the one that `name` fits; without rows if none has a score.
    Raises `UserError` if no cell or several fit."""
    document, plan = read_json(run.rundir.tables / "quality.json", run.rundir.storage) or {}, run.configured
    wanted = {cell.id for cell in (plan.cells if name is None else [find_cell(plan, name)])}
    rows = [row for row in document.get("rows", []) if row["cell"] in wanted]
    shown = with_unscored(plan, rows, document["protocols"]) if rows and name is None else []
    return QualityTable.read(document | {"rows": rows}, requested.layout(run.config, plan), shown)


def latex(run: Run, name: str | None) -> str:
    """A fragment of LaTeX for a document that loads booktabs and siunitx: a table of each metric."""
    text = _required(run, name).latex(siunitx=True).replace(" \\%", "~\\%") + "\n"
    text = re.sub(r"(?<=[ (])-(?=\d)", "$-$", text)  # a minus of a sentence
    return OTHER_LETTERS.sub(lambda found: f"U+{ord(found[0]):04X}", text)


def model_card(run: Run, name: str | None) -> str:
    """The results as the Hub reads them from a model's README.md (`model-index`), as tables, and how to repeat them."""
    table, labels = _required(run, name), {cell.id: cell.label for cell in run.configured.cells}
    index = [{"name": run.config.name, "results": [_result(table, row, labels[row["cell"]]) for row in table.rows]}]
    provenance = run.rundir.read_provenance()
    version = provenance.get("versions", {}).get("taugrid", __version__)
    lines = [
        front_matter({"tags": ["taugrid"], "model-index": index}),
        f"# {run.config.name}",
        with_notes(f"{table.about}\n\n{table.markdown}", [markdown(note) for note in table.notes]).strip(),
        "## How to repeat it",
        f"taugrid {version} sampled and scored this, with `config.yaml`:",
        config_block(run),
        "    taugrid run config.yaml",
    ]
    return without_homes("\n\n".join(lines) + "\n")


def _required(run: Run, name: str | None) -> QualityTable:
    if not (table := results(run, name)).rows:
        raise UserError(f"{run.rundir.shown} has no score{f' of {name}' if name else ''}; `taugrid evaluate` makes it")
    return table


def _result(table: QualityTable, row: Row, label: str) -> dict[str, Any]:
    """The scores of a cell as an element of model-index's `results`."""
    protocol = table.protocols.get(row["protocol"], {})
    reference = protocol.get("reference", {})
    name = reference.get("dataset") or "custom"
    about = {key: row[key] for key in ("cell", "num_samples", "network_evaluations", "protocol")}
    about["features"] = protocol.get("extractor", {}).get("name")
    metrics = [
        {
            "type": column.name,
            "value": row[column.name],
            "name": f"{column.title}, {label}",
            "args": _errors(column, row) | about,
        }
        for column in shown_columns([k for k, value in row.items() if value is not None], protocol.get("metrics", ()))
    ]
    return {"task": TASK, "dataset": {"type": name, "name": name, "args": reference}, "metrics": metrics}


def _errors(column: MetricColumn, row: Row) -> dict[str, float]:
    """The standard error of a number, and its errors of another meaning by their columns."""
    names = {name: name for name in (column.error, *column.further) if name}
    if column.sampling_error:
        names[column.sampling_error] = "standard_error"
    return {shown: row[name] for name, shown in names.items() if row.get(name) is not None}


def front_matter(values: Mapping[str, Any]) -> str:
    """Values as the YAML at the top of a card, without YAML's references to what was said before."""
    text = yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, width=10**6)
    # Ids such as 12345678e9 are numbers in YAML 1.2, which the Hub reads.
    quoted = re.sub(r"(?m)(?<= )(?:0\d+|\d+e\d+)$", r'"\g<0>"', text)
    return f"---\n{quoted}---"


def config_block(run: Run) -> str:
    """The config, without what belongs to one machine or account."""
    return fenced(run.config.model_dump(mode="json", exclude_defaults=True, exclude={"cluster", "track"}))


def fenced(values: Mapping[str, Any]) -> str:
    """Values as a block of YAML in Markdown."""
    text = to_yaml(json.loads(json.dumps(values)), default_flow_style=None, width=100, allow_unicode=True)
    return f"~~~~~~yaml\n{text}~~~~~~"


def markdown(text: str) -> str:
    """A text in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_\[\]<>#&~])", r"\\\1", " ".join(text.split()))


def without_homes(text: str) -> str:
    """`text` with ~ in place of a home folder."""
    homes = [r"/(?:home|Users)/[^/\s:;,]+"]
    with suppress(RuntimeError):  # a container's user may have none
        homes += [re.escape(home)] if (home := str(Path.home())) != "/" else []
    return re.sub(rf"(?:{'|'.join(reversed(homes))})(?![\w-])", "~", text)
