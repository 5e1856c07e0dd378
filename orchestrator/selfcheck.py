"""`taugrid selfcheck`: checks samples whose pixels and distribution are known, after the whole system made them."""

import json
from dataclasses import replace
from typing import Any, NamedTuple

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


class Judgement(NamedTuple):
    cell: Cell
    verdict: CellFindings


class Findings(NamedTuple):
    judgements: list[Judgement]
    sampler: str | None
    """That of --sampler."""

    @property
    def problems(self) -> list[str]:
        return [f"{each.cell.label}: {line}" for each in self.judgements for line in each.verdict.problems]


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


def judge_run(run: Run, progress: Progress, sampler: str | None = None) -> Findings:
    """Judge every cell of a finished run of oracles, by its files and by the FID in its table."""
    config, plan, rundir = run.config, run.plan, run.rundir
    rows = {row["cell"]: row for row in collect(plan, rundir, scoring_of(config, plan)).rows}
    reference, judgements = data.load_images(config.data), []
    progress.begin("judging", len(plan.cells), "cells")
    for count, cell in enumerate(plan.cells):
        images, fid = _images(cell, rundir), rows[cell.id]["fid"]
        if sampler is None:
            judgements.append(Judgement(cell, judge(*images, _settings(cell), fid, reference, _labels(cell, rundir))))
        else:
            judgements.append(_judge_sampler(sampler, cell, images, fid, reference))
        progress.update(count + 1)
    progress.end()
    if sampler is not None and (order := _order(sampler)) is not None:
        *_, last = judgements
        differences = {each.cell.settings.steps: each.verdict.mean_difference or 0.0 for each in judgements}
        problems = selfcheck.order_problems(sampler, order, differences)
        judgements[-1] = last._replace(verdict=replace(last.verdict, problems=(*last.verdict.problems, *problems)))
    return Findings(judgements, sampler)


CellImages = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _images(cell: Cell, rundir: RunDir) -> CellImages:
    """A cell's images, (n, C, H, W), and their recorded indices."""
    parts = [
        part
        for shard in cell.shards
        for part in parquet.read_images(rundir.sample_part(cell, shard), storage=rundir.storage)
    ]
    index, pictures = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return pictures, index


def _labels(cell: Cell, rundir: RunDir) -> NDArray[np.int64] | None:
    """The recorded class of each of a cell's images, in the order of `_images`; None if it has none."""
    if cell.label_rule is None:
        return None
    paths = (rundir.sample_part(cell, shard) for shard in cell.shards)
    parts = [labels for path in paths for _, labels in parquet.read_numbers(path, "label", rundir.storage)]
    return np.concatenate(parts).astype(np.int64)


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


def _judge_sampler(sampler: str, cell: Cell, images: CellImages, fid: float, reference: NDArray[np.uint8]) -> Judgement:
    assert cell.settings.seed is not None
    known, (first, *_, last) = distribution(cell.model.data), cell.points
    assert isinstance(known, Gaussian)
    start = schedules.process(cell.model.diffusion).first_scale(first) / first.scale
    found = selfcheck.judge_sampler(
        *images,
        cell.settings.num_samples,
        selfcheck.ode_images(known, first.alpha_bar, last.alpha_bar, cell.settings.seed, images[1], start),
        fid,
        reference,
        follows=_order(sampler) is not None,
        is_last=cell.settings.steps == max(selfcheck.STEPS),
    )
    return Judgement(cell, found)


def _order(sampler: str) -> int | None:
    """How fast the images of one of taugrid's own solvers approach the ODE's; None for other samplers."""
    return find(sampler).order if sampler in SAMPLERS else None


def as_json(findings: Findings, rundir: RunDir) -> dict[str, Any]:
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
        for cell, verdict in findings.judgements
    ]
    status = "failed" if findings.problems else "done"
    return {"dir": rundir.shown, "status": status, "cells": cells, "problems": findings.problems}
