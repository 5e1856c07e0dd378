"""A key that comes later is not recorded while it has its default: whatever was made before stays what it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mutants import copy_tree

OLD = Path(__file__).parents[1] / "data/run-011be7a"

KEY = [
    ("LATER_KEYS: dict[str, Any] = {}", 'LATER_KEYS: dict[str, Any] = {"tilt": 0.0}'),
    (
        "    set_alpha_to_one: bool | None = None\n",
        '    tilt: float | None = None\n    """A toy."""\n    set_alpha_to_one: bool | None = None\n',
    ),
    ("    set_alpha_to_one=True,\n", "    set_alpha_to_one=True,\n    tilt=0.0,\n"),
]
"""A new key of `diffusion`: what becomes what in taugrid/config/diffusion.py."""


def test_a_new_key_of_diffusion_at_its_default_leaves_runs_and_baselines_of_earlier_versions_as_they_are(tmp_path):
    copy_tree(tmp_path / "tree")
    file = tmp_path / "tree/taugrid/config/diffusion.py"
    text = file.read_text()
    for old, new in KEY:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)
    run = shutil.copytree(OLD / "run", tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "tree"), "OMP_NUM_THREADS": "1"}

    def printed(*command):
        words = [sys.executable, "-m", "taugrid", *map(str, command)]
        done = subprocess.run(words, cwd=tmp_path / "tree", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert '"tilt"' in printed("config", "schema"), "the patched tree is what runs"
    compared = json.loads(printed("compare", run, OLD / "baseline.json", "--json"))
    assert compared["result"] == "identical"
    assert all(cell["situation"].startswith("same weights") for cell in compared["cells"])
    assert json.loads(printed("verify", run, "--json"))["damaged"] == []
    assert json.loads(printed("status", run, "--json"))["remarks"] == []
