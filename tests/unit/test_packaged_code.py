"""What travels to a cluster: the user's modules, and with a job its config and perhaps taugrid."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from snapshots import raises, recorded

import taugrid
from taugrid.config import Config
from taugrid.config.load import load
from taugrid.errors import UserError
from taugrid.hashing import SourceFile
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.jobs.client import entrypoint, pack_job
from taugrid.workers.custom.source import find_source, pack

MODULES = {
    "network.py": "from parts.blocks import attention\nimport lonely\n",
    "parts/__init__.py": "",
    "parts/blocks/__init__.py": "from . import attention\n",
    "parts/blocks/attention.py": "import torch\nHEADS = 4\n",
    "lonely.py": "",
    "not_imported.py": "raise RuntimeError\n",
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder of modules, on Python's path and the current one."""
    folder = tmp_path / "mine"
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_exactly_what_is_imported_is_packed_under_the_same_names(modules, tmp_path):
    found = find_source("network")
    installed = SourceFile("torch.nn", torch.nn.__file__, "")
    gone = SourceFile("gone", str(modules / "gone.py"), "")
    pack([installed, gone, *found.files], tmp_path / "packed")
    assert files(tmp_path / "packed") == set(MODULES) - {"not_imported.py"}
    code = "from taugrid.workers.custom.source import find_source; print(find_source('network').sha256)"
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "packed", capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == found.sha256, "a worker finds the same hash"


def test_modules_travel_unless_the_job_that_the_driver_is_has_a_folder_of_its_own(modules, monkeypatch):
    found = find_source("network").files
    with cluster.shipped(found) as environment:
        assert files(Path(environment["working_dir"])) == set(MODULES) - {"not_imported.py"}
    assert not Path(environment["working_dir"]).exists(), "Ray has copied it by then"
    with cluster.shipped(()) as environment:
        assert environment is None, "a runtime environment costs the start of a process"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://x.zip"}}')
    with cluster.shipped(found) as environment:
        assert environment is None


def test_a_job_takes_its_config_and_the_modules_that_it_names_along(modules, tmp_path):
    config = Config(name="mine", model={"callable": "network:load"}, evaluate={"extractor": "lonely:Class"})
    (tmp_path / "job").mkdir()
    pack_job(config, tmp_path / "job", ships=False)
    assert files(tmp_path / "job") == set(MODULES) - {"not_imported.py"} | {"mine.yaml", "on_the_head.py"}
    again = tmp_path / "mine.yaml"  # as `taugrid run` loads it from a file of the user's
    again.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load(str(tmp_path / "job" / "mine.yaml")).model_dump() == load(str(again)).model_dump()
    words = entrypoint(config, "/mnt/a run", break_lock=True, only=("steps=50,schedule=cosine",))
    assert words == [
        *("python3", "on_the_head.py", taugrid.__version__, "run", "mine.yaml", "--address", "auto"),
        *("--out", "/mnt/a run", "--only", "steps=50,schedule=cosine", "--break-lock"),
    ]
    with raises(UserError):
        pack_job(Config(name="mine", evaluate={"extractor": "nowhere:Class"}), tmp_path / "job", ships=False)


def test_a_shipped_taugrid_is_whole_and_is_used_before_an_installed_one(tmp_path):
    pack_job(Config(name="mine"), tmp_path, ships=True)
    code = [
        "import taugrid.eval.features.weights as weights, taugrid.errors as ground",
        "import taugrid.orchestrator.cli.main as main",
        "from taugrid.workers.custom.source import is_user_file",
        "print(weights.__path__[0], main.__file__, ground.__file__)",
        "print(*(is_user_file(__import__('pathlib').Path(file)) for file in (main.__file__, ground.__file__)))",
    ]
    job = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(code)], env=job, capture_output=True, text=True, check=True
    )
    places, are_users = done.stdout.splitlines()
    weights, main, ground = map(Path, places.split())
    assert weights == tmp_path / "taugrid" / "eval" / "features" / "weights"
    assert (weights / "digits-convnet.safetensors").exists()
    assert main == tmp_path / "taugrid" / "orchestrator" / "cli" / "main.py"
    assert ground == tmp_path / "taugrid" / "errors.py"
    assert are_users == "False False", "else it would enter the ids of custom networks"

    def on_the_head(version, *options):
        command = [sys.executable, *options, "on_the_head.py", version, "--version"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout or done.stderr

    version = taugrid.__version__
    assert on_the_head(version) == (0, f"taugrid, version {version}\n")
    for refused in (on_the_head("0.0"), on_the_head("0.0", "-S", "-P")):
        assert (refused[0], refused[1].count("\n")) == (2, 1)
        recorded(refused[1])
