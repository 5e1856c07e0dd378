"""summary.md and junit.xml of a night, for a CI's job summary and its test report, from the content of verdict.json."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from taugrid.eval.gate.power import frozen_seeds_remark
from taugrid.eval.gate.verdict import NO_BASELINE, REGRESSIONS, Verdict
from taugrid.eval.pages.environment import environment
from taugrid.eval.tables.entries import shown_number
from taugrid.orchestrator.baseline import text
from taugrid.orchestrator.nightly.outcome import worst_first
from taugrid.registry.metrics import COLUMNS, MetricColumn
from taugrid.words import counted, listed, markdown_table

MAX_ROWS = 200
"""Rows of a table: GitHub accepts summaries of 1 MB."""
MAX_LISTED = 20
MAX_NETWORKS = 4

NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may hold, such as the colours in an error's text from Ray."""


def summary(verdict: Mapping[str, Any]) -> str:
    comparison, labels = verdict["comparison"], {score["cell"]: score["label"] for score in verdict["scores"]}
    compared = {cell["label"] for cell in (comparison or {"cells": []})["cells"]}
    page: dict[str, Any] = {
        "verdict": verdict,
        "compared": comparison,
        "headline": _headline(verdict),
        "failed": {name: reason for name, reason in verdict["failed"].items() if name not in compared},
        "missing": list(verdict["missing"].items())[:MAX_ROWS],
        "scores": _scores(verdict["scores"][:MAX_ROWS]),
    }
    if comparison is not None:
        cells = sorted(comparison["cells"], key=worst_first)
        page |= {
            "counts": text.counts(comparison),
            "check_lines": text.check_lines(comparison),
            "cells": _cells(cells[:MAX_ROWS], labels),
            "cells_left_out": counted(len(cells) - MAX_ROWS, "more cell") if len(cells) > MAX_ROWS else "",
            "margin": text.margin(comparison),
            "sides": _sides(verdict),
            "others": _others(comparison["cells"], labels),
            "not_judged": text.NOT_JUDGED,
            "unmatched": text.unmatched(comparison, MAX_LISTED),
            "frozen": _frozen(verdict, comparison),
        }
    rendered = environment().overlay(autoescape=False).get_template("night.md").render(page)
    return re.sub(r"\n{3,}", "\n\n", rendered).strip() + "\n"


def _headline(verdict: Mapping[str, Any]) -> str:
    """The first line without the night's name."""
    comparison = verdict["comparison"]
    if verdict["result"] == Verdict.COLLAPSED:
        facts = text.facts(comparison) if comparison else []
        headline = f"{text.BAD} {'; '.join([text.explained(Verdict.COLLAPSED), *facts])}"
    elif comparison is not None:
        headline = text.headline(comparison)
    else:
        headline = "no baseline yet" if verdict["result"] == NO_BASELINE else "⚠️ incomplete"
    if verdict["missing"]:
        return f"⚠️ incomplete: {len(verdict['missing'])} missing; so far: {headline}"
    return headline


def _cells(cells: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    columns, rows = text.judged_columns(cells), []
    for cell in cells:
        result, metrics = Verdict(cell["result"]), text.tests(cell)
        shown = f"**{result}**" if result.is_regression else result
        numbers = (number for column in columns for number in _numbers(metrics.get(column.name), column))
        rows.append((labels[cell["cell"]], shown, *numbers, "; ".join(text.remarks(cell))))
    heads = (head for column in columns for head in (f"baseline {column.title}", column.title, "change", "T"))
    return markdown_table(("cell", "verdict", *heads, ""), f"ll{'r' * 4 * len(columns)}l", rows)


def _numbers(metric: Mapping[str, Any] | None, column: MetricColumn) -> tuple[str, ...]:
    """The baseline's value, the new one, the change and T; empty if the cell was not judged by this metric."""
    if metric is None:
        return ("",) * 4
    t = "" if metric["t"] is None else format(metric["t"], "+.1f")
    return (*text.sides(metric, column), text.change(metric, column), t)


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    """A table of the first metric of the registry that the scores have: FID, if they have it."""
    known = (column for name, column in COLUMNS.items() if any(name in score["metrics"] for score in scores))
    column = next(known, COLUMNS["fid"])
    scored = [(score["label"], score["metrics"]) for score in scores]
    errors = column.sampling_error or column.error or ""
    rows = [(label, shown_number(metrics.get(column.name), metrics.get(errors))) for label, metrics in scored]
    return markdown_table(("cell", column.title), "lr", rows)


def _others(cells: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """A table of the metrics that judged no cell; empty if there are none."""
    columns = text.columns_in(cells)
    if not columns:
        return ""
    changes = ([text.other_change(cell, column, "→") for column in columns] for cell in cells[:MAX_ROWS])
    rows = [(labels[cell["cell"]], *values) for cell, values in zip(cells, changes, strict=False)]
    return markdown_table(("cell", *(column.title for column in columns)), "l" + "r" * len(columns), rows)


def _sides(verdict: Mapping[str, Any]) -> dict[str, str]:
    """The networks and the code of the baseline and of tonight, as far as the verdict knows them."""
    baseline, software = verdict["baseline"], verdict["software"]
    recorded = {"baseline": (baseline["model"], baseline["git_commit"]),
                "tonight": (verdict["model"], software.get("git_commit"))}  # fmt: skip
    if images := verdict.get("images"):
        return {"tonight": f"`{images['path']}` ({images['sha256'][:10]}), scored with `{images['options']}`"}
    sides = {}
    for side, (networks, commit) in recorded.items():
        names = []
        for network in networks:
            place = f"`{network['checkpoint']}`" if network["checkpoint"] else "no checkpoint"
            names.append(f"{place} ({(network['weights_sha256'] or 'unknown')[:10]})")
        if names:
            sides[side] = listed(names, MAX_NETWORKS) + (f", commit {commit[:10]}" if commit else "")
    return sides


def _frozen(verdict: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """The remark on changes that the usual seeds may hide, where a cell is undecided."""
    undecided = any(cell["result"] == Verdict.UNDECIDED for cell in comparison["cells"])
    if not undecided or comparison["usual_critical"] is None or verdict.get("images"):
        return ""
    n = min(score["settings"]["num_samples"] for score in verdict["scores"])
    remark = frozen_seeds_remark(comparison["usual_critical"], n)
    return f"{remark[0].upper()}{remark[1:]}."


def junit_xml(verdict: Mapping[str, Any]) -> str:
    """A test case for each cell. Regressions fail, missing cells are errors, and undecided ones are skipped."""
    suite = ElementTree.Element("testsuite", {"name": verdict["name"], "timestamp": verdict["time"]})
    cells = {cell["cell"]: cell for cell in (verdict["comparison"] or {"cells": []})["cells"]}
    failed = verdict["failed"]
    for score in verdict["scores"]:
        cell, label = cells.get(score["cell"]), score["label"]
        if cell is None:
            kind = "failure" if label in failed else ""
            _add_case(suite, label, kind, Verdict.COLLAPSED, failed.get(label, ""))
        elif cell["result"] in REGRESSIONS:
            _add_case(suite, label, "failure", cell["result"], text.reason(cell))
        else:
            is_open = Verdict(cell["result"]) in (Verdict.UNDECIDED, Verdict.NOT_JUDGED)
            _add_case(suite, label, "skipped" if is_open else "", text.reason(cell))
    for reason in verdict["not_judged"]:  # the command exits with 5, so its page must not be green
        _add_case(suite, "the whole night", "failure", Verdict.NOT_JUDGED, reason)
    for name, reason in verdict["missing"].items():
        _add_case(suite, name, "error", "missing", reason)
    counts = {"tests": "testcase", "failures": "*/failure", "errors": "*/error", "skipped": "*/skipped"}
    suite.attrib |= {name: str(len(suite.findall(path))) for name, path in counts.items()}
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    xml = NOT_XML.sub("\ufffd", ElementTree.tostring(root, encoding="unicode"))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{xml}\n'


def _add_case(suite: ElementTree.Element, name: str, kind: str, message: str, why: str | None = None) -> None:
    """Add a case of that name; `kind` is failure, error or skipped, or empty if it passes."""
    case = ElementTree.SubElement(suite, "testcase", {"classname": suite.attrib["name"], "name": name})
    if kind:
        ElementTree.SubElement(case, kind, {"message": message}).text = why
