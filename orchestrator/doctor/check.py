"""A check: what was found, and what to do about it. Texts name no user and no home folder, for pasting into issues."""

import getpass
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from taugrid.errors import joined_lines

Severity = Literal["ok", "warning", "error"]
"""`error`: a run could not start like this."""


class Finding(NamedTuple):
    name: str
    state: Severity
    found: str
    fix: str = ""
    """What to do about a warning or an error: a command, or a setting."""


def failed(name: str, message: str, state: Severity = "error") -> Finding:
    """The check for a message that says what is wrong and, after a semicolon, what to do."""
    found, _, fix = message.partition("; ")
    return Finding(name, state, found, fix)


def done(name: str, checks: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The checks, or that they can't be made here: no check raises."""
    try:
        found = list(checks())
    except Exception as error:
        found = [Finding(name, "warning", f"can't be checked: {type(error).__name__}: {joined_lines(error)[:200]}")]
    return [each._replace(found=private(each.found), fix=private(each.fix)) for each in found]


def private(text: str) -> str:
    """`text` with ~ in place of a home folder, and USER in place of a folder with this user's name."""
    text = without_homes(text)
    with suppress(KeyError, OSError):  # a container's user may have no name
        return re.sub(rf"(?<=/){re.escape(getpass.getuser())}(?![\w.-])", "USER", text)
    return text


def without_homes(text: str) -> str:
    """`text` with ~ in place of a home folder."""
    homes = [r"/(?:home|Users)/[^/\s:;,]+"]
    with suppress(RuntimeError):  # a container's user may have none
        homes += [re.escape(home)] if (home := str(Path.home())) != "/" else []
    return re.sub(rf"(?:{'|'.join(reversed(homes))})(?![\w-])", "~", text)
