"""The command line: its commands, and how errors become exit codes."""

import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from taugrid import __version__
from taugrid.errors import Exit, RunFailed, UserError, user_errors
from taugrid.orchestrator import ending
from taugrid.orchestrator.cli import gate, look, machine, run
from taugrid.orchestrator.cli.options import discard_output


class InOrder(click.Group):
    """A group whose help lists its commands in the order in which people need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names as they were added."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """How good are a diffusion model's samples at S steps?

    CONFIG is a file, the name of a shipped config (digits, gaussian), or a run directory. A first run is `taugrid run
    digits`: it takes minutes on 2 cores. `taugrid init` prints a config to begin with.
    """


for command in (
    *(machine.init, run.run, look.plan, look.status, run.train, run.sample, run.evaluate, run.report),
    *(run.reconstruct, run.interpolate, gate.compare, look.board, look.export, look.verify),
    *(gate.baseline, gate.nightly, run.submit, look.config),
    *(machine.selfcheck, machine.doctor, machine.clean, machine.completion),
):
    cli.add_command(command)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM (batch systems send it) end the block, and the process within `ending.GRACE_SECONDS`.

    Python hears a signal only between two of its instructions, and Ray's C++ waits for half a minute for servers that
    died of the same signal. What is on disk is whole at any time, so ending without a farewell loses nothing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    heard, wakes = socket.socketpair()
    wakes.setblocking(False)
    before = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while number := heard.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                time.sleep(ending.GRACE_SECONDS)
                ending.leave()

    threading.Thread(target=watch, daemon=True, name="signals").start()
    hook_before, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        signal.set_wakeup_fd(before)
        wakes.close()


def _unraisable(dropped: "sys.UnraisableHookArgs") -> None:
    """Print an exception that Python drops, as one in a hook of `os.fork`.

    An interrupt (KeyboardInterrupt, or the SystemExit of Ray's handler of SIGTERM) is not: its signal ends the process.
    """
    if not issubclass(dropped.exc_type, (KeyboardInterrupt, SystemExit)):
        sys.__unraisablehook__(dropped)


def main() -> NoReturn:
    """Run a command as the whole of a process, which ends `ending.GRACE_SECONDS` after a failure at the latest."""
    try:
        with interruptible():
            run_command()
    except BaseException as end:
        # An interrupt inside an `eval` or `exec` of a text (making a named tuple has one) leaves a flag in Python, by
        # which `python -m` ends by SIGINT, whatever the exit code. Another `exec` clears it.
        exec("")
        if code := end.code if isinstance(end, SystemExit) else Exit.FAILED:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # one more would only break Python's exit, or change its code
            timer = threading.Timer(ending.GRACE_SECONDS, os._exit, [code])  # Python joins all threads at its exit
            timer.daemon = True
            timer.start()
        raise


def run_command() -> NoReturn:
    """Run a command. User errors are one line on stderr, bugs a traceback."""
    for stream in (sys.stdout, sys.stderr):  # η in a Latin-1 locale becomes an escape: work that is done must not fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        ending.begin()
        with user_errors():
            cli.main(prog_name="taugrid", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (UserError, RunFailed) as error:
        ending.end(error, Exit.USAGE if isinstance(error, UserError) else Exit.FAILED)
    except BrokenPipeError:  # of what goes on for ever, such as `status --watch`
        discard_output()
    except (KeyboardInterrupt, click.Abort):
        ending.end(ending.interrupted(), Exit.INTERRUPTED)
    sys.exit(Exit.DONE)
