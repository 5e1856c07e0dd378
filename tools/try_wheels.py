"""Builds sdist and wheel into build/wheels, and runs a grid from the wheel with each Python that is here.

    python tools/try_wheels.py [PYTHON ...]      3.11 to 3.14, or these

Each gets an environment of its own with all that taugrid depends on: on Linux that is several GB with CUDA's torch.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / "build" / "wheels"
PYTHONS = [f"python3.{minor}" for minor in range(11, 15)]
RUN = ("run", "gaussian", "--set", "sample.num_samples=500", "--out", "run")


def build() -> Path:
    """The wheel, made from the sdist, and so from nothing that the sdist lacks."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    sdist = f"from setuptools import build_meta; build_meta.build_sdist({str(WHEELS)!r})"
    subprocess.run([sys.executable, "-c", sdist], cwd=ROOT, check=True, capture_output=True)
    [archive] = WHEELS.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", WHEELS, archive)
    subprocess.run(pip, check=True)
    [wheel] = WHEELS.glob("*.whl")
    return wheel


def try_with(python: str, wheel: Path) -> None:
    """Install the wheel and run a grid, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", "venv"], cwd=folder, check=True)
        subprocess.run(["venv/bin/pip", "install", "--quiet", wheel], cwd=folder, check=True)
        for arguments in (("--version",), RUN, ("verify", "run")):
            print(f"{python}: taugrid {' '.join(arguments)}", flush=True)
            subprocess.run(["venv/bin/taugrid", *arguments], cwd=folder, check=True)


if __name__ == "__main__":
    built = build()
    found = list(filter(shutil.which, sys.argv[1:] or PYTHONS))
    for each in found:
        try_with(each, built)
    print(f"{built.name} works with {', '.join(found)}")
