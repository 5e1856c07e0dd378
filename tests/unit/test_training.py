import copy
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
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from snapshots import raises, recorded
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import WITH_ATTENTION

from taugrid import config
from taugrid.errors import UserError
from taugrid.jobs import Hopeless, TrainingSpec
from taugrid.orchestrator.cli.text import plan_text
from taugrid.orchestrator.dispatch import capacity, cluster
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
from taugrid.storage import LOCAL, replacing, upload_folder
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.data.load import load_labels
from taugrid.workers.diffusion import noise
from taugrid.workers.network.checkpoint import read_checkpoint, saved_network
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import build_unet, save_pipeline
from taugrid.workers.training import checkpoints, fit, loop, meeting
from taugrid.workers.training.checkpoints import new_state
from taugrid.workers.training.log import SCALARS, Log, Record, is_logged, training_progress
from taugrid.workers.training.loop import Batches

pytestmark = pytest.mark.usefixtures("one_thread")

UNET = config.Unet(**WITH_ATTENTION, dropout=0.1)


def a_spec(folder, **train):
    settings = {"steps": 6, "batch_size": 10, "seed": 3, "warmup_steps": 3, "learning_rate": 1e-3} | train
    given = config.Data(), data.content_fingerprint(config.Data()), UNET, config.DIFFUSION_DEFAULTS
    return TrainingSpec(*given, config.Train(**settings), "m", str(folder), 1.0, 0.0)


def with_classes(spec):
    """The same training, with the labels of the images."""
    sha256 = load_labels(spec.data).sha256
    return replace(spec, unet=UNET.model_copy(update={"num_classes": 10}), labels_sha256=sha256)


def steady(folder, **train):
    """A spec without dropout."""
    return replace(a_spec(folder, **train), unet=UNET.model_copy(update={"dropout": 0.0}))


def batches(spec, rank=0, world_size=1):
    return Batches(spec, rank, world_size, "cpu")


def run_loop(spec, state, log=None):
    return loop.train(spec, state, batches(spec), log, 0, 1)


def trained(spec):
    state = new_state(spec, "cpu")
    run_loop(spec, state)
    return state


def a_log(spec, step=0):
    return Log(spec.running, step, tensorboard=spec.train.tensorboard)


def log_of(spec):
    return [json.loads(line) for line in (spec.running / "log.jsonl").read_text().splitlines()]


def logged_losses(spec, state):
    run_loop(spec, state, a_log(spec))
    return [record["loss"] for record in log_of(spec)]


def weights(state):
    return torch.cat([p.detach().flatten() for p in [*state.unet.parameters(), *state.ema.values()]])


def test_slices_of_ranks_make_up_the_global_batch(tmp_path):
    spec = with_classes(a_spec(tmp_path, flip=True, label_dropout=0.5))
    whole = batches(spec)[5]
    parts = [batches(spec, rank, 3)[5] for rank in range(3)]
    assert [len(part.t) for part in parts] == [3, 3, 4]
    for got, want in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(got), want)


def test_batches_are_noisy_images_of_the_dataset(tmp_path):
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update={"timesteps": 1, "beta_start": 1e-12, "beta_end": 1e-12})
    plain, flipped = (  # next to no noise is added
        pixels(batches(replace(a_spec(tmp_path, flip=flip), diffusion=diffusion))[0].x_t) for flip in (False, True)
    )
    known = {image.tobytes() for image in data.load_images(config.Data())}
    assert all(image.numpy().tobytes() in known for image in plain)
    pairs = list(zip(flipped, plain, strict=True))
    assert all(torch.equal(f, p) or torch.equal(f, p.flip(-1)) for f, p in pairs)
    assert 0 < sum(torch.equal(f, p) for f, p in pairs) < len(pairs)


@pytest.mark.parametrize("device_bytes", [0, loop.DEVICE_BYTES])
def test_a_batch_waits_for_nothing_that_the_device_computes(tmp_path, monkeypatch, device_bytes):
    """A GPU would idle at each step while images are gathered for the next. From torch's device `meta`, no tensor can
    be read at all. Patch: `draws.index.cpu()`."""
    monkeypatch.setattr(loop, "DEVICE_BYTES", device_bytes)
    spec = with_classes(a_spec(tmp_path, flip=True, antithetic=True, label_dropout=0.3))
    on_meta = Batches(spec, 0, 1, "meta")[5]
    assert {each.device.type for each in on_meta} == {"meta"}
    assert [(each.shape, each.dtype) for each in on_meta] == [(each.shape, each.dtype) for each in batches(spec)[5]]


def pixels(images):
    return ((images + 1) * 127.5).round().byte()


def test_labels_are_those_of_the_images_and_some_are_the_null_class(tmp_path):
    plain = batches(a_spec(tmp_path, batch_size=1000))[7]
    full = batches(with_classes(a_spec(tmp_path, batch_size=1000)))[7]
    dropped = batches(with_classes(a_spec(tmp_path, batch_size=1000, label_dropout=0.3)))[7]
    assert plain.labels is None
    for other in (full, dropped):
        assert all(torch.equal(a, b) for a, b in zip(plain[:4], other[:4], strict=True)), "no other draw moves"
    images, of_images = data.load_images(config.Data()), load_labels(config.Data()).of_images
    label_of = {image.tobytes(): label for image, label in zip(images, of_images, strict=True)}
    assert full.labels.tolist() == [label_of[image.numpy().tobytes()] for image in pixels(full.x0)]
    is_null = dropped.labels == 10
    assert is_null.float().mean().item() == pytest.approx(0.3, abs=0.06)  # 4 standard errors
    assert torch.equal(dropped.labels[~is_null], full.labels[~is_null])


@pytest.mark.parametrize("label_dropout", [0.0, 0.3])
def test_a_network_learns_from_labels_and_only_the_rows_of_those_it_sees(tmp_path, label_dropout):
    spec = with_classes(a_spec(tmp_path, steps=2, warmup_steps=0, label_dropout=label_dropout))
    state = new_state(spec, "cpu")
    before = state.unet.class_embedding.weight.detach().clone()
    seen = set(torch.cat([batches(spec)[step].labels for step in range(2)]).tolist())
    run_loop(spec, state)
    changed = (state.unet.class_embedding.weight != before).any(dim=1)
    assert set(changed.nonzero().flatten().tolist()) == seen
    assert len(before) == (11 if label_dropout else 10)
    assert (10 in seen) == (label_dropout > 0)


def test_a_network_with_classes_is_saved_with_its_null_class_and_diffusers_loads_it(tmp_path, caplog):
    import diffusers

    spec = with_classes(a_spec(tmp_path, steps=1, label_dropout=0.1))
    state = trained(spec)
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


def test_a_training_whose_node_will_be_taken_away_loses_no_step(tmp_path, monkeypatch):
    """It ends after a checkpoint that is not due, and what goes on from there learns the same, to the bit."""

    def specified(**train):
        return with_classes(a_spec(tmp_path, label_dropout=0.2, checkpoint_every=100, **train))

    spec = specified()
    straight, left, resumed = trained(spec), new_state(spec, "cpu"), new_state(specified(seed=99), "cpu")
    monkeypatch.setattr(checkpoints, "report", lambda state, rank: checkpoints.save(state, tmp_path / "state.pt"))
    assert not loop.train(spec, left, batches(spec), a_log(spec), 0, 1, lambda step: step == 5)
    now = training_progress(tmp_path, spec.model_id)
    assert (now.step, now.checkpoint) == (5, 5)
    checkpoints.load(resumed, tmp_path / "state.pt")
    assert resumed.step == 5
    torch.manual_seed(1234)  # dropout must not lean on the generator's state
    assert run_loop(spec, resumed)
    assert torch.equal(weights(resumed), weights(straight))
    assert resumed.seconds > left.seconds


@pytest.mark.parametrize(("seconds", "asked"), [(0.125, [1, 3, 7, 15, 23, 31]), (3.0, [1, 2, 3, 4, 5, 6])])
def test_workers_ask_for_a_notice_once_a_second_and_all_after_the_same_steps(monkeypatch, seconds, asked):
    """Rank 1's clock runs ten times as fast, and does not count."""
    now, rank, said, asking = 0.0, 0, [], {0: [], 1: []}
    monkeypatch.setattr(meeting, "time", SimpleNamespace(perf_counter=lambda: now * (10 if rank else 1)))

    def broadcast(every):
        said.append(every)
        return said[-1 - rank]

    def asks():
        asking[rank].append(step)
        return PreemptionInfo(None, {"node": [0]}) if step == asked[-1] else None

    monkeypatch.setattr(meeting, "broadcast_from_rank_zero", broadcast)
    monkeypatch.setattr(meeting.ray.train, "get_preemption_info", asks)
    notices = [meeting.Notice(), meeting.Notice()]
    for step in range(1, asked[-1] + 1):
        now += seconds
        for rank in range(2):
            assert notices[rank].is_given(step) is (step == asked[-1])
    assert asking == {0: asked, 1: asked}


def test_the_rate_rises_and_then_stays_or_falls_to_0_along_a_cosine():
    def rates(**keys):
        settings = config.Train(steps=10, learning_rate=0.5, **keys)
        return [loop.learning_rate(step, settings) for step in range(10)]

    assert rates() == [0.5] * 10
    assert rates(warmup_steps=4) == [0.125, 0.25, 0.375] + [0.5] * 7
    falling = [0.25 * (1 + math.cos(math.pi * k / 6)) for k in range(7)]
    assert rates(warmup_steps=4, learning_rate_schedule="cosine") == pytest.approx([0.125, 0.25, 0.375, *falling])
    assert rates(learning_rate_schedule="cosine")[-1] == 0


def test_adamw_shrinks_the_weights_apart_from_the_gradient(tmp_path):
    """Adam's update and the decay add up: w <- w - rate (update + decay w)."""
    adam, adamw, no_decay = (
        trained(a_spec(tmp_path, steps=1, warmup_steps=0, **keys))
        for keys in ({}, {"optimizer": "adamw", "weight_decay": 0.1}, {"optimizer": "adamw"})
    )
    assert torch.equal(weights(no_decay), weights(adam))
    assert not torch.equal(weights(trained(a_spec(tmp_path, steps=1, warmup_steps=0, seed=4))), weights(adam))
    start = vector(new_state(a_spec(tmp_path), "cpu").unet)
    torch.testing.assert_close(vector(adam.unet) - vector(adamw.unet), 1e-3 * 0.1 * start, rtol=0, atol=2e-7)


def test_without_ema_warmup_the_average_stays_near_the_start(tmp_path):
    state = trained(a_spec(tmp_path, steps=1, ema_decay=0.75, ema_warmup=False))
    average = torch.cat([each.flatten() for each in state.ema.values()])
    start = vector(new_state(a_spec(tmp_path), "cpu").unet)
    torch.testing.assert_close(average, 0.75 * start + 0.25 * vector(state.unet), rtol=0, atol=1e-6)


def test_antithetic_times_are_pairs_whatever_the_ranks(tmp_path):
    """15 positions over 4 ranks: some start at an odd one, and the last has no partner."""
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update={"timesteps": 20})
    plain = replace(a_spec(tmp_path, batch_size=15), diffusion=diffusion)
    paired = replace(a_spec(tmp_path, batch_size=15, antithetic=True), diffusion=diffusion)
    for step in range(20):
        independent, whole = batches(plain)[step], batches(paired)[step]
        assert torch.equal(whole.t[0::2], independent.t[0::2])
        assert torch.equal(whole.t[1::2], 21 - whole.t[0:-1:2])
        assert torch.equal(whole.x0, independent.x0)
        assert torch.equal(whole.eps, independent.eps)
        assert torch.equal(torch.cat([batches(paired, rank, 4)[step].t for rank in range(4)]), whole.t)
    odd = noise.training_draws(3, 7, torch.arange(1, 1001, 2), 10, 20, antithetic=True).t
    assert (odd.min(), odd.max()) == (1, 20)


@pytest.mark.parametrize("keys", [{"channels_last": False}, {"precision": "bf16"}])
def test_formats_of_the_network_change_the_last_digits_alone(tmp_path, keys):
    """Of bf16, whose numbers have 8 bits, those are the losses' third. What is kept is float32 all the same."""
    expected = logged_losses(steady(tmp_path), new_state(steady(tmp_path), "cpu"))
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
        assert loop.network_to_train(spec.train, network, None, 1) is network
    deterministic = {"deterministic": True} if torch.__version__ >= "2.10" else {}  # which torch 2.9 does not know
    assert gpu.asked == {"options": {"shape_padding": False} | deterministic | layout}
    assert cpu.asked == {}


def test_steps_weigh_times_by_theorem_1_and_the_log_has_the_norm_before_clipping(tmp_path):
    """Steps made by hand, as the paper's eq. 5 has them: gamma_t |eps_theta(x_t, t) - eps|^2, here per dimension."""
    loss_weights = config.LossWeights(eta=0.5, sigma_1=0.1)
    gamma = torch.from_numpy(schedules.gamma(loss_weights, schedules.alpha_bar(config.DIFFUSION_DEFAULTS))).float()
    spec = steady(tmp_path, steps=3, loss_weights=loss_weights, gradient_clip=0.01)
    state = new_state(spec, "cpu")
    unet, before = copy.deepcopy(state.unet), vector(state.unet)
    optimizer = torch.optim.Adam(unet.parameters())
    expected = []
    for step in range(3):
        batch = batches(spec)[step]
        errors = (unet(batch.x_t, batch.t - 1).sample - batch.eps).square().mean(dim=(1, 2, 3))
        loss = (gamma[batch.t] * errors).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), 0.01)
        rate = 1e-3 * (step + 1) / 3  # the warm-up
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        figures = {"loss": loss.item(), "learning_rate": rate, "gradient_norm": norm.item()}
        expected.append(pytest.approx({"step": step + 1, "workers": 1} | figures, rel=1e-3))
        assert norm > 0.02
    run_loop(spec, state, a_log(spec))
    assert [{key: record[key] for key in record if key != "seconds"} for record in log_of(spec)] == expected
    moved = (vector(unet) - before).norm()
    assert (vector(state.unet) - vector(unet)).norm() < 0.01 * moved
    plain = trained(steady(tmp_path, steps=3, gradient_clip=0.01))
    assert (vector(plain.unet) - vector(unet)).norm() > 0.1 * moved


def vector(unet):
    return torch.cat([p.detach().flatten() for p in unet.parameters()])


def test_a_loss_that_is_not_finite_stops_the_loop(tmp_path):
    spec = a_spec(tmp_path, learning_rate=1e30, warmup_steps=0)
    state = new_state(spec, "cpu")
    with raises(Hopeless) as caught:
        run_loop(spec, state, a_log(spec))
    assert f"step {state.step} " in str(caught.value)
    assert [record["step"] for record in log_of(spec)] == list(range(1, state.step))


@pytest.mark.parametrize("keys", [{"steps": 1}, {"steps": 2, "checkpoint_every": 1}])
def test_weights_that_are_not_finite_are_never_kept(tmp_path, keys):
    """The loss of a step is that before its update. (A checkpoint outside of Ray Train would be another error.)"""
    with raises(Hopeless):
        trained(a_spec(tmp_path, learning_rate=1e39, warmup_steps=0, **keys))


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
        {"block_out_channels": [8] * 5, "down_block_types": ["DownBlock2D"] * 5, "up_block_types": ["UpBlock2D"] * 5},
    ],
)
def test_a_network_that_does_not_fit_is_said_at_once(tmp_path, keys):
    spec = replace(a_spec(tmp_path), unet=UNET.model_copy(update=keys))
    with raises(Hopeless):
        new_state(spec, "cpu")


def test_log_is_cut_back_to_the_checkpoint_and_progress_reads_its_end(tmp_path):
    spec = a_spec(tmp_path)
    path = spec.running / "log.jsonl"

    def now():
        return training_progress(tmp_path, "m")

    assert now() is None
    log = a_log(spec)
    assert now() is None
    for step in range(1, 301):
        log.write(Record(step, 1 / step, 1e-3, 0.3, 2, 0.1))
    for torn in (b"", b'{"step": 301, "lo', b"\n" + bytes(40) + b"\n"):  # by a kill, and by a power loss
        with path.open("ab") as file:
            file.write(torn)
        assert now()[:3] == (300, 1 / 300, 2)
    assert now().checkpoint == 0
    log.checkpointed(200)
    assert now().checkpoint == 200
    a_log(spec, 120).write(Record(121, 0.5, 1e-3, 0.3, 1, 0.2))
    assert now().checkpoint == 120
    assert [record["step"] for record in log_of(spec)] == list(range(1, 122))
    (tmp_path / "m" / "train").mkdir(parents=True)
    path.rename(tmp_path / "m" / "train" / "log.jsonl")
    assert now()[:3] == (121, 0.5, 1), "of a training that is finished too"


def test_tensorboard_has_each_logged_step_once_after_a_restart_too(tmp_path):
    spec, before = a_spec(tmp_path, tensorboard=True), a_spec(tmp_path, steps=4)
    state = new_state(spec, "cpu")
    run_loop(before, state, a_log(before))  # it is asked for later
    checkpoints.save(state, tmp_path / "state.pt")
    for _ in range(2):  # a kill takes the first two steps
        checkpoints.load(state, tmp_path / "state.pt")
        run_loop(spec, state, a_log(spec, 4))
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


def a_run(root, storage=LOCAL, **train):
    levels = {"block_out_channels": [4], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    model = {"unet": {**levels, "norm_num_groups": 4}}
    settings = config.validate(config.Config, {"name": "t", "model": model, "train": train}, "test")
    return Session(Run(settings, plan(settings), RunDir(root, storage)), "local", Progress.silent())


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
    final, (root, storage) = tmp_path / "final", bucket
    (final / "unet").mkdir(parents=True)
    for name in ("unet/config.json", TRAINED_WEIGHTS):
        (final / name).write_text("second")
    session = a_run(root, storage)
    [model] = session.plan.models
    folder = session.rundir.model_folder(model)
    with replacing(folder / "unet" / "config.json", storage) as temporary:
        temporary.write_text("first")
    session.rundir.claim()

    class Retrained:
        def __init__(self, trainings, *others):
            assert [training.model for training in trainings] == [model]

        def run(self):
            upload_folder(folder, final, TRAINED_WEIGHTS, storage)
            return {}

    monkeypatch.setattr("taugrid.orchestrator.session.Trainings", Retrained)
    monkeypatch.setattr(cluster, "connected", lambda *_, **__: nullcontext())
    session.do(["train"])
    assert {storage.read(path) for path in storage.list(folder, "unet/*")} == {b"second"}
    [aside] = storage.list(root / "damaged", "*/unet/config.json")
    assert storage.read(aside) == b"first"


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
    """Watch a training that logs no step, by a clock that is a minute later at each call."""
    clock = count(0, 60)
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(driver.fit, "train", lambda spec: None)
    training, _ = a_training(tmp_path, may_grow, config.Cluster(), **train)
    ended = SimpleQueue()
    training.begin(ended)
    ended.get(timeout=60)  # or its thread might look for `train` after the test
    for _ in range(12):
        training.check_log()


def a_training(tmp_path, may_grow, settings, **train):
    """A training, and the list of what it says."""
    session, said = a_run(tmp_path, **train), []
    [(model, source)] = session.plan.trained_here
    events = Events(session.rundir)
    return driver.Training(model, source, session.rundir, settings, said.append, events, may_grow), said


@pytest.fixture
def few_nodes(monkeypatch):
    """Adds nodes; no images are needed."""
    monkeypatch.setattr(driver, "content_fingerprint", lambda data: "0" * 64)
    return lambda *there: monkeypatch.setattr(capacity, "nodes", lambda selector: list(there))


@pytest.mark.parametrize(("cpus", "ends"), [(1, True), (2, False)])
def test_a_training_waits_no_longer_for_nodes_than_it_may(tmp_path, monkeypatch, few_nodes, cpus, ends):
    few_nodes(Node("n", cpus, 0))
    with raises(UserError) if ends else nullcontext():
        watched(tmp_path, monkeypatch, workers=[2, 2], may_grow=True)


@pytest.mark.parametrize(("gpus", "workers"), [(1, (1, 8)), (0.6, 1)])
def test_a_training_on_a_cluster_that_may_grow_asks_for_all_its_workers_and_says_so(tmp_path, few_nodes, gpus, workers):
    few_nodes(Node("g", 8, 1))
    training, said = a_training(tmp_path, True, config.Cluster(gpus_per_worker=gpus), workers=8)
    assert training.specified(capacity.trainers(training._cluster, 8, True)).train.workers == workers
    recorded("\n".join(said), "fit")


def test_the_newest_whole_checkpoint_is_read_once(tmp_path, monkeypatch):
    state = new_state(a_spec(tmp_path), "cpu")
    assert checkpoints.load_newest(state, tmp_path) is None
    state.step = 7
    whole, torn, zeros, empty = (tmp_path / f"checkpoint_2026-01-0{day}" / "state.pt" for day in range(1, 5))
    for path in (whole, torn, zeros, empty):
        path.parent.mkdir()
        checkpoints.save(state, path)
    torn.write_bytes(torn.read_bytes()[:-5000])
    zeros.write_bytes(bytes(torn.stat().st_size))
    empty.write_bytes(b"")
    reads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: [reads.append(path), load(path, **options)][1])
    monkeypatch.setattr(checkpoints, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: None)
    resumed = new_state(a_spec(tmp_path), "cpu")
    checkpoints.resume(SimpleNamespace(running=tmp_path), resumed, 0)
    assert resumed.step == 7
    assert reads == [empty, zeros, torn, whole]


LOST = "Traceback:\nRuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"
FULL = "Traceback:\n  at line 1\nOSError: [Errno 28] No space left on device\n"
LOW = OutOfMemoryError("Task was killed due to the node running low on memory.\nSee the docs")


@pytest.mark.parametrize("error", [
    WorkerGroupError("all", {2: RuntimeError(LOST), 1: OSError(FULL), 3: OSError(FULL), 0: RuntimeError(LOST)}),
    WorkerGroupError("all", {0: RuntimeError(LOST)}), ControllerError(ValueError("no node")),
    WorkerGroupError("all", {0: WorkerHealthCheckFailedError("rank 0", ActorDiedError())}),
    ControllerError(WorkerGroupStartupFailedError("At least one failed to initialize.")),
    WorkerGroupError("all", {1: LOW}),
], ids=["full", "lost", "controller", "died", "started", "memory"])  # fmt: skip
def test_the_line_is_of_the_worker_that_failed_with_what_is_known_and_what_to_do(error):
    """Not of those that lost it; and Ray's own last lines of a death say nothing but where its log is."""
    recorded(fit.in_one_line(error))


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
    assert (ranks.stdout.count("True"), ranks.returncode) == (2, 0), ranks.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", folder.name]


def test_what_torch_can_not_repeat_ends_a_training_in_one_line(tmp_path):
    said = "reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set 'torch.use_det"
    with raises(Hopeless), loop.repeatable(steady(tmp_path, precision="bf16").train):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), loop.repeatable(steady(tmp_path).train):
        raise RuntimeError("another")
