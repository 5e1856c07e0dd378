"""Options of all commands: what is given twice, contradicts, or is not there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from snapshots import raises

from taugrid.errors import UserError
from taugrid.orchestrator.cli.main import cli


def commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


COMMANDS = dict(commands(cli))


def test_the_walk_finds_what_there_is():
    assert {("evaluate",), ("nightly",), ("submit",), ("config", "show"), ("baseline", "accept")} <= COMMANDS.keys()


@pytest.mark.parametrize("twice", [("--out", "a", "--out", "b"), ("--set", "name=a", "--set", "name=b")])
def test_of_an_option_or_a_key_given_twice_the_last_counts(twice, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["plan", "gaussian", *twice, "--json"], standalone_mode=False)
    assert Path(json.loads(capsys.readouterr().out)["dir"]).name == "b"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("run digits --workers two", click.BadParameter),
        ("status digits", UserError),
        ("verify digits", UserError),
        ("status .", UserError),
        ("verify .", UserError),
        ("run gaussian --max 100 --dry-run --until told-apart", UserError),
        ("run gaussian --max 100000 --dry-run --until told-apart=foo", UserError),
    ],
)
def test_what_contradicts_or_is_not_there_is_refused(words, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(error):
        cli.main(words.split(), standalone_mode=False)


def test_options_that_are_lists_may_be_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (words for words, command in COMMANDS.items() if any(p.multiple for p in command.params)):
        history = ["--history", "absent"] if words == ("nightly",) else []
        with pytest.raises((UserError, click.UsageError), match="absent-config"):
            cli.main([*words, "absent-config", "--set", "seed=1", "--set", "name=x", *history], standalone_mode=False)


def test_a_reader_that_has_gone_changes_no_exit_code():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "taugrid", "config", "show", "digits"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
