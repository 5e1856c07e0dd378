"""What scripts rely on stays: commands and their options, config keys, and the keys of JSON and tables.

`tests/data/contract.json` holds what commit f620642 had, and `selfcheck --sampler`. New things may come; what is
recorded may not go. `pytest tests/nets/test_contract.py --texts` adds what there is now.
"""

import importlib.resources
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import snapshots
from outside import taugrid

DATA = Path(__file__).parents[1] / "data"
RECORDED = DATA / "contract.json"
OLD = DATA / "kept-run"

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
        found[name] = shape(taugrid(*(word.format(run=root) for word in words)).json)
    for path in (*root.glob("tables/*.json"), *root.glob("config.json"), *root.glob("provenance.json")):
        found[path.name] = shape(json.loads(path.read_text()))
    found["a score"] = shape(json.loads(min(root.glob("scores/*.json")).read_text()))
    for path in root.glob("tables/*.csv"):
        found[path.name] = {name: {"column"} for name in pd.read_csv(path).columns}
    for kind, path in (("samples", min(root.glob("samples/*/*.parquet"))), ("cells", root / "tables/cells.parquet")):
        found[f"{kind}.parquet"] = {field.name: {str(field.type)} for field in pq.read_schema(path)}
    return {name: {path: sorted(types) for path, types in paths.items()} for name, paths in found.items()}


def options_of(command):
    """Option -> whether it takes a value, of a command's help."""
    text = re.sub(r"\n {20,}", " ", taugrid(*command.split(), "--help").stdout)
    name = r"--?[a-z][a-z-]*"
    lines = [line.split("  ")[0] for line in re.findall(r"^ {2}(-.*)$", text, re.MULTILINE)]
    return {each: bool(re.sub(f"{name}|[,/ ]", "", line)) for line in lines for each in re.findall(name, line)}


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def test_commands_and_options_stay(recorded):
    changed = []
    for command, parameters in recorded["commands"].items():
        now = options_of(command)
        for names, (kind, _, _, is_flag, _) in parameters.items():
            if kind == "option":
                changed += [f"{command} {name}" for name in names.split() if now.get(name) != (not is_flag)]
    assert changed == []


def test_keys_and_columns_stay(recorded, tmp_path):
    """A key keeps one of its types; one of which only null was recorded may have any."""
    shapes = shapes_in(Path(shutil.copytree(OLD / "run", tmp_path / "run")))
    if snapshots.update:
        for name, paths in shapes.items():
            recorded["shapes"][name] = paths | recorded["shapes"].get(name, {})
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    changed = [
        f"{name}: {path} was {types}, is {shapes.get(name, {}).get(path, 'gone')}"
        for name, paths in recorded["shapes"].items()
        for path, types in paths.items()
        if path not in shapes.get(name, {}) or not set(types) & {*shapes[name][path], "NoneType"}
    ]
    assert changed == []


def test_the_shipped_schema_is_that_of_this_version():
    """Renew it: taugrid config schema > configs/schema.json"""
    shipped = json.loads((importlib.resources.files("taugrid") / "configs" / "schema.json").read_text())
    assert shipped == taugrid("config", "schema").json
