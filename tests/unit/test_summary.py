"""summary.md and junit.xml of nights of any size, and verdict.json, from verdicts that were made up."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from snapshots import recorded

from taugrid.errors import UserError
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.eval.nights import NightModel
from taugrid.orchestrator.baseline.canaries import UNCHECKED
from taugrid.orchestrator.baseline.compared import (
    BaselineComparison,
    CellComparison,
    MetricComparison,
    NightBaseline,
    NightScore,
    NightVerdict,
)
from taugrid.orchestrator.baseline.snapshot import Software
from taugrid.orchestrator.baseline.text import comparison_text
from taugrid.orchestrator.nightly.summary import junit_xml, summary


def cell(number, result, **more):
    fid = MetricComparison(12.5, 10.0, 10.0, 2.5, 0.2, Verdict(result), se=0.5, t=4.6, upper=4.0, detectable=1.9)
    name = f"S0010-eta0.{number}-{number:010x}"
    found = {"cell": f"{number:010x}", "name": name, "baseline_cell": name, "situation": "new weights"}
    label = f"S0010-eta0.{number} " + "x" * 60
    return CellComparison(**found, label=label, result=result, metrics={"fid": fid}, judging=("fid",), **more)


def compared(cells):
    result = worst([one.result for one in cells])
    sides = {"only_new": (), "only_baseline": (), "marks": (), "notes": ()}
    checks = {"sampler": UNCHECKED, "scorer": UNCHECKED}
    return BaselineComparison("run", "b.json", result, tuple(cells), **sides, critical=3.1, rule="R", checks=checks)


def verdict(cells, missing=()):
    scores = [NightScore(one.cell, one.name, one.label, {}, {"fid": one.metrics["fid"].value}, None) for one in cells]
    baseline = NightBaseline("b.json", None, "2026-11-25T01:02:03+00:00", "it was good", (), None)
    return NightVerdict(
        night="n", name="big", time="2026-11-26T00:00:00+00:00", result=compared(cells).result, missing=dict(missing),
        failed={}, not_judged=(), baseline=baseline, model=(), images=None, scores=tuple(scores),
        comparison=compared(cells), software=Software(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def large():
    others = {"kid_mean": (0.003, 0.002), "kid": (0.0021, 0.0011), "isc_mean": (2.5, None)}
    results = ["not worse"] * 4000 + ["worse"] * 1000
    return verdict([cell(i, result, others=others, note="n" * 100) for i, result in enumerate(results)],
                   {f"gone-{i}": "r" * 200 for i in range(1000)})  # fmt: skip


def test_a_summary_of_thousands_of_cells_is_under_1_megabyte_and_begins_with_the_verdict(large):
    text = summary(large)
    assert 100_000 < len(text.encode()) < 1_000_000
    recorded(text.splitlines()[0])
    table = [line for line in text.splitlines() if line.startswith("| S0010")]
    assert "**worse**" in table[0], "the worse cells come first"


def test_a_network_without_a_file_is_called_what_it_is(large):
    recorded(summary(replace(large, model=(NightModel(None, "ab" * 32),))), "checkpoint")


def test_metrics_beside_fid_are_shown_with_what_they_were(large):
    text = summary(large)
    recorded(text, "Inception")
    assert "| – → 2.50 | 0.00110 → 0.00210 |" in text
    recorded(text, "Baseline")
    assert "| KID |" in summary(verdict([cell(0, "worse", others={"kid": (3.0, 2.0)})]))
    shown = comparison_text(compared([cell(0, "worse", others={"kid": (0.0021, 0.0011)})]))
    assert "| 0.00110 → 0.00210 |" in shown, "as a night shows them"
    assert "Other metrics" not in summary(verdict([cell(0, "worse")]))


@pytest.mark.parametrize(
    ("metric", "grows", "told"),
    [
        ("fid", False, "N = 12,000"),
        ("fid", True, "--grow-to 12000"),
        ("kid", False, ""),
        ("kid", True, "--grow-to 12000"),
    ],
)
def test_the_n_that_decides_is_named_where_the_margin_stays_with_it(metric, grows, told):
    """KID's margin may be a share of its error, and then shrinks as that does; only growth keeps it."""
    undecided = MetricComparison(0.1, 0.1, 0.1, 0.0, 0.02, Verdict.UNDECIDED, 0.1, -1.0, 0.3, 0.5, decisive=12_000)
    one = replace(cell(0, "undecided"), metrics={metric: undecided}, judging=(metric,), grows=grows)
    text = comparison_text(compared([one]))
    assert told in text
    assert ("12,000" in text or "12000" in text) == bool(told)


def test_a_verdict_is_read_as_it_was_written(large, tmp_path):
    written = json.loads(json.dumps(large.as_dict()))
    assert NightVerdict.read(written, tmp_path) == large
    cell = written["comparison"]["cells"][0]
    assert (cell["fid"], cell["by"], written["comparison"]["margin"]) == (12.5, "fid", 0.02)
    with pytest.raises(UserError):
        NightVerdict.read({**written, "scores": None}, tmp_path)


def test_every_cell_is_a_test_case(large):
    (suite,) = ElementTree.fromstring(junit_xml(large))
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "6000", "failures": "1000", "errors": "1000",
    }  # fmt: skip
    assert "T = +4.6" in suite.find("testcase/failure").text


def test_control_characters_of_an_errors_text_leave_junit_xml_well_formed():
    found = verdict([cell(0, "worse", note="\x1b[31mred")], {"gone": "\x1b[36mray::Worker\x1b[39m: lost\x00"})
    suite = ElementTree.fromstring(junit_xml(found)).find("testsuite")
    assert suite.findtext("testcase/error") == "\ufffd[36mray::Worker\ufffd[39m: lost\ufffd"
    assert suite.findtext("testcase/failure").endswith("\ufffd[31mred")
