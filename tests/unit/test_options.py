"""No option counts twice in silence, in whatever command."""

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
OPTIONS = [
    (words, option)
    for words, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.multiple
]


def test_the_walk_finds_what_there_is():
    assert {("evaluate",), ("nightly",), ("submit",), ("config", "show"), ("baseline", "accept")} <= COMMANDS.keys()
    assert len(OPTIONS) > 60


@pytest.mark.parametrize(
    ("words", "option"), OPTIONS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value.opts[0]
)
def test_an_option_given_twice_is_refused_in_one_line(words, option):
    once = [option.opts[-1]] if option.is_flag else [option.opts[-1], "2"]
    with pytest.raises(UserError, match=rf"^{option.opts[0]}\S* .* given twice, "):
        cli.main([*words, *once, *once], standalone_mode=False)


def test_a_flag_and_its_opposite_are_one_option():
    with raises(UserError):
        cli.main(["submit", "digits", "--follow", "--no-follow"], standalone_mode=False)


@pytest.mark.parametrize(
    "words", [words for words, command in COMMANDS.items() if any(p.multiple for p in command.params)]
)
def test_options_that_are_lists_may_be_repeated(words, tmp_path, monkeypatch):
    """Nothing but the missing CONFIG is wrong, or a config that does not exist."""
    monkeypatch.chdir(tmp_path)
    given = ["absent-config", "--set", "seed=1", "--set", "name=x"]
    history = ["--history", "absent"] if words == ("nightly",) else []
    with pytest.raises((UserError, click.UsageError)) as caught:
        cli.main([*words, *given, *history], standalone_mode=False)
    assert "given twice" not in str(caught.value)
    assert "absent-config" in str(caught.value)


def test_a_number_is_not_called_an_integer_range():
    with raises(click.BadParameter):
        cli.main(["run", "digits", "--workers", "two"], standalone_mode=False)


@pytest.mark.parametrize("command", ["status", "verify"])
def test_commands_that_look_take_the_name_of_a_shipped_config(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(UserError):
        cli.main([command, "digits"], standalone_mode=False)
    Path("nothing").mkdir()
    with raises(UserError):
        cli.main([command, "nothing"], standalone_mode=False)


def test_a_dry_run_checks_until(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    until = ["run", "gaussian", "--max", "100000", "--dry-run", "--until"]
    cli.main([*until, "told-apart=steps"], standalone_mode=False)
    with raises(UserError):
        cli.main(["run", "gaussian", "--max", "100", "--dry-run", "--until", "told-apart"], standalone_mode=False)
    with raises(UserError):
        cli.main([*until, "told-apart=foo"], standalone_mode=False)


def test_a_reader_that_has_gone_changes_no_exit_code():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "taugrid", "config", "show", "digits"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_values_for_one_key_are_refused():
    with raises(click.UsageError):
        cli.main(["plan", "digits", "--set", "sample.seed=1", "--set", "sample.seed=2"], standalone_mode=False)
