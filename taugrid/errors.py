"""The exceptions that a person sees, and the exit code that each one means (design, contract)."""

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
    """Wrong usage, config or input: one line that says what, which value, and the ways out. No traceback, exit 2."""


class WorkerRefusal(UserError):
    """A worker met something that every other worker would meet too: the run ends, because retrying can't help.

    It travels from a worker by its type, so its constructor must take the message alone.
    """


class RunDirectoryNotSeen(WorkerRefusal):
    """A node does not see the driver's run directory."""


class WrongWeights(WorkerRefusal):
    """The weights do not fit the network beside them. Every worker that opens them would fail in the same way."""


class CustomCodeError(ValueError):
    """A user's network or extractor can't be used: one line that says why and what to change."""


class RunFailed(Exception):
    """A stage could not go on for a reason that is no bug of the driver: one line, exit 1; details are in `logs/`."""


class DamagedFile(Exception):
    """A file that can't be read back as what it should be; the message says why."""


def last_line(error: BaseException) -> str:
    """The last line of an error's text that says something, or else what it is: of a traceback, the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
