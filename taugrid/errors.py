"""The exceptions that a user sees, and the exit codes."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REGRESSION = 3
    INCOMPLETE = 4
    INTERRUPTED = 130


class UserError(Exception):
    """Wrong usage, config or input: one line with the fault, the value and the ways out. No traceback, exit 2."""


class WorkerRefusal(UserError):
    """A problem on one worker that every other worker would meet too: the run ends, because retrying can't help.

    It travels from a worker by its type, so its constructor must take only the message.
    """


class RunDirectoryNotSeen(WorkerRefusal):
    """A node can't see the driver's run directory."""


class WrongWeights(WorkerRefusal):
    """The weights do not fit the network next to them. Every worker that opens them would fail in the same way."""


class CustomCodeError(ValueError):
    """A user's network or extractor can't be used: one line that says why and what to change."""


class RunFailed(Exception):
    """A stage could not go on, and not because of a bug in the driver: one line, exit 1; `logs/` has the details."""


class DamagedFile(Exception):
    """A file whose content is not what it should be; the message says why."""


def last_line(error: BaseException) -> str:
    """The last non-empty line of an error's text (in a traceback, the error itself), or else the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
