"""Maps the top-level folders to sub-packages of `taugrid` (`eval/` is `taugrid.eval`): see docs/architecture.md."""

from setuptools import find_packages, setup

ROOMS = ("configs", "eval", "orchestrator", "workers")

setup(
    packages=[
        *find_packages(include=["taugrid", "taugrid.*"]),
        *(f"taugrid.{name}" for room in ROOMS for name in find_packages(include=[room, f"{room}.*"])),
    ],
    package_dir={f"taugrid.{room}": room for room in ROOMS},
)
