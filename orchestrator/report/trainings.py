"""How far the training runs of a plan are and what they take, by their logs."""

from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.orchestrator.plan.cells import Model, Plan
from taugrid.orchestrator.plan.sources import Trained
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.storage import LOCAL
from taugrid.workers.training.log import TrainingProgress, training_progress


def progress_of(model: Model, rundir: RunDir, scratch: str | None) -> TrainingProgress | None:
    """The last logged step of a model's training, finished or not; None before the first."""
    storage = rundir.storage if rundir.storage.on_disk else LOCAL
    return training_progress(rundir.training_folder(scratch), model.id, storage)


def worker_seconds(at: TrainingProgress | None) -> float | None:
    """Time on devices that a training took so far, with as many workers as in the end; None if it is not known."""
    return round(at.seconds * at.workers, 3) if at is not None and at.seconds else None


def describe_models(
    plan: Plan, cells: Sequence[Mapping[str, Any]], rundir: RunDir, scratch: str | None, history: RunHistory
) -> list[dict[str, Any]]:
    """Each model's state, with the sums over its cells: `cells` are the plan's as `inspection.describe` has them.
    `train_steps_done` is up to the last checkpoint, and `train_steps_reached` up to the last line of the log."""
    found = []
    for model in plan.models:
        own = [its for cell, its in zip(plan.cells, cells, strict=True) if cell.model.id == model.id]
        sums = {
            "cells": len(own),
            "cells_scored": sum(cell["scored"] for cell in own),
            "images": sum(cell["num_samples"] for cell in own),
            "images_done": sum(cell["images_done"] for cell in own),
        }
        settings = [cell.settings for cell in plan.cells if cell.model.id == model.id]
        source = model.source.description(model.diffusion, settings)
        described = _describe(model, source, rundir, scratch)
        failed = None if described["ready"] else history.failures.get(model.id)
        found.append(described | sums | {"train_failed": failed})
    return found


def _describe(model: Model, source: str, rundir: RunDir, scratch: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {"id": model.shown_id, "label": model.label, "source": source}
    ready = rundir.is_ready(model)
    if not isinstance(model.source, Trained):
        described |= {"data": None, "parameters": None}
        no_steps = dict.fromkeys(("train_steps", "train_steps_done", "train_steps_reached"), 0)
        return described | no_steps | {"ready": ready, "train_worker_seconds": None}
    described |= {"data": model.source.data.name_and_split, "parameters": model.source.parameters}
    steps = model.source.train.steps
    at = progress_of(model, rundir, scratch)
    done, reached = (steps, steps) if ready else (at.checkpoint, at.step) if at else (0, 0)
    state = {"train_steps": steps, "train_steps_done": done, "train_steps_reached": reached, "ready": ready}
    return described | state | {"train_worker_seconds": worker_seconds(at)}


def training_price(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The remaining training and its time at the rate of this run's trainings; None before the first."""
    remaining = sum(model["train_steps"] - model["train_steps_done"] for model in models)
    timed = [model for model in models if model["train_worker_seconds"] and model["train_steps_reached"]]
    steps = sum(model["train_steps_reached"] for model in timed)
    each = sum(model["train_worker_seconds"] for model in timed) / steps if timed else None
    return {
        "train_steps_remaining": remaining,
        "worker_seconds_a_train_step": each,
        "train_worker_seconds_remaining": None if each is None else round(remaining * each, 1),
    }
