"""Prints pip constraints that pin each dependency of pyproject.toml to its lower bound: `make lower-bounds` uses them.

Dependencies and extras that users install are pinned; the tools of development (extra `dev`) are not.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOOLS = ("dev", "lint")  # extras that users don't install
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?>=(?P<bound>[\w.]+)")


def lower_bounds(project: dict[str, Any]) -> Iterator[str]:
    """`name==bound` for each requirement of `project`, the table [project] of a pyproject.toml. Raises `ValueError` if
    a requirement has no lower bound, or more than that."""
    extras = project["optional-dependencies"]
    for requirement in (
        *project["dependencies"],
        *(each for name in extras if name not in TOOLS for each in extras[name]),
    ):
        if not (match := REQUIREMENT.fullmatch(requirement)):
            raise ValueError(f"{requirement!r} is not of the form name>=bound")
        yield f"{match['name']}=={match['bound']}"


if __name__ == "__main__":
    print("\n".join(lower_bounds(tomllib.loads(Path(sys.argv[1]).read_text())["project"])))
