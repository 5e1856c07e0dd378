"""A key that comes later is not recorded while it has its default: whatever was made before stays what it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import copy_tree

pytestmark = pytest.mark.long

OLD = Path(__file__).parents[1] / "data/kept-run"

KEY = [
    ('= {"process": None} |', '= {"process": None, "tilt": 0.0} |'),
    (
        "    set_alpha_to_one: bool | None = None\n",
        '    tilt: float | None = None\n    """A toy."""\n    set_alpha_to_one: bool | None = None\n',
    ),
    ("    set_alpha_to_one=True,\n)", "    set_alpha_to_one=True,\n    tilt=0.0,\n)"),
]
"""A new key of `diffusion`: what becomes what in taugrid/config/model.py."""


PRINTED = """
import io, json, sys
from contextlib import redirect_stdout
import pytest
from taugrid.orchestrator.cli.main import cli

texts = [io.StringIO() for _ in json.loads(sys.argv[1])]
for command, text in zip(json.loads(sys.argv[1]), texts):
    with redirect_stdout(text):
        cli.main(command, prog_name="taugrid", standalone_mode=False)
print(json.dumps([text.getvalue() for text in texts]))
"""
"""What each of some commands prints."""


def test_a_new_key_of_diffusion_at_its_default_leaves_runs_and_baselines_of_earlier_versions_as_they_are(tmp_path):
    copy_tree(tmp_path / "tree")
    file = tmp_path / "tree/taugrid/config/model.py"
    text = file.read_text()
    for old, new in KEY:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)
    run = shutil.copytree(OLD / "run", tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "tree"), "OMP_NUM_THREADS": "1"}
    commands = [
        ["config", "schema"],
        ["compare", str(run), str(OLD / "baseline.json"), "--json"],
        ["verify", str(run), "--json"],
        ["status", str(run), "--json"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PRINTED, json.dumps(commands)],
        cwd=tmp_path / "tree", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    schema, compared, verified, status = map(json.loads, json.loads(done.stdout))
    assert '"tilt"' in json.dumps(schema), "the patched tree is what runs"
    assert compared["result"] == "identical"
    assert all(cell["situation"].startswith("same weights") for cell in compared["cells"])
    assert verified["damaged"] == []
    assert status["remarks"] == []
