"""`taugrid selfcheck`: checks samples whose pixels and distribution are known, after the whole system made them."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.errors import UserError
from taugrid.eval import selfcheck
from taugrid.eval.selfcheck import (
    CellFindings,
    CellSettings,
    Visited,
    ddpm_path,
    edm_path,
    flow_path,
    judge,
)
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report.collect import collect
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.registry.samplers import SAMPLERS
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.data.published import distribution
from taugrid.workers.diffusion.gaussian import Gaussian
from taugrid.workers.samplers.sampler import find


def overrides(sampler: str | None, options: str | None = None) -> tuple[str, ...]:
    """What `--sampler` and `--sampler-options` (YAML) change in configs/selfcheck.yaml."""
    if sampler is None:
        if options is not None:
            raise UserError("--sampler-options are those of --sampler; give both")
        return ()
    cells = {"sampler": [sampler], "steps": list(selfcheck.STEPS), "spacing": ["logsnr"]}
    if sampler in SAMPLERS and "ddpm" not in (processes := find(sampler).processes):
        cells["diffusion.process"] = [min(processes)]
    grid = [{"model.oracle": ["gaussian"], "data.name": ["gaussian"], **cells}]
    given = () if options is None else (f"sample.sampler_options={options}",)
    return ("name=selfcheck-sampler", f"grid={json.dumps(grid)}", *given)


Judged = list[tuple[Cell, CellFindings]]


def judge_run(run: Run, progress: Progress, sampler: str | None = None) -> Judged:
    """Judge every cell of a finished run of oracles, by its files and by the FID in its table."""
    config, plan, rundir = run.config, run.plan, run.rundir
    rows = {row["cell"]: row for row in collect(plan, rundir, scoring_of(config, plan)).rows}
    reference, judged = data.load_images(config.data), Judged()
    progress.begin("judging", len(plan.cells), "cells")
    for count, cell in enumerate(plan.cells):
        pictures, index, labels = _images(cell, rundir)
        fid = rows[cell.id]["fid"]
        if sampler is None:
            judged.append((cell, judge(pictures, index, _settings(cell), fid, reference, labels)))
        else:
            judged.append((cell, _judge_sampler(sampler, cell, pictures, index, fid, reference)))
        progress.update(count + 1)
    progress.end()
    if sampler is not None and (order := _order(sampler)) is not None:
        differences = {cell.settings.steps: findings.mean_difference or 0.0 for cell, findings in judged}
        problems = selfcheck.order_problems(sampler, order, differences)
        cell, last = judged[-1]
        judged[-1] = cell, replace(last, problems=(*last.problems, *problems))
    return judged


def problems_of(judged: Judged) -> list[str]:
    return [f"{cell.label}: {line}" for cell, findings in judged for line in findings.problems]


def _images(cell: Cell, rundir: RunDir) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64] | None]:
    """A cell's images, (n, C, H, W), their recorded indices and, if it has them, classes."""
    paths, storage = [rundir.sample_part(cell, shard) for shard in cell.shards], rundir.storage
    parts = [part for path in paths for part in parquet.read_images(path, storage=storage)]
    index, pictures = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if cell.label_rule is None:
        return pictures, index, None
    labels = [labels for path in paths for _, labels in parquet.read_numbers(path, "label", storage)]
    return pictures, index, np.concatenate(labels).astype(np.int64)


def _settings(cell: Cell) -> CellSettings:
    assert cell.settings.seed is not None
    visited, sampler, options = _path(cell), cell.settings.sampler, cell.settings.sampler_options
    assert sampler in ("ddim", "heun", "edm-heun")
    return CellSettings(
        data=distribution(cell.model.data),
        path=visited,
        eta=cell.settings.eta,
        clip=cell.settings.clip or "none",
        seed=cell.settings.seed,
        num_samples=cell.settings.num_samples,
        guidance=cell.settings.guidance,
        start=1.0 if cell.model.diffusion.process is None else visited[0].sigma,
        sampler=sampler,  # type: ignore[arg-type]  # mypy does not narrow a str by `in`
        churn=options.get("S_churn", 0.0),
        churn_noise=options.get("S_noise", 1.0),
    )


def _path(cell: Cell) -> tuple[Visited, ...]:
    """By the judge's own formulas, but for the times of DDPM's process."""
    diffusion, steps = cell.model.diffusion, cell.settings.steps
    if diffusion.process == "flow":
        return flow_path(steps)
    if diffusion.process == "edm":
        assert diffusion.sigma_min is not None
        assert diffusion.sigma_max is not None
        assert diffusion.rho is not None
        return edm_path(steps, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho)
    return ddpm_path(schedules.alpha_bar(diffusion), [int(t) for t in cell.tau])  # its grid has no log-SNR spacings


def _judge_sampler(
    sampler: str,
    cell: Cell,
    pictures: NDArray[np.uint8],
    index: NDArray[np.int64],
    fid: float,
    reference: NDArray[np.uint8],
) -> CellFindings:
    assert cell.settings.seed is not None
    known, (first, *_, last) = distribution(cell.model.data), cell.points
    assert isinstance(known, Gaussian)
    start = schedules.process(cell.model.diffusion).first_scale(first) / first.scale
    return selfcheck.judge_sampler(
        pictures,
        index,
        cell.settings.num_samples,
        selfcheck.ode_images(known, first.alpha_bar, last.alpha_bar, cell.settings.seed, index, start),
        fid,
        reference,
        follows=_order(sampler) is not None,
        is_last=cell.settings.steps == max(selfcheck.STEPS),
    )


def _order(sampler: str) -> int | None:
    """How fast the images of one of taugrid's own solvers approach the ODE's; None for other samplers."""
    return find(sampler).order if sampler in SAMPLERS else None


def as_json(judged: Judged, rundir: RunDir) -> dict[str, Any]:
    """The document that `--json` prints."""
    cells = [
        {
            "cell": cell.id,
            "name": cell.name,
            "data": cell.model.data.name,
            "process": cell.model.diffusion.process or "ddpm",
            "sampler": cell.settings.sampler,
            "spacing": cell.settings.spacing_name,
            "clip": cell.settings.clip,
            "guidance": cell.settings.guidance,
            "differing_share": verdict.differing_share,
            "largest_difference": verdict.largest_difference,
            "mean_difference": verdict.mean_difference,
            "fid": verdict.fid,
            "problems": list(verdict.problems),
        }
        for cell, verdict in judged
    ]
    problems = problems_of(judged)
    return {"dir": rundir.shown, "status": "failed" if problems else "done", "cells": cells, "problems": problems}
