"""What cells ask of networks (labels, guidance) and of devices, held against these before anything is computed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from taugrid.config import Config, Diffusion, Sample
from taugrid.config.sample import GUIDANCE_KEYS, LabelColumn
from taugrid.errors import UserError
from taugrid.grids import in_yaml
from taugrid.jobs import Conditions
from taugrid.orchestrator.plan.cells import Cell, Model, Plan
from taugrid.words import beside, listed
from taugrid.workers import schedules
from taugrid.workers.accelerator.policy import lacks
from taugrid.workers.conditions import Column, LabelRule
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.diffusion.denoiser import Guidance
from taugrid.workers.diffusion.process import Point
from taugrid.workers.network.checkpoint import parameters, weights_file

ReadColumn = Callable[[LabelColumn], Column]  # like `workers.conditions.read_column`


def label_rule(settings: Sample, conditions: Conditions | None, network: str, read: ReadColumn) -> LabelRule | None:
    """The rule for the labels of a cell with these resolved settings; None for an unconditional network. `network` is
    its name in messages. Raises `MissingInput` if there is no Parquet file; `UserError` if there are labels for an
    unconditional network, none for another, too few, or no classes of it."""
    labels = settings.labels
    if conditions is None:
        if labels is not None:
            said = in_yaml(settings.model_dump(mode="json")["labels"])
            raise UserError(f"sample.labels is {said}, but {network} is unconditional; remove the key")
        return None
    last = conditions.classes - 1
    if labels is None:
        raise UserError(
            f"sample.labels is missing: {network} has {conditions.classes} classes; set balanced, random, a class from "
            f"0 to {last}, a list of classes, or {{parquet: FILE, column: NAME}}"
        )
    assert settings.seed is not None
    if isinstance(labels, LabelColumn):
        column = read(labels)
        if column.values is not None:
            rows, num_samples = len(column.values), settings.num_samples
            if rows < num_samples:
                raise UserError(
                    f"sample.labels.parquet: {labels.parquet} has {rows:,} rows, but {num_samples:,} samples need one "
                    "each; give a longer file or a smaller sample.num_samples"
                )
            _require_classes(f"sample.labels.column: {labels.column}", column.values, conditions, network)
        values = None if column.values is None else column.values.astype(np.int32)
        return LabelRule({"column_sha256": column.sha256}, settings.seed, conditions.classes, values)
    if not isinstance(labels, str):
        _require_classes("sample.labels", np.atleast_1d(np.array(labels, object)), conditions, network)
    return LabelRule(labels, settings.seed, conditions.classes)


def _require_classes(key: str, labels: np.ndarray, conditions: Conditions, network: str) -> None:
    classes, null = conditions
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        found, row = labels[wrong[0]], f" in row {wrong[0]}" if "column" in key else ""
        is_null = ", its null label, which no image is asked for" if found == null else ""
        raise UserError(f"{key} has {found}{row}{is_null}; the classes of {network} are 0 to {classes - 1}")


GUIDE = "model.guide"
OF_GUIDANCE = (*GUIDANCE_KEYS, GUIDE)  # keys, as a grid has them, that mean nothing where guidance is 1

SAME_LEVEL = 1e-6
"""How far noise levels of one process may be apart, relative: betas come through float32 in some files."""


def require_guided(config: Config, any_guided: bool) -> None:
    """Raise `UserError` if a key outside of the grid is about guidance, and no cell is guided."""
    given = {f"sample.{key}": getattr(config.sample, key) for key in GUIDANCE_KEYS} | {GUIDE: config.model.guide}
    for key, value in given.items():
        if value is not None and not any_guided:
            raise UserError(
                f"{key}: {in_yaml(value)} has no effect with guidance 1; set sample.guidance, or a grid of it, or "
                "remove the key"
            )


def check_guidance(cell: Cell) -> None:
    """Raise `UserError` if a cell's guide does not fit, or its guidance can't be computed or guides no call."""
    model, guide, how = cell.model, cell.guide, cell.guidance
    if how is None or model.lacks is not None:
        return
    if guide is not None and guide.lacks is None:
        require_no(_differences(model, guide), guide.source.name)
    require_possible(cell.settings, how, guide is not None, model.decoder.network_shape[0], cell.points)


def require_possible(settings: Sample, how: Guidance, has_guide: bool, channels: int, points: Sequence[Point]) -> None:
    """Raise `UserError` if a network of so many `channels`, called at these points, can't be guided so."""
    if not has_guide and how.null_label is None:
        raise UserError(
            f"sample.guidance is {how.scale:g}, but the network has no null class, so nothing is there to lead away "
            "from: train one with train.label_dropout, give another network with model.guide, or set guidance: 1"
        )
    if how.channels is not None and how.channels > channels:
        raise UserError(
            f"sample.guidance_channels: {how.channels} is more than the {channels} channels of the network; leave it "
            "out to guide all"
        )
    if not how.calls:
        levels = sorted(point.ratio if point.alpha else math.inf for point in points)
        raise UserError(
            f"sample.guidance_interval: {in_yaml(settings.guidance_interval)} has none of the calls of "
            f"{settings.sampler} with steps {settings.steps}, which are at sigma {levels[0]:.3g} to {levels[-1]:.3g}, "
            f"the nearest at {beside(levels, *settings.guidance_interval or (0, 0))}; widen it, set more steps, or "
            "leave it out to guide all calls"
        )


def require_no(differences: Iterable[str], guide: str) -> None:
    """Raise `UserError` with the first of a guide's `differences` from the model."""
    for difference in differences:
        raise UserError(f"{GUIDE}: {guide} {difference}; give a network that fits the model's")


def label_differences(guide_takes: Conditions | None, takes: Conditions | None) -> Iterator[str]:
    """What labels a guide needs that a network has not, as a phrase."""
    if guide_takes is not None and takes is None:
        yield f"needs labels of {guide_takes.classes} classes, but the model is unconditional"
    elif guide_takes is not None and takes is not None and guide_takes.classes != takes.classes:
        yield f"has {guide_takes.classes} classes, but the model {takes.classes}"


def _differences(model: Model, guide: Model) -> Iterator[str]:
    """What a guide does otherwise than the model, as phrases that follow its name."""
    its, own = guide.decoder.network_shape, model.decoder.network_shape
    if its != own:
        yield f"predicts {its} (channels, height, width), but the model {own}"
    if guide.diffusion.predicts != model.diffusion.predicts:
        yield f"predicts {guide.diffusion.predicts}, but the model {model.diffusion.predicts}"
    yield from label_differences(guide.source.conditions, model.source.conditions)
    theirs, ours = (schedules.process(each.diffusion).timesteps for each in (guide, model))
    if theirs != ours:
        yield f"has {theirs} times, but the model {ours}"
    if _trained_otherwise(guide.diffusion, model.diffusion):
        yield f"was trained with {guide.diffusion.named_betas}, but the model with {model.diffusion.named_betas}"


@cache
def _trained_otherwise(guide: Diffusion, model: Diffusion) -> bool:
    """Whether two processes differ at any of their times."""
    theirs, ours = schedules.process(guide), schedules.process(model)
    if (theirs.name, theirs.timesteps) != (ours.name, ours.timesteps):
        return True
    for t in range(1, ours.timesteps + 1) if ours.timesteps else ours.spaced("linear", 20):
        a, b = theirs.at(t), ours.at(t)
        told = a.time == b.time and theirs.preconditioning(a) == ours.preconditioning(b)
        if abs(a.sigma * b.alpha - b.sigma * a.alpha) > SAME_LEVEL * b.sigma * a.alpha or not told:
            return True
    return False


def guidance_notes(cells: Sequence[Cell]) -> Iterator[str]:
    """A line for each guidance interval and process: the interval in the network's times, and how much is guided."""
    groups: dict[tuple[str, Diffusion], list[Cell]] = {}
    for cell in cells:
        if cell.settings.is_guided and cell.settings.guidance_interval is not None:
            groups.setdefault((in_yaml(cell.settings.guidance_interval), cell.model.diffusion), []).append(cell)
    for (interval, diffusion), its in groups.items():
        ends = its[0].settings.guidance_interval
        times = [f"{time:g}" for time in schedules.process(diffusion).told_within(ends or ())]
        at = f" are the network's times {' to '.join(times)}" if times else " are between two of the network's times"
        counts = dict.fromkeys(f"{c.guided_calls} of {c.sampler_description.evaluations}" for c in its)
        yield f"guidance_interval {interval}: these noise levels{at}; guided calls: {listed([*counts], 6)}"


NO_GPU = "workers have none here", "join a cluster with such GPUs (--address)"
"""Why a plan can't compute what needs a GPU, and the way out."""


def require_no_gpu(plan: Plan) -> None:
    """Raise `UserError` if a cell wants TF32 from workers without a GPU."""
    for cell in plan.cells:
        if (need := lacks("cpu", cell.settings.precision)) is not None:
            raise UserError(need.refused(*NO_GPU))


def weights_bytes(plan: Plan, file: Callable[[Model, str], Path]) -> dict[str, int]:
    """Bytes of the weights that a worker holds for the cell with most of them, by what they belong to. Estimated from
    files that are here: a cell counts what it has. A worker may keep the networks of the cell before. `file` is
    `ModelRecords.weights_file`."""
    count = cache(parameters)  # a plan has many cells of a model
    most: dict[str, int] = {}
    for cell in plan.cells:
        width = 2 if cell.settings.precision == "bf16-weights" else 4
        files: dict[str, tuple[Path, int]] = {}
        for name, model in {"network": cell.model, "guide": cell.guide}.items():
            if model is not None and model.lacks is None:
                path = file(model, cell.settings.weights if model is cell.model else "ema")
                if path.suffix != ".json":  # the record of a model without a file
                    files[name] = path, width
        if isinstance(vae := cell.decoder, Vae):  # its precision is autocast's
            files["VAE"] = weights_file(Path(vae.saved.folder)), 4
        weights = {name: number * each for name, (path, each) in files.items() if (number := count(path))}
        most = max(most, weights, key=lambda found: sum(found.values()))
    return most
