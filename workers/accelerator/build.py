"""Which accelerators the installed torch is built for, from its file of versions: importing torch takes seconds."""

import runpy
from importlib.util import find_spec
from pathlib import Path


def is_for_gpus() -> bool:
    """Whether torch here is built for CUDA or ROCm. False if there is no torch."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    versions = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    return versions.get("cuda") is not None or versions.get("hip") is not None
