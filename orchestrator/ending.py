"""Ends the driver from any thread, even while the main thread runs Ray's C++ code, where Python handles no signal."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from taugrid.errors import Exit
from taugrid.words import with_urls

GRACE_SECONDS = 4.0
"""From Ctrl-C, SIGTERM or an error's message to the end of the process, whatever it waits for."""

_failure: str | None = None
_lost = ""
_hurries = True
_is_told = False


def begin() -> None:
    """Reset the state at the start of a command."""
    global _failure, _lost, _is_told
    _failure, _lost, _is_told = None, "", False


def set_loss_message(text: str) -> None:
    """Set the message on what is lost if the driver is interrupted now."""
    global _lost
    _lost = text


def interrupted() -> str:
    return "; ".join(filter(None, ["interrupted", _lost, "run the same command again to continue"]))


def fails() -> bool:
    """Whether the main thread was interrupted because the driver must not go on."""
    return _failure is not None


@contextmanager
def unhurried() -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM do not end the process by themselves: the block handles them."""
    global _hurries
    _hurries = False
    try:
        yield
    finally:
        _hurries = True


def hurries() -> bool:
    """Whether the process must end soon after Ctrl-C."""
    return _hurries


def stop(failure: str) -> None:
    """Interrupt the main thread as Ctrl-C does; a block of the caller turns that into a `RunFailed` there.

    If the main thread does not end in time, `leave` prints `failure`.
    """
    global _failure
    _failure = failure
    # A shell may have had SIGINT ignored, and a driver that must stop must not go on.
    number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def end(reason: object, code: Exit) -> NoReturn:
    """Print the reason and exit."""
    global _is_told
    _is_told = True
    click.echo(f"taugrid: {reason}", err=True)
    sys.exit(code)


def soon(code: int) -> None:
    """End the process after `GRACE_SECONDS`, whatever its threads wait for: Python would join them first."""
    timer = threading.Timer(GRACE_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()


def leave() -> NoReturn:
    """Print the reason and end the process now.

    It writes past `sys.stderr`, which is rich's while a live view is shown: the main thread may hold its lock.
    """
    restored = "\r\n\x1b[?25h" if os.isatty(2) else ""  # a line of its own, and the cursor
    if not _is_told:
        os.write(2, f"{restored}taugrid: {with_urls(_failure or interrupted())}\n".encode())
    os._exit(Exit.FAILED if _failure else Exit.INTERRUPTED)
