"""What scripts rely on stays: commands and their options, exit codes, config keys, and the keys of JSON and tables.

`tests/data/contract.json` holds what commit f620642 had, and `selfcheck --sampler`. New things may come; what is
recorded may not go. Running this file records what there is now: `python tests/unit/test_contract.py`.
"""

import importlib.resources
import json
import shutil
import sys
import tempfile
from pathlib import Path

import click
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from taugrid.config import schema
from taugrid.errors import Exit
from taugrid.orchestrator.cli.main import cli

DATA = Path(__file__).parents[1] / "data"
RECORDED = DATA / "contract.json"
OLD = DATA / "run-011be7a"

PRINTED = {
    "plan": ["plan", "{run}", "--json"],
    "status": ["status", "{run}", "--json"],
    "verify": ["verify", "{run}", "--json"],
    "compare two cells": ["compare", "{run}", "steps=4,eta=0", "steps=8,eta=0", "--json"],
    "compare with a baseline": ["compare", "{run}", f"{OLD}/baseline.json", "--json"],
    "baseline show": ["baseline", "show", f"{OLD}/baseline.json", "--json"],
    "config show": ["config", "show", "digits", "--json"],
    "config schema": ["config", "schema"],
    "report": ["report", "{run}", "--json"],
    "board": ["board", "{run}", "--json"],
}


def shape(value, path="$"):
    """Each path of a JSON document, with the types of its values; elements of a list share one path."""
    found = {path: {type(value).__name__}}
    inner = list(value.items()) if isinstance(value, dict) else []
    inner += [("[]", item) for item in value] if isinstance(value, list) else []
    for key, item in inner:
        for where, types in shape(item, f"{path}.{key}").items():
            found.setdefault(where, set()).update(types)
    return found


def shapes_in(root):
    """The shapes of what the commands print about the run, and of the files that they write."""
    found = {}
    for name, words in PRINTED.items():
        done = CliRunner().invoke(cli, [word.format(run=root) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        found[name] = shape(json.loads(done.stdout))
    for path in (*root.glob("tables/*.json"), *root.glob("config.json"), *root.glob("provenance.json")):
        found[path.name] = shape(json.loads(path.read_text()))
    found["a score"] = shape(json.loads(min(root.glob("scores/*.json")).read_text()))
    for path in root.glob("tables/*.csv"):
        found[path.name] = {name: {"column"} for name in pd.read_csv(path).columns}
    for path in (min(root.glob("samples/*/*.parquet")), root / "tables" / "cells.parquet"):
        kind = "samples" if path.parent.name != "tables" else "cells"
        found[f"{kind}.parquet"] = {field.name: {str(field.type)} for field in pq.read_schema(path)}
    return {name: {path: sorted(types) for path, types in paths.items()} for name, paths in found.items()}


def commands(group, before=()):
    """Each command's words, with the declarations, the default and the kind of all its parameters."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
            continue
        yield (
            " ".join((*before, name)),
            {
                " ".join([*parameter.opts, *parameter.secondary_opts]): [
                    parameter.param_type_name,
                    parameter.required,
                    parameter.multiple,
                    getattr(parameter, "is_flag", False),
                    parameter.nargs,
                ]
                for parameter in command.params
            },
        )


def present(root):
    """The contract as it is now."""
    return {
        "commands": dict(commands(cli)),
        "exit codes": {code.name: code.value for code in Exit},
        "shapes": shapes_in(root),
    }


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    return present(shutil.copytree(OLD / "run", tmp_path_factory.mktemp("contract") / "run"))


def repeatable(kind):
    """The kind of a parameter that may be given several times, too; whoever gives it once sees no difference."""
    kind_of, required, _, *others = kind
    return [kind_of, required, True, *others]


def optional(kind):
    """The kind of an argument that may be left out, too."""
    kind_of, _, *others = kind
    return [kind_of, False, *others]


def test_commands_and_options_stay(recorded, now):
    changed = [
        f"{name} {option}"
        for name, options in recorded["commands"].items()
        for option, kind in options.items()
        if now["commands"].get(name, {}).get(option) not in (kind, repeatable(kind), optional(kind))
    ]
    assert changed == []


def test_exit_codes_stay(recorded, now):
    assert recorded["exit codes"].items() <= now["exit codes"].items()


def test_keys_and_columns_stay(recorded, now):
    """A key keeps its types; null is a value that any key may take."""
    changed = [
        f"{name}: {path} was {types}, is {now['shapes'].get(name, {}).get(path, 'gone')}"
        for name, paths in recorded["shapes"].items()
        for path, types in paths.items()
        if not set(types) & {*now["shapes"].get(name, {}).get(path, []), "NoneType"}
        or path not in now["shapes"].get(name, {})
    ]
    assert changed == []


def test_the_shipped_schema_is_that_of_this_version():
    shipped = json.loads((importlib.resources.files("taugrid.configs") / "schema.json").read_text())
    assert shipped == schema(), "renew it: taugrid config schema > configs/schema.json"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = present(Path(shutil.copytree(OLD / "run", Path(folder) / "run")))
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"recorded {len(found['commands'])} commands and {len(found['shapes'])} shapes\n")
