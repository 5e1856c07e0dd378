"""Words that a shell completes. They come from files alone, and a file that is broken completes nothing.

Only plain words are offered, since a shell inserts what somebody else's file says as it is.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

import taugrid

VARIABLE = "_TAUGRID_COMPLETE"
"""Tells the program to complete, and for which shell."""

PLAIN = re.compile(r"[\w.,=+:/@%~-]+")
CONFIGS = Path(taugrid.__file__).parent / "configs"
FILES = (".yaml", ".yml", ".json", ".npz", ".parquet", ".safetensors", ".pth")

OtherValues = Mapping[str, Any]
"""Parameter of the command -> its value, as far as they are given."""


@add_completion_class
class Bash(BashComplete):
    """bash takes KEY=VALUE and NAME:ROOT for three words, and replaces only the last of them."""

    source_template: ClassVar[str] = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *[=./:,] ]] && compopt -o nospace"
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor and the one at it, joined as the program gets them."""
        args, incomplete = super().get_completion_args()
        joined, glues = [""], False
        for word in [*args, *([incomplete] if incomplete else [])]:
            is_break = re.fullmatch("[=:]+", word) is not None
            joined[-1:] = [joined[-1] + word] if is_break or glues else [joined[-1], word]
            glues = is_break
        return (joined[1:-1], joined[-1]) if incomplete else (joined[1:], "")

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What follows the last break of the word at the cursor."""
        value = incomplete.partition("=")[2] if incomplete.startswith("-") else incomplete
        start = max(value.rfind("="), value.rfind(":")) + 1
        items = super().get_completions(args, incomplete)
        return [CompletionItem(item.value[start:], item.type) for item in items]


def source(cli: click.Command, shell: str) -> str:
    """The script that makes a shell complete the program's words."""
    kind = get_completion_class(shell)
    assert kind is not None, "the command's choices are the shells that there are"
    return kind(cli, {}, "taugrid", VARIABLE).source()


def answer(cli: click.Command) -> NoReturn:
    """Print the words that the shell asks for, and nothing else whatever happens; end the process."""
    with suppress(Exception):  # what is printed would stand in the user's command line
        cli.main(prog_name="taugrid")
    sys.exit(0)


def words(given: OtherValues, name: str, incomplete: str) -> list[str]:
    """The words that begin with `incomplete` for the parameter `name`."""
    found: list[str] = []
    with suppress(Exception):  # a broken file, or one of another version
        found += COMPLETED[name](given, incomplete)
    return [word for word in dict.fromkeys(found) if word.startswith(incomplete) and PLAIN.fullmatch(word)]


def _paths(given: OtherValues, incomplete: str) -> Iterator[str]:
    """Folders, and files that commands take."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    for path in sorted(Path(folder or ".").expanduser().iterdir()):
        if not path.name.startswith(".") and path.is_dir():
            yield f"{folder}{path.name}/"
        elif path.suffix in FILES:
            yield f"{folder}{path.name}"


def _configs(given: OtherValues, incomplete: str) -> Iterator[str]:
    yield from sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    yield from _paths(given, incomplete)


def _only(given: OtherValues, incomplete: str) -> Iterator[str]:
    """Settings of the config's grid, as the file has it."""
    import yaml

    from taugrid.grids.points import values_by_key

    path = Path(given["config"]).expanduser()
    path = path / "config.json" if path.is_dir() else path
    grid = yaml.safe_load((path if path.is_file() else CONFIGS / f"{path.stem}.yaml").read_text())["grid"]
    for mapping in [grid] if isinstance(grid, dict) else grid:
        yield from _settings(values_by_key(mapping), incomplete)


def _cells(given: OtherValues, incomplete: str) -> Iterator[str]:
    """The cells of the run in `directory`: their folders or, before there are tables, ids; or their settings."""
    root = Path(given["directory"]).expanduser()
    if (table := root / "tables" / "cells.csv").is_file():
        yield from (row["folder"] for row in csv.DictReader(table.read_text().splitlines()))
    cells = json.loads((root / "plan.json").read_text())["cells"]
    if not table.is_file():
        yield from (cell["id"] for cell in cells)
    for cell in cells:
        yield from _settings({key: [value] for key, value in cell["values"].items()}, incomplete)


def _settings(values: Mapping[str, list[Any]], incomplete: str) -> Iterator[str]:
    """`incomplete`, which is key=value,..., with each next key, or each value of the last key."""
    from taugrid.grids.names import plain_text, short_keys

    before, comma, part = incomplete.rpartition(",")
    key, equals, _ = part.partition("=")
    used = {setting.partition("=")[0] for setting in before.split(",")}
    for name, short in short_keys(values, _schema()["$defs"]["Sample"]["properties"]).items():
        if equals and key in (name, short):
            yield from (f"{before}{comma}{key}={plain_text(value)}" for value in values[name])
        elif not equals and short not in used:
            yield f"{before}{comma}{short}="


def _schema() -> Any:
    return json.loads((CONFIGS / "schema.json").read_text())


def _assignments(given: OtherValues, incomplete: str) -> Iterator[str]:
    """The keys of a config, a section at a time, and those values that the schema lists."""
    node = schema = _schema()

    def parts(node: Mapping[str, Any]) -> list[Any]:
        either = node.get("anyOf", [node])
        return [schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part for part in either]

    key, equals, _ = incomplete.partition("=")
    *sections, last = key.split(".")
    for section in sections:
        node = next(part for part in parts(node["properties"][section]) if "properties" in part)
    if not equals:
        for name, inner in node["properties"].items():
            is_section = any("properties" in part for part in parts(inner))
            yield ".".join([*sections, name]) + ("." if is_section else "=")
        return
    for part in parts(node["properties"][last]):
        listed = {"boolean": [True, False], "null": [None]}.get(part.get("type", ""), [])
        for value in part.get("enum", [part["const"]] if "const" in part else listed):
            yield f"{key}={value if isinstance(value, str) else json.dumps(value)}"


COMPLETED: Mapping[str, Callable[[OtherValues, str], Iterable[str]]] = {
    "config": _configs,
    "assignments": _assignments,
    "only": _only,
    "cell": _cells,
    "others": _cells,
    **dict.fromkeys(("directory", "directories", "out", "history", "baseline", "file", "places"), _paths),
    **dict.fromkeys(("samples", "reference", "weights", "checkpoint"), _paths),
}
"""Parameter -> what it may be."""
