"""The first thing that a job runs on the cluster: checks the taugrid there, and hands over to it.

`orchestrator.jobs.package` sends this file by itself, and the cluster may have another taugrid or none: so it uses
nothing but the standard library before it has checked.

    python3 on_the_head.py VERSION run CONFIG ...
"""

import runpy
import sys
from importlib.util import find_spec
from typing import NoReturn

LIBRARIES = (
    *("click", "diffusers", "filelock", "huggingface_hub", "jinja2", "matplotlib", "numpy", "obstore", "pandas", "PIL"),
    *("pyarrow", "pydantic", "ray", "rich", "safetensors", "scipy", "sklearn", "tenacity", "threadpoolctl"),
    *("torch", "torch_fidelity", "torchvision", "yaml"),
)
"""What taugrid imports, by the names that Python knows. A taugrid that was sent along comes without them."""


INSTALL = "install that on every node, or submit with --ship to send it along"


def main(expected: str, arguments: list[str]) -> NoReturn:
    """Run a command of taugrid, if the version here is `expected`; else exit with 2 and one line that says so."""
    try:
        from taugrid import __version__ as found
    except ModuleNotFoundError:
        found = "none"
    if found != expected:
        sys.exit(_refusal(f"{_has(found)}, but the job was submitted by {expected}; {INSTALL}"))
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        sys.exit(_refusal(f"lacks what taugrid needs: {', '.join(missing)}; install taugrid there, on every node"))
    sys.argv = ["taugrid", *arguments]
    runpy.run_module("taugrid", run_name="__main__")
    sys.exit()


def _has(found: str) -> str:
    return "has no taugrid" if found == "none" else f"has taugrid {found}"


def _refusal(what: str) -> int:
    print(f"taugrid: the Python that this cluster runs jobs with, {sys.executable}, {what}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
