"""A check: what was found, and what to do about it. Texts name no user and no home folder, for pasting into issues."""

import getpass
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Literal, NamedTuple

from taugrid.errors import joined_lines

Severity = Literal["ok", "warning", "error"]
"""`error`: a run could not start like this."""


CHECK_SECONDS = 20.0
"""How long a check may take: a dead mount would never answer."""


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
    found = [Finding(name, "warning", f"can't be checked: no answer within {CHECK_SECONDS:.0f} s")]

    def find() -> None:
        try:
            found[:] = checks()
        except Exception as error:
            state: Severity = "error" if isinstance(error, FileNotFoundError) else "warning"  # no temporary folder
            found[:] = [failed(name, f"can't be checked: {type(error).__name__}: {joined_lines(error)[:200]}", state)]

    thread = Thread(target=find, daemon=True)  # a dead mount must not keep the process
    thread.start()
    thread.join(CHECK_SECONDS)
    return [each._replace(found=private(each.found), fix=private(each.fix)) for each in found]


def anonymous(text: str, address: str) -> str:
    """`text` for an issue: no address of a cluster, no bucket, and of paths outside of home the last part alone."""
    given = [] if address in ("local", "auto") else [re.escape(address)]
    text = re.sub("|".join([*given, r"\b\d+(?:\.\d+){3}:\d+"]), "ADDRESS", text)
    text = re.sub(r"\b(?!https?:)\w+://[^\s;,]*?([^/\s:;,]*)(?=[\s:;,]|$)", r".../\1", text)
    return re.sub(r"(?<![\w~/:.])/(?!dev/|proc/)(?:[^\s/:;,()]+/)+([^\s/:;,()]+)", r".../\1", text)


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
