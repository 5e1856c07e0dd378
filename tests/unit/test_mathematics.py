"""docs/mathematics.md names what there is, and what it says of the paper and of diffusers is so."""

import ast
import importlib
import inspect
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
TEST = re.compile(r"(?:integration/)?test_\w+\.py::\w+")
FUNCTION = re.compile(r"\[`(\w+)\.(\w+)`\]\((\S+)\)")
HEADER = "| Function | Tests |"


def definitions(path):
    """What a file defines at its top level, by name."""
    body = ast.parse(path.read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def planted(node):
    """How many faults of the self-check a definition registers: one for each argument of its decorator `fault`."""
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call) and ast.unparse(call.func) == "fault"]
    return sum(len(call.args) for call in calls)


def named_functions():
    """Those that the page links to, as (file, name)."""
    return {((PAGE.parent / target).resolve(), name) for _, name, target in FUNCTION.findall(TEXT)}


def test_the_page_names_functions_and_tests():
    """So that patterns which find nothing are no success, and no name escapes them by another spelling."""
    assert len(set(TEST.findall(TEXT))) > 120
    assert len(named_functions()) > 40
    assert TEXT.count("::") == len(TEST.findall(TEXT)) == len(re.findall(rf"`{TEST.pattern}`", TEXT))
    assert TEXT.count("](") == len(FUNCTION.findall(TEXT))
    assert all(file == Path(target).stem for file, _, target in FUNCTION.findall(TEXT))


@pytest.mark.parametrize("path", sorted({name.split("::")[0] for name in TEST.findall(TEXT)}))
def test_tests_exist(path):
    found = definitions(ROOT / "tests" / (path if "/" in path else f"unit/{path}"))
    for name in {name.split("::")[1] for name in TEST.findall(TEXT) if name.startswith(f"{path}::")}:
        assert name in found
        if name.startswith("test_"):
            assert isinstance(found[name], ast.FunctionDef)
        else:
            assert planted(found[name]), f"{name} is neither a test nor a planted fault"


def test_functions_exist():
    for path, name in named_functions():
        name_in_repository = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(f"taugrid.{name_in_repository.removeprefix('taugrid.')}")
        assert Path(inspect.getsourcefile(module)).resolve() == path
        assert getattr(module, name).__module__ == module.__name__, f"{name} is not defined in {path.name}"


def test_no_function_of_the_mathematics_is_missing():
    for path in (ROOT / "workers" / "diffusion").rglob("*.py"):
        functions = {name for name, node in definitions(path).items() if isinstance(node, ast.FunctionDef)}
        missing = {name for name in functions if not name.startswith("_") and (path, name) not in named_functions()}
        assert not missing, path.name


def test_every_row_of_a_table_of_equations_has_a_function_and_a_test():
    rows = 0
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        header, _, *body = table.splitlines()
        if header.endswith(HEADER):
            rows += len(body)
            assert all(len(row.split(" | ")) == 3 for row in body)
            assert all(FUNCTION.search(row) and TEST.search(row) for row in body)
    assert rows > 30


def test_the_number_of_planted_faults_is_right():
    count = sum(map(planted, definitions(Path(__file__).with_name("test_selfcheck.py")).values()))
    assert f"plants {count} faults" in TEXT


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
