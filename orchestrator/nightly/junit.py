"""junit.xml of a night: a test case for each cell, so that a CI's own pages show which cells failed and why."""

import re
from typing import Any
from xml.etree import ElementTree

from taugrid.orchestrator.baseline.verdict import REGRESSIONS, Verdict

SKIPPED = (Verdict.UNDECIDED, Verdict.NOT_JUDGED)
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may hold, such as the colours in an error's text from Ray."""


def junit_xml(verdict: dict[str, Any]) -> str:
    """The document. Worse cells fail, missing ones are errors, and undecided ones are skipped with the reason."""
    from taugrid.orchestrator.nightly.summary import reasons

    told, failed = reasons(verdict), verdict.get("failed", {})
    results = {cell["cell"]: Verdict(cell["result"]) for cell in (verdict["comparison"] or {"cells": []})["cells"]}
    suite = ElementTree.Element("testsuite", {"name": verdict["name"], "timestamp": verdict["time"]})
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for score in verdict["scores"]:
        result = results.get(score["cell"], Verdict.COLLAPSED if score["label"] in failed else None)
        case = _case(suite, verdict, score["label"])
        counts["tests"] += 1
        if result in REGRESSIONS:
            counts["failures"] += 1
            why = told.get(score["cell"]) or failed.get(score["label"], "")
            ElementTree.SubElement(case, "failure", {"message": result}).text = why
        elif result in SKIPPED:
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", {"message": told[score["cell"]]})
    for said in verdict.get("not_judged", ()):  # the command ends with 5, so its page must not be green
        counts["tests"] += 1
        counts["failures"] += 1
        ElementTree.SubElement(
            _case(suite, verdict, "the whole night"), "failure", {"message": "not judged"}
        ).text = said
    for name, reason in verdict["missing"].items():
        counts["tests"] += 1
        counts["errors"] += 1
        ElementTree.SubElement(_case(suite, verdict, name), "error", {"message": "missing"}).text = reason
    suite.attrib |= {name: str(number) for name, number in counts.items()}
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text = NOT_XML.sub("\ufffd", ElementTree.tostring(root, encoding="unicode"))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _case(suite: ElementTree.Element, verdict: dict[str, Any], name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", {"classname": verdict["name"], "name": name})
