"""The files of a release agree with the code, and with what GitHub takes."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ci_schemas import WORKFLOW, workflow

import taugrid

ROOT = Path(__file__).parents[2]


def test_changelog_and_citation_name_this_version_and_one_day():
    version, day = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (version, day) == (str(cited["version"]), str(cited["date-released"])) == (taugrid.__version__, day)


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_a_workflow_is_one_that_github_takes_and_pins_its_actions_by_commit(path):
    document = workflow(path.read_text())
    jsonschema.validate(document, WORKFLOW)
    steps = [step for job in document["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert [action for action in actions if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []
    assert document["permissions"] == {"contents": "read"}


def test_the_workflow_calls_targets_of_the_makefile():
    document = workflow((ROOT / ".github/workflows/ci.yml").read_text())
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    runs = [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    called = {target for run in runs for target in re.findall(r"\bmake (.+)", run)}
    assert ".ci/run" in runs
    assert called - targets == {"${{ matrix.target }}"}
    assert {*document["jobs"]["weekly"]["strategy"]["matrix"]["target"]} <= targets
    assert re.findall(r"^make (\S+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE) == ["check", "test"]


def test_an_issue_form_asks_for_doctor():
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for form in forms:
        assert "doctor" in [item["id"] for item in yaml.safe_load(form.read_text())["body"]]
