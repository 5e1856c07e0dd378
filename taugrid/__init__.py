"""taugrid: how good are a diffusion model's samples at S steps?

`open`, `plan`, `run`, `evaluate` and `sample` are the Python API (docs/python.md); the command line is `taugrid --help`.
"""

from taugrid.api import evaluate, open, plan, run, sample

__version__ = "0.1.0"

__all__ = ["__version__", "evaluate", "open", "plan", "run", "sample"]
