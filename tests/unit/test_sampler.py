"""The sampler against a float64 loop written from the paper, DDPM's posterior and diffusers' DDIMScheduler."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from workers.diffusion.noise import normal
from workers.diffusion.sampler import coefficients, sample, sigma, sigma_hat, step
from workers.diffusion.schedule import alpha_bar
from workers.diffusion.timesteps import tau

ALPHA = alpha_bar("linear", 1000, 1e-4, 2e-2)
SHAPE = (2, 3, 3)
INDICES = torch.arange(5)
ETAS = [0.0, 0.2, 0.5, 1.0, "sigma_hat"]
CLIPS = ["none", "x0", "x0_and_eps"]
TIMES = st.integers(2, 1000).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t - 1)))


def noise(t):
    return normal(3, INDICES, t, SHAPE)


def oracle_eps(x, t):
    """The best eps for data N(0.3, 1.5^2): wide enough that clipping to [-1, 1] acts on many pixels."""
    a = ALPHA[t]
    return np.sqrt(1 - a) * (x - np.sqrt(a) * 0.3) / (a * 1.5**2 + 1 - a)


def nonlinear_eps(x, t):
    """An eps that is no affine function of x and depends on t beyond alpha, as a network's."""
    tanh = torch.tanh if isinstance(x, torch.Tensor) else np.tanh
    return oracle_eps(x, t) + 0.1 * np.sin(t / 100) * tanh(x)


def paper_loop(eps_function, times, eta, clip):
    """Section 4 of the paper in numpy's float64, with none of the sampler's code."""
    x = noise(0).double().numpy()
    for i in range(len(times), 0, -1):
        a, a_prev = ALPHA[times[i - 1]], ALPHA[times[i - 2]] if i > 1 else 1.0
        variance = (1 - a_prev) / (1 - a) * (1 - a / a_prev) * (1.0 if eta == "sigma_hat" else eta) ** 2
        eps = eps_function(x, times[i - 1])
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        if clip != "none":
            x0 = np.minimum(np.maximum(x0, -1), 1)
        if clip == "x0_and_eps":
            eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        x = np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - variance) * eps
        if i > 1:
            scale = np.sqrt(1 - a / a_prev) if eta == "sigma_hat" else np.sqrt(variance)
            x = x + scale * noise(times[i - 1]).double().numpy()
    return x


@pytest.mark.parametrize("eps_function", [oracle_eps, nonlinear_eps])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("spacing", ["linear", "quadratic"])
def test_agrees_with_a_float64_loop(spacing, eta, clip, eps_function):
    times = tau(spacing, 30, 1000)  # 30 does not divide 1000
    x0 = sample(eps_function, noise, ALPHA, times, eta, clip)
    expected = paper_loop(eps_function, times, eta, clip)
    assert x0.dtype == torch.float32
    assert np.abs(x0.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_settings_change_the_result():
    """The agreement above would mean little if the settings made no difference to these functions."""
    results = [sample(nonlinear_eps, noise, ALPHA, tau("linear", 30, 1000), eta, c) for eta in ETAS for c in CLIPS]
    results.append(sample(nonlinear_eps, noise, ALPHA, tau("quadratic", 30, 1000), 0.0, "none"))
    distances = [(a - b).abs().max() for i, a in enumerate(results) for b in results[:i]]
    assert min(distances) > 1e-3


@pytest.mark.parametrize("steps", [1, 10, 250])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", CLIPS)
def test_agrees_with_diffusers(steps, eta, clip):
    """With `trailing` and S dividing T, diffusers takes the right times; float64 leaves rounding out of it."""
    scheduler = DDIMScheduler(clip_sample=clip != "none", timestep_spacing="trailing")
    scheduler.alphas_cumprod = torch.from_numpy(ALPHA[1:])
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    x = noise(0).double()
    for index in scheduler.timesteps.tolist():
        eps, z = nonlinear_eps(x, index + 1), noise(index + 1).double()
        kept = clip == "x0_and_eps"
        x = scheduler.step(eps, index, x, eta, use_clipped_model_output=kept, variance_noise=z).prev_sample
    ours = sample(nonlinear_eps, lambda t: noise(t).double(), ALPHA, tau("linear", steps, 1000), eta, clip)
    assert (ours - x).abs().max() <= 1e-9 * x.abs().max()


def test_agrees_with_diffusers_as_it_comes():
    """In float32, with diffusers' own float32 alphas: 1 - alpha_1 = 1e-4 has there three digits less."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    x = noise(0)
    for index in scheduler.timesteps.tolist():
        x = scheduler.step(nonlinear_eps(x, index + 1), index, x, 1.0, variance_noise=noise(index + 1)).prev_sample
    ours = sample(nonlinear_eps, noise, ALPHA, tau("linear", 50, 1000), 1.0, "none")
    assert (ours - x).abs().max() <= 1e-4 * x.abs().max()


@given(TIMES)
def test_eta_one_is_the_ddpm_posterior(times):
    """Ho et al., eq. 7, for the step from t to s with beta = 1 - alpha_t / alpha_s."""
    a, a_prev = float(ALPHA[times[0]]), float(ALPHA[times[1]])
    beta = 1 - a / a_prev
    assert sigma(a, a_prev, 1.0) ** 2 == pytest.approx((1 - a_prev) / (1 - a) * beta, rel=1e-9)
    assert sigma_hat(a, a_prev) ** 2 == pytest.approx(beta, rel=1e-9)
    x0, eps, zero = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.7, -1.2, 0.0))
    x = a**0.5 * x0 + (1 - a) ** 0.5 * eps
    posterior_mean = a_prev**0.5 * beta / (1 - a) * x0 + (1 - beta) ** 0.5 * (1 - a_prev) / (1 - a) * x
    for eta in (1.0, "sigma_hat"):
        mean = step(x, eps, zero, coefficients(a, a_prev, eta), "none")
        assert mean.item() == pytest.approx(posterior_mean.item(), rel=1e-7)


@given(TIMES, st.floats(0, 1))
def test_every_eta_keeps_the_marginals(times, eta):
    """Lemma 1: the noise that is kept and the noise that is added make up 1 - alpha of the earlier time."""
    a, a_prev = float(ALPHA[times[0]]), float(ALPHA[times[1]])
    c = coefficients(a, a_prev, eta)
    assert c.direction**2 + c.noise**2 == pytest.approx(1 - a_prev, rel=1e-9)


@pytest.mark.parametrize("eta", ETAS)
def test_calls_model_and_noise_at_the_papers_times(eta):
    times, model_calls, noise_calls = tau("linear", 4, 1000), [], []

    def eps_model(x, t):
        model_calls.append(t)
        return oracle_eps(x, t)

    def recorded(t):
        noise_calls.append(t)
        return noise(t)

    sample(eps_model, recorded, ALPHA, times, eta, "none")
    assert model_calls == [1000, 750, 500, 250]
    assert noise_calls == ([0] if eta == 0.0 else [0, 1000, 750, 500])


@pytest.mark.parametrize("eta", ETAS)
def test_perfect_eps_returns_the_image(eta):
    """Where eps is that of one image x0, every path ends at x0: with alpha_0 = 1 the last step is f(x_1) alone."""
    image = torch.linspace(-1, 1, 18).reshape(1, *SHAPE)

    def eps_model(x, t):
        return (x - ALPHA[t] ** 0.5 * image) / (1 - ALPHA[t]) ** 0.5

    x0 = sample(eps_model, noise, ALPHA, tau("quadratic", 20, 1000), eta, "none")
    torch.testing.assert_close(x0, image.expand_as(x0), rtol=1e-4, atol=1e-4)


def test_unknown_clip_is_named():
    with pytest.raises(ValueError, match=r"'x_0'.*none, x0, x0_and_eps"):
        sample(oracle_eps, noise, ALPHA, (1000,), 0.0, "x_0")
