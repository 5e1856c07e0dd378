"""taugrid as people install it: a wheel, in an environment of its own, outside of any checkout.

In one test it works in a folder whose names it used to take: files `eval.py` and `workers.py`, folders `configs` and
`orchestrator`, as every other research repository has them.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS
from taugrid.images import to_uint8
from taugrid.workers import schedules
from taugrid.workers.diffusion import noise

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "runs", "docs", "*.egg-info", "__pycache__")
LAYERS = ("configs", "eval", "orchestrator", "workers")
"""The folders beside `taugrid/` that it has links to."""
SMALL = {"isc_splits": 2, "kid_subsets": 2, "kid_subset_size": 20}


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


PYTHONS = tuple(f"python3.{minor}" for minor in range(11, 15))
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

NETWORK = """
import torch

from configs import SCALE


def load():
    return lambda x, t: SCALE * x
"""


def test_a_grid_runs_from_the_wheel_and_a_users_modules_are_the_users(run, environment, tmp_path):
    """A custom network that imports the user's own `configs`, beside modules that end whatever imports them.

    With the shipped weights of an extractor, and with the published tables.
    """
    (tmp_path / "eval.py").write_text(HOSTILE)
    (tmp_path / "workers.py").write_text(HOSTILE)
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator" / "__init__.py").write_text(HOSTILE)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("SCALE = 0.25\n")
    (tmp_path / "network.py").write_text(NETWORK)
    config = {
        "name": "mine",
        "model": {"callable": "network:load"},
        "sample": {"num_samples": 60, "batch_size": 30},
        "grid": {"steps": [2, 5], "eta": [0.0]},
        "evaluate": SMALL | {"extractor": "digits-convnet", "metrics": ["fid", "isc", "kid"]},
        "cluster": {"workers": 1},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    where = run("python", "-c", "import taugrid.eval; print(taugrid.eval.__file__)").stdout
    assert Path(where.strip()).is_relative_to(environment)
    assert "12 cells" in run("taugrid", "plan", "digits", PYTHONPATH=str(tmp_path)).stdout, "a shipped config"
    done = run("python", "-m", "taugrid", "run", "mine.yaml", "--json", PYTHONPATH=str(tmp_path))
    assert "not taugrid" not in done.stdout + done.stderr
    document = json.loads(done.stdout)  # with --json, nothing else is on stdout
    assert document["status"] == "done"
    rows = {row["steps"]: row for row in document["cells"]}
    assert {steps: row["num_samples"] for steps, row in rows.items()} == {2: 60, 5: 60}
    for steps, row in rows.items():
        parts = sorted((tmp_path / "runs/mine/samples").glob(f"*-{row['cell']}/part-*.parquet"))
        drawn = np.concatenate([batch for part in parts for _, batch in parquet.read_images(part)])
        assert np.abs(drawn.astype(int) - expected(steps)).max() <= 1
        assert row["fid"] > 0
        assert row["isc_mean"] >= 1
    table = pd.read_csv(tmp_path / "runs/mine/tables/quality.csv")
    assert table["fid"].tolist() == [rows[steps]["fid"] for steps in (2, 5)]


def expected(steps):
    """The images of eps = x / 4: eq. 12 with eta = 0 multiplies x by one number at each step."""
    a = schedules.alpha_bar(DIFFUSION_DEFAULTS)
    times = [1000 * i // steps for i in range(steps + 1)]
    x = noise.normal(0, torch.arange(60), 0, (1, 8, 8)).double().numpy()
    for t, before in zip(times[:0:-1], times[-2::-1], strict=True):
        x0 = (1 - 0.25 * np.sqrt(1 - a[t])) / np.sqrt(a[t])
        x = x * (np.sqrt(a[before]) * x0 + 0.25 * np.sqrt(1 - a[before]))
    return to_uint8(x).astype(int)
