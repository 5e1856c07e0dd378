"""The Python API does what the commands do, and refuses what they refuse."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from snapshots import raises

import taugrid
from taugrid.errors import RunFailed, UserError
from taugrid.orchestrator import session
from taugrid.orchestrator.cli.main import cli
from taugrid.run_id import claim
from taugrid.storage import LOCAL

CONFIG = "gaussian"


def said_by_the_command(*arguments):
    """The message of the `UserError` that a command ends with."""
    with pytest.raises(UserError) as caught:
        cli.main(list(arguments), standalone_mode=False)
    return str(caught.value)


@pytest.fixture
def done(monkeypatch):
    """Runs that end as `missing` says without any work; returns where, and with which stages and how many cells."""
    asked = []

    def ends(missing):
        def do(self, stages, break_lock=False):
            asked.append((str(self.rundir.root), self._address, tuple(stages), len(self.selected.cells)))
            return session.SessionResult(missing, [{"steps": 2, "fid": 1.5}], None)

        monkeypatch.setattr(session.Session, "do", do)
        return asked

    return ends


def test_plan_is_what_the_command_prints_as_json(tmp_path):
    out = str(tmp_path / "run")
    few = "sample.num_samples=60"
    printed = CliRunner().invoke(cli, ["plan", CONFIG, "--out", out, "--set", few, "--json"], catch_exceptions=False)
    assert taugrid.plan(CONFIG, out, [few]) == json.loads(printed.stdout)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["plann", "frobnicate"])
def test_an_unknown_command_is_a_usage_error(word):
    printed = CliRunner().invoke(cli, [word])
    assert printed.exit_code == 2
    assert f"No such command '{word}'." in printed.output  # newer versions of click then say what was meant


def test_a_shell_that_completes_behind_a_wrong_command_prints_no_usage(monkeypatch, capsys):
    completing = {"COMP_WORDS": "taugrid frobnicate ", "COMP_CWORD": "2", "_TAUGRID_COMPLETE": "bash_complete"}
    for name, value in completing.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        cli.main([], prog_name="taugrid")
    assert (end.value.code, capsys.readouterr().err) == (0, "")


def test_what_a_locale_can_not_encode_is_printed_as_an_escape(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    printed = subprocess.run(
        [sys.executable, "-m", "taugrid", "plan", "gaussian", "--out", str(tmp_path / "η-ö")],
        env=environment, capture_output=True, check=True,
    )  # fmt: skip
    assert rb"\u03b7-" + "ö".encode("latin-1") in printed.stdout.splitlines()[0]


def test_a_folder_is_advised_how_to_mend_it_only_if_it_holds_some_of_a_run(tmp_path):
    with raises(UserError) as caught:
        taugrid.open(tmp_path)
    assert "--out" not in str(caught.value)
    claim(tmp_path, LOCAL)
    with raises(UserError):
        taugrid.open(tmp_path)


@pytest.mark.parametrize(
    "call",
    [
        lambda: taugrid.plan(None), lambda: taugrid.plan(CONFIG, 3), lambda: taugrid.plan(CONFIG, assignments=3),
        lambda: taugrid.plan(CONFIG, assignments="samples"), lambda: taugrid.run(3), lambda: taugrid.run(CONFIG, out=3),
        lambda: taugrid.run(CONFIG, address=3), lambda: taugrid.run(CONFIG, stages=3),
        lambda: taugrid.run(CONFIG, only="steps=7"), lambda: taugrid.open(3), lambda: taugrid.board(3), taugrid.board,
    ],
)  # fmt: skip
def test_an_argument_of_a_wrong_type_is_told_in_one_line(call, done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(UserError):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [None, "runs/mine"])
def test_run_on_a_cluster_needs_an_absolute_path_as_the_command_does(out, done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = done({})
    with raises(UserError) as caught:
        taugrid.run(CONFIG, out, address="auto")
    there = () if out is None else ("--out", out)
    assert str(caught.value) == said_by_the_command("run", CONFIG, *there, "--address", "auto")
    assert not asked


def test_run_does_the_stages_of_the_command_where_it_is_told_and_returns_the_run(done, tmp_path):
    asked = done({})
    run, path = taugrid.run(CONFIG, tmp_path), str(tmp_path)
    assert (len(run.cells), run.directory) == (len(taugrid.plan(CONFIG, tmp_path)["cells"]), path)
    CliRunner().invoke(cli, ["run", CONFIG, "--out", path, "--json"], catch_exceptions=False)
    assert asked[0] == asked[1]
    taugrid.run(CONFIG, tmp_path, address="auto", stages=["sample"])
    taugrid.run(CONFIG, tmp_path, stages="report", progress=False, only=["steps=10"])
    some = sum(cell["steps"] == 10 for cell in taugrid.plan(CONFIG, tmp_path)["cells"])
    assert 0 < some < len(run.cells)
    assert asked[2:] == [(path, "auto", ("sample",), len(run.cells)), (path, "local", ("report",), some)]


@pytest.mark.parametrize("stages", [["smaple"], ["sample", "reports"], []])
def test_a_stage_that_does_not_exist_is_refused(done, tmp_path, stages):
    asked = done({})
    with raises(UserError):
        taugrid.run(CONFIG, tmp_path, stages=stages)
    assert asked == []


def test_run_raises_if_cells_are_missing(done, tmp_path):
    done({"S=2 abc": "worker died"})
    with raises(RunFailed):
        taugrid.run(CONFIG, tmp_path)


def test_a_config_is_a_file_or_its_content(tmp_path):
    content = {"name": "mine", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "grid": {"steps": [2, 5]}}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(content))
    assert taugrid.plan(content, tmp_path / "run") == taugrid.plan(file, tmp_path / "run")
    with raises(UserError):
        taugrid.plan(content | {"smaple": {}}, tmp_path / "run")


def test_overrides_are_merged_into_their_section_and_replace_the_model_and_the_grid(tmp_path):
    def cells(**overrides):
        return taugrid.plan("digits", tmp_path / "run", **overrides)["cells"]

    few = {"grid": {"steps": np.array([5, 10]), "eta": [0.0]}, "sample": {"num_samples": np.int64(60)}}
    named = cells(**few)
    assert [(cell["steps"], cell["num_samples"]) for cell in named] == [(5, 60), (10, 60)]
    said = [f"grid={json.dumps({'steps': [5, 10], 'eta': [0.0]})}", "sample.num_samples=60"]
    assert named == taugrid.plan("digits", tmp_path / "run", said)["cells"], "batch_size: 250 is still the config's"
    dotted = cells(**few, **{"sample.batch_size": 256})
    assert dotted[0]["cell"] != named[0]["cell"]
    oracle = {"model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "split": "all"}}
    assert cells(**few, **oracle)[0]["cell"] != named[0]["cell"]
    with raises(UserError):
        cells(sample=object())
