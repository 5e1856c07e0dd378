"""summary.md and junit.xml of a night, for a CI's job summary and its test report, from its verdict."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from taugrid.eval.gate.power import frozen_seeds_remark
from taugrid.eval.gate.verdict import NO_BASELINE, REGRESSIONS, Verdict
from taugrid.eval.nights import NightModel
from taugrid.eval.tables.table import shown_number
from taugrid.orchestrator.baseline import text
from taugrid.orchestrator.baseline.compared import BaselineComparison
from taugrid.orchestrator.baseline.verdict import NightScore, NightVerdict
from taugrid.registry.metrics import COLUMNS
from taugrid.words import listed, markdown_table

MAX_NETWORKS = 4

NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may hold, such as the colours in an error's text from Ray."""


def summary(verdict: NightVerdict) -> str:
    comparison = verdict.comparison
    compared = {cell.label for cell in comparison.cells} if comparison else set()
    page = {} if comparison is None else {
        **text.about(comparison), "not_judged": verdict.not_judged, "sides": _sides(verdict),
        "frozen": _frozen(verdict, comparison),
    }  # fmt: skip
    return text.markdown(
        "night.md",
        verdict=verdict,
        headline=_headline(verdict),
        failed={name: reason for name, reason in verdict.failed.items() if name not in compared},
        missing=list(verdict.missing.items())[: text.MAX_ROWS],
        scores=_scores(verdict.scores[: text.MAX_ROWS]),
        **({"compared": None} | page),
    ) + "\n"  # fmt: skip


def _headline(verdict: NightVerdict) -> str:
    """The first line without the night's name."""
    comparison = verdict.comparison
    if verdict.result == Verdict.COLLAPSED:
        facts = text.facts(comparison) if comparison else []
        headline = f"{text.BAD} {'; '.join([text.explained(Verdict.COLLAPSED), *facts])}"
    elif comparison is not None:
        headline = text.headline(comparison)
    else:
        headline = "no baseline yet" if verdict.result == NO_BASELINE else "⚠️ incomplete"
    if verdict.missing:
        return f"⚠️ incomplete: {len(verdict.missing)} missing; so far: {headline}"
    return headline


def _scores(scores: Sequence[NightScore]) -> str:
    """A table of the first metric of the registry that the scores have: FID, if they have it."""
    known = (column for name, column in COLUMNS.items() if any(name in score.metrics for score in scores))
    column = next(known, COLUMNS["fid"])
    errors = column.sampling_error or column.error or ""
    numbers = ((score.metrics.get(column.name), score.metrics.get(errors)) for score in scores)
    rows = [(score.label, shown_number(*number)) for score, number in zip(scores, numbers, strict=True)]
    return markdown_table(("cell", column.title), "lr", rows)


def _sides(verdict: NightVerdict) -> dict[str, str]:
    """The networks and the code of the baseline and of tonight, as far as the verdict knows them."""
    if images := verdict.images:
        return {"tonight": f"`{images.path}` ({images.sha256[:10]}), scored with `{images.options}`"}
    recorded: dict[str, tuple[Sequence[NightModel], str | None]] = {}
    if verdict.baseline is not None:
        recorded["baseline"] = verdict.baseline.model, verdict.baseline.git_commit
    recorded["tonight"] = verdict.model, verdict.software.git_commit
    sides = {}
    for side, (networks, commit) in recorded.items():
        names = []
        for network in networks:
            place = f"`{network.checkpoint}`" if network.checkpoint else "no checkpoint"
            names.append(f"{place} ({(network.weights_sha256 or 'unknown')[:10]})")
        if names:
            sides[side] = listed(names, MAX_NETWORKS) + (f", commit {commit[:10]}" if commit else "")
    return sides


def _frozen(verdict: NightVerdict, comparison: BaselineComparison) -> str:
    """The remark on changes that the usual seeds may hide, where a cell is undecided."""
    undecided = any(cell.result == Verdict.UNDECIDED for cell in comparison.cells)
    if not undecided or comparison.usual_critical is None or verdict.images:
        return ""
    n = min(score.settings["num_samples"] for score in verdict.scores)
    remark = frozen_seeds_remark(comparison.usual_critical, n)
    return f"{remark[0].upper()}{remark[1:]}."


def junit_xml(verdict: NightVerdict) -> str:
    """A test case for each cell. Regressions fail, missing cells are errors, and undecided ones are skipped."""
    suite = ElementTree.Element("testsuite", {"name": verdict.name, "timestamp": verdict.time})
    cells = {cell.cell: cell for cell in verdict.comparison.cells} if verdict.comparison else {}
    for score in verdict.scores:
        cell, label = cells.get(score.cell), score.label
        if cell is None:
            kind = "failure" if label in verdict.failed else ""
            _add_case(suite, label, kind, Verdict.COLLAPSED, verdict.failed.get(label, ""))
        elif cell.result in REGRESSIONS:
            _add_case(suite, label, "failure", cell.result, text.reason(cell))
        else:
            is_open = cell.result in (Verdict.UNDECIDED, Verdict.NOT_JUDGED)
            _add_case(suite, label, "skipped" if is_open else "", text.reason(cell))
    for reason in verdict.not_judged:  # the command exits with 5, so its page must not be green
        _add_case(suite, "the whole night", "failure", Verdict.NOT_JUDGED, reason)
    for name, reason in verdict.missing.items():
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
