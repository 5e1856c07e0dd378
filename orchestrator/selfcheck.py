"""`taugrid selfcheck`: checks samples whose pixels and distribution are known, after the whole system made them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.eval.selfcheck import CellFindings, CellSettings, judge, reference_problems
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.evaluation import evaluation
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report.collect import collect
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.data.builtin import distribution
from taugrid.workers.diffusion.gaussian import Gaussian


class Judgement(NamedTuple):
    cell: Cell
    verdict: CellFindings


class Findings(NamedTuple):
    judgements: list[Judgement]
    reference_problems: list[str]

    @property
    def problems(self) -> list[str]:
        of_cells = [f"{cell.label}: {line}" for cell, verdict in self.judgements for line in verdict.problems]
        return [*self.reference_problems, *of_cells]


def judge_run(run: Run, progress: Progress) -> Findings:
    """Judge every cell of a finished run of oracles, by its files and by the FID in its table."""
    config, plan, rundir = run.config, run.plan, run.rundir
    rows = {row["cell"]: row for row in collect(plan, rundir, evaluation(config, plan)).rows}
    reference, judgements = data.load_images(config.data), []
    progress.begin("judging", len(plan.cells), "cells")
    for count, cell in enumerate(plan.cells):
        judgements.append(Judgement(cell, _judge(cell, rundir, rows[cell.id]["fid"], reference)))
        progress.update(count + 1)
    progress.end()
    known = distribution(config.data)
    assert isinstance(known, Gaussian)
    return Findings(judgements, reference_problems(reference, known))


def _judge(cell: Cell, rundir: RunDir, fid: float, reference: NDArray[np.uint8]) -> CellFindings:
    parts = [
        part
        for shard in cell.shards
        for part in parquet.read_images(rundir.sample_part(cell, shard), storage=rundir.storage)
    ]
    index, pictures = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert cell.settings.seed is not None
    settings = CellSettings(
        data=distribution(cell.model.data),
        alpha_bar=schedules.alpha_bar(cell.model.diffusion),
        tau=[int(t) for t in cell.tau],  # its grid has no log-SNR spacings
        eta=cell.settings.eta,
        clip=cell.settings.clip or "none",
        seed=cell.settings.seed,
        num_samples=cell.settings.num_samples,
    )
    return judge(pictures, index, settings, fid, reference)


def as_json(findings: Findings, rundir: RunDir) -> dict[str, Any]:
    return {
        "dir": rundir.shown,
        "status": "failed" if findings.problems else "done",
        "cells": [_as_json(*judgement) for judgement in findings.judgements],
        "problems": findings.problems,
    }


def _as_json(cell: Cell, verdict: CellFindings) -> dict[str, Any]:
    comparisons = {"fid": verdict.fid, "mean": verdict.mean, "covariance": verdict.covariance}
    return {
        "cell": cell.id,
        "name": cell.name,
        "data": cell.model.data.name,
        "spacing": cell.settings.spacing_name,
        "clip": cell.settings.clip,
        "differing_share": verdict.differing_share,
        "largest_difference": verdict.largest_difference,
        **{name: None if given is None else given._asdict() for name, given in comparisons.items()},
        "problems": list(verdict.problems),
    }
