"""From scores, events and samples on disk to tables and figures."""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS, GRID_SECTIONS, Config, Data
from taugrid.errors import DamagedFile
from taugrid.eval.features.names import PIXELS
from taugrid.eval.figures import charts as figures
from taugrid.eval.figures import pictures
from taugrid.eval.tables import differences, published
from taugrid.eval.tables import quality as tables
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.rows import Joined, check_joinable
from taugrid.hashing import identity
from taugrid.images import decode_png, to_pictures
from taugrid.orchestrator.plan.evaluation import Evaluation
from taugrid.orchestrator.plan.grid import Cell, Model, Plan, name_of
from taugrid.orchestrator.rundir.directory import RunDir, read_events
from taugrid.storage import read_sealed
from taugrid.workers import schedules
from taugrid.workers.diffusion import gaussian

NO_ERROR = "no fid_se: "
"""How the note begins that says why a cell's FID has no standard error."""
NO_INFLUENCE = "its samples' influences are not there or not whole; `taugrid evaluate` computes them"

LARGEST_SHARE_BEYOND_1 = 1e-6
"""Of a Gaussian's images: 8 bits clip those pixels, which closed forms know nothing of."""

NAMED_CELLS = 4
"""Cells that a note under the table names; more are counted."""


class Rows(NamedTuple):
    """The rows of quality.csv, remarks that belong under the table, and what comparisons need besides."""

    rows: list[dict[str, Any]]
    notes: list[str]
    evidence: Evidence
    """Protocols by the rows' short hashes, the samples' influences, and which cells share their noise."""


def write(config: Config, plan: Plan, rundir: RunDir, collected: Rows) -> None:
    """Write tables/quality.* and figures/ from the scores that there are."""
    rows, notes, evidence = collected
    joining = config.report.join_protocols
    joined = check_joinable(rows, evidence.protocols, override=True) if joining else Joined([], frozenset())
    alike = differences.indistinguishable(rows, evidence, joining) if rows else frozenset()
    beside = published.beside(rows, evidence.protocols, {model.id: network(model) for model in plan.models})
    published.write(beside, rundir.tables, "published")
    notes = [*joined.notes, *notes, *published.pointer(beside, "published")]
    tables.write(rows, rundir.tables, evidence.protocols, notes, alike, joined.cells)
    differences.write(differences.differences(rows, evidence) if rows else [], rundir.tables)
    rundir.figures.mkdir(parents=True, exist_ok=True)
    if rows:
        figures.quality(tables.frame(rows), rundir.figures / "quality", {} if joining else evidence.protocols)
    _write_checkpoints(plan, rundir, rows, {} if joining else evidence.protocols)
    _write_samples(config, plan, rundir)
    write_losses(plan, rundir)


def write_losses(plan: Plan, rundir: RunDir) -> None:
    """Write figures/loss if a model of the plan has been trained here, else remove what is there of others."""
    if curves := loss_curves(plan, rundir):
        figures.losses(curves, rundir.figures / "loss")
    else:
        for stale in rundir.figures.glob("loss.*"):
            stale.unlink()


def loss_curves(plan: Plan, rundir: RunDir) -> dict[str, pd.DataFrame]:
    """The logs of the models that were trained here, each by its id and what sets it apart in the grid."""
    curves: dict[str, pd.DataFrame] = {}
    first: dict[str, Cell] = {}
    for cell in plan.cells:
        first.setdefault(cell.model.id, cell)
    for cell in first.values():
        log = rundir.models / cell.model.id / "train" / "log.jsonl"
        if cell.model.train is not None and log.is_file():
            of_model = {key: value for key, value in cell.axes.items() if key.split(".")[0] in GRID_SECTIONS}
            name = ", ".join([*(f"{key} = {value}" for key, value in of_model.items()), cell.model.id])
            curves[name] = pd.read_json(log, lines=True)
    return curves


def network(model: Model) -> published.Network:
    """Whose weights a model's samples are made with, as is said where published numbers stand beside them."""
    ours, theirs = schedules.alpha_bar(model.diffusion), schedules.alpha_bar(DIFFUSION_DEFAULTS)
    same_alpha = ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-6, atol=0)
    is_the_papers = same_alpha and model.diffusion.prediction == DIFFUSION_DEFAULTS.prediction
    process = None if is_the_papers else model.diffusion.in_words
    elsewhere = model.checkpoint.path if model.checkpoint else model.own.callable if model.own else None
    return published.Network(elsewhere or "trained here", process)


def collect(plan: Plan, rundir: RunDir, evaluation: Evaluation) -> Rows:
    """The rows of all scored cells, in the order of the grid."""
    seconds, devices = _from_events(rundir)
    rows: list[dict[str, Any]] = []
    protocols: dict[str, Any] = {}
    influences: dict[str, NDArray[np.float64]] = {}
    pairings: dict[str, Hashable] = {}
    reasons: dict[str, str] = {}
    cells_of: dict[str, list[str]] = defaultdict(list)  # note -> names
    for cell in plan.cells:
        score = read_sealed(rundir.score(cell, evaluation.id(cell)))
        if score is None:
            continue
        short = identity(score["protocol"])[:8]
        protocols[short] = score["protocol"]
        exact = {} if (value := _exact_fid(cell, evaluation)) is None else {tables.EXACT: value}
        rows.append(_row(cell, score["metrics"], short, seconds.get(cell.id)) | exact)
        for note in score["notes"]:
            cells_of[note].append(cell.name)
        pairings[cell.id] = (cell.settings.seed, cell.model.image_shape)
        influence = _influence(rundir.influence(cell, evaluation.id(cell)), cell.settings.num_samples)
        if influence is not None:
            influences[cell.id] = influence
        else:
            said = (note.removeprefix(NO_ERROR) for note in score["notes"] if note.startswith(NO_ERROR))
            reasons[cell.id] = next(said, NO_INFLUENCE)
        if len(devices[cell.id]) > 1:
            cells_of[f"mixed: sampled on {', '.join(sorted(devices[cell.id]))}"].append(cell.name)
    notes = [f"{_listed(names, len(rows))}: {note}" for note, names in cells_of.items()]
    return Rows(rows, [*plan.remarks, *notes], Evidence(influences, pairings, protocols, reasons))


def _influence(path: Path, num_samples: int) -> NDArray[np.float64] | None:
    """How far each sample moves FID, (N,); null where the file is not there or not whole."""
    try:
        parquet.inspect(path)
        parts = [values for _, values in parquet.read_numbers(path, "influence")]
    except (FileNotFoundError, DamagedFile):
        return None
    found = np.concatenate(parts)
    return found if len(found) == num_samples else None


def _listed(names: list[str], cells: int) -> str:
    if len(names) == cells:
        return "every cell"
    more = len(names) - NAMED_CELLS
    return ", ".join(names[:NAMED_CELLS]) + (f" and {more} more" if more > 0 else "")


def _row(cell: Cell, metrics: Mapping[str, float], protocol: str, seconds: float | None) -> dict[str, Any]:
    settings = cell.settings
    return {
        "cell": cell.id,
        "model": cell.model.id,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "eta": settings.eta_number,
        "sigma": settings.sigma,
        "spacing": settings.spacing_name,
        "clip": settings.clip,
        "num_samples": settings.num_samples,
        "network_evaluations": len(cell.tau),
        **{name: metrics.get(name) for name in tables.SCORES},
        "seconds": None if seconds is None else round(seconds, 3),
        "protocol": protocol,
        **cell.axes,
        **{name: metrics[name] for name in tables.appended_columns() if name in metrics},
    }


def _exact_fid(cell: Cell, evaluation: Evaluation) -> float | None:
    """The Frechet distance of a Gaussian oracle's samples from their data, both of 8 bits and without end."""
    model, reference = cell.model, evaluation.reference.given
    is_of_its_data = isinstance(reference, Data) and (model.oracle, model.image_shape) == (
        reference.name,
        reference.image_shape,
    )
    if model.oracle != "gaussian" or not is_of_its_data or evaluation.extractor.name != PIXELS:
        return None
    if cell.settings.clip != "none":
        return None  # a step that clips is not affine
    data = gaussian.gaussian(model.image_shape)
    samples = gaussian.sampled(data, schedules.alpha_bar(model.diffusion), cell.tau, cell.settings.eta)
    if max(map(gaussian.share_beyond_1, (samples, data))) > LARGEST_SHARE_BEYOND_1:
        return None
    return gaussian.frechet_distance(gaussian.rounded(samples), gaussian.rounded(data))


def _from_events(rundir: RunDir) -> tuple[dict[str, float], dict[str, set[str]]]:
    """Device seconds and device names by cell, each shard counted once: as it was last committed."""
    last = {(e["cell"], e["path"]): e for e in read_events(rundir.events) if e["event"] == "shard" and e["committed"]}
    seconds: dict[str, float] = defaultdict(float)
    devices: dict[str, set[str]] = defaultdict(set)
    for (cell, _), event in last.items():
        seconds[cell] += event["seconds"]
        devices[cell].add(event["device"])
    return seconds, devices


def _write_checkpoints(
    plan: Plan, rundir: RunDir, rows: list[dict[str, Any]], protocols: Mapping[str, Mapping[str, object]]
) -> None:
    """figures/checkpoints.*, where the grid has several."""
    order = list(dict.fromkeys(cell.axes.get(tables.CHECKPOINT) for cell in plan.cells))
    loaded = [checkpoint for checkpoint in order if checkpoint is not None]
    if rows and len(loaded) > 1:
        figures.checkpoints(tables.frame(rows), loaded, rundir.figures / "checkpoints", protocols)
        return
    for suffix in ("png", "svg"):
        (rundir.figures / f"checkpoints.{suffix}").unlink(missing_ok=True)


def _write_samples(config: Config, plan: Plan, rundir: RunDir) -> None:
    """figures/samples.png and consistency.png, or one of each for cells that differ in more than eta and S."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    checkpoints = tables.short_checkpoints(cell.axes.get(tables.CHECKPOINT) for cell in plan.cells)
    for cell in plan.cells:
        groups[_group_name(cell, checkpoints, with_clip=False)].append(cell)
    for name, cells in list(groups.items()):
        if len({_place(cell) for cell in cells}) < len(cells):  # clip is an axis, not a property of the row
            del groups[name]
            for cell in cells:
                groups[_group_name(cell, checkpoints, with_clip=True)].append(cell)
    for stale in (*rundir.figures.glob("samples*.png"), *rundir.figures.glob("consistency*.png")):
        stale.unlink()
    for name, cells in groups.items():
        firsts = {_place(cell): _first_images(cell, rundir, config.report.images_per_cell) for cell in cells}
        complete = {place: images for place, images in firsts.items() if images is not None}
        smallest = min((len(picture) for picture in complete.values()), default=0)
        if complete:
            stem = "samples" if len(groups) == 1 else f"samples-{name}"
            same_length = {place: picture[:smallest] for place, picture in complete.items()}
            pictures.samples(same_length, rundir.figures / f"{stem}.png")
            _write_consistency(same_length, rundir.figures / f"{stem.replace('samples', 'consistency', 1)}.png")


def _write_consistency(shown: Mapping[tuple[str, int], NDArray[np.uint8]], path: Path) -> None:
    """Figure 5: the deterministic row alone, where there is more than one S to compare."""
    by_steps = {steps: images for (eta, steps), images in shown.items() if eta == "0"}
    if len(by_steps) > 1:
        pictures.consistency(by_steps, path)


def _place(cell: Cell) -> tuple[str, int]:
    eta = cell.settings.eta
    return ("sigma_hat" if eta == "sigma_hat" else f"{eta:g}", cell.settings.steps)


def _group_name(cell: Cell, checkpoints: Mapping[str, str], with_clip: bool) -> str:
    settings, axes = cell.settings, dict(cell.axes)
    if (checkpoint := axes.get(tables.CHECKPOINT)) is not None:
        axes[tables.CHECKPOINT] = checkpoints[checkpoint]
    others = [settings.spacing_name, *(f"{key.split('.')[-1]}={value}" for key, value in axes.items())]
    return name_of([*others, *([f"clip={settings.clip}"] if with_clip else []), cell.model.id])


def _first_images(cell: Cell, rundir: RunDir, count: int) -> NDArray[np.uint8] | None:
    """(count, H, W) or (count, H, W, 3) of the images 0 to count - 1; null where they are not all there."""
    wanted = range(min(count, cell.settings.num_samples))
    found: dict[int, bytes] = {}
    for shard in cell.shards:
        path = rundir.sample_part(cell, shard)
        if shard.start >= wanted.stop or not path.exists():
            break
        try:
            found |= parquet.read_png(path, wanted)
        except DamagedFile:
            return None
    if len(found) < len(wanted):
        return None
    return to_pictures([decode_png(found[i]) for i in wanted])
