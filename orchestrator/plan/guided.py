"""What a plan refuses about guidance, before any accelerator time is spent."""

from collections.abc import Iterator

from taugrid.config import Config
from taugrid.config.sample import GUIDANCE_KEYS
from taugrid.errors import UserError
from taugrid.grids.names import in_yaml
from taugrid.orchestrator.plan.cells import Cell, Model
from taugrid.workers import schedules

GUIDE = "model.guide"
OF_GUIDANCE = (*GUIDANCE_KEYS, GUIDE)
"""Keys, as a grid has them, that mean nothing where guidance is 1."""

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
    """Raise `UserError` if a cell's guidance can't be computed, or guides no call."""
    settings, model, guide = cell.settings, cell.model, cell.guide
    if not settings.is_guided or model.lacks is not None:
        return
    if guide is None:
        raise UserError(
            f"sample.guidance is {settings.guidance:g}, but the network has no null class, so nothing is there to "
            "lead away from: train one with train.label_dropout, give another network with model.guide, or set "
            "guidance: 1"
        )
    for difference in _differences(model, guide) if guide.lacks is None else ():
        raise UserError(f"{GUIDE}: {guide.source.name} {difference}; give a network that fits the model's")
    channels = model.decoder.network_shape[0]
    if settings.guidance_channels is not None and settings.guidance_channels > channels:
        raise UserError(
            f"sample.guidance_channels: {settings.guidance_channels} is more than the {channels} channels of the "
            "network; leave it out to guide all"
        )
    if not cell.guided_times:
        raise UserError(_outside(cell))


def _differences(model: Model, guide: Model) -> Iterator[str]:
    """What a guide does otherwise than the model, as phrases that follow its name."""
    its, own = guide.decoder.network_shape, model.decoder.network_shape
    if its != own:
        yield f"predicts {its} (channels, height, width), but the model {own}"
    if guide.diffusion.predicts != model.diffusion.predicts:
        yield f"predicts {guide.diffusion.predicts}, but the model {model.diffusion.predicts}"
    theirs, ours = (schedules.process(each.diffusion) for each in (guide, model))
    if theirs.timesteps != ours.timesteps:
        yield f"has {theirs.timesteps} times, but the model {ours.timesteps}"
    for t in range(1, ours.timesteps + 1):
        a, b = theirs.at(t), ours.at(t)
        told = a.time == b.time and theirs.preconditioning(a) == ours.preconditioning(b)
        if abs(a.sigma * b.alpha - b.sigma * a.alpha) > SAME_LEVEL * b.sigma * a.alpha or not told:
            yield f"was trained with {guide.diffusion.named_betas}, but the model with {model.diffusion.named_betas}"
            return


def _outside(cell: Cell) -> str:
    """The message for an interval that none of the sampler's calls is in."""
    process = schedules.process(cell.model.diffusion)
    points = [process.told(time) for time in cell.sampler_description.times]
    levels = sorted(point.ratio if point.alpha else float("inf") for point in points)
    return (
        f"sample.guidance_interval: {in_yaml(cell.settings.guidance_interval)} has none of the calls of "
        f"{cell.settings.sampler} with steps {cell.settings.steps}, which are at sigma {levels[0]:.3g} to "
        f"{levels[-1]:.3g}; widen it, set more steps, or leave it out to guide all calls"
    )
