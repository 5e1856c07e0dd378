"""The program `taugrid`, and `python -m taugrid`: Ctrl-C ends it in one line even while it is being imported."""

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Import the command line, and run it. `ending.begin` says what Ctrl-C does from then on."""

    def leave(*_: object) -> NoReturn:
        os.write(2, b"taugrid: interrupted; run the same command again to continue\n")
        os._exit(130)

    if callable(signal.getsignal(signal.SIGINT)):  # a shell may have had it ignored
        signal.signal(signal.SIGINT, leave)
    from taugrid.orchestrator.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
