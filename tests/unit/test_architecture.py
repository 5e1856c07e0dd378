"""The code keeps the rules of the house (docs/architecture.md), and each rule finds what breaks it."""

import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import mutants
import pytest
from architecture import (
    MOST_FILES,
    climbing_imports,
    crowded_folders,
    cycles,
    cycles_of_folders,
    driver_imports_of_torch,
    files,
    heavy_imports,
    impure_policy,
    misplaced_packages,
    repeated_classes,
)
from snapshots import recorded

ROOT = Path(__file__).parents[2]

RULES = (
    climbing_imports,
    cycles,
    cycles_of_folders,
    heavy_imports,
    impure_policy,
    driver_imports_of_torch,
    repeated_classes,
    crowded_folders,
    misplaced_packages,
)


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule):
    assert rule(ROOT) == []


@pytest.fixture
def plant(tmp_path):
    """Writes a source tree that the rules can be asked about: path, without .py -> text."""

    def write(texts):
        for name, text in texts.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "from taugrid.eval import b",
        "from taugrid.eval.b import f",
        "import taugrid.eval.b as b",
        "from ..eval import b",
        "from ..eval.b import f",
        "def f():\n    if True:\n        from taugrid.eval import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from taugrid.eval import b",
        "class A:\n    async def f(self):\n        import taugrid.eval.b",
        "try:\n    import json\nexcept ImportError:\n    from taugrid.eval import b",
    ],
)
def test_an_import_of_a_higher_floor_is_found_in_every_form(plant, text):
    recorded("\n".join(climbing_imports(plant({"workers/a": text, "eval/b": ""}))))


ORDER = ("taugrid", "taugrid.workers.diffusion", "taugrid.workers", "taugrid.eval", "taugrid.orchestrator")


@pytest.mark.parametrize(("lower", "higher"), [*combinations(ORDER, 2)])
def test_each_floor_is_below_those_that_follow(plant, lower, higher):
    low, high = (f"{name.removeprefix('taugrid.').replace('.', '/')}/x" for name in (lower, higher))
    assert climbing_imports(plant({low: f"from {higher} import x", high: ""})) == [f"{low}.py -> {high}.py"]
    assert climbing_imports(plant({low: "", high: f"from {lower} import x"})) == []


def test_a_door_loads_what_it_needs_when_it_is_called_and_not_before(plant):
    called = "def run():\n    from taugrid.orchestrator import session"
    doors = {"taugrid/__init__": called, "taugrid/api": called, "orchestrator/session": ""}
    main = {"taugrid/__main__": "from taugrid.orchestrator import session"}
    assert climbing_imports(plant(doors | main)) == []
    at_once = {"taugrid/api": "from taugrid.orchestrator import session"}
    recorded("\n".join(climbing_imports(plant(at_once))))


def test_a_cycle_of_files_is_found_though_one_of_its_imports_is_late(plant):
    root = plant(
        {
            "eval/a": "from taugrid.eval import b",
            "eval/b": "from taugrid.eval import c",
            "eval/c": "def f():\n    from taugrid.eval.a import g",
        }
    )
    [cycle] = cycles(root)
    assert sorted(cycle.split(" -> ")[1:]) == ["eval/a.py", "eval/b.py", "eval/c.py"]
    assert cycles(plant({"eval/c": ""})) == []


def test_a_cycle_of_folders_is_found_though_no_files_make_one(plant):
    root = plant(
        {
            "orchestrator/work/a": "from taugrid.orchestrator.dispatch.b import f",
            "orchestrator/dispatch/b": "",
            "orchestrator/dispatch/deep/c": "def f():\n    from taugrid.orchestrator.work import d",
            "orchestrator/work/d": "",
        }
    )
    assert cycles(root) == []
    [cycle] = cycles_of_folders(root)
    assert sorted(cycle.split(" -> ")[1:]) == ["orchestrator/dispatch", "orchestrator/work"]


def test_a_file_directly_in_a_room_is_no_part_of_a_folder_beside_it(plant):
    files = {"workers/a": "from taugrid.workers.data import b", "workers/data/b": "from taugrid.workers import c"}
    assert cycles_of_folders(plant(files | {"workers/c": ""})) == []
    assert cycles_of_folders(plant(files | {"workers/c": "from taugrid.workers.data import b"})) != []


@pytest.mark.parametrize(
    ("file", "text", "broken"),
    [
        ("taugrid/a", "import torch.nn", True),
        ("taugrid/a", "def f():\n    import ray", True),
        ("configs/a", "from torch_fidelity import metrics", True),
        ("taugrid/a", "import numpy", False),
        ("taugrid/a", "from safetensors.torch import load_file", True),
        ("taugrid/a", "from safetensors import safe_open", False),
        ("orchestrator/a", "import torch", True),
        ("orchestrator/a", "from torchvision.transforms import v2", True),
        ("orchestrator/a", "import safetensors.torch", True),
        ("orchestrator/a", "def f():\n    import diffusers", False),
        ("orchestrator/a", "def f():\n    import torch", False),
        ("orchestrator/a", "def f():\n    import ray", True),
        ("orchestrator/dispatch/a", "import ray", False),
        ("eval/a", "from ray import remote", True),
        ("eval/a", "import torch, diffusers", False),
        ("workers/a", "import ray", True),
        ("workers/actor", "import ray", False),
        ("workers/training/a", "from ray import train", False),
    ],
)
def test_a_heavy_import_in_the_wrong_place_is_found(plant, file, text, broken):
    assert bool(heavy_imports(plant({file: text}))) == broken


@pytest.mark.parametrize(
    ("text", "is_pure"),
    [
        ("import heapq", True),
        ("from taugrid.orchestrator.task import Task", True),
        ("def f():\n    import time", False),
        ("from ray.util import state", False),
        ("from taugrid.orchestrator.progress import Progress", False),
    ],
)
def test_a_policy_that_asks_its_surroundings_is_found(plant, text, is_pure):
    rooms = {"orchestrator/task": "", "orchestrator/progress/__init__": ""}
    assert (impure_policy(plant({"orchestrator/dispatch/policy/a": text} | rooms)) == []) == is_pure


def test_torch_is_found_at_the_end_of_a_chain_of_imports_from_the_driver(plant):
    root = plant(
        {
            "orchestrator/a": "from taugrid.workers import b",
            "workers/b": "from taugrid.eval.c import f",
            "eval/c": "from torch import nn",
        }
    )
    recorded("\n".join(driver_imports_of_torch(root)))
    assert driver_imports_of_torch(plant({"workers/b": "def g():\n    from taugrid.eval.c import f"})) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch.nn",
        "import torchvision",
        "from diffusers import UNet2DModel",
        "import torch_fidelity",
        "from safetensors.torch import load_file",
    ],
)
def test_a_package_that_loads_torch_counts_as_torch(plant, text):
    root = plant({"orchestrator/a": "from taugrid.workers import b", "workers/b": text})
    recorded("\n".join(driver_imports_of_torch(root)))


def test_a_class_name_in_two_files_is_found(plant):
    root = plant({"eval/a": "class Model: pass", "orchestrator/b": "def f():\n    class Model: pass"})
    recorded("\n".join(repeated_classes(root)))


@pytest.mark.parametrize("text", ["Model = int | str", "Model: object = int"])
def test_a_type_that_has_the_name_of_a_class_is_found(plant, text):
    alias = f"from taugrid.eval.c import Other\n{text}\nONCE = 1"
    root = plant({"eval/a": alias, "orchestrator/b": "class Model: pass"})
    recorded("\n".join(repeated_classes(root)))
    assert repeated_classes(plant({"orchestrator/b": "ONCE = 2\ndef f():\n    Model = 1"})) == []


def test_a_folder_of_too_many_files_is_found(plant):
    assert crowded_folders(plant({f"eval/a{i}": "" for i in range(MOST_FILES)})) == []
    assert crowded_folders(plant({"eval/b": ""})) == [f"eval: {MOST_FILES + 1} files"]


def test_a_package_that_the_wheel_has_too_many_or_lacks_is_found(plant):
    rooms = ("taugrid", "eval", "workers", "orchestrator", "benchmarks", "taugrid/tools")
    root = plant({f"{room}/__init__": "" for room in rooms})
    find = 'include = ["taugrid", "taugrid.*", "benchmarks"]'
    (root / "pyproject.toml").write_text(f"[tool.setuptools.packages.find]\n{find}\n")
    for room in ("eval", "workers"):
        (root / "taugrid" / room).symlink_to(f"../{room}")
    recorded("\n".join(misplaced_packages(root)))  # fmt: skip


@pytest.mark.skipif(not (shutil.which("git") and (ROOT / ".git").exists()), reason="needs git and a checkout")
def test_no_file_has_the_markers_of_a_conflict():
    found = subprocess.run(["git", "grep", "-lE", "^(<{7}|>{7}) "], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), found.stderr


def test_the_files_and_folders_that_the_map_names_exist():
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs/architecture.md").read_text()))
    product = {Path(file) for file in files(ROOT)}
    paths = [path.as_posix() for path in product] + [f"{folder}/" for path in product for folder in path.parents]
    paths += [f"{path.relative_to(ROOT)}/" for path in ROOT.iterdir() if path.is_dir()]
    paths += [path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/unit/*.py")]
    assert len(named) > 60
    assert [name for name in sorted(named) if not any(f"/{path}".endswith(f"/{name}") for path in paths)] == []


def test_the_classes_that_the_map_names_exist():
    named = set(re.findall(r"`([A-Z][a-z]\w+)`", (ROOT / "docs/architecture.md").read_text()))
    classes = {name for file in files(ROOT) for name in re.findall(r"^class (\w+)", (ROOT / file).read_text(), re.M)}
    assert len(named) > 10
    assert named - classes == set()


def test_the_tests_that_failures_names_exist():
    named = set(re.findall(r"`(test_\w+\.py)`", (ROOT / "docs/failures.md").read_text()))
    assert len(named) > 30
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_defects_that_decisions_counts_are_named_in_their_tests():
    rows = re.findall(r"^\| (\d+) \| .* \| (`test_.*`) \|$", (ROOT / "docs/decisions.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 20))
    for number, names in rows:
        for name in re.findall(r"`(test_\w+\.py)`", names):
            said = (ROOT / "tests/unit" / name).read_text()
            assert re.search(rf"\bdefect {number}\b", said, re.IGNORECASE), (number, name)


def test_the_mutants_fit_the_code():
    listed = mutants.read(mutants.LIST.read_text())
    assert [reason for mutant in listed if (reason := mutants.misfit(ROOT, mutant))] == []
