"""taugrid: how good are a diffusion model's samples at S steps?

The Python API is `open`, `board`, `plan`, `run`, `evaluate`, `compare` and `sample`; docs/python.md shows it. The
command line is `taugrid --help`.
"""

from taugrid.api import board, compare, evaluate, open, plan, run, sample

__version__ = "0.1.0"

__all__ = ["__version__", "board", "compare", "evaluate", "open", "plan", "run", "sample"]
