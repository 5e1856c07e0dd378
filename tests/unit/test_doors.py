"""What comes through the doors: a sampler of another package, and a grid key that is a patch of two files.

Both are seen in plan, run, table, figure and gate. Jobs run in this process; the files and commands are real.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from asking import answer, forget_samplers
from click.testing import CliRunner
from in_process import CONFIG, drive, small_run
from mutants import copy_tree
from snapshots import raises, recorded

from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS, Config, validate
from taugrid.errors import ContentMismatch, NotFinite, SamplerFault, UserError
from taugrid.images import to_uint8
from taugrid.jobs import OracleNetwork
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.opened import open_existing, open_to_plan
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.work.reconstruct import left_out, ode_cells
from taugrid.registry import samplers
from taugrid.storage import LOCAL, read_json
from taugrid.workers import schedules
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.arithmetic import Arithmetic
from taugrid.workers.device import Device, beating, ignore_heartbeat
from taugrid.workers.diffusion import gaussian, noise, oracle
from taugrid.workers.diffusion.denoiser import Denoise, Wrapped
from taugrid.workers.diffusion.process import path
from taugrid.workers.finite import Watched
from taugrid.workers.sample import SampleJob, sample_shard
from taugrid.workers.samplers import description, sampler
from taugrid.workers.samplers.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

PAGE = (Path(__file__).parents[2] / "docs/custom-sampler.md").read_text()
_, SAMPLER, RECIPE = (part.split("```")[0] for part in PAGE.split("```python\n")[1:])
ENTRY_POINTS = PAGE.split("```toml\n")[1].split("```")[0]
"""The example of a package; test_custom_sampler.py has that of functions."""
GRID = CONFIG.replace("grid: {steps: [2], eta: [0.0, 1.0]}", "grid: {steps: [2, 4], sampler: [ddim, twice]}")


def taugrid(*arguments, code=0):
    done = CliRunner().invoke(cli, [str(argument) for argument in (*arguments, "--json")], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def done(folder, text):
    """The plan as its command tells it, a run of it in `run` with tables and figures, and one in `again` without."""
    with small_run(folder, text) as opened:
        told = taugrid("plan", folder / "small.yaml")
        for name in ("run", "again"):
            outcome, _ = drive(opened, folder / name, LOCAL)
            assert not outcome.missing
        Session(replace(opened, rundir=RunDir(folder / "run")), "local", Progress.silent()).do(("report",))
    return told


def planned(**sample):
    grid = sample.pop("grid", {})
    values = {"name": "x", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "shape": [1, 4, 4]}}
    return plan(validate(Config, values | {"sample": {"seed": 0} | sample, "grid": grid}, "test"))


def forget():
    sys.modules.pop("twice_sampler", None)
    forget_samplers()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """An installed package with a sampler."""
    site = tmp_path_factory.mktemp("site")
    (site / "twice_sampler.py").write_text(SAMPLER)
    about = site / "twice_sampler-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: twice-sampler\nVersion: 0.1\n")
    [(group, entries)] = tomllib.loads(ENTRY_POINTS)["project"]["entry-points"].items()
    (about / "entry_points.txt").write_text("\n".join([f"[{group}]", *map(" = ".join, entries.items())]))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setattr(description, "ask", answer)
        forget()
        yield site
    forget()


@pytest.fixture(scope="module")
def told(package, tmp_path_factory):
    """The folder of two runs of a grid over both samplers, and what `plan` said."""
    folder = tmp_path_factory.mktemp("twice")
    return folder, done(folder, GRID)


def test_a_sampler_of_another_package_is_planned_as_it_says(told):
    _, found = told
    cells = {cell["name"].rsplit("-", 1)[0]: cell for cell in found["cells"]}
    assert list(cells) == ["S0002-eta0", "S0002-twice", "S0004-eta0", "S0004-twice"]
    assert [cell["network_evaluations"] for cell in cells.values()] == [40, 80, 80, 160]
    assert [cell["shards"] for cell in cells.values()] == [2, 2, 2, 2], "a batch is never split"
    assert cells["S0004-twice"]["label"] == "S=4 sampler=twice"
    assert cells["S0004-eta0"]["cell"] == planned(steps=4, batch_size=10, shard_evaluations=20).cells[0].id


def test_its_images_are_what_its_code_makes_of_the_network_and_the_noise(told):
    folder, _ = told
    settings = planned(steps=4).cells[0].model
    process, data = schedules.process(settings.diffusion), gaussian.gaussian((1, 4, 4))
    denoise = Denoise(oracle.gaussian_eps(data, process.alpha_bar, "cpu"), process)
    z = partial(noise.normal, 0, torch.arange(20), shape=(1, 4, 4))
    x = z(0)
    for a, b in pairwise(path(process, (250, 500, 750, 1000))):
        again = a.alpha * denoise(x, a).x0 + a.sigma * z(a.key)
        x = b.alpha * denoise(again, a).x0 + b.sigma * denoise(again, a).eps
    [cell] = (folder / "run/samples").glob("S0004-twice-*")
    images = np.concatenate([images for part in sorted(cell.iterdir()) for _, images in parquet.read_images(part)])
    assert np.abs(images.astype(int) - to_uint8(x.numpy())).max() <= 1


def test_the_recipe_of_the_page_calls_it_outside_a_run(package):
    torch.manual_seed(0)
    names = {}
    exec(RECIPE, names)  # the page's own
    assert names["x0"].shape == (1000, 1, 8, 8)
    away = names["x0"].flatten(1).mean(0).double() - torch.tensor(names["data"].mean)
    assert away.abs().max() < 0.1, "its mean is the data's"


def test_it_stands_in_tables_protocols_and_figures(told):
    folder, _ = told
    frame = pd.read_csv(folder / "run/tables/quality.csv")
    assert dict(zip(zip(frame["sampler"], frame["steps"], strict=True), frame["network_evaluations"], strict=True)) == {
        ("ddim", 2): 2, ("ddim", 4): 4, ("twice", 2): 4, ("twice", 4): 8,
    }  # fmt: skip
    assert frame["fid"].nunique() == 4
    assert frame.set_index("sampler")["fid_exact"].notna().groupby(level=0).all().to_dict() == {
        "ddim": True, "twice": False,
    }  # fmt: skip
    protocols = read_json(folder / "run/tables/quality.json")["protocols"]
    blocks = {(row.sampler, row.steps): protocols[row.protocol].get("sampler") for row in frame.itertuples()}
    assert blocks["ddim", 2] is blocks["ddim", 4] is None
    assert blocks["twice", 2] == {
        "name": "twice", "options": {}, "times": [999, 999, 499, 499], "last_sigma": 0.0, "clip": None,
        "code": sampler.code_hash("twice"),
    }  # fmt: skip
    assert frame["eta"].isna().tolist() == (frame["sampler"] == "twice").tolist()
    told = (folder / "run/tables/quality.md").read_text()
    assert "| sampler | η \\ evaluations | 2 | 4 | 8 |" in told, "both have a cell of 4"
    assert (told.count("| ddim | 0.0 |"), told.count("| twice |  |")) == (2, 1), "the second has no closed form"
    recorded(told, "evaluations")
    recorded(told, "sampler")
    drawn = (folder / "run/figures/quality.svg").read_text()
    assert "twice" in drawn
    assert len(list((folder / "run/figures").glob("samples-*twice*.png"))) == 1
    assert len(pd.read_csv(folder / "run/tables/differences.csv").query("along == 'sampler'")) == 2


def test_the_gate_compares_it_with_a_baseline(told):
    folder, _ = told
    found = taugrid("compare", folder / "run", folder / "again")
    assert found["result"] == "identical"
    assert {cell["name"].rsplit("-", 1)[0] for cell in found["cells"]} >= {"S0002-twice", "S0004-twice"}
    assert len(found["cells"]) == 4


def test_keys_that_it_does_not_honour_make_no_cells(package):
    plain = planned(sampler="twice")
    assert planned(sampler="twice", spacing="quadratic").cells[0].id != plain.cells[0].id != planned().cells[0].id
    assert plain.remarks == []
    both = planned(grid={"sampler": ["ddim", "twice"], "eta": [0.0, 1.0], "clip": ["none", "x0"]})
    recorded("\n".join([cell.label for cell in both.cells]))  # fmt: skip
    assert both.cells[-1].id == plain.cells[0].id
    recorded("\n".join(both.remarks))
    assert len(planned(grid=[{"sampler": ["ddim"], "eta": [0.0, 1.0]}, {"sampler": ["twice"]}]).cells) == 3


@pytest.mark.parametrize(
    "sample",
    [
        {"sampler": "twice", "eta": 0.5},
        {"sampler": "twice", "sampler_options": {"order": 2}},
        {"grid": [{"sampler": ["twice"], "eta": [n / 100], "num_samples": [n]} for n in (1, 50)]},
        {"grid": [{"sampler": ["ddim", "twice"], "eta": [0.0, 1.0]}, {"sampler": ["twice"]}]},
    ],
)
def test_settings_without_effect_are_refused(package, sample):
    with raises(UserError):
        planned(**sample)


def test_other_code_makes_other_cells_and_is_refused_by_a_worker(package):
    """As is a node without the package."""
    before, ids = sampler.code_hash("twice"), [planned(sampler=name).cells[0].id for name in ("ddim", "twice")]
    file = package / "twice_sampler.py"
    try:
        file.write_text(SAMPLER.replace("b.sigma * found.eps", "b.sigma * noise(b.key)"))
        forget()
        now = [planned(sampler=name).cells[0].id for name in ("ddim", "twice")]
        assert (now[0] == ids[0], now[1] == ids[1]) == (True, False)
        with raises(ContentMismatch):
            sampler.require_code("twice", before)
    finally:
        file.write_text(SAMPLER)
        forget()
    sampler.require_code("twice", before)
    with raises(ContentMismatch):
        sampler.require_code("elsewhere", before)


@pytest.fixture
def other_package(package):
    """The package with other code or, with `remove`, without its entry point."""
    file, entries = package / "twice_sampler.py", package / "twice_sampler-0.1.dist-info/entry_points.txt"
    before = entries.read_text()

    def change(remove):
        entries.write_text("" if remove else before)
        file.write_text(SAMPLER.replace("b.sigma * found.eps", "b.sigma * noise(b.key)"))
        forget()

    yield change
    entries.write_text(before)
    file.write_text(SAMPLER)
    forget()


@pytest.mark.parametrize("remove", [False, True], ids=["changed", "removed"])
def test_a_finished_run_is_looked_at_without_its_samplers_package(told, other_package, remove):
    folder, _ = told
    looks = [("status", folder / "run"), ("plan", folder / "run"), ("verify", folder / "run")]
    before = [taugrid(*look) for look in looks], (folder / "run/tables/quality.csv").read_text()
    other_package(remove)
    assert [taugrid(*look) for look in looks] == before[0]
    assert taugrid("report", folder / "run")
    assert (folder / "run/tables/quality.csv").read_text() == before[1]
    assert taugrid("compare", folder / "run", folder / "again")["result"] == "identical"
    assert "twice_sampler" not in sys.modules, "its code has not run"
    with pytest.raises(UserError) as said:
        open_to_plan(str(folder / "small.yaml"), (), str(folder / "run"))
    known = ", ".join(samplers.SAMPLERS)
    expected = f"must be one of {known}, diffusers:" if remove else "the code of the sampler twice differs"
    assert expected in str(said.value)


def test_a_run_of_a_version_that_recorded_less_of_its_samplers_is_looked_at_with_the_package(told, tmp_path):
    run = shutil.copytree(told[0] / "run", tmp_path / "run")
    plan = read_json(run / "plan.json")
    for cell in plan["cells"]:
        if "sampler" in cell:
            cell["sampler"] = {key: cell["sampler"][key] for key in ("label", "tau", "evaluations", "code")}
            cell["sampler"]["has_eta"] = False
    (run / "plan.json").write_text(json.dumps(plan))
    assert taugrid("status", run)["cells"] == taugrid("status", told[0] / "run")["cells"]


def test_a_sampler_that_is_not_here_is_one_line(package):
    with raises(UserError) as found:
        planned(sampler="dpm")
    assert "\n" not in str(found.value)


class Honest(Sampler):
    """As the page says; `sampler_of` makes others of it."""

    def sample(self, x, path, denoise, noise, settings):
        for point in path[:-1]:
            x = denoise(x, point).x0
        return x


@pytest.fixture
def sampler_of(monkeypatch):
    """Registers `Honest` with other attributes under the name "other"."""

    def register(**attributes):
        monkeypatch.setattr(sys.modules[__name__], "Other", type("Other", (Honest,), attributes), raising=False)
        forget()

    monkeypatch.setitem(samplers.SAMPLERS, "other", f"{__name__}:Other")
    yield register
    forget()


def shard(folder, **sample):
    """The file of three images of one cell."""
    [cell] = planned(sampler="other", **{"steps": 2} | sample).cells
    network = oracle.gaussian_eps(gaussian.gaussian((1, 4, 4)), schedules.alpha_bar(cell.model.diffusion), "cpu")
    file, spec, about = folder / "part.parquet", OracleNetwork(cell.model.data), {"cell": "x", "model": "y"}
    settings, diffusion, says = cell.settings, cell.model.diffusion, (cell.tau, cell.nfe)
    job = SampleJob(str(file), 0, 3, spec, cell.model.decoder, settings, diffusion, *says, about)
    sample_shard(job, network, Device("cpu"))
    return file


def returning(change):
    return lambda self, x, *rest: change(Honest.sample(self, x, *rest))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x[:, :, :-1], r"\(3, 1, 3, 4\) torch.float32"),
        (lambda x: x[:-1], r"\(2, 1, 4, 4\) torch.float32"),
        (lambda x: x.repeat(1, 3, 1, 1), r"\(3, 3, 4, 4\) torch.float32"),
        (lambda x: x.double(), r"\(3, 1, 4, 4\) torch.float64"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: None, "NoneType"),
    ],
)
def test_what_a_sampler_returns_is_checked_before_it_is_committed(sampler_of, tmp_path, change, found):
    sampler_of(sample=returning(change))
    expected = rf"^`sample` of the sampler other returns {found}, but .* x: \(3, 1, 4, 4\) torch.float32$"
    with pytest.raises(SamplerFault, match=expected):
        shard(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sampler_that_breaks_its_word_fails_its_cells_once(sampler_of, tmp_path):
    sampler_of(sample=returning(lambda x: x[:-1]))
    with small_run(tmp_path, GRID.replace("twice", "other")) as opened:
        outcome, printed = drive(opened, tmp_path / "run", LOCAL)
    assert [name.rsplit("-", 1)[0] for name in outcome.missing] == ["S0002-other", "S0004-other"]
    assert printed.count("returns (9, 1, 4, 4)") == 2, "no retries"
    assert not list((tmp_path / "run/samples").glob("*other*/part*"))


@pytest.mark.parametrize("change", [{"options": {"order": 3}}, {"times": lambda *_: range(40)}])
def test_a_cell_is_not_continued_with_other_arguments(sampler_of, tmp_path, change):
    """As if a library had changed a default: the cell that is whole stays, the other one gets nothing, ddim goes on."""
    before, grid = {"options": {"order": 2}}, GRID.replace("twice", "other")

    def drive_with(folder="run", **attributes):
        sampler_of(**attributes)
        with small_run(tmp_path, grid) as opened:
            return drive(opened, tmp_path / folder, LOCAL)[0].missing

    assert not drive_with(**before)
    of_ddim, whole, _, broken = sorted(tmp_path.glob("run/samples/*/part*1.parquet"))
    for file in (of_ddim, broken):
        file.unlink()
    [(name, reason)] = drive_with(**{**before, **change}).items()
    assert name == broken.parent.name
    recorded(reason)
    assert len(reason) < 220
    assert whole.exists()
    assert of_ddim.exists()
    assert not broken.exists()
    assert not drive_with(**before)
    if "times" in change:
        return
    assert not drive_with("changed", **change)
    broken.with_stem("part-000000").unlink()
    shutil.copy(tmp_path / "changed" / broken.relative_to(tmp_path / "run"), broken.with_stem("part-000002"))
    assert drive_with(**before).keys() == {broken.parent.name}, "every file counts"


@pytest.mark.parametrize("spacing", ["linear", "ermongroup-quad"])
def test_network_calls_are_counted(sampler_of, tmp_path, spacing):
    """Times that repeat count each time: ermongroup-quad visits 100 times at S = 100, and not as many different."""
    sampler_of(keys=frozenset({"spacing"}))
    assert shard(tmp_path, steps=100, spacing=spacing).exists()
    sampler_of(keys=frozenset({"spacing"}), evaluations=lambda *given: 99)
    with raises(SamplerFault):
        shard(tmp_path, steps=100, spacing=spacing)
    sampler_of(sample=lambda self, x, *rest: x)
    with raises(SamplerFault):
        shard(tmp_path)


@pytest.mark.parametrize(
    "attributes",
    [
        {"evaluations": lambda *given: 0},
        {"evaluations": lambda *given: 2.0},
        {"tau": lambda *given: (3, 2)},
        {"tau": lambda *given: (0, 2)},
        {"tau": lambda *given: [1, 1001]},
        {"tau": lambda *given: ()},
        {"tau": lambda *given: (True,)},
        {"keys": {"eta", "spacings"}},
    ],
)
def test_what_a_sampler_says_of_itself_is_checked_when_it_is_planned(sampler_of, attributes):
    sampler_of(**attributes)
    with raises(UserError):
        planned(sampler="other")


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_the_network_is_never_asked_at_time_0(set_alpha_to_one):
    process = schedules.process(DIFFUSION_DEFAULTS.model_copy(update={"set_alpha_to_one": set_alpha_to_one}))
    denoise = Denoise(lambda x, *where: x, process)
    first, last = path(process, (1,))
    assert denoise(torch.ones(1, 1, 2, 2), first).eps.shape == (1, 1, 2, 2)
    with raises(SamplerFault):
        denoise(torch.ones(1, 1, 2, 2), last)


def test_nan_of_a_samplers_own_arithmetic_names_it(sampler_of, tmp_path):
    sampler_of(sample=lambda self, x, path, denoise, *rest: Honest.sample(self, x * math.nan, path, denoise, *rest))
    with raises(NotFinite):
        shard(tmp_path)
    sampler_of(sample=returning(lambda x: x * math.nan))
    with raises(NotFinite):
        shard(tmp_path)


def test_warnings_ask_the_sampler_for_its_evaluations(sampler_of):
    sampler_of(keys=frozenset({"spacing"}), evaluations=lambda self, settings, process: 2 * settings.steps + 1)
    grid = {"sampler": ["ddim", "other"]}
    recorded("\n".join(planned(steps=30, spacing="ermongroup-uniform", grid=grid).remarks))


def test_a_package_that_takes_one_of_our_names_is_refused(package):
    entries = package / "twice_sampler-0.1.dist-info/entry_points.txt"
    before = entries.read_text()
    try:
        entries.write_text(before.replace("twice =", "ddim ="))
        forget()
        with raises(UserError):
            planned()
    finally:
        entries.write_text(before)
        forget()


@pytest.mark.parametrize("stage", ["reconstruct", "interpolate"])
def test_the_ode_is_that_of_ddim_alone(told, tmp_path, stage):
    folder, _ = told
    opened = open_existing(str(folder / "run"))
    assert {cell.settings.sampler for cell in ode_cells(opened.plan)} == {"ddim"}
    assert len(ode_cells(opened.plan)) == 2
    recorded(left_out(opened.plan, stage))
    with (
        small_run(tmp_path, GRID.replace("[ddim, twice]", "[twice]")) as none,
        raises(UserError),
    ):
        Session(replace(none, rundir=RunDir(tmp_path / "run")), "local", Progress.silent()).do((stage,))


def test_wrappers_pass_points_and_conditions_on():
    """A batch's condition reaches the network through all that workers put around it."""
    seen = []

    def network(x, at, condition=None):
        seen.append((at, condition))
        return 0.5 * x

    computed = arithmetic.adapted(network, Arithmetic("bf16", "default", 4), "cpu")
    wrapped = Watched(Wrapped(computed, beating(ignore_heartbeat, 1)))
    process, labels = schedules.process(DIFFUSION_DEFAULTS), torch.tensor([3, 1, 4, 1])
    point = process.at(7)
    found = Denoise(wrapped, process, condition=labels)(torch.ones(4, 1, 2, 2), point)
    assert torch.equal(found.eps, torch.full((4, 1, 2, 2), 0.5))
    [(at, condition)] = seen
    assert at is point
    assert condition is labels


@dataclass(frozen=True)
class Enlarged:
    """A decoder whose pictures are twice as large as what the network sees."""

    network_shape = (1, 4, 4)
    picture_shape = (1, 8, 8)

    def __call__(self, x0):
        return x0.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def test_noise_has_the_networks_shape_and_files_the_pictures(tmp_path):
    [cell] = planned(steps=2).cells
    network = oracle.gaussian_eps(gaussian.gaussian((1, 4, 4)), schedules.alpha_bar(cell.model.diffusion), "cpu")
    pictures = []
    for decoder in (cell.model.decoder, Enlarged()):
        file = tmp_path / f"{type(decoder).__name__}.parquet"
        spec, about = OracleNetwork(cell.model.data), {"cell": "x", "model": "y"}
        given = (cell.settings, cell.model.diffusion, cell.tau, cell.nfe)
        job = SampleJob(str(file), 0, 3, spec, decoder, *given, about)
        sample_shard(job, network, Device("cpu"))
        [(_, images)] = parquet.read_images(file)
        pictures.append(images)
    assert (pictures[0].shape, pictures[1].shape) == ((3, 1, 4, 4), (3, 1, 8, 8))
    assert np.array_equal(pictures[1], pictures[0].repeat(2, axis=-1).repeat(2, axis=-2))


KEY = [
    (
        "taugrid/config/sample.py",
        "later_keys = {",
        'later_keys = {"lift": 0.0, ',
    ),
    (
        "taugrid/config/sample.py",
        '    weights: Literal["ema", "raw"]',
        '    lift: float = 0.0\n    """Added to x_0."""\n    weights: Literal["ema", "raw"]',
    ),
    (
        "workers/samplers/ddim.py",
        "        return sample(x, path, denoise, noise, settings.eta)",
        "        return sample(x, path, denoise, noise, settings.eta) + settings.lift",
    ),
]
"""A grid key: (file, text, replacement). Two files."""


def with_a_toy_key(root):
    """What the copy of the tree in `root` makes of a grid over the key; called in a process of its own."""
    grid = CONFIG.replace("eta: [0.0, 1.0]", "lift: [0.0, 0.25]")
    found = done(root, grid)
    frame = pd.read_csv(root / "run/tables/quality.csv")
    return {
        "labels": [cell["label"] for cell in found["cells"]],
        "ids": [cell["cell"] for cell in found["cells"]],
        "lift": frame["lift"].tolist(),
        "fids": frame["fid"].nunique(),
        "table": (root / "run/tables/quality.md").read_text(),
        "figure": (root / "run/figures/quality.svg").read_text(),
        "gate": [cell["name"] for cell in taugrid("compare", root / "run", root / "again")["cells"]],
    }


@pytest.mark.long
def test_a_grid_key_is_a_patch_of_two_files(tmp_path):
    copy_tree(tmp_path)
    for name, old, new in KEY:
        text = (tmp_path / name).read_text()
        assert text.count(old) == 1, f"{name}: {old}"
        (tmp_path / name).write_text(text.replace(old, new))
    code = "import json, test_doors, pathlib; print(json.dumps(test_doors.with_a_toy_key(pathlib.Path.cwd())))"
    places = [tmp_path, tmp_path / "tests", tmp_path / "tests/unit", tmp_path / "tests/integration", tmp_path / "tools"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["labels"] == ["S=2 eta=0 lift=0", "S=2 eta=0 lift=0.25"]
    assert found["ids"][0] == planned(steps=2, batch_size=10, shard_evaluations=20).cells[0].id != found["ids"][1]
    assert found["lift"] == [0.0, 0.25]
    assert found["fids"] == 2
    assert "lift" in found["table"]
    assert "lift" in found["figure"]
    assert len(found["gate"]) == 2
