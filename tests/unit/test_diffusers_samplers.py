"""`diffusers:<SchedulerClass>`: what a scheduler does here is what it does in diffusers' own loop, or it is refused."""

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
import yaml
from diffusers import schedulers
from in_process import CONFIG, drive, small_run
from plans import planned
from snapshots import recorded
from test_imports import command, modules_after_each

from taugrid.config import DIFFUSION_DEFAULTS, Sample
from taugrid.errors import UserError
from taugrid.storage import LOCAL
from taugrid.workers import schedules
from taugrid.workers.diffusion import noise as philox
from taugrid.workers.diffusion.denoiser import Denoise, FromTimes
from taugrid.workers.diffusion.process import path
from taugrid.workers.samplers import diffusers as adapter
from taugrid.workers.samplers.description import describe_sampler
from taugrid.workers.samplers.sampler import find

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

SHAPE = (1, 8, 8)
MEAN, DEVIATION = 0.3, 0.6
"""Of the oracle's data: some pixels lie outside [-1, 1]."""
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""taugrid's schedules and diffusers' names of them."""
STOCHASTIC = {
    "DDPMScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "EulerAncestralDiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "LCMScheduler": {},
    "SASolverScheduler": {},
    "TCDScheduler": {},
}
FORMS = [
    *((name, {}) for name in adapter.ADAPTED), *((name, options) for name, options in STOCHASTIC.items() if options),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_lu_lambdas": True}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}), ("PNDMScheduler", {"skip_prk_steps": True}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "disable_corrector": [0]}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    ("DDIMScheduler", {"thresholding": True, "timestep_spacing": "trailing"}),
]  # fmt: skip


def diffusion(schedule="linear", prediction="epsilon", timesteps=1000, **keys):
    update = {"schedule": schedule, "prediction": prediction, "timesteps": timesteps, **keys}
    return DIFFUSION_DEFAULTS.model_copy(update=update)


def settings_of(name, steps, options=None):
    return Sample(sampler=f"diffusers:{name}", steps=steps, sampler_options=options or {}, seed=0)


def normals(indices=range(3)):
    """Noise as `sample_batch` has it, and a list of the (key, draw) that were drawn."""
    drawn = []

    def noise(key, draw=0):
        drawn.append((key, draw))
        domain = f"sample/{draw}" if draw else "sample"
        return philox.normal(0, torch.tensor(indices), key, SHAPE, domain)

    return noise, drawn


def oracle(schedule="linear", prediction="epsilon", timesteps=1000):
    """The best prediction for data N(MEAN, DEVIATION^2), of x and the network's time, (B,), between whole ones too."""
    levels = np.log(schedules.alpha_bar(diffusion(schedule, prediction, timesteps)))

    def network(x, t):
        a = np.exp(np.interp(t[0].item() + 1, np.arange(len(levels)), levels))
        apart = (x - a**0.5 * MEAN) / (a * DEVIATION**2 + 1 - a)
        eps, x0 = (1 - a) ** 0.5 * apart, MEAN + a**0.5 * DEVIATION**2 * apart
        return {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}[prediction]

    return network


def ours(name, steps, options=None, network=None, indices=range(3), **process):
    """x_0, and the draws of noise."""
    settings, (noise, drawn) = settings_of(name, steps, options), normals(indices)
    section = diffusion(**process)
    denoise = Denoise(FromTimes(network or oracle(**process)), schedules.process(section))
    found = find(settings.sampler)
    x0 = found.sample(noise(0), (), denoise, noise, settings)
    assert denoise.calls == found.evaluations(settings, schedules.process(section))
    return x0, drawn[1:]


@contextmanager
def stream(scheduler, draws, noise):
    """Within the block the scheduler gets the noise `draws` in their order, whatever it asks for."""
    rest = iter(draws)
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[type(scheduler).__module__]
        patch.setattr(module, "randn_tensor", lambda *_, **__: noise(*next(rest)), raising=False)
        yield
    assert not list(rest)


def theirs(name, steps, options, draws, schedule="linear", prediction="epsilon", betas=None):
    """x_0 by diffusers' own loop, given the same noise; the scheduler makes its betas itself, or has `betas`."""
    process = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": SCHEDULES[schedule], "trained_betas": betas}
    scheduler = getattr(schedulers, name)(1000, prediction_type=prediction, **process, **options)
    network, (noise, _) = oracle(schedule, prediction), normals()
    scheduler.set_timesteps(steps)
    x = noise(0) * scheduler.init_noise_sigma
    with torch.no_grad(), stream(scheduler, draws, noise):
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t), t.expand(len(x)))
            x = scheduler.step(output, t, x).prev_sample
    return x


def refusal(name, steps=10, options=None, **process):
    """What `plan` says before anything else, if it refuses."""
    try:
        describe_sampler(settings_of(name, steps, options), diffusion(**process))
    except UserError as error:
        return str(error)


def compare(name, options, steps, **process):
    """Assert that both loops agree, if `plan` accepts them: bit for bit with our betas, else to 1e-5 of max |x_0|.

    diffusers computes betas in float32, taugrid in float64.
    """
    if refusal(name, steps, options, **process):
        return False
    x0, drawn = ours(name, steps, options, **process)
    levels = schedules.alpha_bar(diffusion(**process))
    assert torch.equal(x0, theirs(name, steps, options, drawn, **process, betas=1 - levels[1:] / levels[:-1]))
    other = theirs(name, steps, options, drawn, **process)
    assert (x0 - other).abs().max() < 1e-5 * other.abs().max(), (steps, process)
    return True


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.parametrize("name", adapter.ADAPTED)
def test_it_is_diffusers_own_loop(name):
    assert compare(name, STOCHASTIC.get(name, {}), 10)


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_it_is_diffusers_own_loop_at_all_steps(name, options, schedule, prediction):
    compared = [compare(name, options, steps, schedule=schedule, prediction=prediction) for steps in (1, 2, 10, 15, 50)]
    assert sum(compared) >= 2


def test_noise_is_a_function_of_the_image_and_the_time():
    """As in ddim: z of a step is that of the time it leaves; times between whole ones round half to even."""
    assert ours("DDPMScheduler", 10)[1] == [(t + 1, 0) for t in range(900, 0, -100)]
    assert ours("EulerAncestralDiscreteScheduler", 3)[1] == [(1000, 0), (501, 0), (1, 0)]  # times 999, 499.5 and 0
    crowded = ours("EulerAncestralDiscreteScheduler", 30, schedule="cosine", timesteps=20)[1]  # 30 times in 0..19
    assert len(set(crowded)) == len(crowded) == 30
    assert {key for key, _ in crowded} == set(range(1, 21))
    assert {draw for _, draw in crowded} == {0, 1}


def test_ddpm_scheduler_is_our_ddpm():
    """The same noise in other code: eta = 1 of DDIM on diffusers' own times."""
    settings = Sample(eta=1.0, spacing="leading", steps=10, seed=0)
    process, (noise, _) = schedules.process(diffusion()), normals()
    ddim, denoise = find("ddim"), Denoise(FromTimes(oracle()), process)
    expected = ddim.sample(noise(0), path(process, ddim.tau(settings, process)), denoise, noise, settings)
    x0, _ = ours("DDPMScheduler", 10, {"clip_sample": False})
    assert (x0 - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", adapter.ADAPTED)
def test_an_image_does_not_depend_on_its_batch_nor_on_chance(name):
    """Bit for bit: alone, in a batch and after a batch that was stopped. Torch's generator does not move."""

    def stopped(x, t):
        if t[0] < 500:
            raise KeyboardInterrupt
        return oracle()(x, t)

    before, options = torch.get_rng_state(), STOCHASTIC.get(name)
    batch, drawn = ours(name, 10, options)
    with pytest.raises(KeyboardInterrupt):
        ours(name, 10, options, stopped)
    alone = [ours(name, 10, options, indices=[index])[0] for index in range(3)]
    assert torch.equal(torch.cat(alone), batch)
    assert bool(drawn) == (name in STOCHASTIC)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["DDPMScheduler", "HeunDiscreteScheduler"])
def test_threads_do_not_disturb_each_other(name):
    """A scheduler has a state, and the one place that its noise comes from is the module's."""
    alone = [ours(name, 10, indices=[index])[0] for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: ours(name, 10, indices=[index])[0], range(4)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def times_of(name, steps, options=None, **process):
    return find(f"diffusers:{name}").times(settings_of(name, steps, options), schedules.process(diffusion(**process)))


def test_calls_are_counted():
    assert len(times_of("PNDMScheduler", 10, {"skip_prk_steps": True})) == 10 + 1
    repeated = times_of("KDPM2AncestralDiscreteScheduler", 10)
    assert len(set(repeated)) < len(repeated) == 2 * 10 - 1


def last_sigma(name, options=None, steps=10):
    return find(f"diffusers:{name}").last_sigma(settings_of(name, steps, options), schedules.process(diffusion()))


def test_the_last_step_leads_where_it_leads():
    """To 0, or it stops at the noise of time 1; here the value is the network's view, the paper's sigma there."""
    stops = pytest.approx(0.01, rel=1e-4)
    assert last_sigma("DDIMScheduler", {"set_alpha_to_one": False}) == stops
    at_sigma_min = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    assert last_sigma("DPMSolverMultistepScheduler", at_sigma_min) == stops
    trailing = {"timestep_spacing": "trailing"}
    assert last_sigma("DDIMScheduler", trailing) == 0
    assert last_sigma("DDIMScheduler", trailing, 15) == stops, "66 - 1000 // 15 is time 0, not the end"


@pytest.mark.parametrize("name", adapter.ADAPTED)
def test_all_resolved_arguments_are_recorded(name):
    """What diffusers says it has, less what `diffusion` says, and as JSON."""
    settings, found = settings_of(name, 10), find(f"diffusers:{name}")
    recorded, config = found.arguments(settings), getattr(schedulers, name)().config
    expected = {k: value for k, value in config.items() if k not in adapter.NOT_OPTIONS and not k.startswith("_")}
    assert json.loads(json.dumps(recorded, allow_nan=False)) == {
        key: value if value not in (math.inf, -math.inf) else str(value) for key, value in expected.items()
    }
    assert found.libraries == ("diffusers",)
    assert found.keys == frozenset()


ZERO_SNR = {"prediction": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_zero_snr_betas(name):
    """Heun has no way to: its first sigma is infinite."""
    assert refusal(name, 10, {"timestep_spacing": "trailing"}, **ZERO_SNR) is None
    assert refusal("HeunDiscreteScheduler", 10, **ZERO_SNR)


MULTISTEP = "DPMSolverMultistepScheduler"


@pytest.mark.parametrize(
    ("name", "steps", "options", "process"),
    [
        ("DPMSolverMultistpScheduler", 10, {}, {}), ("DPMSolverMultistep", 10, {}, {}),
        ("DPMSolverSDEScheduler", 10, {}, {}), ("EDMEulerScheduler", 10, {}, {}),
        ("CosineDPMSolverMultistepScheduler", 10, {}, {}), (MULTISTEP, 10, {"solver_ordr": 3}, {}),
        (MULTISTEP, 10, {"clip_sample": True}, {}), ("DDIMScheduler", 10, {"eta": 0.5}, {}),
        (MULTISTEP, 10, {"solver_order": [2]}, {}), (MULTISTEP, 10, {"use_karras_sigmas": "yes"}, {}),
        (MULTISTEP, 10, {"lower_order_final": 1}, {}), (MULTISTEP, 10, {"algorithm_type": "dpmsolver"}, {}),
        (MULTISTEP, 10, {"use_flow_sigmas": True}, {}), (MULTISTEP, 10, {"variance_type": "learned"}, {}),
        (MULTISTEP, 10, {"solver_order": 0}, {}), ("UniPCMultistepScheduler", 10, {"predict_x0": False}, {}),
        ("DDIMScheduler", 10, {"clip_sample_range": 0.0}, {}),
        ("KDPM2DiscreteScheduler", 10, {}, {"prediction": "sample"}),
        ("PNDMScheduler", 50, {"timestep_spacing": "linspace"}, {"schedule": "cosine"}),
        ("EulerDiscreteScheduler", 1, {}, {}), ("PNDMScheduler", 1, {"skip_prk_steps": True}, {}),
        ("DEISMultistepScheduler", 10, {"timestep_spacing": "trailing"}, ZERO_SNR),
        ("EulerDiscreteScheduler", 1500, {}, ZERO_SNR),  # between T - 1 and T without signal there is no point
        (MULTISTEP, 1000, {}, {}), (MULTISTEP, 20, {"use_karras_sigmas": True}, {"schedule": "cosine"}),
        ("LCMScheduler", 60, {}, {}), ("TCDScheduler", 1000, {}, {}), ("DDIMScheduler", 1000, {"steps_offset": 1}, {}),
        ("DDIMScheduler", 61, {"timestep_spacing": "trailing"}, {}),
        ("DDIMScheduler", 2, {"timestep_spacing": "linspace"}, {}),
        ("EulerDiscreteScheduler", 10, {"interpolation_type": "log_linear"}, {}),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_in_one_line(name, steps, options, process):
    said = refusal(name, steps, options, **process)
    assert "\n" not in said
    recorded(said)


def test_an_option_that_diffusers_replaces_is_refused(monkeypatch):
    """Older versions of diffusers, whose type for it is any text, take `midpoint` for it without a word."""
    assert "'logrho'" in refusal(MULTISTEP, 10, {"solver_type": "logrho"})
    monkeypatch.setitem(adapter.ANNOTATIONS, "solver_type", str)
    monkeypatch.setattr(adapter, "_options", adapter._options.__wrapped__)  # not cached
    recorded(refusal(MULTISTEP, 10, {"solver_type": "logrho"}))


def test_options_do_not_restate_the_process():
    for key in adapter.NOT_OPTIONS:
        assert f"unknown key '{key}'" in refusal(MULTISTEP, 10, {key: 1})


@pytest.mark.long
def test_every_scheduler_of_diffusers_is_adapted_or_refused():
    names = [name for name in dir(schedulers) if name.endswith("Scheduler") and name != "ScoreSdeVpScheduler"]
    assert set(adapter.ADAPTED) < set(names)
    for name in names:
        assert (refusal(name) is None) == (name in adapter.ADAPTED), name


GRID = CONFIG.replace(
    "grid: {steps: [2], eta: [0.0, 1.0]}",
    """grid:
  - {steps: [3], sampler: [ddim, "diffusers:DPMSolverMultistepScheduler", "diffusers:HeunDiscreteScheduler"]}
  - steps: [3]
    sampler: ["diffusers:DPMSolverMultistepScheduler"]
    sampler_options: [{algorithm_type: sde-dpmsolver++}]
""",
)


@pytest.mark.long
def test_a_run(tmp_path):
    """In plan, files, scores and protocol. Only planning it imports torch and diffusers, not looking at it."""
    with small_run(tmp_path, GRID) as opened:
        outcome, _ = drive(opened, tmp_path / "run", LOCAL)
    assert not outcome.missing
    cells = {cell.settings.sampler_options.get("algorithm_type", cell.label): cell for cell in opened.plan.cells}
    assert [cell.nfe for cell in cells.values()] == [3, 3, 5, 3]
    folders = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "run/samples").iterdir()}
    of_diffusers = {f"S0003-diffusers_{name}Scheduler" for name in ("DPMSolverMultistep", "HeunDiscrete")}
    assert folders == {"S0003-eta0"} | of_diffusers
    block = cells["sde-dpmsolver++"].sampler_block
    assert block["options"] == {"algorithm_type": "sde-dpmsolver++"}
    assert block["times"] == [999, 666, 333]
    assert (block["last_sigma"], block["clip"], block["diffusers"]) == (0, None, version("diffusers"))
    recorded = json.loads((tmp_path / "run/plan.json").read_text())["cells"][-1]["sampler"]["arguments"]
    assert (recorded["algorithm_type"], recorded["timestep_spacing"]) == ("sde-dpmsolver++", "linspace")
    (tmp_path / "plain.yaml").write_text(CONFIG)
    steps = {"status": tmp_path / "run", "plain": tmp_path / "plain.yaml", "named": tmp_path / "small.yaml"}
    codes = {name: command("status" if name == "status" else "plan", str(path)) for name, path in steps.items()}
    loaded = modules_after_each(codes)
    assert not (loaded["status"] | loaded["plain"]) & {"torch", "diffusers"}
    assert {"torch", "diffusers"} <= loaded["named"]


PAGE = (Path(__file__).parents[2] / "docs/samplers.md").read_text()
SECTION = PAGE.partition("## Schedulers of diffusers")[2].partition("## Guidance")[0]
ROWS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| `")]


def test_the_grid_of_the_page_is_one():
    text = PAGE.split("can compare several:\n\n")[1].split("\n\n")[0]
    cells = planned(**yaml.safe_load(dedent(text))).cells
    assert [cell.nfe for cell in cells] == [steps for steps in (10, 20, 50) for _ in range(2)] + [10, 20, 50]


@pytest.mark.parametrize(("row", "listed"), [*zip(ROWS, adapter.ADAPTED, strict=True)], ids=adapter.ADAPTED)
def test_the_page_says_what_they_do(row, listed):
    name, evaluations, draws, smallest, left = (cell.strip("`") for cell in row)
    assert name == listed
    options = dict([draws.split(": ")]) if ":" in draws else {}
    assert len(times_of(name, 10)) == {"S": 10, "2S - 1": 19, "S + 9": 19}[evaluations]
    assert bool(ours(name, 10, options)[1]) == (draws != "no")
    assert [refusal(name, steps) is None for steps in range(1, 5)] == [steps >= int(smallest) for steps in range(1, 5)]
    assert last_sigma(name) == pytest.approx(float(left), rel=1e-4)
