"""The files of a release agree with the code, and with what GitHub takes."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ci_schemas import ISSUE_FORM, WORKFLOW, workflow

import taugrid

ROOT = Path(__file__).parents[2]
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]


def test_changelog_and_citation_name_this_version_and_one_day():
    version, day = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version == str(cited["version"]) == taugrid.__version__
    assert str(cited["date-released"]) == day
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_the_workflow_is_one_that_github_takes_and_calls_targets_of_the_makefile():
    document = workflow((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jsonschema.validate(document, WORKFLOW)
    called = {step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step}
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert ".ci/run" in called
    assert re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE) == ["check", "test"]
    weekly = document["jobs"]["weekly"]["strategy"]["matrix"]["target"]
    assert {run.removeprefix("make ") for run in called - {".ci/run", "make ${{ matrix.target }}"}} <= set(targets)
    assert set(weekly) <= set(targets)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_an_issue_form_is_one_that_github_takes_and_asks_for_doctor(form):
    document = yaml.safe_load(form.read_text())
    jsonschema.validate(document, ISSUE_FORM)
    ids = [item["id"] for item in document["body"]]
    assert len(set(ids)) == len(ids)
    assert "doctor" in ids


def test_links_of_contributing_and_changelog_lead_somewhere():
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text())
        assert links
        assert all(link.startswith("https:") or (ROOT / link).exists() for link in links)
    listed = re.findall(r"`((?:workers|eval|orchestrator|taugrid)/[\w/.]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert all((ROOT / path).exists() for path in listed)
