"""Writes the report of a run: tables/ and figures/, from the rows that were collected.

matplotlib is imported when a figure is drawn, which in a run is at its end: workers start sooner.
"""

from typing import Any

import numpy as np
import pandas as pd

from taugrid.config import DIFFUSION_DEFAULTS, Config
from taugrid.eval.tables.ablation.alike import indistinguishable
from taugrid.eval.tables.ablation.replicates import averaged
from taugrid.eval.tables.best_checkpoints import best_checkpoints
from taugrid.eval.tables.differences import Evidence, differences
from taugrid.eval.tables.differences_files import write_differences
from taugrid.eval.tables.long_form import CHECKPOINT, in_grid_order, long_form
from taugrid.eval.tables.published.counterparts import NetworkOrigin, quality_counterparts
from taugrid.eval.tables.published.files import pointer, write_published
from taugrid.eval.tables.quality import write_quality
from taugrid.eval.tables.rows import JoinedRows, check_joinable
from taugrid.orchestrator.plan.cells import Model, Plan
from taugrid.orchestrator.plan.sources import Trained
from taugrid.orchestrator.report import asked
from taugrid.orchestrator.report.ablation import about_grid, write_ablation, write_cost
from taugrid.orchestrator.report.collect import Rows, with_unscored
from taugrid.orchestrator.report.sample_figures import write_sample_figures
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers import schedules


def write_report(config: Config, plan: Plan, rundir: RunDir, collected: Rows) -> None:
    """Write tables/ and figures/ from the scores that exist."""
    rows, notes, evidence = collected
    joining = config.report.join_protocols
    joined = check_joinable(rows, evidence.protocols, override=True) if joining else JoinedRows([], frozenset())
    layout = asked.layout(config, plan)
    shown = with_unscored(plan, rows, evidence.protocols)
    alike = indistinguishable(rows, evidence, joining, layout)
    beside = quality_counterparts(rows, evidence.protocols, {model.id: network_origin(model) for model in plan.models})
    notes = [*map(plan.with_labels, joined.notes), *notes, *about_grid(config, plan, rows)]
    notes += pointer(beside, "published")
    if not beside:
        rundir.remove_tables("published.*")
    with rundir.storage.local_folder(rundir.tables) as tables:
        write_published(beside, tables, "published")
        write_quality(rows, tables, evidence.protocols, notes, alike, joined.cells, layout, shown)
        write_differences(differences(rows, evidence) if rows else [], tables)
    protocols = {} if joining else evidence.protocols
    if rows:
        from taugrid.eval.figures.drawing import save
        from taugrid.eval.figures.over_steps import quality_figure

        with rundir.storage.local_folder(rundir.figures) as figures:
            save(quality_figure(averaged(in_grid_order(rows), protocols).frame, protocols), figures / "quality")
    write_ablation(config, plan, rundir, collected)
    write_cost(config, plan, rundir, collected._replace(rows=shown))
    _write_checkpoints(plan, rundir, rows, evidence, joining)
    if not any(rundir.has_removed_images(cell) for cell in plan.cells):  # else those of before stay
        write_sample_figures(config, plan, rundir)
    write_losses(plan, rundir)


def write_losses(plan: Plan, rundir: RunDir) -> None:
    """Write figures/loss if a model of the plan was trained here; otherwise remove an earlier one."""
    if curves := loss_curves(plan, rundir):
        from taugrid.eval.figures.drawing import save
        from taugrid.eval.figures.loss import losses_figure

        with rundir.storage.local_folder(rundir.figures) as figures:
            save(losses_figure(curves), figures / "loss")
    else:
        rundir.remove_figures("loss.*")


def loss_curves(plan: Plan, rundir: RunDir) -> dict[str, pd.DataFrame]:
    """The logs of the models that were trained here, by what they are called."""
    curves: dict[str, pd.DataFrame] = {}
    for model in plan.models:
        log = rundir.training_log(model)
        if isinstance(model.source, Trained) and rundir.storage.exists(log):
            with rundir.storage.local_path(log) as local:
                curves[model.called] = pd.read_json(local, lines=True)
    return curves


def network_origin(model: Model) -> NetworkOrigin:
    """Where a model's network comes from, for comparisons with published numbers."""
    ours, theirs = schedules.alpha_bar(model.diffusion), schedules.alpha_bar(DIFFUSION_DEFAULTS)
    same_alpha = ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-6, atol=0)
    is_the_papers = same_alpha and model.diffusion.prediction == DIFFUSION_DEFAULTS.prediction
    process = None if is_the_papers else model.diffusion.in_words
    return NetworkOrigin(model.source.name, process)


def _write_checkpoints(
    plan: Plan, rundir: RunDir, rows: list[dict[str, Any]], evidence: Evidence, joining: bool
) -> None:
    """Write figures/checkpoints.*, if the grid has several checkpoints."""
    order = list(dict.fromkeys(cell.axes.get(CHECKPOINT) for cell in plan.cells))
    loaded = [checkpoint for checkpoint in order if checkpoint is not None]
    if rows and len(loaded) > 1:
        from taugrid.eval.figures.checkpoints import checkpoints_figure
        from taugrid.eval.figures.drawing import save

        with rundir.storage.local_folder(rundir.figures) as figures:
            protocols = {} if joining else evidence.protocols
            figure = checkpoints_figure(long_form(rows), loaded, protocols, best_checkpoints(rows, evidence))
            save(figure, figures / "checkpoints")
    else:
        rundir.remove_figures("checkpoints.*")
