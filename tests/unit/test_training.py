import copy
import dataclasses
import json

import pytest
import torch

from orchestrator import config
from workers import data, training, training_loop
from workers.diffusion.process import velocity
from workers.training import Hopeless, TrainingSpec

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
        config.Data(), UNET, config.DIFFUSION_DEFAULTS, config.Train(**settings), "m", str(folder), 1.0, 0.0
    )


def run_loop(spec, state, log=None):
    return training_loop._loop(spec, state, training_loop.Batches(spec, 0, 1, "cpu"), log, 0, 1)


def weights(state):
    return torch.cat([p.detach().flatten() for p in [*state.unet.parameters(), *state.ema.values()]])


def test_slices_of_ranks_make_up_the_global_batch(tmp_path):
    spec = a_spec(tmp_path, flip=True)
    whole = training_loop.Batches(spec, 0, 1, "cpu")[5]
    parts = [training_loop.Batches(spec, rank, 3, "cpu")[5] for rank in range(3)]
    assert [len(part.t) for part in parts] == [3, 3, 4]
    for got, want in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(got), want)


def test_batches_are_noisy_images_of_the_dataset(tmp_path):
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update={"timesteps": 1, "beta_start": 1e-12, "beta_end": 1e-12})
    plain = training_loop.Batches(dataclasses.replace(a_spec(tmp_path), diffusion=diffusion), 0, 1, "cpu")[0]
    flipped = training_loop.Batches(dataclasses.replace(a_spec(tmp_path, flip=True), diffusion=diffusion), 0, 1, "cpu")[
        0
    ]
    known = {image.tobytes() for image in data.load_images(config.Data())}
    pixels = ((plain.x_t + 1) * 127.5).round().byte()  # next to no noise was added
    assert all(image.numpy().tobytes() in known for image in pixels)
    mirrored = [torch.equal(f, p.flip(-1)) and not torch.equal(f, p) for f, p in _pairs(flipped, plain)]
    same = [torch.equal(f, p) for f, p in _pairs(flipped, plain)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)


def _pairs(a, b):
    return [(((x + 1) * 127.5).round(), ((y + 1) * 127.5).round()) for x, y in zip(a.x_t, b.x_t, strict=True)]


def test_a_checkpoint_holds_all_that_matters(tmp_path):
    spec = a_spec(tmp_path)
    straight = training_loop.new_state(spec, "cpu")
    run_loop(spec, straight)

    first = training_loop.new_state(spec, "cpu")
    run_loop(a_spec(tmp_path, steps=4), first)
    training_loop.save(first, tmp_path / "state.pt")
    resumed = training_loop.new_state(a_spec(tmp_path, seed=99), "cpu")
    training_loop.load(resumed, tmp_path / "state.pt")
    assert resumed.step == 4
    torch.manual_seed(1234)  # dropout must not lean on the generator's state
    run_loop(spec, resumed)
    assert torch.equal(weights(resumed), weights(straight))
    assert resumed.seconds > first.seconds


def test_warmup_clip_and_seed_matter(tmp_path):
    def trained(**train):
        spec = a_spec(tmp_path, **train)
        state = training_loop.new_state(spec, "cpu")
        run_loop(spec, state)
        return weights(state)

    variants = [{}, {"warmup_steps": 0}, {"gradient_clip": 1e-3}, {"gradient_clip": None}, {"seed": 4}]
    results = [trained(**variant) for variant in variants]
    assert torch.equal(results[0], trained())
    for i, a in enumerate(results):
        assert not any(torch.equal(a, b) for b in results[:i])


def test_the_first_warmup_step_is_a_fraction_of_the_rate(tmp_path):
    spec = a_spec(tmp_path, steps=1, warmup_steps=4, learning_rate=1e-3)
    state = training_loop.new_state(spec, "cpu")
    before = [p.detach().clone() for p in state.unet.parameters()]
    run_loop(spec, state)
    largest = max((p - b).abs().max().item() for p, b in zip(state.unet.parameters(), before, strict=True))
    assert largest == pytest.approx(1e-3 / 4, rel=1e-2)  # Adam's first step moves each weight by the rate


def steady(folder, prediction="epsilon", **train):
    """A spec without dropout, whose network predicts `prediction`."""
    unet = UNET.model_copy(update={"dropout": 0.0})
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update={"prediction": prediction})
    return dataclasses.replace(a_spec(folder, **train), unet=unet, diffusion=diffusion)


def logged_losses(spec, state):
    run_loop(spec, state, training_loop.Log(spec.running / "log.jsonl", 0))
    return [json.loads(line)["loss"] for line in (spec.running / "log.jsonl").read_text().splitlines()]


def test_steps_weigh_times_by_theorem_1(tmp_path):
    """Steps made by hand, as the paper's eq. 5 has them: gamma_t |eps_theta(x_t, t) - eps|^2, here per dimension."""
    loss_weights = config.LossWeights(eta=0.5, sigma_1=0.1)
    gamma = torch.from_numpy(loss_weights.gamma(config.DIFFUSION_DEFAULTS.alpha_bar)).float()
    spec = steady(tmp_path, steps=3, loss_weights=loss_weights)
    state = training_loop.new_state(spec, "cpu")
    unet = copy.deepcopy(state.unet)
    optimizer = torch.optim.Adam(unet.parameters())
    losses = []
    for step in range(3):
        batch = training_loop.Batches(spec, 0, 1, "cpu")[step]
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
                       for network in (unet, training_loop.new_state(spec, "cpu").unet))  # fmt: skip
    found = weights(state)[: len(by_hand)]
    assert (found - by_hand).norm() < 0.01 * (by_hand - before).norm()
    plain = training_loop.new_state(spec, "cpu")
    run_loop(steady(tmp_path, steps=3), plain)
    assert (weights(plain)[: len(by_hand)] - by_hand).norm() > 0.1 * (by_hand - before).norm()


def test_a_network_learns_what_it_is_to_predict(tmp_path):
    """Of three that differ in `diffusion.prediction` alone, each is best at its own on draws that none has seen."""
    held_out = training_loop.Batches(steady(tmp_path, batch_size=200), 0, 1, "cpu")[10**6]
    errors = {}
    for prediction in targets(held_out):
        spec = steady(tmp_path / prediction, prediction, steps=20, learning_rate=1e-2)
        state = training_loop.new_state(spec, "cpu")
        first = training_loop.Batches(spec, 0, 1, "cpu")[0]
        before = errors_of(state.unet, first)[prediction]
        assert logged_losses(spec, state)[0] == pytest.approx(before, rel=1e-4)
        errors[prediction] = errors_of(state.unet, held_out)
    for name in targets(held_out):
        assert min(errors, key=lambda prediction: errors[prediction][name]) == name


def targets(batch):
    alpha_t = torch.from_numpy(config.DIFFUSION_DEFAULTS.alpha_bar)[batch.t]
    return {"epsilon": batch.eps, "sample": batch.x0, "v_prediction": velocity(batch.x0, batch.eps, alpha_t)}


@torch.no_grad()
def errors_of(unet, batch):
    """How far its output is from each target, on the mean."""
    output = unet(batch.x_t, batch.t - 1).sample
    return {name: (output - target).square().mean().item() for name, target in targets(batch).items()}


def test_a_loss_that_is_not_finite_stops_the_loop(tmp_path):
    spec = a_spec(tmp_path, learning_rate=1e30, warmup_steps=0)
    state = training_loop.new_state(spec, "cpu")
    log = training_loop.Log(tmp_path / "log.jsonl", 0)
    with pytest.raises(Hopeless, match=r"the loss of step \d is not finite; lower train.learning_rate \(1e\+30\)"):
        run_loop(spec, state, log)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged] == list(range(1, state.step))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"down_block_types": ["DownBlock2D", "NoBlock2D"]}, "NoBlock2D does not exist"),
        (
            {
                "block_out_channels": [8] * 5,
                "down_block_types": ["DownBlock2D"] * 5,
                "up_block_types": ["UpBlock2D"] * 5,
            },
            "",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_said_at_once(tmp_path, keys, reason):
    spec = dataclasses.replace(a_spec(tmp_path), unet=UNET.model_copy(update=keys))
    with pytest.raises(Hopeless, match=rf"model.unet is no network for images of shape \(1, 8, 8\): .*{reason}"):
        training_loop.new_state(spec, "cpu")


def test_log_is_cut_back_to_the_checkpoint_and_progress_reads_its_end(tmp_path):
    spec = a_spec(tmp_path)
    path = spec.running / "log.jsonl"
    assert training.progress(tmp_path, "m") is None
    log = training_loop.Log(path, 0)
    assert training.progress(tmp_path, "m") is None
    for step in range(1, 301):
        log.write(step, 1 / step, 0.1)
    assert training.progress(tmp_path, "m") == (300, 1 / 300)
    with path.open("a") as torn:
        torn.write('{"step": 301, "lo')  # a kill cut the line off
    assert training.progress(tmp_path, "m") == (300, 1 / 300)
    training_loop.Log(path, 120).write(121, 0.5, 0.2)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == list(range(1, 122))


def test_logged_steps_are_few_in_a_long_training():
    logged = [step for step in range(1, 100_001) if training_loop.is_logged(step, 100_000)]
    assert logged[:50] == list(range(1, 51))
    assert logged[50:53] == [100, 200, 300]
    assert logged[-1] == 100_000
    assert training_loop.is_logged(7_777, 7_777)
