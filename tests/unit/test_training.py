import copy
import dataclasses
import io
import json
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch
from denoisers import at
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, PreemptionInfo, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from rich.console import Console
from snapshots import raises, recorded
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from taugrid import config
from taugrid.errors import DeviceUnusable, UserError
from taugrid.jobs import Hopeless, TrainingSpec
from taugrid.orchestrator.cli.text.runs import plan_text
from taugrid.orchestrator.dispatch import capacity
from taugrid.orchestrator.dispatch import training as driver
from taugrid.orchestrator.dispatch.capacity import Node
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.sources import TRAINED_WEIGHTS
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report.write import write_losses
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.view.inspection import describe
from taugrid.storage import replacing, upload_folder
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.data.labels import load_labels
from taugrid.workers.diffusion import noise
from taugrid.workers.diffusion.process import velocity
from taugrid.workers.network.checkpoint import read_checkpoint, saved_network
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import build_unet, ema_decay, save_pipeline
from taugrid.workers.training import checkpoints, fit, loop, notice
from taugrid.workers.training.batches import Batches
from taugrid.workers.training.checkpoints import new_state
from taugrid.workers.training.log import SCALARS, Log, Record, is_logged, training_progress

pytestmark = pytest.mark.usefixtures("one_thread")

UNET = config.Unet(
    block_out_channels=[8, 16],
    layers_per_block=1,
    down_block_types=["DownBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "UpBlock2D"],
    norm_num_groups=4,
    dropout=0.1,
)


def a_spec(folder, **train):
    settings = {"steps": 6, "batch_size": 10, "seed": 3, "warmup_steps": 3, "learning_rate": 1e-3} | train
    return TrainingSpec(
        config.Data(),
        data.content_fingerprint(config.Data()),
        UNET,
        config.DIFFUSION_DEFAULTS,
        config.Train(**settings),
        "m",
        str(folder),
        1.0,
        0.0,
    )


def with_classes(spec):
    """The same training, with the labels of the images."""
    sha256 = load_labels(spec.data).sha256
    return dataclasses.replace(spec, unet=UNET.model_copy(update={"num_classes": 10}), labels_sha256=sha256)


def run_loop(spec, state, log=None):
    return loop._loop(spec, state, Batches(spec, 0, 1, "cpu"), log, 0, 1)


def weights(state):
    return torch.cat([p.detach().flatten() for p in [*state.unet.parameters(), *state.ema.values()]])


def test_slices_of_ranks_make_up_the_global_batch(tmp_path):
    spec = with_classes(a_spec(tmp_path, flip=True, label_dropout=0.5))
    whole = Batches(spec, 0, 1, "cpu")[5]
    parts = [Batches(spec, rank, 3, "cpu")[5] for rank in range(3)]
    assert [len(part.t) for part in parts] == [3, 3, 4]
    for got, want in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(got), want)


def test_batches_are_noisy_images_of_the_dataset(tmp_path):
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update={"timesteps": 1, "beta_start": 1e-12, "beta_end": 1e-12})
    plain = Batches(dataclasses.replace(a_spec(tmp_path), diffusion=diffusion), 0, 1, "cpu")[0]
    flipped = Batches(dataclasses.replace(a_spec(tmp_path, flip=True), diffusion=diffusion), 0, 1, "cpu")[0]
    known = {image.tobytes() for image in data.load_images(config.Data())}
    pixels = ((plain.x_t + 1) * 127.5).round().byte()  # next to no noise was added
    assert all(image.numpy().tobytes() in known for image in pixels)
    mirrored = [torch.equal(f, p.flip(-1)) and not torch.equal(f, p) for f, p in _pairs(flipped, plain)]
    same = [torch.equal(f, p) for f, p in _pairs(flipped, plain)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)


def test_labels_are_those_of_the_images_and_some_are_the_null_class(tmp_path):
    plain = Batches(a_spec(tmp_path, batch_size=1000), 0, 1, "cpu")[7]
    full = Batches(with_classes(a_spec(tmp_path, batch_size=1000)), 0, 1, "cpu")[7]
    dropped = Batches(with_classes(a_spec(tmp_path, batch_size=1000, label_dropout=0.3)), 0, 1, "cpu")[7]
    assert plain.labels is None
    for other in (full, dropped):
        assert all(torch.equal(a, b) for a, b in zip(plain[:4], other[:4], strict=True)), "no other draw moves"
    images, of_images = data.load_images(config.Data()), load_labels(config.Data()).of_images
    label_of = {image.tobytes(): label for image, label in zip(images, of_images, strict=True)}
    shown = ((full.x0 + 1) * 127.5).round().byte()
    assert full.labels.tolist() == [label_of[image.numpy().tobytes()] for image in shown]
    is_null = dropped.labels == 10
    assert is_null.float().mean().item() == pytest.approx(0.3, abs=0.06)  # 4 standard errors
    assert torch.equal(dropped.labels[~is_null], full.labels[~is_null])


@pytest.mark.parametrize("label_dropout", [0.0, 0.3])
def test_a_network_learns_from_labels_and_only_the_rows_of_those_it_sees(tmp_path, label_dropout):
    spec = with_classes(a_spec(tmp_path, steps=2, warmup_steps=0, label_dropout=label_dropout))
    state = new_state(spec, "cpu")
    before = state.unet.class_embedding.weight.detach().clone()
    seen = set(torch.cat([Batches(spec, 0, 1, "cpu")[step].labels for step in range(2)]).tolist())
    run_loop(spec, state)
    changed = (state.unet.class_embedding.weight != before).any(dim=1)
    assert set(changed.nonzero().flatten().tolist()) == seen
    assert len(before) == (11 if label_dropout else 10)
    assert (10 in seen) == (label_dropout > 0)


def test_a_network_with_classes_is_saved_with_its_null_class_and_diffusers_loads_it(tmp_path, caplog):
    import diffusers

    spec = with_classes(a_spec(tmp_path, steps=1, label_dropout=0.1))
    state = new_state(spec, "cpu")
    run_loop(spec, state)
    save_pipeline(tmp_path / "p", state.unet, state.ema, spec.diffusion)
    for folder in ("unet", "unet_raw"):
        saved = json.loads((tmp_path / "p" / folder / "config.json").read_text())
        assert (saved["num_class_embeds"], saved["null_label"]) == (11, 10)
    unet = diffusers.DDIMPipeline.from_pretrained(tmp_path / "p").unet
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 10])
    with torch.inference_mode():
        theirs = unet(x, 5, labels).sample
        state.unet.load_state_dict(state.ema)
        torch.testing.assert_close(theirs, state.unet.eval()(x, 5, labels).sample, rtol=0, atol=1e-5)  # by layout
    caplog.clear()
    ours = load_network(saved_network(tmp_path / "p" / "unet"), spec.diffusion, "cpu")
    torch.testing.assert_close(ours(x, at(6), labels), theirs, rtol=0, atol=1e-5)
    assert "null_label" not in caplog.text, "workers say nothing of a key of our own"
    assert read_checkpoint(str(tmp_path / "p")).conditions == (10, 10)
    assert saved_network(tmp_path / "p" / "unet_raw").conditions == (10, 10)
    without = build_unet(spec.unet, (1, 8, 8))
    assert "null_label" not in without.config
    assert without.config.num_class_embeds == 10


def _pairs(a, b):
    return [(((x + 1) * 127.5).round(), ((y + 1) * 127.5).round()) for x, y in zip(a.x_t, b.x_t, strict=True)]


@pytest.mark.parametrize("conditional", [False, True])
def test_a_checkpoint_holds_all_that_matters(tmp_path, conditional):
    def specified(**train):
        return with_classes(a_spec(tmp_path, label_dropout=0.2, **train)) if conditional else a_spec(tmp_path, **train)

    spec = specified()
    straight = new_state(spec, "cpu")
    run_loop(spec, straight)

    first = new_state(spec, "cpu")
    run_loop(specified(steps=4), first)
    checkpoints.save(first, tmp_path / "state.pt")
    resumed = new_state(specified(seed=99), "cpu")
    checkpoints.load(resumed, tmp_path / "state.pt")
    assert resumed.step == 4
    torch.manual_seed(1234)  # dropout must not lean on the generator's state
    run_loop(spec, resumed)
    assert torch.equal(weights(resumed), weights(straight))
    assert resumed.seconds > first.seconds


def test_a_training_whose_node_will_be_taken_away_loses_no_step(tmp_path, monkeypatch):
    """It ends after a checkpoint that is not due, and what goes on from there learns the same."""
    spec, straight = a_spec(tmp_path, checkpoint_every=100), new_state(a_spec(tmp_path), "cpu")
    monkeypatch.setattr(checkpoints, "report", lambda state, rank: checkpoints.save(state, tmp_path / "state.pt"))
    assert run_loop(spec, straight)
    left, log = new_state(spec, "cpu"), Log(spec.running, 0, tensorboard=False)
    assert not loop._loop(spec, left, Batches(spec, 0, 1, "cpu"), log, 0, 1, lambda step: step == 5)
    at = training_progress(tmp_path, spec.model_id)
    assert (at.step, at.checkpoint) == (5, 5)
    resumed = new_state(a_spec(tmp_path, seed=99), "cpu")
    checkpoints.load(resumed, tmp_path / "state.pt")
    assert resumed.step == 5
    assert run_loop(spec, resumed)
    assert torch.equal(weights(resumed), weights(straight))


@pytest.mark.parametrize(("seconds", "asked"), [(0.125, [1, 3, 7, 15, 23, 31]), (3.0, [1, 2, 3, 4, 5, 6])])
def test_workers_ask_for_a_notice_once_a_second_and_all_after_the_same_steps(monkeypatch, seconds, asked):
    """Rank 1's clock runs ten times as fast, and does not count."""
    now, rank, said, asking = 0.0, 0, [], {0: [], 1: []}
    monkeypatch.setattr(notice, "time", SimpleNamespace(perf_counter=lambda: now * (10 if rank else 1)))

    def broadcast(every):
        said.append(every)
        return said[-1 - rank]

    def asks():
        asking[rank].append(step)
        return PreemptionInfo(None, {"node": [0]}) if step == asked[-1] else None

    monkeypatch.setattr(notice, "broadcast_from_rank_zero", broadcast)
    monkeypatch.setattr(notice.ray.train, "get_preemption_info", asks)
    notices = [notice.Notice(), notice.Notice()]
    for step in range(1, asked[-1] + 1):
        now += seconds
        for rank in range(2):
            assert notices[rank].is_given(step) is (step == asked[-1])
    assert asking == {0: asked, 1: asked}


def test_warmup_clip_and_seed_matter(tmp_path):
    def trained(**train):
        spec = a_spec(tmp_path, **train)
        state = new_state(spec, "cpu")
        run_loop(spec, state)
        return weights(state)

    variants = [{}, {"warmup_steps": 0}, {"gradient_clip": 1e-3}, {"gradient_clip": None}, {"seed": 4}]
    results = [trained(**variant) for variant in variants]
    assert torch.equal(results[0], trained())
    for i, a in enumerate(results):
        assert not any(torch.equal(a, b) for b in results[:i])


def test_the_first_warmup_step_is_a_fraction_of_the_rate(tmp_path):
    spec = a_spec(tmp_path, steps=1, warmup_steps=4, learning_rate=1e-3)
    state = new_state(spec, "cpu")
    before = [p.detach().clone() for p in state.unet.parameters()]
    run_loop(spec, state)
    largest = max((p - b).abs().max().item() for p, b in zip(state.unet.parameters(), before, strict=True))
    assert largest == pytest.approx(1e-3 / 4, rel=1e-2)  # Adam's first step moves each weight by the rate


def test_the_rate_rises_and_then_stays_or_falls_to_0_along_a_cosine():
    def rates(**keys):
        settings = config.Train(steps=10, learning_rate=0.5, **keys)
        return [loop.learning_rate(step, settings) for step in range(10)]

    assert rates() == [0.5] * 10
    assert rates(warmup_steps=4) == [0.125, 0.25, 0.375] + [0.5] * 7
    falling = [0.25 * (1 + math.cos(math.pi * k / 6)) for k in range(7)]
    assert rates(warmup_steps=4, learning_rate_schedule="cosine") == pytest.approx([0.125, 0.25, 0.375, *falling])
    assert falling[3] == pytest.approx(0.25)
    assert rates(learning_rate_schedule="cosine")[-1] == 0


def test_adamw_shrinks_the_weights_apart_from_the_gradient(tmp_path):
    """Adam's update and the decay add up: w <- w - rate (update + decay w)."""
    adam, adamw, no_decay = (
        trained(tmp_path, steps=1, warmup_steps=0, **keys)
        for keys in ({}, {"optimizer": "adamw", "weight_decay": 0.1}, {"optimizer": "adamw"})
    )
    assert torch.equal(weights(no_decay), weights(adam))
    for start, a, b in zip(*(s.unet.parameters() for s in (start_of(tmp_path), adam, adamw)), strict=True):
        torch.testing.assert_close(a - b, 1e-3 * 0.1 * start, rtol=0, atol=2e-7)


def trained(folder, **train):
    spec = a_spec(folder, **train)
    state = new_state(spec, "cpu")
    run_loop(spec, state)
    return state


def start_of(folder):
    return new_state(a_spec(folder), "cpu")


def test_without_ema_warmup_the_average_stays_near_the_start(tmp_path):
    plain = trained(tmp_path, steps=1, ema_decay=0.75, ema_warmup=False)
    pairs = zip(start_of(tmp_path).unet.parameters(), plain.unet.parameters(), plain.ema.values(), strict=True)
    for start, now, average in pairs:
        torch.testing.assert_close(average, 0.75 * start + 0.25 * now, rtol=0, atol=1e-6)
    assert [ema_decay(step, 0.75, warmup=True) for step in (0, 99)] == [0.1, 0.75]
    assert [ema_decay(step, 0.75, warmup=False) for step in (0, 99)] == [0.75, 0.75]


def test_antithetic_times_are_pairs_whatever_the_ranks(tmp_path):
    """15 positions over 4 ranks: some start at an odd one, and the last has no partner."""
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update={"timesteps": 20})
    plain, paired = (
        dataclasses.replace(a_spec(tmp_path, batch_size=15, antithetic=antithetic), diffusion=diffusion)
        for antithetic in (False, True)
    )
    for step in range(20):
        independent, whole = (Batches(spec, 0, 1, "cpu")[step] for spec in (plain, paired))
        assert torch.equal(whole.t[0::2], independent.t[0::2])
        assert torch.equal(whole.t[1::2], 21 - whole.t[0:-1:2])
        assert torch.equal(whole.x0, independent.x0)
        assert torch.equal(whole.eps, independent.eps)
        parts = [Batches(paired, rank, 4, "cpu")[step] for rank in range(4)]
        assert torch.equal(torch.cat([part.t for part in parts]), whole.t)
    odd = noise.training_draws(3, 7, torch.arange(1, 1001, 2), 10, 20, antithetic=True).t
    assert (odd.min(), odd.max()) == (1, 20)


@pytest.mark.parametrize("keys", [{"channels_last": False}, {"precision": "bf16"}])
def test_formats_of_the_network_change_the_last_digits_alone(tmp_path, keys):
    """Of bf16, whose numbers have 8 bits, those are the losses' third. What is kept is float32 all the same."""
    start = new_state(steady(tmp_path), "cpu")
    expected = logged_losses(steady(tmp_path), start)
    state = new_state(steady(tmp_path, **keys), "cpu")
    losses = logged_losses(steady(tmp_path, **keys), state)
    assert losses == pytest.approx(expected, rel=2e-2 if "precision" in keys else 1e-4)
    assert (losses == pytest.approx(expected, rel=1e-5)) == ("precision" not in keys)
    channels_last = state.unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert channels_last == keys.get("channels_last", True)
    moments = [value for values in state.optimizer.state.values() for value in values.values()]
    assert {t.dtype for t in [*state.unet.parameters(), *state.ema.values(), *moments]} == {torch.float32}


@pytest.mark.parametrize(("precision", "channels_last"), [("float32", False), ("tf32", False), ("bf16", True)])
def test_a_gpu_trains_in_the_layout_that_is_faster_in_its_precision(tmp_path, monkeypatch, precision, channels_last):
    """Defect 15. On a simulated GPU: GroupNorm copies it there and back. Patch: channels_last always."""
    monkeypatch.setattr("taugrid.workers.training.checkpoints.kind_of", lambda device: "cuda")
    state = new_state(steady(tmp_path, precision=precision), "cpu")
    weight = state.unet.conv_out.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last


def test_what_torch_can_not_repeat_ends_a_training_in_one_line(tmp_path):
    said = "reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set 'torch.use_det"
    expected = r"^train.precision: bf16: reflection_pad2d_backward_cuda does not have .* set train.precision: float32"
    with pytest.raises(Hopeless, match=expected), loop.repeatable(steady(tmp_path, precision="bf16").train):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), loop.repeatable(steady(tmp_path).train):
        raise RuntimeError("another")


class OnDevice:
    """A network somewhere, that notes with which options it was compiled."""

    def __init__(self, device):
        self.device, self.asked = device, None

    def parameters(self):
        yield self

    def compile(self, **options):
        self.asked = options


@pytest.mark.parametrize(("precision", "layout"), [("float32", {"layout_optimization": False}), ("bf16", {})])
def test_a_training_that_is_compiled_chooses_nothing_by_timing_on_gpus(tmp_path, precision, layout):
    """And no channels_last for float32 (defect 15). On CPUs it has torch's options as ever. Patch: `unet.compile()`."""
    gpu, cpu, spec = OnDevice("cuda:0"), OnDevice("cpu"), a_spec(tmp_path, compile=True, precision=precision)
    for network in (gpu, cpu):
        assert loop._network(spec.train, network, None, 1) is network
    assert gpu.asked == {"options": {"shape_padding": False, "deterministic": True} | layout}
    assert cpu.asked == {}


@pytest.mark.chaos
@pytest.mark.slow
def test_a_compiled_network_learns_the_same_and_is_saved_as_any_other(tmp_path):
    """The C++ compiler takes half a minute for even this network."""
    levels = {"block_out_channels": [4], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    unet = UNET.model_copy(update={**levels, "dropout": 0.0, "add_attention": False})
    plain, spec = (dataclasses.replace(a_spec(tmp_path, compile=compiled), unet=unet) for compiled in (False, True))
    other, state = (new_state(spec, "cpu") for _ in range(2))
    expected, losses = logged_losses(plain, other), logged_losses(spec, state)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert state.unet._compiled_call_impl is not None
    checkpoints.save(state, tmp_path / "state.pt")
    checkpoints.load(other, tmp_path / "state.pt")
    assert torch.equal(weights(other), weights(state))
    checkpoints.commit(spec, state)
    raw = load_network(saved_network(spec.final / "unet_raw"), spec.diffusion, "cpu")
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(raw(x, at(500)), other.unet.eval()(x, 499).sample, rtol=0, atol=1e-5)


def test_the_logged_gradient_norm_is_that_before_clipping(tmp_path):
    spec = steady(tmp_path, steps=1, gradient_clip=1e-3)
    state = new_state(spec, "cpu")
    unet, batch = copy.deepcopy(state.unet), Batches(spec, 0, 1, "cpu")[0]
    (unet(batch.x_t, batch.t - 1).sample - batch.eps).square().mean().backward()
    norm = torch.cat([p.grad.flatten() for p in unet.parameters()]).norm().item()
    (loss,) = logged_losses(spec, state)
    (record,) = log_of(spec)
    assert record == {
        "step": 1,
        "loss": loss,
        "learning_rate": pytest.approx(1e-3 / 3),
        "gradient_norm": pytest.approx(norm, rel=1e-4),
        "workers": 1,
        "seconds": pytest.approx(state.seconds, abs=1e-3),
    }
    assert norm > 1e-3


def steady(folder, prediction="epsilon", **train):
    """A spec without dropout, whose network predicts `prediction`."""
    unet = UNET.model_copy(update={"dropout": 0.0})
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update={"prediction": prediction})
    return dataclasses.replace(a_spec(folder, **train), unet=unet, diffusion=diffusion)


def logged_losses(spec, state):
    run_loop(spec, state, Log(spec.running, 0, tensorboard=False))
    return [record["loss"] for record in log_of(spec)]


def log_of(spec):
    return [json.loads(line) for line in (spec.running / "log.jsonl").read_text().splitlines()]


def test_steps_weigh_times_by_theorem_1(tmp_path):
    """Steps made by hand, as the paper's eq. 5 has them: gamma_t |eps_theta(x_t, t) - eps|^2, here per dimension."""
    loss_weights = config.LossWeights(eta=0.5, sigma_1=0.1)
    gamma = torch.from_numpy(schedules.gamma(loss_weights, schedules.alpha_bar(config.DIFFUSION_DEFAULTS))).float()
    spec = steady(tmp_path, steps=3, loss_weights=loss_weights)
    state = new_state(spec, "cpu")
    unet = copy.deepcopy(state.unet)
    optimizer = torch.optim.Adam(unet.parameters())
    losses = []
    for step in range(3):
        batch = Batches(spec, 0, 1, "cpu")[step]
        errors = (unet(batch.x_t, batch.t - 1).sample - batch.eps).square().mean(dim=(1, 2, 3))
        loss = (gamma[batch.t] * errors).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1) / 3  # the warmup
        optimizer.step()
    assert logged_losses(spec, state) == pytest.approx(losses, rel=1e-4)
    by_hand, before = (torch.cat([p.detach().flatten() for p in network.parameters()])
                       for network in (unet, new_state(spec, "cpu").unet))  # fmt: skip
    found = weights(state)[: len(by_hand)]
    assert (found - by_hand).norm() < 0.01 * (by_hand - before).norm()
    plain = new_state(spec, "cpu")
    run_loop(steady(tmp_path, steps=3), plain)
    assert (weights(plain)[: len(by_hand)] - by_hand).norm() > 0.1 * (by_hand - before).norm()


def test_a_network_learns_what_it_is_to_predict(tmp_path):
    """Of three that differ in `diffusion.prediction` alone, each is best at its own on draws that none has seen."""
    held_out = Batches(steady(tmp_path, batch_size=200), 0, 1, "cpu")[10**6]
    errors = {}
    for prediction in targets(held_out):
        spec = steady(tmp_path / prediction, prediction, steps=20, learning_rate=1e-2)
        state = new_state(spec, "cpu")
        first = Batches(spec, 0, 1, "cpu")[0]
        before = errors_of(state.unet, first)[prediction]
        assert logged_losses(spec, state)[0] == pytest.approx(before, rel=1e-4)
        errors[prediction] = errors_of(state.unet, held_out)
    for name in targets(held_out):
        assert min(errors, key=lambda prediction: errors[prediction][name]) == name


def targets(batch):
    alpha_t = torch.from_numpy(schedules.alpha_bar(config.DIFFUSION_DEFAULTS))[batch.t]
    return {"epsilon": batch.eps, "sample": batch.x0, "v_prediction": velocity(batch.x0, batch.eps, alpha_t)}


@torch.no_grad()
def errors_of(unet, batch):
    """How far its output is from each target, on the mean."""
    output = unet(batch.x_t, batch.t - 1).sample
    return {name: (output - target).square().mean().item() for name, target in targets(batch).items()}


def test_a_loss_that_is_not_finite_stops_the_loop(tmp_path):
    spec = a_spec(tmp_path, learning_rate=1e30, warmup_steps=0)
    state = new_state(spec, "cpu")
    message = r"^the loss of step \d is not finite; lower train.learning_rate \(1e\+30\).* no earlier checkpoint$"
    with pytest.raises(Hopeless, match=message):
        run_loop(spec, state, Log(spec.running, 0, tensorboard=False))
    assert [record["step"] for record in log_of(spec)] == list(range(1, state.step))


@pytest.mark.parametrize("keys", [{"steps": 1}, {"steps": 2, "checkpoint_every": 1}])
def test_weights_that_are_not_finite_are_never_kept(tmp_path, keys):
    """The loss of a step is that before its update. (A checkpoint outside of Ray Train would be another error.)"""
    spec = a_spec(tmp_path, learning_rate=1e39, warmup_steps=0, **keys)
    with raises(Hopeless):
        run_loop(spec, new_state(spec, "cpu"))


@pytest.mark.parametrize("gradient_clip", [1.0, None])
def test_a_gradient_that_is_not_finite_stops_the_loop_and_the_line_names_what_is_left(tmp_path, gradient_clip):
    spec = steady(tmp_path, gradient_clip=gradient_clip)
    state = new_state(spec, "cpu")
    state.step = 4
    with torch.no_grad():
        state.unet.conv_out.weight.fill_(1e17)  # the loss is 1e34, the gradient of the layers before it 1e34 times more
    with raises(Hopeless):
        run_loop(spec, state)


@pytest.mark.parametrize(
    "keys",
    [
        {"down_block_types": ["DownBlock2D", "NoBlock2D"]},
        {
            "block_out_channels": [8] * 5,
            "down_block_types": ["DownBlock2D"] * 5,
            "up_block_types": ["UpBlock2D"] * 5,
        },
    ],
)
def test_a_network_that_does_not_fit_is_said_at_once(tmp_path, keys):
    spec = dataclasses.replace(a_spec(tmp_path), unet=UNET.model_copy(update=keys))
    with raises(Hopeless):
        new_state(spec, "cpu")


def test_log_is_cut_back_to_the_checkpoint_and_progress_reads_its_end(tmp_path):
    spec = a_spec(tmp_path)
    path = spec.running / "log.jsonl"
    assert training_progress(tmp_path, "m") is None
    log = Log(spec.running, 0, tensorboard=False)
    assert training_progress(tmp_path, "m") is None
    for step in range(1, 301):
        log.write(Record(step, 1 / step, 1e-3, 0.3, 2, 0.1))
    assert training_progress(tmp_path, "m")[:3] == (300, 1 / 300, 2)
    with path.open("a") as torn:
        torn.write('{"step": 301, "lo')  # a kill cut the line off
    assert training_progress(tmp_path, "m")[:3] == (300, 1 / 300, 2)
    with path.open("ab") as torn:
        torn.write(b"\n" + bytes(40) + b"\n")  # and a power loss the end of a file
    assert training_progress(tmp_path, "m")[:3] == (300, 1 / 300, 2)
    assert training_progress(tmp_path, "m").checkpoint == 0
    log.checkpointed(200)
    assert training_progress(tmp_path, "m").checkpoint == 200
    Log(spec.running, 120, tensorboard=False).write(Record(121, 0.5, 1e-3, 0.3, 1, 0.2))
    assert training_progress(tmp_path, "m").checkpoint == 120
    assert [record["step"] for record in log_of(spec)] == list(range(1, 122))
    (tmp_path / "m" / "train").mkdir(parents=True)
    path.rename(tmp_path / "m" / "train" / "log.jsonl")
    assert training_progress(tmp_path, "m")[:3] == (121, 0.5, 1), "of a training that is finished too"


def test_tensorboard_has_each_logged_step_once_after_a_restart_too(tmp_path):
    spec = a_spec(tmp_path, tensorboard=True)
    state = new_state(spec, "cpu")
    run_loop(a_spec(tmp_path, steps=4), state, Log(spec.running, 0, tensorboard=False))  # it is asked for later
    checkpoints.save(state, tmp_path / "state.pt")
    run_loop(spec, state, Log(spec.running, 4, spec.train.tensorboard))  # a kill takes these two steps
    state = new_state(spec, "cpu")
    checkpoints.load(state, tmp_path / "state.pt")
    run_loop(spec, state, Log(spec.running, 4, spec.train.tensorboard))
    checkpoints.commit(spec, state)
    shown = EventAccumulator(str(spec.final / "train")).Reload()
    assert set(shown.Tags()["scalars"]) == set(SCALARS)
    for name in SCALARS:
        events = [(event.step, event.value) for event in shown.Scalars(name)]
        assert events == [(record["step"], pytest.approx(record[name])) for record in log_of(spec)]
    assert len(list((spec.final / "train").glob("events.out.tfevents.*"))) == 1


def test_tensorboard_that_is_not_installed_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with raises(UserError):
        a_run(tmp_path / "run", tensorboard=True).do(["train"])
    assert not (tmp_path / "run").exists()
    with raises(Hopeless):
        Log(tmp_path, 0, tensorboard=True)


def a_run(root, **train):
    levels = {"block_out_channels": [4], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    model = {"unet": {**levels, "norm_num_groups": 4}}
    settings = config.validate(config.Config, {"name": "t", "model": model, "train": train}, "test")
    run = Run(settings, plan(settings), RunDir(root))
    return Session(run, "local", Progress(Console(file=io.StringIO(), width=200)))


def test_what_a_driver_left_that_was_killed_after_the_commit_is_put_right(tmp_path):
    session = a_run(tmp_path)
    rundir, (model,) = session.rundir, session.plan.models
    rundir.claim()
    weights = rundir.models / model.id / "unet" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    Log(weights.parents[1] / "train", 0, tensorboard=False).write(Record(1, 0.5, 1e-3, 1.0, 1, 0.1))
    for leftover in (f".training-{model.id}", f".{model.id}.abc.tmp"):
        (rundir.models / leftover).mkdir()
    session.do(["train"])
    assert [path.name for path in rundir.models.iterdir()] == [model.id]
    assert {path.name for path in rundir.figures.iterdir()} == {"loss.png", "loss.svg"}
    shutil.rmtree(weights.parents[1])
    write_losses(session.plan, rundir)
    assert list(rundir.figures.iterdir()) == [], "a figure of models that are gone"


def test_what_is_left_of_an_upload_makes_room_for_a_training_with_other_bytes(bucket, tmp_path, monkeypatch):
    """No two trainings write the same log, nor on every machine the same weights."""
    final = tmp_path / "final"
    (final / "unet").mkdir(parents=True)
    for name in ("unet/config.json", TRAINED_WEIGHTS):
        (final / name).write_text("of the second training")
    (root, storage), planned = bucket, a_run(tmp_path / "unused").run
    session = Session(replace(planned, rundir=RunDir(root, storage)), "local", Progress(Console(file=io.StringIO())))
    [model] = session.plan.models
    folder = session.rundir.model_folder(model)
    with replacing(folder / "unet" / "config.json", storage) as temporary:
        temporary.write_text("of the first training")
    session.rundir.claim()

    class Retrained:
        def __init__(self, trainings, *others):
            assert [training.model for training in trainings] == [model]

        def run(self):
            upload_folder(folder, final, TRAINED_WEIGHTS, storage)
            return {}

    monkeypatch.setattr("taugrid.orchestrator.session.TrainingScheduler", Retrained)
    monkeypatch.setattr(Session, "_connect", lambda self: None)
    session.do(["train"])
    assert {storage.read(path) for path in storage.list(folder, "unet/*")} == {b"of the second training"}
    [aside] = storage.list(root / "damaged", "*/unet/config.json")
    assert storage.read(aside) == b"of the first training"


def test_status_counts_as_done_what_a_checkpoint_holds(tmp_path):
    session = a_run(tmp_path, steps=1000)
    rundir, (model,) = session.rundir, session.plan.models
    log = Log(rundir.models / f".training-{model.id}", 0, tensorboard=False)
    log.write(Record(249, 0.5, 1e-3, 1.0, 1, 249.0))
    log.checkpointed(200)
    status = describe(session.run)
    assert (status["train_steps_remaining"], status["train_worker_seconds_remaining"]) == (800, 800.0)
    recorded(plan_text(status), "checkpoint")


def watched(tmp_path, monkeypatch, may_grow=False, **train):
    """What is said of a training that logs no step, by a clock that is a minute later at each call."""
    clock = count(0, 60)
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(driver.fit, "train", lambda spec: None)
    training, said = a_training(tmp_path, may_grow, config.Cluster(), **train)
    ended = SimpleQueue()
    training.begin(ended)
    ended.get(timeout=60)  # or its thread might look for `train` after the test
    for _ in range(12):
        training.check_log()
    return said()


def a_training(tmp_path, may_grow, cluster, **train):
    session = a_run(tmp_path, **train)
    [(model, source)] = session.plan.trained_here
    given = model, source, session.rundir, cluster, session._progress.say, Events(session.rundir), may_grow
    return driver.Training(*given), session._progress._console.file.getvalue


@pytest.fixture
def few_nodes(monkeypatch):
    """Adds nodes; no images are needed."""
    monkeypatch.setattr(driver, "content_fingerprint", lambda data: "0" * 64)
    return lambda *there: monkeypatch.setattr(capacity, "nodes", lambda selector: list(there))


def test_a_training_that_stands_still_says_once_what_it_may_wait_for(tmp_path, monkeypatch, few_nodes):
    few_nodes(Node("n", 2, 0))
    assert watched(tmp_path, monkeypatch, workers=2) == ""
    waits = "it waits while the cluster has no room for 2 workers\n"
    assert watched(tmp_path, monkeypatch, workers=2, may_grow=True).count(waits) == 1
    assert watched(tmp_path, monkeypatch, workers=[2, 4]).count(waits) == 1


@pytest.mark.parametrize(("cpus", "ends"), [(1, True), (2, False)])
def test_a_training_waits_no_longer_for_nodes_than_it_may(tmp_path, monkeypatch, few_nodes, cpus, ends):
    few_nodes(Node("n", cpus, 0))
    limit = pytest.raises(UserError, match=r"cluster\.max_wait_seconds") if ends else nullcontext()
    with limit:
        watched(tmp_path, monkeypatch, workers=[2, 2], may_grow=True)


@pytest.mark.parametrize(
    ("gpus", "workers"),
    [(1, (1, 8)), (0.6, 1)],
)
def test_a_training_on_a_cluster_that_may_grow_asks_for_all_its_workers_and_says_so(tmp_path, few_nodes, gpus, workers):
    few_nodes(Node("g", 8, 1))
    training, text = a_training(tmp_path, True, config.Cluster(gpus_per_worker=gpus), workers=8)
    assert training._specified(training.wanted()).train.workers == workers
    recorded(text(), "fit")


def test_a_gpu_that_torch_can_not_use_is_named_and_not_replaced_by_the_cpu(tmp_path, monkeypatch):
    """With torch's own words (c10/cuda/CUDAFunctions.cpp); more of them in test_gpu.py."""

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update it.")

    monkeypatch.setattr(torch.cuda, "init", init)
    with raises(DeviceUnusable):
        loop._device(dataclasses.replace(a_spec(tmp_path), gpus_per_worker=1.0))


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert checkpoints.newest_checkpoint(tmp_path) is None
    state = new_state(a_spec(tmp_path), "cpu")
    whole, torn, zeros, empty = (tmp_path / f"checkpoint_2026-01-0{day}" / "state.pt" for day in range(1, 5))
    for path in (whole, torn, zeros, empty):
        path.parent.mkdir()
        checkpoints.save(state, path)
    torn.write_bytes(torn.read_bytes()[:-5000])
    zeros.write_bytes(bytes(torn.stat().st_size))
    empty.write_bytes(b"")
    assert checkpoints.newest_checkpoint(tmp_path) == whole


def test_the_line_is_of_the_worker_that_failed_and_not_of_those_that_lost_it():
    lost = "Traceback:\nRuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"
    cause = "Traceback:\n  at line 1\nOSError: [Errno 28] No space left on device\n"
    failures = {2: RuntimeError(lost), 1: OSError(cause), 3: OSError(cause), 0: RuntimeError(lost)}
    error = WorkerGroupError("all of it", failures)
    recorded(fit._in_one_line(error))
    only = WorkerGroupError("all of it", {0: RuntimeError(lost)})
    recorded(fit._in_one_line(only), "Connection")
    assert fit._in_one_line(ControllerError(ValueError("no node"))) == "no node"


def test_a_worker_that_died_is_told_with_what_is_known_and_what_to_do():
    """Ray's own last lines say that an actor failed to initialize, or nothing but where its log is."""
    health = WorkerHealthCheckFailedError("rank 0", ActorDiedError())
    died = fit._in_one_line(WorkerGroupError("all of it", {0: health}))
    started = fit._in_one_line(ControllerError(WorkerGroupStartupFailedError("At least one failed to initialize.")))
    memory = OutOfMemoryError("Task was killed due to the node running low on memory.\nSee the docs")
    short = fit._in_one_line(WorkerGroupError("all of it", {1: memory}))
    for told in (died, started, short):
        recorded(told)
    assert "(worker 1)" in short


def test_a_cosine_needs_a_step_after_the_warm_up():
    keys = {"steps": 5, "learning_rate_schedule": "cosine"}
    assert config.Train(**keys, warmup_steps=4).warmup_steps == 4
    with raises(ValueError):
        config.Train(**keys, warmup_steps=5)


def test_logged_steps_are_few_in_a_long_training():
    logged = [step for step in range(1, 100_001) if is_logged(step, 100_000)]
    assert logged[:50] == list(range(1, 51))
    assert logged[50:53] == [100, 200, 300]
    assert logged[-1] == 100_000
    assert is_logged(7_778, 7_778), "the last, though it is no multiple of 7"


MEETING = """
import os
import sys
from pathlib import Path
from torch import distributed
from taugrid.workers.training.meeting import connect, stay_on_loopback, store_in

child = os.fork()  # one import of torch serves both
stay_on_loopback()
connect(store_in(Path(sys.argv[1]), 2), int(child == 0), 2, "cpu")
distributed.barrier()
os.write(1, f"{Path(sys.argv[1]).exists()}\\n".encode())  # both write at once: print's line and its end are two writes
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


@pytest.mark.long
def test_ranks_meet_in_a_run_directory_of_any_name(tmp_path):
    """torch took the name for a URL: of run#2 it opened run, a folder (`DistStoreError`) or another training's file."""
    folder = tmp_path / "run#2 ?a=1&b %20 ü"
    folder.mkdir()
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", MEETING, str(folder / "meeting")]
    ranks = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ranks.stdout.split(), ranks.returncode) == (["True", "True"], 0), ranks.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", folder.name]
