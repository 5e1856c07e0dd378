"""A shell completes commands, options, configs, keys, values and cells, from files alone; what is broken completes
nothing and prints nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.shell_completion import FishComplete, ZshComplete
from click.testing import CliRunner

from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.cli.text.completion import VARIABLE, Bash

OLD = Path(__file__).parents[1] / "data" / "kept-run"
ZIPPED = {"diffusion.schedule": ["linear", "cosine"], "seed": [1, 2]}
GRID = [{"steps": [10, 20], "eta": [0.0, "sigma_hat"], "zip": ZIPPED}]
VALUES = {"eta": 0.0, "diffusion.schedule": "cosine"}
PLAN = {"cells": [{"id": f"{n:010x}", "values": {"steps": steps, **VALUES}} for n, steps in enumerate((4, 8))]}
CELLS = [row.split(",")[1] for row in (OLD / "run" / "tables" / "cells.csv").read_text().splitlines()[1:]]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(yaml.safe_dump({"name": "mine", "grid": GRID}, sort_keys=False))
    shutil.copytree(OLD / "run", "run")
    Path("without-tables").mkdir()
    for name in ("run", "without-tables"):
        Path(name, "plan.json").write_text(json.dumps(PLAN))
    for name in ("broken.yaml", "broken/config.json", "broken/plan.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("grid: [1\n\x00")


def completed(*typed, kind=Bash):
    """What the last word may become, as a shell's class of click has it."""
    *args, incomplete = typed
    return [item.value for item in kind(cli, {}, "taugrid", VARIABLE).get_completions(list(args), incomplete)]


def bash(line):
    """What bash offers at the end of `line`, in a session that has sourced the printed script."""
    script = """
        eval "$(taugrid completion bash)"
        compopt() { :; }
        COMP_LINE=$LINE COMP_POINT=${#LINE}
        # As readline splits a line: at blanks, and around = and :, which are words too.
        eval "COMP_WORDS=($(sed -E 's/([=:]+)/ \\1 /g' <<< "$LINE"))"
        [[ $LINE == *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _taugrid_completion taugrid
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "LINE": line, "PATH": path}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_and_options():
    assert {"run", "report", "reconstruct"} == set(completed("r"))
    assert completed("baseline", "") == ["accept", "show"]
    assert "--only" in completed("run", "my.yaml", "--o")
    assert completed("completion", "") == ["bash", "zsh", "fish"]


def test_configs_are_shipped_ones_files_and_runs():
    assert completed("run", "dig") == ["digits"]
    assert {"digits", "gaussian", "my.yaml", "run/"} <= set(completed("plan", ""))
    assert "schema" not in completed("config", "show", "")
    assert completed("status", "run/co") == ["run/config.json"]


def test_cells_are_those_of_the_directory_that_is_given():
    assert completed("export", "run", "S0004") == [cell for cell in CELLS if cell.startswith("S0004")]
    assert completed("compare", "run", CELLS[0], "")[: len(CELLS)] == CELLS
    assert completed("export", "without-tables", "0") == ["0000000000", "0000000001"]
    assert completed("export", "broken", "") == []
    assert completed("export", "absent", "") == []


def test_settings_are_those_of_the_grid():
    only = ("run", "my.yaml", "--only")
    assert completed(*only, "") == ["steps=", "eta=", "schedule=", "seed="]
    assert completed(*only, "steps=10,") == ["10,eta=", "10,schedule=", "10,seed="], "bash's own last word"
    assert completed(*only, "steps=10,schedule=") == ["linear", "cosine"]
    assert completed(*only, "eta=s") == ["sigma_hat"]
    assert completed(*only, "eta=s", kind=ZshComplete) == ["eta=sigma_hat"]
    assert completed("run", "digits", "--only", "steps=") == ["10", "20", "50"]
    assert completed("run", "run", "--only", "steps=") == ["4", "8"]
    assert completed("export", "run", "steps=") == ["4", "8"]
    assert completed("run", "broken.yaml", "--only", "") == completed("run", "broken", "--only", "") == []


def test_keys_and_their_values_are_the_configs():
    sets = ("run", "my.yaml", "--set")
    assert {"name=", "seed=", "sample.", "model."} <= set(completed(*sets, ""))
    assert completed(*sets, "sample.cl") == ["sample.clip=", "sample.clip_range="]
    clips = [f"sample.clip={value}" for value in ("none", "x0", "x0_and_eps", "null")]
    assert completed(*sets, "sample.clip=", kind=FishComplete) == clips
    assert completed(*sets, "train.flip=") == ["true", "false"]
    assert completed(*sets, "model.unet.num_c") == ["model.unet.num_classes="]
    assert completed(*sets, "sample.sampler=d") == ["ddim", "dpm++2m", "dpm++3m"]
    assert completed(*sets, "evaluate.reference.spl") == ["evaluate.reference.split="]
    assert completed(*sets, "sample.steps=") == completed(*sets, "absent.") == []


def test_paths_are_offered_where_they_mean_something():
    assert completed("baseline", "show", "my") == ["my.yaml"]
    assert completed("evaluate", "--reference", "ru") == ["run/"]
    assert completed("nightly", "--id", "") == completed("logs", "") == []


def test_what_a_file_of_somebody_else_says_is_not_put_into_the_command_line():
    hostile = {"cells": [{"id": "$(touch harm)", "values": {"steps": "`touch harm`", "a b": 1, "eta": 0.5}}]}
    Path("without-tables/plan.json").write_text(json.dumps(hostile))
    Path("$(touch harm).yaml").write_text("")
    assert completed("export", "without-tables", "") == ["steps=", "eta="]
    assert completed("export", "without-tables", "steps=") == []
    assert completed("run", "$") == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("taugrid repo", ["report"]), ("taugrid export broken S", []), ("taugrid run broken.yaml --only s", []),
        ("taugrid run my.yaml --only steps=", ["10", "20"]), ("taugrid run my.yaml --only eta=s", ["sigma_hat"]),
        ("taugrid run my.yaml --only steps=10,eta=", ["0", "sigma_hat"]),
        ("taugrid run my.yaml --only steps=10 --set train.flip=t", ["true"]),
        ("taugrid run my.yaml --set=sample.clip=x0_", ["x0_and_eps"]),
        ("taugrid nightly --address auto:1 --history with", ["without-tables/"]),
        ("taugrid export run S0008-eta0-", [cell for cell in CELLS if cell.startswith("S0008-eta0-")]),
    ],
)  # fmt: skip
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_a_session_of_bash(line, offered):
    assert bash(line) == offered


def test_the_script_names_the_program_and_its_variable():
    for shell in ("bash", "zsh", "fish"):
        script = CliRunner().invoke(cli, ["completion", shell], catch_exceptions=False).stdout
        assert f"{VARIABLE}={shell}_complete" in script
        assert " taugrid" in script


def test_completion_imports_nothing_slow():
    """Each press of a key waits for it: under 0.4 s here, where a clock in a test would measure the machine."""
    words = {"COMP_WORDS": "taugrid run my.yaml --only steps = ", "COMP_CWORD": "5", VARIABLE: "bash_complete"}
    code = (
        "import atexit, sys\nfrom taugrid.orchestrator.cli.main import main\n"
        "atexit.register(lambda: print(*{'pydantic', 'numpy', 'torch', 'ray'} & sys.modules.keys(), file=sys.stderr))\n"
        "main()"
    )
    words = {**os.environ, **words}
    done = subprocess.run([sys.executable, "-c", code], env=words, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr.split()) == (["plain,10", "plain,20"], [])
