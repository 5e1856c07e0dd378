"""What a report says of a grid that compares settings: replicates, effects, costs, and their figures.

matplotlib is imported when a figure is drawn, as in write.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.config import Config
from taugrid.eval.tables.ablation.cost import costs
from taugrid.eval.tables.ablation.cost_files import write_costs
from taugrid.eval.tables.ablation.effects import effects_by_metric
from taugrid.eval.tables.ablation.effects_files import write_effects
from taugrid.eval.tables.long_form import FID, in_grid_order
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.report import asked
from taugrid.orchestrator.report.collect import Rows
from taugrid.orchestrator.report.replicates import (
    ONE_TRAINING,
    SEEDS,
    compared_trainings,
    unequal,
    unscored,
)
from taugrid.orchestrator.report.trainings import progress_of, worker_seconds
from taugrid.orchestrator.rundir.directory import RunDir


def about_grid(config: Config, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes below the tables: that each setting was trained once, lacks replicates, is not there, or has no effect."""
    scored = {row["cell"] for row in rows}
    cells = [cell for cell in plan.cells if cell.id in scored]
    several = len({cell.model.id for cell in cells} & {model.id for model in compared_trainings(plan)}) > 1
    lacking = [cell for cell in plan.cells if cell.id not in scored] if scored else []
    return [*[ONE_TRAINING] * several, *unequal(cells, "scored "), *unscored(lacking), *no_effects(config, plan, rows)]


def no_effects(config: Config, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each key of which no effect is known, because only one of its values has scores."""
    scored = {row["cell"] for row in rows if row["fid"] is not None}
    cells = [cell for cell in plan.cells if cell.id in scored]
    if not cells:
        return []
    naming = cells[0].naming
    without = {*SEEDS, *({"steps", "eta"} - set(asked.base(config, plan)))}
    lone = [key for key in naming.keys if key not in without and len({repr(cell.values[key]) for cell in cells}) == 1]
    return [
        f"no effects of {naming.short[key]}: of its values, only {naming.value(key, cells[0].values[key])} has scores"
        for key in lone
    ]


def write_ablation(config: Config, plan: Plan, rundir: RunDir, collected: Rows) -> None:
    """Write tables/effects.* and figures/effects, by-<key> and heat-map; remove earlier ones that have no ground."""
    rows, evidence = collected.rows, collected.evidence
    by_metric = effects_by_metric(rows, evidence, asked.base(config, plan))
    for pattern in ("effects.*", "by-*", "heat-map*"):
        rundir.remove_figures(pattern)
    if not by_metric:
        rundir.remove_tables("effects.*")
        return
    with rundir.storage.local_folder(rundir.tables) as tables:
        write_effects(by_metric, tables)
    if not (found := by_metric.get(FID)):
        return
    from taugrid.eval.figures.ablation.forest import effects_figure
    from taugrid.eval.figures.ablation.heat_maps import heat_maps
    from taugrid.eval.figures.ablation.panels import panels_figures
    from taugrid.eval.figures.drawing import save

    protocols = {} if config.report.join_protocols else evidence.protocols
    frame = in_grid_order(rows)
    with rundir.storage.local_folder(rundir.figures) as figures:
        save(effects_figure(found), figures / "effects")
        for name, figure in (*panels_figures(frame, found, protocols), *heat_maps(frame, found, protocols)):
            save(figure, figures / name)


def write_cost(config: Config, plan: Plan, rundir: RunDir, collected: Rows) -> None:
    """Write tables/cost.* and figures/cost, if there are several cells to choose from."""
    rundir.remove_figures("cost.*")
    protocols = {} if config.report.join_protocols else collected.evidence.protocols
    found = costs(collected.rows, protocols, train_seconds(config, plan, rundir))
    if len(found) < 2:
        rundir.remove_tables("cost.*")
        return
    with rundir.storage.local_folder(rundir.tables) as tables:
        write_costs(found, tables)
    from taugrid.eval.figures.ablation.cost import costs_figure
    from taugrid.eval.figures.drawing import save

    with rundir.storage.local_folder(rundir.figures) as figures:
        save(costs_figure(found), figures / "cost")


def train_seconds(config: Config, plan: Plan, rundir: RunDir) -> dict[str, float]:
    """Cell -> what the training of its model took, of models that were trained here."""
    trained = [model for model, _ in plan.trained_here]
    by_model = {model.id: worker_seconds(progress_of(model, rundir, config.cluster.scratch)) for model in trained}
    took = {cell.id: by_model.get(cell.model.id) for cell in plan.cells}
    return {cell: seconds for cell, seconds in took.items() if seconds is not None}
