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


class RunFailed(Exception):
    """A stage could not go on for a reason that is no bug of the driver: one line, exit 1; details are in `logs/`."""
