"""The entry point of a job on the cluster: checks the installed taugrid and runs its command.

`orchestrator.jobs.client` sends this file alone, and the cluster may have a different taugrid or none. So the check
uses only the standard library.

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
"""The import names of the libraries that taugrid needs. `submit --ship` sends taugrid without them."""


def main(expected: str, arguments: list[str]) -> NoReturn:
    """Run a taugrid command; exit with 2 and a message if taugrid is not version `expected`, or lacks libraries."""
    if (problem := _problem(expected)) is not None:
        print(f"taugrid: the Python that this cluster runs jobs with, {sys.executable}, {problem}", file=sys.stderr)
        sys.exit(2)
    sys.argv = ["taugrid", *arguments]
    runpy.run_module("taugrid", run_name="__main__")
    sys.exit()


def _problem(expected: str) -> str | None:
    """The reason why taugrid can't run here; None if it can."""
    try:
        from taugrid import __version__ as installed
    except ModuleNotFoundError:
        installed = ""
    if installed != expected:
        has = f"has taugrid {installed}" if installed else "has no taugrid"
        return (
            f"{has}, but the job was submitted with taugrid {expected}; install taugrid {expected} on every node, or "
            "submit with --ship to send it along"
        )
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        return f"lacks what taugrid needs: {', '.join(missing)}; install taugrid there, on every node"
    return None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
