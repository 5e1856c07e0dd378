"""Lists and tables in messages, and texts of others in a terminal."""

import io

import pytest
from rich.table import Table
from rich.text import Text
from snapshots import recorded

from taugrid.errors import Exit, UserError
from taugrid.orchestrator import ending
from taugrid.orchestrator.cli.options import print_value
from taugrid.orchestrator.progress.display import Console
from taugrid.words import listed, markdown_table, printable

HOSTILE = [
    "\x1b[2J", "\x1b]52;c;cm0gLXJm\x07", "\x9b2J", "\x1bP\x1b\\", "a\rb", "a\bb", "\x00", "\x7f", "\u202egnp",
    "\u2066x", "\ud800",
]  # fmt: skip
"""It clears the screen, fills the clipboard, the same in one byte, a device string, overwriting, reordering, half a
character."""


def test_a_long_list_says_how_many_it_leaves_out():
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    recorded(listed(["a", "b", "c"], 2, "cell", "; "))
    recorded(listed(["a", "b", "c"], 1, "cell"))


def test_a_bar_in_a_text_does_not_end_a_column_of_markdown():
    table = markdown_table(["name", "n", "best"], "lrc", [["a|b", "1", ""]])
    assert table == "| name | n | best |\n| :-- | --: | :-: |\n| a\\|b | 1 |  |"


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_what_a_text_has_for_terminals_is_shown_and_not_obeyed(capsys, text):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", highlight=False, width=200)
    plain = io.StringIO()
    table = Table(text)
    table.add_row(Text(text, style="bold"))
    for renderable in (text, Text(text, style="bold"), table):
        console.print(renderable, markup=False)
        Console(file=plain, width=200).print(renderable, markup=False)
    assert "\x1b[1m" in file.getvalue(), "our own colours are"
    print_value({}, False, lambda _: text)
    with pytest.raises(SystemExit):
        ending.end(UserError(text), Exit.USAGE)
    printed = "".join(capsys.readouterr())
    for shown in (plain.getvalue(), file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", ""), printed):
        assert not any(character in shown for character in text if printable(character) != character)
    assert printable(text) in printed


@pytest.mark.parametrize("text", ["é η ± 画像 🎨", "a\tb\nc", "na\u00a0me", "می\u200cخواهم"])
def test_what_people_write_is_printed_as_it_is(text):
    assert printable(text) == text
