"""taugrid as people install it: a wheel, in an environment of its own, outside of any checkout.

In one test it works in a folder whose names it used to take: files `eval.py` and `workers.py`, folders `configs` and
`orchestrator`, as every other research repository has them.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from denoisers import decode, of_time

from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS
from taugrid.hashing import file_sha256
from taugrid.images import to_uint8
from taugrid.workers import schedules
from taugrid.workers.diffusion import noise

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "runs", "docs", "*.egg-info", "__pycache__")
LAYERS = ("configs", "eval", "orchestrator", "workers")
"""The folders beside `taugrid/` that it has links to."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist, and so without the rest of the checkout.

    The sdist is built from a copy: setuptools puts into it whatever an earlier build left in `build/`.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE, symlinks=True)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)
    [sdist] = folder.glob("*.tar.gz")
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder, sdist)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel and what it depends on, without the checkout that the tests run in."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    # The `.pth` files of folders that a `.pth` file names are not read, an editable install's among them.
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    return folder


@pytest.fixture
def run(environment, tmp_path, monkeypatch):
    """Runs a program of the environment in an empty folder; returns what it printed."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def program(name, *arguments, **variables):
        done = subprocess.run(
            [environment / "bin" / name, *map(str, arguments)],
            cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return program


def pip(*arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)], check=True
    )


def test_the_wheel_has_the_product_and_nothing_else(wheel, environment):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"taugrid"}
    [site] = environment.glob("lib/python*/site-packages")
    there = {path.name.split("-")[0] for path in site.iterdir()}
    assert there - {"__pycache__"} == {"taugrid", "dependencies.pth"}
    folders = {name.split("/")[1] for name in names if name.count("/") > 1 and name.startswith("taugrid/")}
    assert folders == {path.parent.name for path in (ROOT / "taugrid").glob("*/__init__.py")} | set(LAYERS)
    for layer in LAYERS:
        files = {path for path in (ROOT / layer).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        documents = {path for path in files if path.suffix == ".md"}
        shipped = {name for name in names if name.startswith(f"taugrid/{layer}/")}
        missing = {f"taugrid/{path.relative_to(ROOT)}" for path in files - documents} - shipped
        assert not missing
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        source = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in names if name.startswith("taugrid/")} == {
        name for name in source if name.startswith("taugrid/")
    }


PYTHONS = tuple(f"python3.{minor}" for minor in range(11, 15) if minor != sys.version_info.minor)
"""Without the one that all tests, and the `environment` above, run with."""
IMPORT = "import taugrid, taugrid.errors; print(taugrid.__version__)"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_wheel_installs_and_compiles_with(wheel, tmp_path, python):
    """Without what it depends on, which is gigabytes for each: `make wheels` tries the whole of it."""
    works = shutil.which(python) and subprocess.run([python, "--version"], capture_output=True, check=False)
    if not works or works.returncode:
        pytest.skip(f"{python} is not installed")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path], check=True)
    own = tmp_path / "bin" / "python"
    pip("--python", own, "install", "--no-deps", "--no-index", wheel)
    [site] = tmp_path.glob("lib/python*/site-packages")
    subprocess.run([own, "-W", "error", "-m", "compileall", "-q", "-f", site / "taugrid"], check=True)
    printed = subprocess.run([own, "-c", IMPORT], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert printed.strip() == wheel.name.split("-")[1]


HOSTILE = (
    "print('this is not taugrid')\nraise SystemExit('a module of the user was imported in the place of taugrid')\n"
)
OF_THE_USER = "from configs import SCALE\n\nassert SCALE == 0.25\n"

PAGE = ROOT / "docs" / "custom-network.md"
SMALLER = {
    "sample.num_samples": 60,
    "grid": "[{steps: [5, 10], eta: [0.0]}]",
    "evaluate.isc_splits": 2,
    "evaluate.kid_subsets": 2,
    "evaluate.kid_subset_size": 20,
    "cluster.workers": 1,
}


def files():
    """Name -> text of each file that the page shows: what a line that names it and ends in a colon introduces."""
    blocks = re.findall(r"`(\w+\.(?:py|yaml))`[^\n]*:\n\n((?: {4}[^\n]*\n|\n)+)", PAGE.read_text())
    return {name: textwrap.dedent(text) for name, text in blocks}


def commands():
    return re.findall(r"^ {4}(taugrid [^\n]+)$", PAGE.read_text(), re.MULTILINE)


def test_the_page_is_complete():
    of_processes = {"edm_network.py", "sit.py"}  # tests/unit/test_process_examples.py
    assert set(files()) - of_processes == {"my_network.py", "my_network.yaml", "train_my_network.py"}
    assert len(files()["my_network.py"].splitlines()) <= 32, "short enough to be read"
    assert [command.split()[1] for command in commands()] == ["plan", "run"]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The page's files in the folder of `run`, where its training has been run."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other take minutes on a busy machine
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        runpy.run_path("train_my_network.py", run_name="__main__")
    torch.set_num_threads(threads)
    del sys.modules["my_network"]
    return tmp_path


def test_the_pages_grid_runs_from_the_wheel_and_a_users_modules_are_the_users(run, environment, trained):
    """docs/custom-network.md as a reader follows it, with fewer samples: its files and then its commands.

    Its network also imports the user's own `configs`, beside modules that end whatever imports them. With the shipped
    weights of an extractor, and with the published tables.
    """
    (trained / "eval.py").write_text(HOSTILE)
    (trained / "workers.py").write_text(HOSTILE)
    (trained / "orchestrator").mkdir()
    (trained / "orchestrator" / "__init__.py").write_text(HOSTILE)
    (trained / "configs").mkdir()
    (trained / "configs" / "__init__.py").write_text("SCALE = 0.25\n")
    (trained / "my_network.py").write_text(OF_THE_USER + files()["my_network.py"])
    where = run("python", "-c", "import taugrid.eval; print(taugrid.eval.__file__)").stdout
    assert Path(where.strip()).is_relative_to(environment)
    assert "12 cells" in run("taugrid", "plan", "digits", PYTHONPATH=str(trained)).stdout, "a shipped config"
    smaller = [word for key, value in SMALLER.items() for word in ("--set", f"{key}={value}")]
    planned, ran = (shlex.split(command) for command in commands())
    run("python", "-m", *planned, *smaller, PYTHONPATH=str(trained))
    done = run(*ran, *smaller, "--json")  # Ray's workers import from the folder that they start in
    assert "not taugrid" not in done.stdout + done.stderr
    document = json.loads(done.stdout)  # with --json, nothing else is on stdout
    assert document["status"] == "done"
    rows = {row["steps"]: row for row in document["cells"]}
    assert {steps: row["num_samples"] for steps, row in rows.items()} == {5: 60, 10: 60}
    root = trained / "runs/my-network"
    for steps, row in rows.items():
        [part] = root.glob(f"samples/*-{row['cell']}/part-*.parquet")
        assert parquet.inspect(part).metadata["weights_sha256"] == file_sha256(trained / "my_network.pt")
        drawn = np.concatenate([batch for _, batch in parquet.read_images(part)])
        assert np.abs(by_hand(trained, steps).astype(int) - drawn).max() <= 1
        assert row["fid"] > 0
        assert row["isc_mean"] >= 1
    assert pd.read_csv(root / "tables/quality.csv")["fid"].tolist() == [rows[steps]["fid"] for steps in (5, 10)]


def by_hand(folder, steps):
    """The 60 images, (60, 1, 8, 8) uint8, of the network that was trained, asked at the indices it was trained with."""
    module: dict[str, Any] = {}
    exec(files()["my_network.py"], module)
    network = module["load"](folder / "my_network.pt")
    times = [1000 * i // steps for i in range(1, steps + 1)]
    x_T = noise.normal(0, torch.arange(60), 0, (1, 8, 8))

    @of_time
    def predicted(x, t):
        return network(x, torch.full((len(x),), t - 1))

    return to_uint8(decode(predicted, x_T, schedules.alpha_bar(DIFFUSION_DEFAULTS), times).numpy())
