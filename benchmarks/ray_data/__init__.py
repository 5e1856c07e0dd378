"""taugrid and Ray Data at the same work, on the same cluster: `python -m benchmarks.ray_data`."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[2] / "tests" / name) for name in ("chaos", "integration")]
