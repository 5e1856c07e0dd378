"""Every command that README and the pages for users show is run, on a tiny experiment in the place of the reader's own.

`tests/unit/test_pages.py` reads the commands of all pages, and plans their configs.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from shared import taugrid

from taugrid.config import Train, validate

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
OF_DOCS = ("tour", "grid", "models", "scores", "external-images", "run-directory")
NAMES = ("README.md", *(f"docs/{name}.md" for name in OF_DOCS))
PAGES = [ROOT / name for name in NAMES]
NOT_RUN_HERE = ("--address", "submit", "taugrid selfcheck", "taugrid board runs$", "run digits")
"""test_cluster.py has a cluster; test_selfcheck_run.py; a board is served until Ctrl-C; `make demo` runs the digits."""


def commands():
    lines = [line for page in PAGES for line in re.findall(r"^ {4}(taugrid [^\n]+)$", page.read_text(), re.MULTILINE)]
    shown = dict.fromkeys(line.split(" #")[0].strip() for line in lines)
    return [line for line in shown if not any(words in f"{line}$" for words in NOT_RUN_HERE)]


assert len(commands()) >= 16


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_ends_well(command, config, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/mine")
    shutil.copytree(finished, "runs/tiny")
    if not command.startswith("taugrid init"):
        shutil.copy(config, "my.yaml")
    cells = {"pngs": "S0002-eta0-", "reals": "S0004-eta0-", "last-night": "S0002-eta0-", "tonight": "S0004-eta0-"}
    for folder, pattern in cells.items():
        if f" {folder} " in command:
            taugrid("export", "runs/mine", pattern, "--to", folder)
    for shown, smaller in (
        ("num_samples=20000", "num_samples=110"),
        ("--max 16000", "--max 150"),
        ("S0010", "S0002"),
        ("steps=10", "steps=2"),
        ("steps=20", "steps=4"),
    ):
        command = command.replace(shown, smaller)
    # A comparison of 100 images has no metric with a standard error, so nothing can be judged.
    taugrid(*shlex.split(command)[1:], code=5 if command.startswith("taugrid compare last-night") else 0)


def test_the_settings_of_training_that_are_shown_are_some():
    text = re.search(r"^ +(train: \{[^}]+\}[^}]+\})$", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    assert text
    train = validate(Train, yaml.safe_load(text[1])["train"], "docs/models.md")
    assert set(train.model_dump(exclude_defaults=True)) >= {"precision", "loss_weights", "optimizer", "workers"}
