"""What comes through the doors: a sampler of another package, and a grid key that is a patch of two files.

Both are seen in plan, run, table, figure and gate. Jobs run in this process; the files and commands are real.
"""

import io
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from asking import answer, forget_samplers
from in_process import CONFIG, drive, small_run
from mutants import copy_tree
from snapshots import raises, recorded

from taugrid import parquet
from taugrid import sample as sample_in_memory
from taugrid.config import DIFFUSION_DEFAULTS, Config, validate
from taugrid.errors import NotFinite, SamplerFault, UserError, WorkerRefusal
from taugrid.images import to_uint8
from taugrid.jobs import OracleNetwork
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.opened import open_existing, open_to_plan
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.work.ode import left_out, ode_cells
from taugrid.registry import samplers
from taugrid.storage import LOCAL, read_json
from taugrid.workers import schedules
from taugrid.workers.device import Device
from taugrid.workers.diffusion import gaussian, noise, oracle
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import path
from taugrid.workers.jobs import SampleJob
from taugrid.workers.sample import sample_shard
from taugrid.workers.samplers import description, sampler
from taugrid.workers.samplers.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

PAGE = (Path(__file__).parents[2] / "docs/custom-sampler.md").read_text()
_, SAMPLER, RECIPE = (part.split("```")[0] for part in PAGE.split("```python\n")[1:])
ENTRY_POINTS = PAGE.split("```toml\n")[1].split("```")[0]
"""The example of a package; test_custom_sampler.py has that of functions."""
GRID = CONFIG.replace("grid: {steps: [2], eta: [0.0, 1.0]}", "grid: {steps: [2, 4], sampler: [ddim, twice]}")


def taugrid(*arguments, code=0):
    out = io.StringIO()
    with pytest.raises(SystemExit) as end, redirect_stdout(out):
        cli.main([str(argument) for argument in (*arguments, "--json")], prog_name="taugrid")
    assert end.value.code == code, out.getvalue()
    return json.loads(out.getvalue())


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
    process, data = schedules.process(DIFFUSION_DEFAULTS), gaussian.gaussian((1, 4, 4))
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
    rows = {(row.sampler, row.steps): row for row in frame.itertuples()}
    assert {place: row.network_evaluations for place, row in rows.items()} == {
        ("ddim", 2): 2, ("ddim", 4): 4, ("twice", 2): 4, ("twice", 4): 8,
    }  # fmt: skip
    assert frame["fid"].nunique() == 4
    assert frame["fid_exact"].notna().equals(frame["sampler"] == "ddim")
    assert frame["eta"].isna().equals(frame["sampler"] == "twice")
    protocols = read_json(folder / "run/tables/quality.json")["protocols"]
    blocks = {place: protocols[row.protocol].get("sampler") for place, row in rows.items()}
    assert blocks["ddim", 2] is blocks["ddim", 4] is None
    assert blocks["twice", 2] == {
        "name": "twice", "options": {}, "times": [999, 999, 499, 499], "last_sigma": 0.0, "clip": None,
        "code": sampler.code_hash("twice"),
    }  # fmt: skip
    told = (folder / "run/tables/quality.md").read_text()
    assert (told.count("| ddim | 0.0 |"), told.count("| twice |  |")) == (2, 1), "the second has no closed form"
    recorded(told, "evaluations")  # both samplers have a cell of 4
    recorded(told, "sampler")
    assert "twice" in (folder / "run/figures/quality.svg").read_text()
    assert len(list((folder / "run/figures").glob("samples-*twice*.png"))) == 1
    assert len(pd.read_csv(folder / "run/tables/differences.csv").query("along == 'sampler'")) == 2


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
        {"sampler": "dpm"},
        {"sampler": "twice", "eta": 0.5},
        {"sampler": "twice", "sampler_options": {"order": 2}},
        {"grid": [{"sampler": ["twice"], "eta": [n / 100], "num_samples": [n]} for n in (1, 50)]},
        {"grid": [{"sampler": ["ddim", "twice"], "eta": [0.0, 1.0]}, {"sampler": ["twice"]}]},
    ],
)
def test_a_sampler_that_is_not_here_and_settings_without_effect_are_refused(package, sample):
    with raises(UserError):
        planned(**sample)


@pytest.fixture
def edit(package):
    """Replaces a text of the package, in its code or its entry points."""
    files = (package / "twice_sampler.py", package / "twice_sampler-0.1.dist-info/entry_points.txt")
    before = [file.read_text() for file in files]

    def replaced(old, new):
        for file, text in zip(files, before, strict=True):
            file.write_text(text.replace(old, new))
        forget()

    yield replaced
    replaced("", "")


OTHER_CODE = ("b.sigma * found.eps", "b.sigma * noise(b.key)")


def test_other_code_makes_other_cells_and_is_refused_by_a_worker(edit):
    """As is a node without the package."""
    before, ids = sampler.code_hash("twice"), [planned(sampler=name).cells[0].id for name in ("ddim", "twice")]
    sampler.require_code("twice", before)
    edit(*OTHER_CODE)
    now = [planned(sampler=name).cells[0].id for name in ("ddim", "twice")]
    assert (now[0] == ids[0], now[1] == ids[1]) == (True, False)
    for name in ("twice", "elsewhere"):
        with raises(WorkerRefusal):
            sampler.require_code(name, before)


def test_a_package_that_takes_one_of_our_names_is_refused(edit):
    edit("twice =", "ddim =")
    with raises(UserError):
        planned()


@pytest.mark.parametrize("change", [OTHER_CODE, ("twice =", "thrice =")], ids=["changed", "removed"])
def test_a_finished_run_is_looked_at_without_its_samplers_package(told, edit, change):
    folder, _ = told
    looks = [("status", folder / "run"), ("plan", folder / "run"), ("verify", folder / "run")]
    before = [taugrid(*look) for look in looks], (folder / "run/tables/quality.csv").read_text()
    edit(*change)
    assert [taugrid(*look) for look in looks] == before[0]
    assert taugrid("report", folder / "run")
    assert (folder / "run/tables/quality.csv").read_text() == before[1]
    compared = taugrid("compare", folder / "run", folder / "again")
    assert (compared["result"], len(compared["cells"])) == ("identical", 4)
    assert "twice_sampler" not in sys.modules, "its code has not run"
    with raises(UserError):
        open_to_plan(str(folder / "small.yaml"), (), str(folder / "run"))


def test_a_run_of_a_version_that_recorded_less_of_its_samplers_is_looked_at_with_the_package(told, tmp_path):
    run = shutil.copytree(told[0] / "run", tmp_path / "run")
    plan = read_json(run / "plan.json")
    for cell in plan["cells"]:
        if "sampler" in cell:
            cell["sampler"] = {key: cell["sampler"][key] for key in ("label", "tau", "evaluations", "code")}
            cell["sampler"]["has_eta"] = False
    (run / "plan.json").write_text(json.dumps(plan))
    assert taugrid("status", run)["cells"] == taugrid("status", told[0] / "run")["cells"]


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


def shard(folder, sampler="other", decoder=None, **sample):
    """The file of three images of one cell."""
    [cell] = planned(sampler=sampler, **{"steps": 2} | sample).cells
    network = oracle.gaussian_eps(gaussian.gaussian((1, 4, 4)), schedules.alpha_bar(cell.model.diffusion), "cpu")
    file, spec, about = folder / "part.parquet", OracleNetwork(cell.model.data), {"cell": "x", "model": "y"}
    given = (decoder or cell.model.decoder, cell.settings, cell.model.diffusion, cell.tau, cell.nfe)
    sample_shard(SampleJob(str(file), 0, 3, spec, *given, about), network, Device("cpu"))
    return file


def returning(change):
    return lambda self, x, *rest: change(Honest.sample(self, x, *rest))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :, :-1],
        lambda x: x[:-1],
        lambda x: x.repeat(1, 3, 1, 1),
        lambda x: x.double(),
        lambda x: x.numpy(),
        lambda x: None,
        lambda x: x.to("meta"),
    ],
)
def test_what_a_sampler_returns_is_checked_before_it_is_committed(sampler_of, tmp_path, change):
    sampler_of(sample=returning(change))
    with raises(SamplerFault):
        shard(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"options": {"order": 3}}, {"times": lambda *_: range(40)}])
def test_a_cell_is_not_continued_with_other_arguments(sampler_of, tmp_path, change):
    """As if a library had changed a default: the cell that is whole stays, the other one gets nothing, ddim goes on."""
    before = {"options": {"order": 2}}

    def drive_with(folder="run", **attributes):
        sampler_of(**attributes)
        with small_run(tmp_path, GRID.replace("twice", "other")) as opened:
            return drive(opened, tmp_path / folder, LOCAL)[0].missing

    assert not drive_with(**before)
    of_ddim, whole, _, broken = sorted(tmp_path.glob("run/samples/*/part*1.parquet"))
    of_ddim.unlink()
    broken.unlink()
    [(name, reason)] = drive_with(**{**before, **change}).items()
    assert name == broken.parent.name
    recorded(reason)
    assert [file.exists() for file in (whole, of_ddim, broken)] == [True, True, False]
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


SAYS = {"evaluations": (0, 2.0), "tau": ((3, 2), (0, 2), [1, 1001], (), (True,)), "keys": ({"eta", "spacings"},)}


@pytest.mark.parametrize(("name", "said"), [(name, said) for name, values in SAYS.items() for said in values])
def test_what_a_sampler_says_of_itself_is_checked_when_it_is_planned(sampler_of, name, said):
    sampler_of(**{name: said if name == "keys" else lambda *given: said})
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
    given = lambda self, x, path, denoise, *rest: Honest.sample(self, x * math.nan, path, denoise, *rest)  # noqa: E731
    for sample in (given, returning(lambda x: x * math.nan)):
        sampler_of(sample=sample)
        with raises(NotFinite):
            shard(tmp_path)
    with raises(NotFinite):
        sample_in_memory({"oracle": "gaussian"}, 2, shape=(1, 4, 4), steps=2, sampler="other")


def test_warnings_ask_the_sampler_for_its_evaluations(sampler_of):
    sampler_of(keys=frozenset({"spacing"}), evaluations=lambda self, settings, process: 2 * settings.steps + 1)
    grid = {"sampler": ["ddim", "other"]}
    recorded("\n".join(planned(steps=30, spacing="ermongroup-uniform", grid=grid).remarks))


@pytest.mark.parametrize("stage", ["reconstruct", "interpolate"])
def test_the_ode_is_that_of_ddim_alone(told, tmp_path, stage):
    folder, _ = told
    opened = open_existing(str(folder / "run"))
    assert {cell.settings.sampler for cell in ode_cells(opened.plan)} == {"ddim"}
    assert len(ode_cells(opened.plan)) == 2
    recorded(left_out(opened.plan, stage))
    with small_run(tmp_path, GRID.replace("[ddim, twice]", "[twice]")) as none, raises(UserError):
        Session(replace(none, rundir=RunDir(tmp_path / "run")), "local", Progress.silent()).do((stage,))


@dataclass(frozen=True)
class Enlarged:
    """A decoder whose pictures are twice as large as what the network sees."""

    network_shape = (1, 4, 4)
    picture_shape = (1, 8, 8)

    def __call__(self, x0):
        return x0.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def test_noise_has_the_networks_shape_and_files_the_pictures(tmp_path):
    files = (shard(tmp_path, "ddim"), shard(tmp_path / "larger", "ddim", Enlarged()))
    ([(_, small)], [(_, large)]) = (parquet.read_images(file) for file in files)
    assert (small.shape, large.shape) == ((3, 1, 4, 4), (3, 1, 8, 8))
    assert np.array_equal(large, small.repeat(2, axis=-1).repeat(2, axis=-2))


KEY = {
    "taugrid/config/sample.py": [
        ("later_keys = {", 'later_keys = {"lift": 0.0, '),
        ('    weights: Literal["ema"', '    lift: float = 0.0\n    """Added to x_0."""\n    weights: Literal["ema"'),
    ],
    "workers/samplers/ddim.py": [("noise, settings.eta)", "noise, settings.eta) + settings.lift")],
}
"""A grid key: file -> (text, replacement). Two files."""


def check_the_key(first_id):
    """In a copy of the tree that has the key: a grid over it is planned, run, scored, drawn and compared."""
    root = Path.cwd()
    cells = done(root, CONFIG.replace("eta: [0.0, 1.0]", "lift: [0.0, 0.25]"))["cells"]
    assert [cell["label"] for cell in cells] == ["S=2 eta=0 lift=0", "S=2 eta=0 lift=0.25"]
    assert [cell["cell"] == first_id for cell in cells] == [True, False]
    frame = pd.read_csv(root / "run/tables/quality.csv")
    assert (frame["lift"].tolist(), frame["fid"].nunique()) == ([0.0, 0.25], 2)
    assert all("lift" in (root / "run" / name).read_text() for name in ("tables/quality.md", "figures/quality.svg"))
    assert len(taugrid("compare", root / "run", root / "again")["cells"]) == 2


@pytest.mark.long
def test_a_grid_key_is_a_patch_of_two_files(tmp_path):
    copy_tree(tmp_path)
    for name, edits in KEY.items():
        text = (tmp_path / name).read_text()
        for old, new in edits:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
    first = planned(steps=2, batch_size=10, shard_evaluations=20).cells[0].id
    places = [tmp_path / name for name in ("", "tests", "tests/unit", "tests/integration", "tools")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import test_doors; test_doors.check_the_key({first!r})"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
