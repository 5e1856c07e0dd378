"""Faults that tests plant in the code of a night, each as a function of pytest's monkeypatch."""

from dataclasses import replace

import torch
from diffusers import UNet2DModel
from nights import checkpoint

from taugrid.eval import score_cell
from taugrid.eval.metrics import frechet, kernel
from taugrid.orchestrator.work.score import ScoreWork
from taugrid.workers import sample as sampling
from taugrid.workers.accelerator import transfer
from taugrid.workers.diffusion import forward
from taugrid.workers.samplers import ddim

SWAPPED, STEPS = {0.0: 1.0, 1.0: 0.0}, 3
"""Cells with these values of eta and so many steps are taken for each other."""


def _with_spec(monkeypatch, change):
    whole = sampling.sample_batch
    monkeypatch.setattr(sampling, "sample_batch", lambda model, *given: whole(model, *change(*given[:2]), *given[2:]))


def drop_last_step(monkeypatch):
    """The network is still called as often as before: another number is refused."""
    whole = ddim.sample

    def dropped(x, path, denoise, *given):
        denoise(x, path[0])
        return whole(x, (*path[:-2], path[-1]), denoise, *given)

    monkeypatch.setattr(ddim, "sample", dropped)


def darken_later_batches(monkeypatch):
    """By 20 grey levels; a cell's first batch, which is the canary's, stays."""
    whole = sampling.sample_batch

    def darker(model, indices, *given):
        return whole(model, indices, *given) - (0.16 if indices[0] else 0.0)

    monkeypatch.setattr(sampling, "sample_batch", darker)


def repeat_the_first_batch(monkeypatch):
    _with_spec(monkeypatch, lambda indices, spec: (indices % spec.settings.batch_size, spec))


def swap_images(monkeypatch):
    def swapped(indices, spec):
        eta = SWAPPED.get(spec.settings.eta) if spec.settings.steps == STEPS else None
        settings = spec.settings if eta is None else spec.settings.model_copy(update={"eta": eta})
        return indices, spec._replace(settings=settings)

    _with_spec(monkeypatch, swapped)


def swap_scores(monkeypatch):
    """The score of each of two cells of a run is written as that of the other one."""
    whole = ScoreWork._job

    def swapped(self, cell, floors):
        of = cell.settings
        wanted = of.model_copy(update={"eta": SWAPPED.get(of.eta)}) if of.steps == STEPS else None
        for other in self.survey.found.cells:
            if (other.cell.settings, other.cell.model.id) == (wanted, cell.model.id):
                return replace(whole(self, other.cell, floors), feature_paths=whole(self, cell, floors).feature_paths)
        return whole(self, cell, floors)

    monkeypatch.setattr(ScoreWork, "_job", swapped)
    monkeypatch.setattr(score_cell, "require_own", lambda job, path: None)


def scaled_sigma(factor):
    return lambda monkeypatch: monkeypatch.setattr(ddim, "sigma", lambda *at: factor * forward.sigma(*at))


def added_eta(more):
    whole = ddim.coefficients

    def coefficients(alpha_t, alpha_prev, eta, *rest, **named):
        return whole(alpha_t, alpha_prev, eta if eta == "sigma_hat" else eta + more, *rest, **named)

    return lambda monkeypatch: monkeypatch.setattr(ddim, "coefficients", coefficients)


def round_down(monkeypatch):
    def floored(x, *given):
        return torch.add(x, 1).mul_(127.5).floor_().clamp_(0, 255).to(torch.uint8)

    monkeypatch.setattr(transfer, "to_grey_levels", floored)


def scaled_fid(factor):
    """FID as a changed formula would give it; the influences stay."""

    def plant(monkeypatch):
        whole = frechet.Frechet.of

        def of(samples, reference, root=None):
            found = whole(samples, reference, root)
            object.__setattr__(found, "distance", factor * found.distance)
            return found

        monkeypatch.setattr(frechet.Frechet, "of", of)

    return plant


def scaled_kid(monkeypatch):
    """KID as a changed formula would give it; the influences stay."""
    whole = kernel.compute_kid

    def compute(inputs):
        found = whole(inputs)
        return found._replace(values=found.values | {"kid": 1.01 * found.values["kid"]})

    monkeypatch.setattr(kernel, "compute_kid", compute)


def collapse(network, value):
    """Make the images of `network` all white or, with a NaN, no images."""
    with torch.no_grad():
        network.conv_out.weight.zero_()
        network.conv_out.bias.fill_(value)


def collapsed(folder, value=100.0):
    """A network of `nights` whose images are all white, or NaN."""
    network = UNet2DModel.from_pretrained(checkpoint(folder))
    collapse(network, value)
    network.save_pretrained(folder)
    return folder
