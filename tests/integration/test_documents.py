"""Every command that README shows is run, on a tiny experiment in the place of the reader's own."""

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml
from shared import taugrid

from taugrid.config import Config, Train, validate

README = Path(__file__).parents[2] / "README.md"
NOT_RUN_HERE = ("--address", "submit", "jobs", "logs", "stop", "make ", "taugrid selfcheck", "baseline.json")
"""test_submitted_jobs.py has a cluster; make is what runs this; test_selfcheck_run.py; nights need standard errors
(tests/unit/test_nightly_page.py)."""


def commands():
    lines = re.findall(r"^ {4}(taugrid [^\n]+)$", README.read_text(), re.MULTILINE)
    shown = [line.split(" #")[0].strip() for line in lines]
    return [line for line in shown if not any(words in line for words in NOT_RUN_HERE)]


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_does_what_it_says(command, config, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/mine")
    shutil.copytree(finished, "runs/tiny")
    shutil.copy(config, "my.yaml")
    for folder, pattern in (("pngs", "S0002-eta0-"), ("reals", "S0004-eta0-")):
        if f" {folder} " in command:
            taugrid("export", "runs/mine", pattern, "--to", folder)
    smaller = (
        command.replace("num_samples=20000", "num_samples=110").replace("S0010", "S0002").replace("steps=10", "steps=2")
    )
    words = shlex.split(smaller)[1:]
    taugrid(*words)


def test_the_readme_has_commands():
    assert len(commands()) >= 6


def test_the_readmes_settings_of_training_are_some():
    text = re.search(r"^ +(train: \{[^}]+\}[^}]+\})$", README.read_text(), re.MULTILINE)
    assert text
    train = validate(Train, yaml.safe_load(text[1])["train"], "README")
    assert set(train.model_dump(exclude_defaults=True)) >= {"precision", "loss_weights", "optimizer", "workers"}


def test_the_readmes_config_is_one(tmp_path):
    text = re.search(r"^( {4}name: my-grid\n(?: {4}[^\n]*\n)+)", README.read_text(), re.MULTILINE)
    assert text
    config = validate(Config, yaml.safe_load(textwrap.dedent(text[1])), "README")
    assert len(config.grid) == 2
