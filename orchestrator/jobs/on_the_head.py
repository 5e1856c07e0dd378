"""The entry point of a job on the cluster: checks the installed taugrid and runs its command.

`orchestrator.jobs.client` sends this file alone, and the cluster may have a different taugrid or none. So the check
uses only the standard library.

    python3 on_the_head.py VERSION run CONFIG ...
"""

import runpy
import sys
from typing import NoReturn


def main(expected: str, arguments: list[str]) -> NoReturn:
    """Run a taugrid command; exit with 2 and a message if taugrid is not version `expected`."""
    try:
        from taugrid import __version__ as installed
    except ModuleNotFoundError:
        installed = ""
    if installed != expected:
        has = f"has taugrid {installed}" if installed else "has no taugrid"
        print(
            f"taugrid: the Python that this cluster runs jobs with, {sys.executable}, {has}, but the job was "
            f"submitted with taugrid {expected}; install taugrid {expected} on every node, or submit with --ship to "
            "send it along",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv = ["taugrid", *arguments]
    runpy.run_module("taugrid", run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
