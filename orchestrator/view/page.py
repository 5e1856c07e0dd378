"""report.html: gathers what a run's tables, figures, logs and images say, and writes the page."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from taugrid.config import Config
from taugrid.eval.pages.pictures import PagePicture
from taugrid.eval.pages.report import PageFacts, report_html, warnings
from taugrid.eval.tables.by_label import LabelTable
from taugrid.eval.tables.cost import costs
from taugrid.eval.tables.long_form import without_nan
from taugrid.eval.tables.quality import QualityTable
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.sources import Oracle
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.report.collect import with_unscored
from taugrid.orchestrator.report.replicates import NOT_SCORED, label_without_seeds
from taugrid.orchestrator.report.sample_figures import first_images, images_of
from taugrid.orchestrator.report.write import loss_curves, train_seconds
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.protocol import shortened
from taugrid.storage import read_json, replacing
from taugrid.words import counted, short_path
from taugrid.yaml_text import to_yaml

PICTURES: Mapping[str, tuple[str, str]] = {
    "classes": ("Classes", "Rows are classes, with the first images of each"),
    "reconstructions": ("Reconstructions", "Held-out images, and below them what each S makes of their x_T"),
    "interpolations": ("Interpolations", "Rows lead from one sample's x_T to another's"),
    "interpolation-square": ("Interpolations between four samples", "The corners are samples"),
}
"""The beginning of a picture's name in figures/, its title, and what a screen reader says."""
MOSAIC = 16  # images of the best cell at the top of the page
NAMED_CELLS = 8
"""Cells without a score that the page names. The rest are counted."""


def write_page(run: Run, missing: Mapping[str, str] = {}) -> list[str]:
    """Write report.html from what is on disk, whole or not at all, and return its warnings. `missing` has the reasons
    of cells that this session could not finish, by the names of their folders."""
    config, plan, rundir = run.config, run.configured, run.rundir
    document = run.document
    notes = [note for note in document.get("notes", ()) if not note.startswith(NOT_SCORED)]  # told with reasons
    planned = {cell.id for cell in plan.cells}
    rows = [row for row in document.get("rows", ()) if row["cell"] in planned]
    shown = with_unscored(plan, rows, document.get("protocols", {}))
    quality = QualityTable.read(document | {"rows": rows}, requested.layout(config, plan), shown)
    groups, cells = first_images(run), {cell.id: cell for cell in plan.cells}
    found = PageFacts(
        name=config.name,
        planned=len(set(map(label_without_seeds, plan.cells))),
        quality=quality,
        differences=_rows(run, "differences"),
        effects=_rows(run, "effects"),
        published=_rows(run, "published"),
        costs=costs(quality, train_seconds(run)),
        reconstruction=read_json(rundir.tables / "reconstruction.json", rundir.storage) or {},
        by_label=LabelTable.read(
            read_json(rundir.tables / "by_label.json", rundir.storage) or {}, config.evaluate.metrics
        ),
        losses=loss_curves(plan, rundir),
        first_images=lambda cell: images_of(cells[cell], rundir, MOSAIC),
        samples={group.title: group.images for group in groups},
        pictures=list(_pictures(plan.labels | {group.name: group.title for group in groups}, rundir)),
        made=_made(plan, rundir),
        provenance=_provenance(plan, rundir),
        config=to_yaml(reproducing(config), allow_unicode=True),
        warnings=[*_unscored(plan, document, missing), *notes],
    )
    with replacing(rundir.report, rundir.storage) as temporary:
        temporary.write_text(report_html(found), encoding="utf-8", newline="\n")
    return warnings(found)


def reproducing(config: Config) -> dict[str, Any]:
    """The config without what is at its default."""
    found: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    return found


def _rows(run: Run, name: str) -> list[dict[str, Any]]:
    rows = without_nan(run.table(name).to_dict("records")) if name in run.tables else []
    assert isinstance(rows, list)
    return rows


def _pictures(labels: Mapping[str, str], rundir: RunDir) -> Iterator[tuple[PagePicture, bytes]]:
    """The pictures in figures/ that the page shows, with their PNG files. `labels` says what people call that which a
    file is named after."""
    for start, (title, said) in PICTURES.items():
        for path in rundir.storage.list(rundir.figures, f"{start}*.png"):
            rest = path.stem.removeprefix(start).lstrip("-")
            yield PagePicture(path.name, title, labels.get(rest, rest), said), rundir.storage.read(path)


def _unscored(plan: Plan, document: Mapping[str, Any], missing: Mapping[str, str]) -> list[str]:
    """A line for each reason why cells have no score, as far as these are few, and one for all others."""
    scored = {row["cell"] for row in document.get("rows", ())}
    lacking = [cell for cell in plan.cells if cell.id not in scored]
    by_reason: dict[str, list[str]] = {}
    for cell in lacking[:NAMED_CELLS]:
        by_reason.setdefault(missing.get(cell.name, "not evaluated"), []).append(cell.label)
    verbs = {reason: "has" if len(labels) == 1 else "have" for reason, labels in by_reason.items()}
    lines = [f"{'; '.join(labels)} {verbs[reason]} no score: {reason}" for reason, labels in by_reason.items()]
    more = len(lacking) - NAMED_CELLS
    return [*lines, *([f"{counted(more, 'more cell')} without a score"] if more > 0 else [])]


def _made(plan: Plan, rundir: RunDir) -> list[str]:
    """The day of the last work in UTC, taugrid's version, the devices with their machines, and the checkpoint."""
    recorded = rundir.read_provenance()
    version = (recorded.get("versions") or {}).get("taugrid")
    devices = Counter(machine["device"] for machine in recorded.get("machines") or ())
    sources = [model.source for model in plan.models]
    names = [f"{s.distribution} oracle" if isinstance(s, Oracle) else short_path(s.name) for s in sources]
    models = list(dict.fromkeys(names))
    found = [
        RunHistory.read(rundir).worked[:10],
        f"taugrid {version}" if version else "",
        *(f"{device} ({n} machines)" if n > 1 else device for device, n in devices.items()),
        f"model: {models[0]}" if len(models) == 1 else counted(len(models), "model"),
    ]
    return list(filter(None, found))


def _provenance(plan: Plan, rundir: RunDir) -> dict[str, str]:
    """provenance.json as lines of a table. Machines are known by their devices; their names stay here."""
    recorded = rundir.read_provenance()
    machines = recorded.get("machines") or ()
    devices = sorted({" ".join(filter(None, [machine["device"], _libraries(machine)])) for machine in machines})
    versions = {"python": recorded.get("python"), **(recorded.get("versions") or {})}
    commit = recorded.get("git_commit")
    found = {
        "devices": ", ".join(devices),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "taugrid's commit": f"{commit}{' and changes' if recorded.get('git_dirty') else ''}" if commit else "",
        "weights": _weights(plan, recorded.get("models") or {}),
        **{name: _in_words(recorded.get(name)) for name in ("dataset", "reference", "extractor")},
    }
    return {name: text for name, text in found.items() if text}


def _libraries(machine: Mapping[str, Any]) -> str:
    """The versions of what a GPU computes with, such as "(cuda 13.0, cudnn 91002, driver 580.65)"."""
    found = [f"{name} {version}" for name, version in (machine.get("accelerator") or {}).items() if name != "kind"]
    return f"({', '.join(found)})" if found else ""


def _weights(plan: Plan, recorded: Mapping[str, Any]) -> str:
    """The hashes of each model's weights, such as "schedule=cosine: ema 276ed13c17"."""
    known = [model for model in plan.models if model.id in recorded]
    hashes = (": ".join(filter(None, [model.label, _in_words(recorded[model.id])])) for model in known)
    return "; ".join(filter(None, hashes))


def _in_words(value: Any) -> str:
    """Nested JSON in a line: "name digits, split train"; hashes are cut to ten digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items() if item is not None)
    return "" if value is None else shortened(str(value))
