"""docs/mathematics.md names what there is, and what it says of the paper and of diffusers is so."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from taugrid.workers.diffusion.forward import sigma, sigma_hat
from taugrid.workers.diffusion.schedule import alpha_bar
from taugrid.workers.diffusion.timesteps import tau
from taugrid.workers.samplers.ddim import coefficients

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mathematics.md"
TEXT = PAGE.read_text()
ALPHA = alpha_bar("linear", 1000, 1e-4, 2e-2)
TEST = re.compile(r"`((?:integration/)?test_\w+\.py)::(\w+)`")
FUNCTION = re.compile(r"\[`(\w+)\.(\w+)`\]\((\S+)\)")


def test_the_page_names_tests_and_faults_that_there_are():
    assert len(set(TEST.findall(TEXT))) > 120
    assert TEXT.count("::") == len(TEST.findall(TEXT)), "no name escapes by another spelling"
    for file, name in TEST.findall(TEXT):
        text = (ROOT / "tests" / (file if "/" in file else f"unit/{file}")).read_text()
        assert re.search(rf"^(def|class) {name}\b", text, re.M), (file, name)


def test_the_page_names_each_function_of_the_mathematics_and_no_other():
    named = {((PAGE.parent / target).resolve(), name) for _, name, target in FUNCTION.findall(TEXT)}
    assert TEXT.count("](") == len(FUNCTION.findall(TEXT))
    for path, name in named:
        assert re.search(rf"^(def |class )?{name}\b", path.read_text(), re.M), (path.name, name)
    for path in (ROOT / "workers/diffusion").rglob("*.py"):
        assert {(path, name) for name in re.findall(r"^def ([a-z]\w+)", path.read_text(), re.M)} <= named, path.name


@pytest.mark.parametrize(("steps", "zeros"), [(20, 0), (50, 1), (100, 3)])
def test_quadratic_tau_as_printed_starts_with_zeros(steps, zeros):
    """Appendix D.2 with the c that makes tau_S = T; ours is the same wherever that is at least i."""
    printed = [1000 * i * i // steps**2 for i in range(1, steps + 1)]
    assert printed.count(0) == zeros
    ours = tau("quadratic", steps, 1000)
    assert 0 not in ours
    assert all(a == b for i, (a, b) in enumerate(zip(ours, printed, strict=True), 1) if b >= i)


@pytest.mark.parametrize("t", [1, 100, 1000])
def test_no_noise_in_the_last_step(t):
    """Eq. 16 is 0 where alpha_{t-1} is 1; sigma-hat is not, and the sampler leaves it out."""
    assert [sigma(float(ALPHA[t]), 1.0, eta) for eta in (0.0, 0.5, 1.0)] == [0, 0, 0]
    assert sigma_hat(float(ALPHA[t]), 1.0) > 0.009
    assert all(coefficients(float(ALPHA[t]), 1.0, eta, True) == (1, 0, 0) for eta in (0.0, 0.5, 1.0, "sigma_hat"))


@pytest.mark.parametrize(("spacing", "last", "std"), [("trailing", 99, 0.32), ("leading", 0, 0.0)])
def test_diffusers_ddpm_adds_noise_in_its_last_step(spacing, last, std):
    scheduler = DDPMScheduler(variance_type="fixed_large", timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1] == last
    x = torch.zeros(1, 1, 200, 200)
    added = scheduler.step(x, last, x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert added.std().item() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize(
    ("spacing", "steps", "leaves"),
    [("linspace", 10, True), ("trailing", 30, True), ("trailing", 10, False), ("leading", 30, False)],
)
def test_diffusers_ddim_leaves_its_list_of_times(spacing, steps, leaves):
    """Where x is one image seen without noise, a step of eta 0 shows which alpha it leads to: x / x0 is its root."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x0, times = torch.ones(1), scheduler.timesteps.tolist()
    differences = [
        abs(scheduler.step(0 * x0, t, scheduler.alphas_cumprod[t].sqrt() * x0).prev_sample.item() - ALPHA[s + 1] ** 0.5)
        for t, s in pairwise(times)
    ]
    assert (max(differences) > 1e-3) == leaves


def test_float32_alphas_lose_digits_of_1_minus_alpha_1():
    """By more than a thousand times the rounding of float32, which ours keep to."""
    theirs = 1 - DDIMScheduler().alphas_cumprod[0].item()
    assert abs(theirs / 1e-4 - 1) > 1e-4
    assert 1 - ALPHA[1] == pytest.approx(1e-4, rel=1e-11)
    assert math.sqrt(theirs) != pytest.approx(1e-2, rel=5e-5)
