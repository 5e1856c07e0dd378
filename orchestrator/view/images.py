"""Compares images B with images A, wherever they come from: scores, verdicts, and the pixels of pairs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taugrid.eval.gate.rule import ALPHA, MARGIN
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.eval.pairs import Distances, Pairing, distances, distribution, pairing
from taugrid.orchestrator.baseline.compared import CellComparison, GateSettings
from taugrid.orchestrator.baseline.comparison import REPEATS, UNCHANGED, compare_snapshots
from taugrid.orchestrator.baseline.images import cell_of_images, opened
from taugrid.orchestrator.baseline.snapshot import ImagesRequest, Snapshot, Software
from taugrid.orchestrator.exports.target import make_folder, require_new_folder
from taugrid.orchestrator.external import of_all
from taugrid.orchestrator.progress import Progress
from taugrid.registry.metrics import COLUMNS, METRICS, MetricColumn

if TYPE_CHECKING:
    from taugrid.eval.standalone import ScoredImages


def compare_images(
    a: str,
    b: str,
    request: ImagesRequest,
    progress: Progress,
    target: Path | None = None,
    margin: float = MARGIN,
    alpha: float = ALPHA,
) -> dict[str, Any]:
    """Score both sides against one reference, judge B, and measure pairs. Features are extracted in this process.

    Args:
        a: the old side: a path.
        b: the new side.
        request: how both are scored. All of its metrics must be judged; of the default ones, those that can be.
        progress: hears of the stages.
        target: a new folder for a picture of the worst pairs and the numbers of all.
        margin: the accepted regression, as a share of A's value.
        alpha: the probability of a false alarm.

    Returns:
        `new` ("b"), `a`, `b` and `reference` (kind, path, num_images, sha256), `extractor`, `pairing` (how, or why
        not), `margin`, `alpha`; what `judged` returns; `pairs` (None: unpaired, or of two shapes),
        `notes`, `warnings`, and `written`, the folder of the picture.

    Raises:
        UserError: if images, reference, weights or settings can't be used.
    """
    if target is not None:
        require_new_folder(target)
    with opened(request, {"A": a, "B": b}, progress) as sets:
        old, new = sets.sets
        paired = pairing(old, new, request.pair_by)
        scored_a, scored_b = sets.scored(progress, keep=True, orders=paired.orders)
        found = None
        if paired.orders and old.shape == new.shape:
            progress.begin("comparing pixels", old.num_images, "pairs")
            found = distances(old, new, paired, progress.update)
        progress.say("counting the images that repeat")
        gate = GateSettings(margin=margin, alpha=alpha)
        compared = judged(scored_a, scored_b, paired.names, gate, request.metrics)
    if target is not None and found is not None:
        _write(target, found, paired)
    documents = {"A": scored_a.document, "B": scored_b.document}
    return {
        "new": "b",
        "a": documents["A"]["samples"],
        "b": documents["B"]["samples"],
        "reference": documents["A"]["reference"],
        "extractor": documents["A"]["protocol"]["extractor"],
        "pairing": paired.about,
        "margin": margin,
        "alpha": alpha,
        **compared,
        "pairs": None if found is None else _about_pairs(found, paired),
        "notes": [*of_all(documents, "notes"), *compared["notes"], *_without_pixels(paired, found, target)],
        "warnings": of_all(documents, "warnings"),
        "written": None if found is None or target is None else str(target),
    }


def _row(
    column: MetricColumn, values: Sequence[Mapping[Any, Any]], cell: CellComparison | None, same: bool
) -> dict[str, Any]:
    """A metric of both sides, whose scores are `values`, with its verdict, as in `judged`."""
    name = column.name
    numbers = [*(side[name] for side in values), *(side.get(column.sampling_error) for side in values)]
    row: dict[str, Any] = dict(zip(("a", "b", "a_se", "b_se"), numbers, strict=True))
    row |= {"difference": row["b"] - row["a"], "se": None, "verdict": Verdict.NOT_JUDGED}
    metric = cell.metrics.get(name) if cell else None
    unjudged = cell.unjudged.get(name) if cell else None
    if same or (cell and cell.result is Verdict.IDENTICAL) or unjudged == UNCHANGED:
        row |= {"se": 0.0, "verdict": Verdict.NOT_WORSE if unjudged == UNCHANGED else Verdict.IDENTICAL}
    elif metric is not None and metric.verdict is not None:
        row |= {key: getattr(metric, key) for key in ("se", "verdict", "margin", "upper", "detectable")}
    return row


def judged(
    a: "ScoredImages", b: "ScoredImages", names: Sequence[str], gate: GateSettings, required: Collection[str] = ()
) -> dict[str, Any]:
    """The verdict on each metric that both sets have, by the test that judges nights.

    All metrics with a standard error are judged by one test: if none got worse by more than its margin, the probability
    that any is called worse is at most `gate.alpha`, whatever their number (`eval.gate.rule`).

    `a` is the old side, in the order of `b` if they are paired; `names` are those of the pairs, none if all images are
    independent; `gate` has no metrics; `required` must be judged, or else some number.

    Returns `metrics`: column of quality.csv -> `a`, `b`, `a_se`, `b_se`, `difference` (b - a), `se`, `verdict`,
    `paired`, and of a judged one `margin`, `upper` and `detectable`; `critical`, which T must exceed; `distinct`, the
    shares of distinct images; `result`, the worst verdict; `not_judged`, the reasons for exit code 5; and `notes`.
    """
    values = [side.document["metrics"] for side in (a, b)]
    columns = [column for name, column in COLUMNS.items() if name in values[0] and name in values[1]]
    same = bool(names) and np.array_equal(a.digests, b.digests)
    with_error = {column.name for column in columns if column.sampling_error}
    asked = [name for name, metric in METRICS.items() if with_error & {column.name for column in metric.columns}]
    cell: CellComparison | None = None
    critical: float | None = None
    if asked and not same:
        old = cell_of_images(a, "pairs" if names else "A", tuple(names))
        new = cell_of_images(b, "pairs" if names else "B", tuple(names))
        # Both were scored in one way, whatever follows from their N. Pairs may be of two shapes.
        new = replace(new, image_shape=old.image_shape, protocol=old.protocol)
        compared = compare_snapshots(
            Snapshot("B", "B", Software(), (new,)),
            Snapshot("A", "A", Software(), (old,)),
            replace(gate, metrics=tuple(asked)),
        )
        cell, critical = compared.cells[0], compared.critical
    rows, notes = dict[str, dict[str, Any]](), list[str]()
    for column in columns:
        rows[column.name] = row = _row(column, values, cell, same) | {"paired": bool(names)}
        unjudged = cell.unjudged.get(column.name) if cell else None
        if unjudged and row["se"] is None and column.name in a.influences and column.name in b.influences:
            notes.append(f"no verdict on {column.name}: {unjudged}")
    distinct = [len(np.unique(side.digests)) / len(side.digests) for side in (a, b)]
    verdicts = {name: row["verdict"] for name, row in rows.items() if row["verdict"] is not Verdict.NOT_JUDGED}
    untested = cell is not None and cell.result is Verdict.COLLAPSED  # no metric is judged then
    reasons = _reasons(verdicts, required, [*a.document["notes"], *b.document["notes"], *notes])
    not_judged = [] if untested else list(reasons)
    collapsed = untested or distinct[1] < REPEATS * distinct[0]
    more = [*([Verdict.COLLAPSED] if collapsed else []), *([Verdict.NOT_JUDGED] if not_judged else [])]
    return {
        "metrics": rows,
        "critical": critical,
        "distinct": distinct,
        "result": worst([*verdicts.values(), *more]),
        "not_judged": not_judged,
        "notes": notes,
    }


def _reasons(judged: Collection[str], required: Collection[str], notes: Sequence[str]) -> Iterator[str]:
    """Why the verdict is incomplete, from the columns with a verdict and the notes of both sets."""
    if not required and not judged:
        of_both = {note.partition(":")[0]: note for note in reversed(notes) if note.startswith("no ")}
        yield "; ".join(reversed(of_both.values())) or "no metric has a standard error on both sides"
    for name in required:
        columns = METRICS[name].columns
        for column in [column for column in columns if column.sampling_error] or columns:
            if column.name not in judged:
                unjudged = f"no verdict on {column.name}: "
                begins = (f"no {column.sampling_error}: ", f"no {name}: ", unjudged)
                known = (note for note in notes if note.startswith(begins))
                yield next(known, f"{unjudged}it has no standard error on both sides")


def _without_pixels(paired: Pairing, found: Distances | None, target: Path | None) -> list[str]:
    """Why pairs have no PSNR or SSIM, or nothing is written to `target`."""
    if found is None:
        differing = ["no PSNR and SSIM: A and B differ in height, width or channels"] if paired.orders else []
        return [*differing, *([f"nothing is written to {target}: no pairs were compared"] if target else [])]
    return ["no SSIM: its window is 11 x 11 pixels, and the images are smaller"] if found.ssim is None else []


def _about_pairs(found: Distances, paired: Pairing) -> dict[str, Any]:
    """How far apart the images of the pairs are; PSNR is of those that differ."""
    differ = np.isfinite(found.psnr)
    identical = int((~differ).sum())
    return {
        "count": len(differ),
        "identical": identical,
        "identical_share": identical / len(differ),
        "psnr": distribution(found.psnr[differ]),
        "ssim": None if found.ssim is None else distribution(found.ssim),
        "worst": [
            {
                "name": paired.names[pair.position],
                "psnr": float(found.psnr[pair.position]),
                "ssim": None if found.ssim is None else float(found.ssim[pair.position]),
            }
            for pair in found.worst
        ],
    }


def _write(folder: Path, found: Distances, paired: Pairing) -> None:
    """Write the numbers of all pairs and a picture of the worst to a new folder."""
    import pandas as pd

    from taugrid.eval.figures import pictures

    require_new_folder(folder)
    make_folder(folder)
    columns = {"name": paired.names, "psnr": found.psnr, **({} if found.ssim is None else {"ssim": found.ssim})}
    pd.DataFrame(columns).to_csv(folder / "pairs.csv", index=False)
    if found.worst:
        a, b = (np.stack(side).transpose(0, 2, 3, 1) for side in zip(*(pair[1:] for pair in found.worst), strict=True))
        pictures.pairs(a, b, [paired.names[pair.position] for pair in found.worst], folder / "worst_pairs.png")
