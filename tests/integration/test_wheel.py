"""taugrid as people install it: a wheel, in an environment of its own. `make wheels` runs it with each Python."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from taugrid import parquet
from taugrid.hashing import file_sha256

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "runs", "docs", "tests", "*.egg-info", "__pycache__")
LAYERS = ("configs", "eval", "orchestrator", "workers")
"""The folders beside `taugrid/` that it has links to."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist, and so without the rest of the checkout.

    The sdist is built from a copy: setuptools puts into it whatever an earlier build left in `build/`.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build(shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE, symlinks=True), "sdist", folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    build(folder / sdist.name.removesuffix(".tar.gz"), "wheel", folder)
    [path] = folder.glob("*.whl")
    return path


def build(source, what, folder):
    code = f"from setuptools import build_meta; build_meta.build_{what}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)


def test_the_wheel_has_the_product_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"taugrid"}
    names = {name for name in names if name.startswith("taugrid/")}
    assert "taugrid/py.typed" in names, "without it, a type checker ignores taugrid's types"
    folders = {name.split("/")[1] for name in names if name.count("/") > 1}
    assert folders == {path.parent.name for path in (ROOT / "taugrid").glob("*/__init__.py")} | set(LAYERS)
    files = [path for layer in LAYERS for path in (ROOT / layer).rglob("*") if path.is_file()]
    wanted = [path for path in files if path.suffix != ".md" and "__pycache__" not in path.parts]
    assert {f"taugrid/{path.relative_to(ROOT)}" for path in wanted} - names == set()
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        source = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert names == {name for name in source if name.startswith("taugrid/")}


@pytest.fixture
def run(wheel, tmp_path, monkeypatch):
    """Runs a program of an environment that has the wheel, and no checkout, in an empty folder; what it printed."""
    environment, folder = tmp_path / "venv", tmp_path / "folder"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    [site] = environment.glob("lib/python*/site-packages")
    # The `.pth` files of folders that a `.pth` file names are not read, an editable install's among them.
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", environment / "bin/python", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", wheel], check=True)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def program(name, *arguments, **variables):
        done = subprocess.run(
            [environment / "bin" / name, *arguments],
            cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return program


HOSTILE = (
    "print('this is not taugrid')\nraise SystemExit('a module of the user was imported in the place of taugrid')\n"
)
OF_THE_USER = "from configs import SCALE\n\nassert SCALE == 0.25\n"

PAGE = (ROOT / "docs" / "custom-network.md").read_text()
SHOWN = re.findall(r"`(\w+\.(?:py|yaml))`[^\n]*:\n\n((?: {4}[^\n]*\n|\n)+)", PAGE)
FILES = {name: textwrap.dedent(text) for name, text in SHOWN if "my_network" in name}
"""Name -> text of each file of the page's first example: what a line that names it and ends in a colon introduces."""
COMMANDS = re.findall(r"^ {4}(taugrid [^\n]+)$", PAGE, re.MULTILINE)
SMALLER = {
    "sample.num_samples": 60,
    "grid": "[{steps: [5, 10], eta: [0.0]}]",
    "evaluate.isc_splits": 2,
    "evaluate.kid_subsets": 2,
    "evaluate.kid_subset_size": 20,
    "cluster.workers": 1,
}


@pytest.mark.long
def test_the_pages_grid_runs_from_the_wheel_and_a_users_modules_are_the_users(run, tmp_path):
    """docs/custom-network.md as a reader follows it, with fewer samples: its files and then its commands.

    Beside them are files and folders with names that taugrid used to take, as every other research repository has
    them. The network imports one of these, and the others end whatever imports them.
    """
    assert set(FILES) == {"my_network.py", "my_network.yaml", "train_my_network.py"}
    assert len(FILES["my_network.py"].splitlines()) <= 32, "short enough to be read"
    hostile = dict.fromkeys(("eval.py", "workers.py", "orchestrator/__init__.py"), HOSTILE)
    folder, own = tmp_path / "folder", {"configs/__init__.py": "SCALE = 0.25\n"}
    for name, text in (FILES | hostile | own | {"my_network.py": OF_THE_USER + FILES["my_network.py"]}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    where = run("python", "-c", "import taugrid.eval; print(taugrid.eval.__file__)").stdout
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    assert "12 cells" in run("taugrid", "plan", "digits", PYTHONPATH=str(folder)).stdout, "a shipped config"
    run("python", "train_my_network.py", OMP_NUM_THREADS="1")
    smaller = [word for key, value in SMALLER.items() for word in ("--set", f"{key}={value}")]
    planned, ran = map(shlex.split, COMMANDS)
    run("python", "-m", *planned, *smaller, PYTHONPATH=str(folder))
    done = run(*ran, *smaller, "--json")  # Ray's workers import from the folder that they start in
    assert "not taugrid" not in done.stdout + done.stderr
    document = json.loads(done.stdout)  # with --json, nothing else is on stdout
    assert document["status"] == "done"
    rows = document["cells"]
    assert [(row["steps"], row["num_samples"]) for row in rows] == [(5, 60), (10, 60)]
    root = folder / "runs/my-network"
    for row in rows:
        [part] = root.glob(f"samples/*-{row['cell']}/part-*.parquet")
        assert parquet.inspect(part).metadata["weights_sha256"] == file_sha256(folder / "my_network.pt")
        assert row["fid"] > 0
        assert row["isc_mean"] >= 1
    assert pd.read_csv(root / "tables/quality.csv")["fid"].tolist() == [row["fid"] for row in rows]
