"""Collects the rows of the quality table, and the evidence for comparisons, from scores and events on disk.

Tables also have places for cells without a score: names in a table come from the grid.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from taugrid.config import Data
from taugrid.eval.metrics.frechet import NO_ERROR, singular
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import EXACT, FID, SCORES, appended_columns
from taugrid.eval.tables.table import NO_FLOORS, Floors
from taugrid.grids import SEEDS
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.plan.sources import Oracle
from taugrid.orchestrator.report.replicates import label_without_seeds
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.evidence import floors_of, influences_of
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.protocol import ProtocolFields, comparability_key, on_devices, short_name
from taugrid.registry.extractors import PIXELS
from taugrid.registry.metrics import COLUMNS, SAMPLED
from taugrid.registry.samplers import DEFAULT
from taugrid.storage import together
from taugrid.words import listed
from taugrid.workers import schedules
from taugrid.workers.diffusion import gaussian
from taugrid.workers.diffusion.process import path

NO_INFLUENCE = "its samples' influences are missing or damaged; `taugrid run` computes them"

NOT_TESTED = (
    "its influences, which differences need, are missing or damaged, so no difference from it is tested; `taugrid run` "
    "computes them"
)
"""The note on a cell that has standard errors, but not the influences that they came from."""

NO_IMAGES = "images that it was scored on are gone, so nothing can check the score; `taugrid run` makes both again"
"""The note on a cell whose images were not removed by a command that records this."""

NO_CLOSED_FORM = "no FID in closed form: that is known for the steps of ddim (eq. 12) alone"
"""Of a cell of another sampler beside cells that have one."""

LARGEST_SHARE_BEYOND_1 = 1e-6
"""The largest share of a Gaussian's pixels that 8 bits may clip: the closed form ignores clipping."""

NAMED_CELLS = 4  # cells that a note below the table names; the rest are counted


class Rows(NamedTuple):
    """The rows of quality.csv, the notes below the table, and the evidence for comparisons."""

    rows: list[dict[str, Any]]
    notes: list[str]
    evidence: Evidence
    """Protocols by the rows' short hashes, the samples' influences, and which cells share their noise."""
    floors: Floors = NO_FLOORS


def collect(plan: Plan, rundir: RunDir, scoring: Scoring) -> Rows:
    """The rows of all scored cells, in the order of the grid. A note names those whose images are gone."""
    history = RunHistory.read(rundir)
    rows: list[dict[str, Any]] = []
    protocols: dict[str, Any] = {}
    influences: dict[str, dict[str, Array]] = defaultdict(dict)
    pairings: dict[str, Hashable] = {}
    reasons: dict[str, str] = {}
    cells_of: dict[str, list[str]] = defaultdict(list, {NOT_TESTED: []})  # note -> names, the gravest first
    listing = Listing(rundir)
    wanted = [(cell, scoring.id(cell)) for cell in plan.cells]
    scores = zip(plan.cells, rundir.read_scores(wanted, listing), strict=True)
    scored = [(cell, score) for cell, score in scores if score is not None]
    rundir.know_influences([(cell, scoring.id(cell)) for cell, _ in scored], listing)

    def its_influences(each: tuple[Cell, dict[str, Any]]) -> dict[str, Array]:
        return influences_of(rundir, each[0], scoring.id(each[0]), each[1]["metrics"], listing)

    for (cell, score), found in zip(scored, together(rundir.storage, its_influences, scored), strict=True):
        protocol = on_devices(score["protocol"], history.device_kinds(cell.id))
        short = short_name(protocol)
        protocols[short] = protocol
        value = exact_fid(cell, scoring.extractor.name, scoring.reference.data)
        exact = {} if value is None else {EXACT: value}
        n, dimensions = cell.settings.num_samples, scoring.extractor.dimensions
        origin = history.origin(cell.id)
        rows.append(row_of(cell, score["metrics"], short, origin.seconds_of(n)) | exact)
        about = singular(n, "samples", dimensions) if "fid" in score["metrics"] else None
        no_images = NO_IMAGES if rundir.lacks_images(cell, listing) else None
        is_lost = any(c.sampling_error in score["metrics"] and c.name not in found for c in SAMPLED)
        for note in (*score["notes"], *filter(None, [about, no_images, NOT_TESTED if is_lost else None])):
            cells_of[note].append(cell.label)
        pairings[cell.id] = (cell.settings.seed, cell.model.decoder.network_shape)
        for name, influence in found.items():
            influences[name][cell.id] = influence
        if FID.name not in found:
            recorded = (note.removeprefix(NO_ERROR) for note in score["notes"] if note.startswith(NO_ERROR))
            reasons[cell.id] = next(recorded, NO_INFLUENCE)
        for mixture in origin.mixtures:
            cells_of[mixture].append(cell.label)
    if any(EXACT in row for row in rows):
        foreign = {row["cell"] for row in rows if row["sampler"] != DEFAULT}
        cells_of[NO_CLOSED_FORM] += [cell.label for cell in plan.cells if cell.id in foreign]
    named = {note: listed(names, NAMED_CELLS) for note, names in cells_of.items() if names}
    notes = [f"{'every cell' if len(cells_of[note]) == len(rows) else its}: {note}" for note, its in named.items()]
    evidence = Evidence(influences.pop(FID.name, {}), pairings, protocols, reasons, influences)
    sizes = dict.fromkeys(row["num_samples"] for row in rows)
    floors = {n: known for n in sizes if (known := floors_of(rundir, scoring, n))}
    return Rows(rows, [*plan.remarks, *notes], evidence, floors)


def row_of(cell: Cell, metrics: Mapping[str, float], protocol: str, seconds: float | None) -> dict[str, Any]:
    settings = cell.settings
    return {
        "cell": cell.id,
        "model": cell.model.id,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "eta": cell.eta_number,
        "sigma": settings.sigma,
        "spacing": cell.spacing_name,
        "clip": cell.clip,
        "num_samples": settings.num_samples,
        "network_evaluations": cell.nfe,
        **{name: metrics.get(name) for name in SCORES},
        "seconds": None if seconds is None or math.isnan(seconds) else round(seconds, 3),
        "protocol": protocol,
        **cell.axes,
        **{name: metrics[name] for name in appended_columns() if name in metrics},
    }


def exact_fid(cell: Cell, extractor: str, reference: object) -> float | None:
    """The Frechet distance between a Gaussian oracle's samples and its data, both in 8 bits, at infinite N."""
    source = cell.model.source
    if not (isinstance(source, Oracle) and source.distribution == "gaussian" and extractor == PIXELS):
        return None
    if cell.settings.is_guided:  # by another network, of which no form is known
        return None
    shape = cell.model.image_shape
    if not isinstance(reference, Data) or (reference.name, reference.image_shape) != ("gaussian", shape):
        return None
    if cell.settings.rounding != "round":
        return None
    if (cell.settings.sampler, cell.settings.clip, cell.settings.precision) != ("ddim", "none", "float32"):
        return None  # the form is of eq. 12; a step that clips is not affine, and rounding adds to the covariance
    data, process = gaussian.gaussian(shape), schedules.process(cell.model.diffusion)
    first, *_ = visited = path(process, cell.tau)
    variance = (process.first_scale(first) / first.scale) ** 2
    samples = gaussian.sampled(data, [at.alpha_bar for at in visited], cell.settings.eta, variance)
    if max(map(gaussian.share_beyond_1, (samples, data))) > LARGEST_SHARE_BEYOND_1:
        return None
    return gaussian.frechet_distance(gaussian.rounded(samples), gaussian.rounded(data))


def with_unscored(
    plan: Plan, rows: Sequence[dict[str, Any]], protocols: Mapping[str, ProtocolFields]
) -> list[dict[str, Any]]:
    """`rows` of scored cells, and a row without scores for each setting that none of them has, in the grid's order.
    Such a row has the protocol of the other rows with its N. If these have none, or can't be compared with each other,
    the table of the row is unknown, and it is left out."""
    scored = {row["cell"]: row for row in rows}
    included = {label_without_seeds(cell) for cell in plan.cells if cell.id in scored}
    usual = _usual_protocols(rows, protocols)
    all_rows: list[dict[str, Any]] = []
    for cell in plan.cells:
        label = label_without_seeds(cell)
        if cell.id in scored:
            all_rows.append(scored[cell.id])
        elif label not in included and cell.settings.num_samples in usual:
            included.add(label)
            seeds = {seed: rows[0][seed] for seed in SEEDS if seed in rows[0]}  # it is not a replicate
            all_rows.append(row_of(cell, {}, usual[cell.settings.num_samples], None) | seeds)
    return all_rows


def _usual_protocols(rows: Sequence[Mapping[str, Any]], protocols: Mapping[str, ProtocolFields]) -> dict[int, str]:
    """N -> a protocol of its cells, if all of them can be compared."""
    names: dict[int, dict[str, str]] = {}
    for row in rows:
        protocol = protocols.get(row["protocol"])
        key = "" if protocol is None else comparability_key(protocol, COLUMNS)
        names.setdefault(row["num_samples"], {})[key] = row["protocol"]
    return {size: next(iter(by_key.values())) for size, by_key in names.items() if len(by_key) == 1}
