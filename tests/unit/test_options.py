"""No option counts twice in silence, in whatever command."""

import os
import subprocess
import sys
from collections.abc import Iterator

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


def test_an_option_given_twice_is_refused_in_one_line():
    for words, option in OPTIONS:
        once = [option.opts[-1]] if option.is_flag else [option.opts[-1], "2"]
        with pytest.raises(UserError, match=rf"^{option.opts[0]}\S* .* given twice, "):
            cli.main([*words, *once, *once], standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("submit digits --follow --no-follow", UserError),
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
        with pytest.raises((UserError, click.UsageError), match="absent-config") as caught:
            cli.main([*words, "absent-config", "--set", "seed=1", "--set", "name=x", *history], standalone_mode=False)
        assert "given twice" not in str(caught.value)


def test_a_reader_that_has_gone_changes_no_exit_code():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "taugrid", "config", "show", "digits"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
