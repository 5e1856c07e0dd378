"""`sample.sampler: module:function`: what the page promises, what is refused before a run, and what a run keeps."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plans
import pytest
import torch
from asking import forget_code_here
from click.testing import CliRunner
from in_process import drive, small_run
from snapshots import raises, recorded

import taugrid
from taugrid.config import Config, validate
from taugrid.errors import UserError, WorkerRefusal
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.jobs.client import pack_job
from taugrid.orchestrator.opened import open_to_plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.selfcheck import overrides
from taugrid.orchestrator.session import Session
from taugrid.storage import LOCAL, read_json
from taugrid.workers.custom import describe
from taugrid.workers.samplers import description, sampler, trial

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

PAGE = (Path(__file__).parents[2] / "docs/custom-sampler.md").read_text()
SOURCE = PAGE.split("```python\n")[1].split("```")[0]
"""my_sampler.py"""
EXPERIMENT = PAGE.split("```yaml\n")[1].split("```")[0]

BROKEN = """
import random
from itertools import pairwise
import numpy as np
import torch
from taugrid.workers.samplers.sampler import Sampler

def good(x, path, denoise, noise, settings):
    for point in path[:-1]:
        x = denoise(x, point).x0
    return x

def steps(x, path, denoise, noise, settings):
    for a, b in pairwise(path):
        found = denoise(x, a)
        x = b.alpha * found.x0 + b.sigma * found.eps
    return x

def steps_in_place(x, path, denoise, noise, settings):
    for a, b in pairwise(path):
        found = denoise(x, a)
        x = found.x0.mul_(b.alpha) + found.eps.mul_(b.sigma)
    return x

def after(change):
    return lambda x, path, denoise, noise, settings: change(good(x, path, denoise, noise, settings))

def said(**attributes):
    function = after(lambda x: x)
    vars(function).update(attributes)
    return function

def at_time_0(x, path, denoise, noise, settings):
    return denoise(x, path[-1]).x0

def too_few_arguments(x, path, denoise, noise):
    return x

def fails(x, path, denoise, noise, settings):
    return x + undefined

calls = []

randn = after(lambda x: x + torch.randn_like(x))
numpys = after(lambda x: x + np.random.rand())
pythons = after(lambda x: x + random.random())
own_generator = after(lambda x: x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
entropy = after(lambda x: x + np.random.default_rng().random())
shape = after(lambda x: x[:, :, 1:])
dtype = after(lambda x: x.double())
device = after(lambda x: x.to("meta"))
float64 = after(lambda x: (torch.set_default_dtype(torch.float64), x.double())[1])
threads = after(lambda x: (torch.set_num_threads(2), x)[1])
deterministic = after(lambda x: (torch.use_deterministic_algorithms(True), x)[1])
matmul = after(lambda x: (torch.set_float32_matmul_precision("medium"), x + torch.randn_like(x))[1])
learned = after(lambda x: x * torch.nn.Parameter(torch.ones(1)))

def guided(x, path, denoise, noise, settings):
    with torch.enable_grad():
        return learned(x, path, denoise, noise, settings)

class NotANumber(Sampler):
    def tau(self, settings, process):
        return (1.0, float("nan"), 1000.0)

    sample = staticmethod(good)

nothing = after(lambda x: None)
nan = after(lambda x: x / 0 * 0)
mean = after(lambda x: x - x.mean())
keeps_state = after(lambda x: (calls.append(x), x + len(calls))[1])
own_mean = after(lambda x: x - x.mean((1, 2, 3), keepdim=True))
threshold = after(lambda x: x / x.abs().flatten(1).quantile(0.995, dim=1).clamp(min=1)[:, None, None, None])
power = after(lambda x: x.sign() * x.abs() ** 1.3)
wrong_number = said(evaluations=lambda settings, process: 2 * settings.steps)
no_number = said(evaluations=lambda settings, process: settings.steps / 1)
wrong_keys = said(keys={"spacings"})
text_as_keys = said(keys="eta")
wrong_options = said(options={"weight": float("nan")})
with_options = said(options={"weight": 0.5})
NUMBER = 3
"""


def planned(name="my_sampler:sample", grid=None, diffusion=None, **settings):
    sample = {"steps": 4, "sampler": name} | settings
    return plans.planned(sample=sample, grid=grid or {}, diffusion=diffusion or {})


def refused(name, **settings):
    with pytest.raises(UserError) as error:
        planned(name, **settings)
    assert "\n" not in str(error.value).partition("\nfor the ")[0]
    return str(error.value)


def command(*arguments):
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the page's module and one of broken samplers."""
    (tmp_path / "my_sampler.py").write_text(SOURCE)
    (tmp_path / "mine.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def here(folder, asked_here):
    """As `folder`; this process tries the samplers, which another one takes seconds to do."""
    return folder


RULE_BREAKERS = """
randn numpys pythons own_generator entropy keeps_state mean shape dtype device nothing nan float64 threads
deterministic matmul at_time_0 too_few_arguments NotANumber wrong_number no_number wrong_keys text_as_keys
wrong_options NUMBER goood
"""


@pytest.mark.long
@pytest.mark.parametrize("name", RULE_BREAKERS.split())
def test_a_sampler_that_breaks_the_rules_is_refused_before_it_runs(here, name):
    before = [get() for get, _ in trial.SETTINGS.values()]
    recorded(refused(f"mine:{name}"))
    assert [get() for get, _ in trial.SETTINGS.values()] == before


def test_a_module_that_turns_gradients_off_is_refused(here):
    (here / "mine.py").write_text(f"{BROKEN}\ntorch.set_grad_enabled(False)\n")
    recorded(refused("mine:good"), "gradient")
    assert torch.is_grad_enabled()


def in_memory(name, indices=2):
    settings = {"model": {"oracle": "gaussian"}, "shape": (1, 4, 4), "steps": 4, "seed": 0}
    return taugrid.sample(indices=indices, sampler=name, **settings)


@pytest.mark.parametrize("name", ["learned", "guided"])
def test_images_have_no_gradient(here, name):
    assert np.array_equal(in_memory(f"mine:{name}"), in_memory("mine:good"))


class Half(torch.nn.Module):
    def forward(self, x, t):
        return 0.5 * x


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_sampler_may_change_a_prediction_in_place(here, prediction):
    """The trial accepts it, so a network in inference mode must not refuse it."""
    images = [
        taugrid.sample(Half(), 2, shape=(1, 4, 4), steps=4, seed=0, sampler=name, diffusion={"prediction": prediction})
        for name in ("mine:steps", "mine:steps_in_place")
    ]
    assert np.array_equal(*images)


@pytest.mark.parametrize("name", ["own_mean", "threshold", "power"])
def test_what_a_sampler_computes_from_each_image_alone_passes(here, name):
    assert planned(f"mine:{name}").cells[0].nfe == 4


def test_names_and_options_that_do_not_fit_are_refused(here):
    for name in (None, 3, "mien:good", "mine:f(x)"):
        recorded(refused(name))
    recorded(refused("mine:good", steps=1001))
    recorded(refused("mine:good", sampler_options={"weight": 1}))
    for options in ({"wait": 1}, {"weight": float("nan")}):
        recorded(refused("mine:with_options", sampler_options=options))


@pytest.mark.long
def test_another_process_tries_it_and_an_error_of_its_own_comes_with_its_traceback(folder, monkeypatch):
    """Looked up in the current folder; each cell with its settings."""
    found = planned("my_sampler:renoised", grid={"steps": [2, 5], "sampler_options": [{}, {"passes": 3}]})
    assert [cell.nfe for cell in found.cells] == [4, 8, 10, 20]
    assert not {"my_sampler", "mine"} & sys.modules.keys(), "the driver has not imported it"
    told = refused("mine:fails")
    recorded(told, "undefined")
    recorded(told, "traceback")
    (folder / "mine.py").write_text("import no_such_library\n")
    monkeypatch.setattr(description, "ask", lambda function, arguments, *_: describe.find(function)(**arguments))
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):  # which the other process reports like any error
        planned("mine:good")


@pytest.mark.parametrize(("process", "told"), [("edm", [math.log(80) / 4, math.log(0.002) / 4]), ("flow", [1, 0.5])])
def test_it_is_tried_on_the_networks_own_process(here, process, told):
    """The page's samplers work there too, and broken ones are found."""
    of = {"diffusion": {"process": process}}
    [cell] = planned(steps=2, **of).cells
    assert cell.sampler_description.times == pytest.approx(told)
    assert planned("my_sampler:renoised", **of).cells[0].nfe == 8
    recorded(refused("mine:own_generator", **of), "another")
    recorded(refused("mine:at_time_0", **of), "network")
    recorded(refused("mine:NotANumber", **of), "increasing")


def test_a_cell_knows_the_calls_that_were_counted(here):
    [cell] = planned("my_sampler:renoised", sampler_options={"passes": 2}).cells
    assert cell.sampler_description.times == tuple(time for time in (999, 749, 499, 249) for _ in range(3))
    assert cell.sampler_description.arguments == {"passes": 2}
    assert cell.name == f"S0004-my_sampler_renoised-{cell.id}"
    assert cell.sampler_description.keys == ()
    [same] = planned("my_sampler:renoised", grid={"spacing": ["linear", "ermongroup-uniform"], "steps": [7]}).cells
    assert same.nfe == 14
    [longer] = planned(spacing="ermongroup-uniform", steps=7).cells
    assert longer.nfe == 8


SECTIONS = [
    {"prediction": "v_prediction", "rescale_betas_zero_snr": True}, {"prediction": "sample", "schedule": "cosine"},
    {"set_alpha_to_one": False},
]  # fmt: skip


@pytest.mark.parametrize("diffusion", SECTIONS, ids=str)
def test_a_sound_sampler_passes_with_each_prediction_and_end(here, diffusion):
    points = [{"sample": {"steps": steps, "clip": "none"}, "diffusion": diffusion} for steps in (1, 20)]
    for name in ("sample", "renoised"):
        assert trial.describe(f"my_sampler:{name}", points).refusal is None


def test_its_code_and_its_given_options_make_the_cell(here):
    def cell_id(**settings):
        return planned(**settings).cells[0].id

    first, file = cell_id(), here / "my_sampler.py"
    assert cell_id(sampler_options={"weight": 0.25}) != first
    assert [cell.id for cell in planned(grid={"eta": [0.5, 1.0], "clip": ["x0", "none"]}).cells] == [first]
    file.write_text(f"# a comment\n{SOURCE}")
    assert cell_id() == first
    file.write_text(f"from helper import W\n{SOURCE}")
    (here / "helper.py").write_text("W = 1\n")
    with_helper = cell_id()
    (here / "helper.py").write_text("W = 2\n")
    assert len({first, with_helper, cell_id()}) == 3


def test_all_options_reach_it_with_their_defaults(here):
    asks = "    assert settings.sampler_options == {'weight': 0.25, 'passes': 2}\n"
    text = BROKEN.replace("settings):\n    for", f"settings):\n{asks}    for")
    (here / "mine.py").write_text(f"{text}\ngood.options = {{'weight': 0.5, 'passes': 2}}\n")
    [cell] = planned("mine:good", sampler_options={"weight": 0.25}).cells
    assert cell.settings.sampler_options == {"weight": 0.25}
    assert cell.sampler_description.arguments == {"weight": 0.25, "passes": 2}


def test_samples_in_memory_depend_on_no_batch_and_it_is_tried_too(here):
    images = in_memory("my_sampler:renoised", 5)
    assert np.array_equal(images, np.concatenate([in_memory("my_sampler:renoised", [n]) for n in range(5)]))
    assert not np.array_equal(images, in_memory("ddim", 5))
    with raises(UserError):
        taugrid.sample(lambda x, t: x, 5, shape=(1, 4, 4), sampler="mine:randn")


def test_its_modules_are_sent_to_workers_and_with_jobs(here, tmp_path_factory):
    (here / "my_sampler.py").write_text(f"from helper import W\n{SOURCE}")
    (here / "helper.py").write_text("W = 1\n")
    assert {file.module for file in planned().sampler_modules} == {"my_sampler", "helper"}
    package = tmp_path_factory.mktemp("package")
    grid = {"sampler": ["ddim", "my_sampler:sample"]}
    pack_job(validate(Config, {"name": "x", "model": {"oracle": "gaussian"}, "grid": grid}, "test"), package, False)
    assert {"my_sampler.py", "helper.py"} <= {file.name for file in package.iterdir()}


def test_a_worker_with_other_code_is_refused(here):
    expected, file = planned().cells[0].sampler_description.code, here / "my_sampler.py"
    sampler.require_code("my_sampler:sample", expected)
    for change in (lambda: file.write_text(SOURCE.replace("0.5", "0.25")), file.unlink):
        forget_code_here()
        change()
        with raises(WorkerRefusal):
            sampler.require_code("my_sampler:sample", expected)


@pytest.mark.long
def test_the_page_works_and_is_looked_at_without_its_module(here, monkeypatch):
    with small_run(here, f"{EXPERIMENT.replace('1_000', '100')}cluster: {{workers: 1}}\n") as opened:
        told = command("plan", here / "small.yaml")
        for name in ("run", "again"):
            assert not drive(opened, here / name, LOCAL)[0].missing
        Session(replace(opened, rundir=RunDir(here / "run")), "local", Progress.silent()).do(("report",))
    evaluations = [cell["network_evaluations"] / 100 for cell in told["cells"]]
    assert evaluations == [5, 10, 5, 10, 10, 20, 15, 30]
    frame = pd.read_csv(here / "run/tables/quality.csv")
    assert frame["fid"].nunique() == len(frame) == 8
    assert set(frame["sampler"]) == {"ddim", "my_sampler:sample", "my_sampler:renoised"}
    protocols = read_json(here / "run/tables/quality.json")["protocols"].values()
    blocks = [block for each in protocols if (block := each.get("sampler")) and block["name"].endswith("renoised")]
    assert {json.dumps(block["options"]) for block in blocks} == {'{"passes": 1}', '{"passes": 2}'}
    assert {len(block["times"]) for block in blocks} == {10, 20, 15, 30}

    looks = [(word, here / "run") for word in ("status", "plan", "verify")]
    before = [command(*look) for look in looks]
    forget_code_here()
    (here / "my_sampler.py").write_text("raise SystemExit('its code ran')\n")
    monkeypatch.setattr(description, "ask", lambda *given: pytest.fail("looking runs no code"))
    assert [command(*look) for look in looks] == before
    assert command("report", here / "run")
    assert command("compare", here / "run", here / "again")["result"] == "identical"
    assert "my_sampler" not in sys.modules
    (here / "run/plan.json").unlink()
    with raises(UserError):
        open_to_plan(str(here / "run"), (), None)


@pytest.mark.long
def test_a_run_whose_code_has_changed_is_not_continued(here):
    with small_run(here, f"{EXPERIMENT}cluster: {{workers: 1}}\n") as opened:
        drive(opened, here / "run", LOCAL)
    (here / "my_sampler.py").write_text(SOURCE.replace("weight * (", "weight * 0.5 * ("))
    config = str(here / "small.yaml")
    with raises(UserError) as error:
        open_to_plan(config, (), str(here / "run"))
    recorded(str(error.value), "another")
    with raises(UserError):
        open_to_plan(config, ("sample.seed=5",), str(here / "run"))


def test_the_judge_of_samplers_passes_options_on():
    assert overrides("mine:good", "{weight: 1}")[-1] == "sample.sampler_options={weight: 1}"
    with raises(UserError):
        overrides(None, "{weight: 1}")


def test_a_plan_names_its_only_sampler(here):
    grid = {"spacing": ["linear", "trailing"], "steps": [3, 5], "sampler_options": [{}, {"weight": 0.5}, {"weight": 1}]}
    found = planned(grid=grid)
    assert {cell.settings.sampler for cell in found.cells} == {"my_sampler:sample"}
    assert all("sampler=my_sampler:sample" in cell.label for cell in found.cells)


def test_a_sampler_that_never_ends_is_announced_and_given_up(folder, monkeypatch, capsys):
    (folder / "mine.py").write_text("def loops(*given):\n    while True:\n        pass\n")
    monkeypatch.setattr(describe, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(describe, "TIMEOUT_SECONDS", 1.0)
    recorded(refused("mine:loops"), "seconds")
    recorded(capsys.readouterr().err, "waiting")
