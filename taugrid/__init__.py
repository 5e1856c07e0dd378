"""taugrid: how good are a diffusion model's samples at S steps?

`taugrid.plan` and `taugrid.run` are the Python API; the command line is `taugrid --help`.
"""

from taugrid.api import plan, run

__version__ = "0.1.0"

__all__ = ["__version__", "plan", "run"]
