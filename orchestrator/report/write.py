"""Writes the report of a run: tables/ and figures/, from its plan and the rows that were collected.

matplotlib is imported when a figure is drawn, which in a run is at its end: workers start sooner.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from taugrid.config import DIFFUSION_DEFAULTS, Config
from taugrid.eval.tables.checkpoints import best_checkpoints
from taugrid.eval.tables.cost import Cost, costs, write_costs
from taugrid.eval.tables.differences import differences, write_differences
from taugrid.eval.tables.effects import Effects, write_effects
from taugrid.eval.tables.long_form import CHECKPOINT, FID, JoinedRows, as_csv, joined_rows, write_files
from taugrid.eval.tables.published.counterparts import (
    NetworkOrigin,
    pointer,
    quality_counterparts,
    write_published,
)
from taugrid.eval.tables.quality import QualityTable
from taugrid.grids import SEEDS
from taugrid.orchestrator.plan.cells import Cell, Model, Plan, name_of
from taugrid.orchestrator.plan.sources import Trained
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.report.collect import Rows, with_unscored
from taugrid.orchestrator.report.replicates import ONE_TRAINING, compared_trainings, unequal, unscored
from taugrid.orchestrator.report.sample_figures import write_class_figures, write_sample_figures
from taugrid.orchestrator.report.trainings import progress_of, worker_seconds
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.registry.metrics import COLUMNS
from taugrid.registry.samplers import DIFFUSERS
from taugrid.storage import replacing
from taugrid.words import counted
from taugrid.workers import schedules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = ("cell", "folder", "name", "model", "model_name", "sampler", "steps", "eta", "sigma", "spacing", "clip", "seed",
         "weights", "num_samples")  # fmt: skip
"""The columns of every run. One for each other key of the grid follows, in the config's order and with its full name.
`cell` and `model` are as in samples and in quality.csv."""


LONG_ENOUGH = 100  # device seconds of a cell beside which a few more, for loading diffusers, hardly count


def quality_table(run: Run, collected: Rows, notes: Sequence[str] = ()) -> QualityTable:
    """The quality table as the config's `report` asks for it, with a place for each cell of the plan."""
    config, plan = run.config, run.configured
    rows, evidence = collected.rows, collected.evidence
    joined = _joined(config, collected)
    shown = with_unscored(plan, rows, evidence.protocols)
    notes = [
        *map(plan.with_labels, joined.notes),
        *collected.notes,
        *_about_grid(config, plan, rows),
        *_about_larger(run),
        *notes,
    ]
    layout = requested.layout(config, plan)
    return QualityTable(rows, evidence, notes, joined.cells, layout, shown, floors=collected.floors)


def _joined(config: Config, collected: Rows) -> JoinedRows:
    joining = config.report.join_protocols
    given = collected.rows, collected.evidence.protocols
    return joined_rows(*given) if joining else JoinedRows([], frozenset())


def larger_table(run: Run, collected: Rows) -> QualityTable:
    """The quality table of cells that grew, at one of their larger N."""
    joined, layout = _joined(run.config, collected), requested.layout(run.config, run.configured)
    rows, notes, evidence, floors = collected
    return QualityTable(rows, evidence, notes, joined.cells, layout, floors=floors)


def write_larger(tables: Sequence[QualityTable], rundir: RunDir) -> None:
    """Write tables/quality-N<N>.* for each table; remove earlier ones."""
    rundir.remove_outputs("tables/quality-N*")
    for table in tables:
        with rundir.storage.local_folder(rundir.tables) as folder:
            table.write(folder, f"quality-N{table.rows[0]['num_samples']}")


OF_SOME_RUNS = (
    *(f"tables/{name}.*" for name in ("published", "effects", "cost")),
    *(f"figures/{name}" for name in ("quality-*", "effects.*", "by-*", "heat-map*", "cost.*", "checkpoints.*")),
)
"""What a report has only if there are data for it: earlier ones are removed."""


def write_report(run: Run, collected: Rows) -> QualityTable:
    """Write tables/ and figures/ from the scores that exist, and return the quality table."""
    plan, rundir = run.configured, run.rundir
    rows, evidence = collected.rows, collected.evidence
    for pattern in OF_SOME_RUNS:
        rundir.remove_outputs(pattern)
    origins = {model.id: network_origin(model) for model in plan.models}
    counterparts = quality_counterparts(rows, evidence.protocols, origins)
    quality = quality_table(run, collected, pointer(counterparts, "published"))
    effects = Effects.of(quality.scored, requested.base(run.config, run.plan))
    cell_costs = costs(quality, train_seconds(run))
    with rundir.storage.local_folder(rundir.tables) as tables:
        quality.write(tables)
        write_differences(differences(rows, evidence) if rows else [], tables, quality.judged_by)
        if counterparts:
            write_published(counterparts, tables, "published")
        if effects.by_metric:
            write_effects(effects, tables)
        if len(cell_costs) > 1:
            write_costs(cell_costs, tables)
    if rows:
        save_figures(rundir, _figures(plan, quality, effects, cell_costs))
    if not any(map(Listing(rundir).has_removed_images, plan.cells)):  # otherwise earlier figures stay
        write_sample_figures(run)
        write_class_figures(run)
    write_losses(plan, rundir)
    return quality


def _figures(plan: Plan, quality: QualityTable, effects: Effects, cell_costs: Sequence[Cost]) -> "dict[str, Figure]":
    """The figures of the tables, by their names."""
    from taugrid.eval.figures.lines import quality_figure

    frame, by, protocols = quality.scored.means.frame, quality.judged_by, quality.used_protocols
    shared: dict[str, Any] = {"protocols": protocols, "x": quality.layout.x, "floors": quality.floors}
    figures = {"quality": quality_figure(frame, **shared, metric=by)}
    if FID in quality.metrics[1:]:
        figures["quality-fid"] = quality_figure(frame, **shared)
    if found := effects.by_metric.get(by):
        from taugrid.eval.figures.ablation import effects_figure, heat_maps, per_key_figures

        by_key = [*per_key_figures(quality.scored, found, by), *heat_maps(quality.scored, found, by)]
        figures |= {"effects": effects_figure(found, by), **dict(by_key)}
    if len(cell_costs) > 1:
        from taugrid.eval.figures.ablation import costs_figure

        figures["cost"] = costs_figure(cell_costs)
    checkpoints = list(filter(None, dict.fromkeys(cell.axes.get(CHECKPOINT) for cell in plan.cells)))
    if len(checkpoints) > 1:
        from taugrid.eval.figures.lines import checkpoints_figure

        best = best_checkpoints(quality, by)
        figures["checkpoints"] = checkpoints_figure(quality.long, checkpoints, protocols, best, by)
    return figures


def save_figures(rundir: RunDir, figures: "Mapping[str, Figure]") -> None:
    from taugrid.eval.figures.drawing import save

    with rundir.storage.local_folder(rundir.figures) as folder:
        for name, figure in figures.items():
            save(figure, folder / name_of([name]))  # a key of a grid is part of it, and whatever a record says is a key


def _about_grid(config: Config, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes below the tables on settings that were trained once, lack replicates, have no score or no effect."""
    scored = {row["cell"] for row in rows}
    cells = [cell for cell in plan.cells if cell.id in scored]
    several = len({cell.model.id for cell in cells} & {model.id for model in compared_trainings(plan)}) > 1
    lacking = [cell for cell in plan.cells if cell.id not in scored] if scored else []
    once = [ONE_TRAINING] if several else []
    counts = requested.evaluations(plan) if cells else []
    about_cells = [*unequal(cells, "scored "), *unscored(lacking)]
    return [*once, *counts, *about_short_cells(rows), *about_cells, *no_effects(config, plan, rows)]


def _about_larger(run: Run) -> list[str]:
    """A line that says where the scores at larger N are, if cells grew."""
    _, *larger = run.at_each_size
    files = [f"quality-N{part.cells[0].settings.num_samples}.md" for part in larger]
    return [f"{counted(len(larger[0].cells), 'cell')} grew: see {' and '.join(files)}"] if larger else []


def about_short_cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line on the seconds of diffusers' samplers where loading diffusers may be most of them."""
    if any(row["sampler"].startswith(DIFFUSERS) and 0 < (row["seconds"] or 0) < LONG_ENOUGH for row in rows):
        return [f"a worker's first cell of a diffusers sampler also loads diffusers, which takes seconds: the seconds "
                f"of cells below {LONG_ENOUGH} s can't be compared"]  # fmt: skip
    return []


def no_effects(config: Config, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each key without a known effect, because only one of its values has scores."""
    scored = {row["cell"] for row in rows if any(row.get(name) is not None for name in COLUMNS)}
    cells = [cell for cell in plan.cells if cell.id in scored]
    if not cells:
        return []
    naming = cells[0].naming
    without = {*SEEDS, *({"steps", "eta"} - set(requested.base(config, plan)))}
    lone = [key for key in naming.keys if key not in without and len({repr(cell.values[key]) for cell in cells}) == 1]
    return [
        f"no effects of {naming.short[key]}: of its values, only {naming.value(key, cells[0].values[key])} has scores"
        for key in lone
    ]


def train_seconds(run: Run) -> dict[str, float]:
    """Cell -> the seconds that the training of its model took, for models that were trained here."""
    scratch = run.config.cluster.scratch
    by_model = {model.id: worker_seconds(progress_of(model, run.rundir, scratch)) for model, _ in run.plan.trained_here}
    by_cell = {cell.id: by_model.get(cell.model.id) for cell in run.plan.cells}
    return {cell: seconds for cell, seconds in by_cell.items() if seconds is not None}


def write_losses(plan: Plan, rundir: RunDir) -> None:
    """Write figures/loss if a model of the plan was trained here; otherwise remove an earlier one."""
    if curves := loss_curves(plan, rundir):
        from taugrid.eval.figures.lines import losses_figure

        save_figures(rundir, {"loss": losses_figure(curves)})
    else:
        rundir.remove_outputs("figures/loss.*")


def loss_curves(plan: Plan, rundir: RunDir) -> dict[str, pd.DataFrame]:
    """The logs of the models that were trained here, by their names."""
    curves: dict[str, pd.DataFrame] = {}
    for model in plan.models:
        log = rundir.training_log(model)
        if isinstance(model.source, Trained) and rundir.storage.exists(log):
            with rundir.storage.local_path(log) as local:
                curves[model.called] = pd.read_json(local, lines=True)
    return curves


def network_origin(model: Model) -> NetworkOrigin:
    """The origin of a model's network, for comparisons with published numbers."""
    if model.diffusion.process is not None:
        return NetworkOrigin(model.source.name, model.diffusion.in_words, model.diffusion.process)
    ours, theirs = (schedules.alpha_bar(each) for each in (model.diffusion, DIFFUSION_DEFAULTS))
    same_alpha = ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-6, atol=0)
    is_the_papers = same_alpha and model.diffusion.prediction == DIFFUSION_DEFAULTS.prediction
    process = None if is_the_papers else model.diffusion.in_words
    return NetworkOrigin(model.source.name, process)


def write_cells(plan: Plan, rundir: RunDir) -> None:
    """Write tables/cells.{csv,parquet}: what each cell's id stands for, to join samples and scores with grid keys."""
    rows = [_row(cell) for cell in plan.cells]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    table = pa.table({key: _typed(values, key == "eta") for key, values in columns.items()})
    frame = pd.DataFrame({key: _in_text(values) for key, values in columns.items()}, dtype=object)
    with rundir.storage.local_folder(rundir.tables) as tables:
        with replacing(tables / "cells.parquet") as temporary:
            pq.write_table(table, temporary)
        write_files(tables, "cells", csv=as_csv(frame))


def _row(cell: Cell) -> dict[str, Any]:
    settings = cell.settings
    own = [
        cell.id, cell.name, cell.label, cell.model.id, cell.model.label, settings.sampler, settings.steps,
        cell.eta_number, settings.sigma, cell.spacing_name, cell.clip, settings.seed, settings.weights,
        settings.num_samples,
    ]  # fmt: skip
    return {**dict(zip(FIRST, own, strict=True)), **{k: v for k, v in cell.values.items() if k not in FIRST}}


def _typed(values: Sequence[Any], floats: bool = False) -> pa.Array:
    """A column of the values' own type: integers, floats, text, booleans or lists; values of several kinds as JSON."""
    if any(isinstance(value, dict) for value in values):
        return pa.array(_in_text(values))
    try:
        return pa.array(values, pa.float64() if floats else None)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def _in_text(values: Sequence[Any]) -> list[Any]:
    return [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
