"""Compares images B with images A, wherever they come from: scores, verdicts, and the pixels of pairs."""

from pathlib import Path
from typing import Any

import numpy as np

from taugrid.eval.comparison import compare
from taugrid.eval.gate.rule import ALPHA, MARGIN
from taugrid.eval.pairs import Distances, Pairing, distances, distribution, pairing
from taugrid.orchestrator.baseline.images import opened
from taugrid.orchestrator.baseline.snapshot import ImagesRequest
from taugrid.orchestrator.exports.target import make_folder, require_new_folder
from taugrid.orchestrator.external import of_all
from taugrid.orchestrator.progress import Progress


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
        not), `margin`, `alpha`; what `eval.comparison.compare` returns; `pairs` (None: unpaired, or of two shapes),
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
        compared = compare(scored_a, scored_b, bool(paired.orders), margin, alpha, request.metrics)
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
