"""Each command's help ends with examples, and each of them does what it says, on a small run."""

import re
import shlex
import shutil

import pytest
import yaml
from nights import taugrid
from test_options import COMMANDS
from test_pages import EXAMPLES

pytestmark = pytest.mark.usefixtures("sketched", "one_thread")

CONFIG = {
    "name": "mine",
    "data": {"name": "gaussian", "shape": [1, 8, 8]},
    "model": {"oracle": "gaussian"},
    "sample": {"num_samples": 660, "batch_size": 330},
    "grid": {"steps": [10, 20], "eta": [0.0, 1.0]},
    "evaluate": {"metrics": ["fid"], "keep_features": True},
}

NOT_RUN = {
    "taugrid run digits": "trains for minutes",
    "taugrid selfcheck": "takes minutes; test_selfcheck_run.py runs it",
    "taugrid doctor --address": "needs a cluster; test_cluster.py has one",
    "taugrid board runs  # on": "serves until Ctrl-C; test_board_served.py",
    "taugrid submit": "needs a cluster, as test_cluster.py has it",
}
"""How lines begin that are only parsed, and why."""

SMALLER = {"sample.num_samples=20000": "sample.num_samples=700", "--max 16000": "--max 1320"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_thread, sketched):
    """A folder with all that examples name: my.yaml, its run, images of it, baselines, and a history."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "my.yaml").write_text(yaml.safe_dump(CONFIG))
        taugrid("run", "my.yaml")
        taugrid("export", "runs/mine", "eta=0,steps=10", "--to", "pngs")
        taugrid("baseline", "accept", "runs/mine", "--to", "mine.json", "--reason", "first")
        taugrid("baseline", "accept", "pngs", "--reference", "runs/mine", "--to", "images.json", "--reason", "first")
        taugrid("nightly", "my.yaml", "--history", "history", "--id", "first", code=None)
    for copy, original in (("runs/tonight", "runs/mine"), ("old-pngs", "pngs"), ("new-pngs", "pngs")):
        shutil.copytree(folder / original, folder / copy)
    return folder


@pytest.mark.parametrize("command", COMMANDS.values(), ids=map(" ".join, COMMANDS))
def test_every_command_has_examples_that_say_what_they_do(command):
    assert command.examples
    for line in command.examples:
        shown, _, comment = line.partition("  # ")
        assert comment
        assert max(len(shown), len(comment) + 2) <= 78, f"wraps in a terminal of 80 columns: {line}"
        _, first, second = shlex.split(f"{shown} .")[:3]
        assert command in (COMMANDS.get((first,)), COMMANDS.get((first, second)))


@pytest.mark.long
@pytest.mark.parametrize("line", [line for line in EXAMPLES if not line.startswith(tuple(NOT_RUN))])
def test_an_example_does_what_it_says(line, world, tmp_path, monkeypatch):
    unnamed = (name for name in ("pngs", "old-pngs", "new-pngs") if name not in line)  # 660 files each
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "here", ignore=shutil.ignore_patterns(*unnamed)))
    command = re.split(" > |  # ", line)[0]
    for shown, smaller in SMALLER.items():
        command = command.replace(shown, smaller)
    taugrid(*shlex.split(command)[1:])


def test_lines_that_are_not_run_are_some():
    assert [begin for begin in NOT_RUN if not any(line.startswith(begin) for line in EXAMPLES)] == []
