"""A shell completes commands and options, and files by itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from taugrid.orchestrator.cli.main import cli

VARIABLE = "_TAUGRID_COMPLETE"


def completed(*typed):
    """What the last word may become."""
    *args, incomplete = typed
    return [item.value for item in BashComplete(cli, {}, "taugrid", VARIABLE).get_completions(list(args), incomplete)]


def bash(line):
    """What bash offers at the end of `line`, in a session that has sourced the printed script."""
    script = """
        eval "$(taugrid completion bash)"
        compopt() { echo "$@"; }
        COMP_WORDS=($LINE)
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("taugrid repo", ["report"]),
        ("taugrid run my.yaml --onl", ["--only"]),
        ("taugrid run my", ["-o", "default"]),
        ("taugrid export run --to ", ["-o", "default"]),
    ],
    ids=["a command", "an option", "an argument is a file", "a value is a file"],
)
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
    words = {"COMP_WORDS": "taugrid run my.yaml --onl", "COMP_CWORD": "3", VARIABLE: "bash_complete"}
    code = (
        "import atexit, sys\nfrom taugrid.orchestrator.cli.main import main\n"
        "atexit.register(lambda: print(*{'pydantic', 'numpy', 'torch', 'ray'} & sys.modules.keys(), file=sys.stderr))\n"
        "main()"
    )
    words = {**os.environ, **words}
    done = subprocess.run([sys.executable, "-c", code], env=words, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr.split()) == (["plain,--only"], [])
