"""docs/reference/ is what tools/docs/reference.py makes of the code, and lists what the code has."""

import json
import re

import pytest
from pages import ROOT

from tools.docs import reference

FOLDER = ROOT / "docs/reference"
SHAPES = json.loads((ROOT / "tests/data/contract.json").read_text())["shapes"]
READ = re.compile(
    r"(?:environ\.(?:get|pop|setdefault)\(|environ\[|envvar=|variable\(|^ON_\w+ = \(|^\w+_VARIABLE = )([^)\]\n]*)",
    re.MULTILINE,
)
SET_BY_TAUGRID = {"CUBLAS_WORKSPACE_CONFIG", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_JOB_CONFIG_JSON_ENV_VAR"}


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_up_to_date(name):
    assert (FOLDER / f"{name}.md").read_text() == reference.page(name), "run `make docs`"


@pytest.mark.parametrize("name", ["quality.csv", "cells.csv", "cost.csv", "differences.csv"])
def test_the_columns_of_a_real_run_are_listed(name):
    sections = re.split(r"^## ", (FOLDER / "tables.md").read_text(), flags=re.MULTILINE)
    section = next(section for section in sections if section.startswith(name))
    assert set(SHAPES[name]) - set(re.findall(r"^- `([^`]+)`", section, re.MULTILINE)) <= {"S", "η"}


def test_every_variable_that_the_code_reads_is_listed():
    files = [file for room in ("taugrid", "orchestrator", "workers", "eval") for file in (ROOT / room).rglob("*.py")]
    read = {
        name for file in files for found in READ.findall(file.read_text()) for name in re.findall(r'"([A-Z_]+)"', found)
    }
    assert len(read) > 12
    assert read - SET_BY_TAUGRID <= set(reference.MEANINGS["variables"])
