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
from taugrid.words import printable, with_urls

GRACE_SECONDS = 4.0  # from Ctrl-C, SIGTERM or an error's message to the end of the process, whatever it waits for

failure: str | None = None  # why the driver must not go on, if the main thread was interrupted for that

lost = ""  # what is lost if the driver is interrupted now, for its message

_is_told = False


def begin() -> None:
    """Reset the state at the start of a command. From here on, Ctrl-C raises a `KeyboardInterrupt`."""
    global failure, lost, _is_told
    failure, lost, _is_told = None, "", False
    if callable(signal.getsignal(signal.SIGINT)):  # a shell may have had it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM until the block ends. For imports of Cython modules, which print a traceback if a signal
    interrupts them."""
    heard = list[int]()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if heard:
        signal.raise_signal(heard[0])


def interrupted() -> str:
    return "; ".join(filter(None, ["interrupted", lost, "run the same command again to continue"]))


def stop(reason: str) -> None:
    """Interrupt the main thread as Ctrl-C does; a block of the caller turns that into a `RunFailed` there. If the main
    thread does not end in time, `leave` prints the reason."""
    global failure
    failure = reason
    # A shell may have had SIGINT ignored, and a driver that must stop must not go on.
    number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def end(reason: object, code: Exit) -> NoReturn:
    """Print the reason and exit."""
    global _is_told
    _is_told = True
    click.echo(f"taugrid: {printable(str(reason))}", err=True)
    sys.exit(code)


def leave() -> NoReturn:
    """Print the reason and end the process now. It writes past `sys.stderr`, which is rich's while a live view is
    shown: the main thread may hold its lock."""
    restored = "\r\n\x1b[?25h" if os.isatty(2) else ""  # a line of its own, and the cursor
    if not _is_told:
        os.write(2, f"{restored}taugrid: {with_urls(failure or interrupted())}\n".encode())
    os._exit(Exit.FAILED if failure else Exit.INTERRUPTED)
