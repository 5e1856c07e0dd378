"""The first thing that a job runs on the cluster: checks the taugrid there, and hands over to it.

`orchestrator.jobs.package` sends this file by itself, and the cluster may have another taugrid or none: so it uses
nothing but the standard library before it has checked.

    python3 on_the_head.py VERSION run CONFIG ...
"""

import runpy
import sys
from typing import NoReturn


def main(expected: str, arguments: list[str]) -> NoReturn:
    """Run a command of taugrid, if the version here is `expected`; else exit with 2 and one line that says so."""
    try:
        from taugrid import __version__ as found
    except ModuleNotFoundError:
        found = "none"
    if found != expected:
        sys.exit(_refusal(expected, found))
    sys.argv = ["taugrid", *arguments]
    runpy.run_module("taugrid", run_name="__main__")
    sys.exit()


def _refusal(expected: str, found: str) -> int:
    here = f"the Python that this cluster runs jobs with, {sys.executable}"
    has = "no taugrid" if found == "none" else f"taugrid {found}"
    print(
        f"taugrid: {here}, has {has}, but the job was submitted by {expected}; install that on every node, or submit "
        "with --ship to send it along",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
