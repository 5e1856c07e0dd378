"""The sampler against float64 loops written from the paper, with none of its code, and against DDPM's posterior."""

from collections import Counter
from functools import cache
from itertools import product

import denoisers
import numpy as np
import pytest
import torch
from proofs import cases
from snapshots import raises

from taugrid.workers.diffusion import timesteps
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import path
from taugrid.workers.diffusion.processes import DiscreteVP
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.samplers import ddim

ALPHA = alpha_bar("linear", 1000, 1e-4, 2e-2)
JSD = alpha_bar("jsd", 1000, 0.0, 0.0)
SHAPE = (2, 3, 3)
INDICES = torch.arange(5)
ETAS = [0.0, 0.2, 0.5, 1.0, "sigma_hat"]
CLIPS = ["none", "x0", "x0_and_eps"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
PATHS = {
    "linear": tau("linear", 30, 1000),  # 30 does not divide 1000
    "quadratic": tau("quadratic", 30, 1000),
    "leading": tau("leading", 10, 1000),  # ends at 901
    "ermongroup-quad": tau("ermongroup-quad", 30, 1000),  # starts with 1, 1, 4 and ends at 801
    "list": (3, 4, 250, 999),
}


def of_time(function):
    """`function` for models of x and the paper's t."""
    return lambda model, *given, **named: function(denoisers.of_time(model), *given, **named)


sample, decode, encode = map(of_time, (denoisers.sample, denoisers.decode, denoisers.encode))


def recording(function, calls):
    """`function`, whose last argument is added to `calls`."""

    def called(*given):
        calls.append(given[-1])
        return function(*given)

    return called


@cache
def noise(t):
    return normal(3, INDICES, t, SHAPE)


def noise64(t):
    return noise(t).double()


def oracle_eps(x, a):
    """The best eps for data N(0.3, 1.5^2): wide enough that clipping to [-1, 1] acts on many pixels."""
    return (1 - a) ** 0.5 * (x - a**0.5 * 0.3) / (a * 1.5**2 + 1 - a)


def network(prediction):
    """A model that is no affine function of x and depends on t beyond alpha, as a network's, for torch and numpy."""

    def model(x, t):
        a = ALPHA[t]
        eps = oracle_eps(x, a) + 0.1 * np.sin(t / 100) * (torch.tanh if isinstance(x, torch.Tensor) else np.tanh)(x)
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        return {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}[prediction]

    return model


def paper_loop(model, times, eta, clip, prediction="epsilon", alpha=ALPHA, clip_range=1):
    """Section 4 of the paper in numpy's float64."""
    x = noise(0).double().numpy()
    for i in range(len(times), 0, -1):
        a, a_prev = alpha[times[i - 1]], alpha[times[i - 2] if i > 1 else 0]
        variance = (1 - a_prev) / (1 - a) * (1 - a / a_prev) * (1.0 if eta == "sigma_hat" else eta) ** 2
        output = model(x, times[i - 1])
        if prediction == "epsilon":
            eps, x0 = output, (x - np.sqrt(1 - a) * output) / np.sqrt(a)
        elif prediction == "sample":
            eps, x0 = (x - np.sqrt(a) * output) / np.sqrt(1 - a), output
        else:  # x and v are x0 and eps, turned by the angle whose cosine is sqrt(a)
            eps, x0 = np.sqrt(1 - a) * x + np.sqrt(a) * output, np.sqrt(a) * x - np.sqrt(1 - a) * output
        if clip != "none":
            x0 = np.minimum(np.maximum(x0, -clip_range), clip_range)
        if clip == "x0_and_eps":
            eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        x = np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - variance) * eps
        if i > 1 or (a_prev < 1 and eta != "sigma_hat"):
            scale = np.sqrt(1 - a / a_prev) if eta == "sigma_hat" else np.sqrt(variance)
            x = x + scale * noise(times[i - 1]).double().numpy()
    return x


def encoding_loop(model, x, times, alpha=ALPHA):
    """Eq. 13 upwards in the paper's variables, an Euler step of (14) with eps at the time the step leads to."""
    sigmas = np.sqrt((1 - alpha) / alpha)
    x_bar, s = x, 0
    for t in times:
        x_bar = x_bar + (sigmas[t] - sigmas[s]) * model(x_bar / np.sqrt(sigmas[s] ** 2 + 1), t)
        s = t
    return x_bar * np.sqrt(alpha[s])


def largest(difference, relative_to):
    return np.abs(np.asarray(difference)).max() / np.abs(np.asarray(relative_to)).max()


FACTORS = PATHS, ETAS, PREDICTIONS, CLIPS
PAIRS = [
    (path, eta, PREDICTIONS[(i + j) % 3], CLIPS[(i + 2 * j) % 3])
    for (i, path), (j, eta) in product(enumerate(PATHS), enumerate(ETAS))
]
"""Each two of the values meet in one of them."""


@pytest.mark.parametrize(("path", "eta", "prediction", "clip"), cases(PAIRS, *FACTORS))
def test_agrees_with_a_float64_loop(path, eta, prediction, clip):
    model, times = network(prediction), PATHS[path]
    expected = paper_loop(model, times, eta, clip, prediction)
    exact = sample(model, noise64, ALPHA, times, eta, clip, prediction)
    assert largest(exact.numpy() - expected, expected) <= 1e-11
    images = sample(model, noise, ALPHA, times, eta, clip, prediction)
    assert images.dtype == torch.float32
    assert largest(images.numpy() - expected, expected) <= 1e-5


@pytest.mark.parametrize("clip_range", [0.5, 2.0])
@pytest.mark.parametrize("clip", CLIPS[1:])
def test_clipping_to_another_range_agrees_with_a_float64_loop(clip, clip_range):
    model, times = network("epsilon"), PATHS["linear"]
    expected = paper_loop(model, times, 0.5, clip, clip_range=clip_range)
    exact = sample(model, noise64, ALPHA, times, 0.5, clip, clip_range=clip_range)
    assert largest(exact.numpy() - expected, expected) <= 1e-11
    assert exact.abs().max() == clip_range, "the last step returns x0"
    usual = sample(model, noise64, ALPHA, times, 0.5, clip)
    assert (exact - usual).abs().max() > 0.1


@pytest.mark.parametrize("path", ["linear", "leading"])
@pytest.mark.parametrize("eta", ETAS)
def test_sigma_hat_adds_no_noise_in_a_last_step_that_ends_at_alpha_1(eta, path):
    """diffusers' `set_alpha_to_one: false`. With an eta eq. 16 has some noise there, unless it leads nowhere."""
    alpha, times, calls = ALPHA.copy(), PATHS[path], []
    alpha[0] = alpha[1]
    exact = sample(network("epsilon"), recording(noise64, calls), alpha, times, eta, "none")
    expected = paper_loop(network("epsilon"), times, eta, "none", alpha=alpha)
    assert largest(exact.numpy() - expected, expected) <= 1e-11
    assert (calls[-1] == times[0]) == (eta not in (0.0, "sigma_hat") and times[0] > 1)
    assert largest(exact - sample(network("epsilon"), noise64, ALPHA, times, eta, "none"), expected) > 1e-7


@pytest.mark.parametrize("eta", ETAS)
def test_calls_model_and_noise_at_the_papers_times(eta):
    model_calls, noise_calls = [], []
    model, z = recording(network("epsilon"), model_calls), recording(noise, noise_calls)
    sample(model, z, ALPHA, tau("linear", 4, 1000), eta, "none")
    assert model_calls == [1000, 750, 500, 250]
    assert noise_calls == ([0] if eta == 0.0 else [0, 1000, 750, 500])


@pytest.mark.parametrize("clip", ["none", "x0_and_eps"])
@pytest.mark.parametrize("eta", ETAS)
def test_a_repeated_time_stays_where_it_is_and_draws_no_noise(eta, clip):
    """With clip `x0` it would move: eps is kept there, so that x0 and eps no longer make up x."""
    model_calls, noise_calls = [], []
    model, z = recording(network("epsilon"), model_calls), recording(noise64, noise_calls)
    repeated = sample(model, z, ALPHA, (1, 1, 1, 400, 400, 1000), eta, clip)
    once = sample(network("epsilon"), noise64, ALPHA, (1, 400, 1000), eta, clip)
    assert model_calls == [1000, 400, 400, 1, 1, 1]
    assert noise_calls == ([0] if eta == 0.0 else [0, 1000, 400])
    assert largest(repeated - once, once) <= 1e-12


def test_times_that_share_a_key_draw_anew():
    """Of 100 times even in log-SNR, many round to one integer: with one z for all of them, noise would add up."""
    process, drawn = DiscreteVP(ALPHA), []

    def recorded(key, draw=0):
        drawn.append((key, draw))
        return normal(3, INDICES, key, SHAPE, domain=f"sample/{draw}")

    denoise = Denoise(denoisers.of_time(network("epsilon")), process)
    ddim.sample(noise(0), path(process, timesteps.times("logsnr", 100, process.alpha_bar)), denoise, recorded, 1.0)
    keys = Counter(key for key, _ in drawn)
    assert max(keys.values()) == 3
    assert sorted(drawn) == sorted((key, draw) for key, count in keys.items() for draw in range(count))


@pytest.mark.parametrize("eta", ETAS)
def test_perfect_eps_returns_the_image(eta):
    """Where eps is that of one image x0, every path ends at x0: with alpha_0 = 1 the last step is f(x_1) alone."""
    image = torch.linspace(-1, 1, 18).reshape(1, *SHAPE)

    def eps_model(x, t):
        return (x - ALPHA[t] ** 0.5 * image) / (1 - ALPHA[t]) ** 0.5

    x0 = sample(eps_model, noise, ALPHA, tau("quadratic", 20, 1000), eta, "none")
    torch.testing.assert_close(x0, image.expand_as(x0), rtol=1e-4, atol=1e-4)


def jsd_network(prediction):
    """As `network`, from its x0, which is all that there is to predict where alpha is 0."""

    def model(x, t):
        a = JSD[t]
        tanh = torch.tanh if isinstance(x, torch.Tensor) else np.tanh
        x0 = 0.3 + a**0.5 * 1.5**2 * (x - a**0.5 * 0.3) / (a * 1.5**2 + 1 - a) + 0.1 * a * np.sin(t / 100) * tanh(x)
        return x0 if prediction == "sample" else (a**0.5 * x - x0) / (1 - a) ** 0.5

    return model


@pytest.mark.parametrize("prediction", PREDICTIONS[1:])
@pytest.mark.parametrize(("eta", "clip"), [*zip(ETAS, [*CLIPS, *CLIPS[:2]], strict=True)])
def test_a_schedule_that_ends_at_zero_works_without_eps(prediction, eta, clip):
    """Where alpha_T = 0, x_T says nothing about x_0: the prediction there is the mean, whatever the noise."""
    model = jsd_network(prediction)
    for times in (tau("linear", 20, 1000), tau("quadratic", 20, 1000)):
        images = sample(model, noise, JSD, times, eta, clip, prediction)
        expected = paper_loop(model, times, eta, clip, prediction, JSD)
        assert largest(images.numpy() - expected, expected) <= 1e-5
    at_once = sample(model, noise, JSD, (1000,), eta, clip, prediction)
    torch.testing.assert_close(at_once, torch.full_like(at_once, 0.3))
    x_T = encode(model, noise64(7), JSD, times, prediction)
    assert decode(model, x_T, JSD, times, prediction).isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_encoding_agrees_with_a_float64_loop(path):
    images, times = noise64(7), PATHS[path]
    expected = encoding_loop(network("epsilon"), images.numpy(), times)
    exact = encode(network("epsilon"), images, ALPHA, times)
    assert largest(exact.numpy() - expected, expected) <= 1e-11
    assert largest(encode(network("epsilon"), images.float(), ALPHA, times).numpy() - expected, expected) <= 1e-5


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_encoding_takes_eps_at_the_time_it_asks_for(prediction):
    """The network sees x as an x_t of the target time, so its x0 or v means the eps that goes with that time."""

    def eps_model(x, t):
        a, output = ALPHA[t], network(prediction)(x, t)
        if prediction == "sample":
            return (x - a**0.5 * output) / (1 - a) ** 0.5
        return a**0.5 * output + (1 - a) ** 0.5 * x

    expected = encoding_loop(eps_model, noise64(7).numpy(), PATHS["linear"])
    exact = encode(network(prediction), noise64(7), ALPHA, PATHS["linear"], prediction)
    assert largest(exact.numpy() - expected, expected) <= 1e-11


def test_reconstruction_error_falls_with_the_number_of_steps():
    """Table 2's experiment: Euler steps up and down leave an error of first order in 1/S."""
    images = noise64(7).clamp(-1, 1)
    errors = []
    for steps in (10, 50, 100, 200):
        times = tau("linear", steps, 1000)
        x_T = encode(network("epsilon"), images, ALPHA, times)
        errors.append((decode(network("epsilon"), x_T, ALPHA, times) - images).square().mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.1
    assert errors[-2] / errors[-1] == pytest.approx(2, rel=0.05)


def test_decoding_is_sampling_without_noise():
    for prediction in PREDICTIONS:
        expected = sample(network(prediction), noise, ALPHA, PATHS["list"], 0.0, "none", prediction)
        assert torch.equal(decode(network(prediction), noise(0), ALPHA, PATHS["list"], prediction), expected)


def test_unknown_clip_is_named():
    with raises(ValueError):
        sample(network("epsilon"), noise, ALPHA, (1000,), 0.0, "x_0")
