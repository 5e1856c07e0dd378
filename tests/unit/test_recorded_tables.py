"""Tables, page and terminal of two recorded runs: as they were when the fixture was recorded, byte for byte.

The rows and influences are those of small runs of oracles. `expected/` holds what taugrid made of them then.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from taugrid.config.load import load
from taugrid.eval.tables.differences import Evidence
from taugrid.orchestrator.cli.text import print_result
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.report.collect import Rows
from taugrid.orchestrator.report.write import write_report
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import SessionResult
from taugrid.orchestrator.view.page import write_page

RECORDED = Path(__file__).parents[1] / "fixtures/recorded-tables"
COMPUTED = ("differences.csv", "effects.csv", "cost.csv")
"""Their numbers come from sums over samples, whose last digits depend on the processor."""
pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


@pytest.fixture(scope="module", params=["paper", "ablation"])
def reported(request, tmp_path_factory):
    """What a recorded run's report held, its quality table, and the run directory that it is reported in now."""
    folder = RECORDED / request.param
    recorded = json.loads((folder / "collected.json").read_text())
    influences = dict(np.load(folder / "influences.npz"))
    evidence = Evidence(influences, recorded["pairings"], recorded["protocols"], recorded["reasons"])
    config = load(str(folder / "config.yaml"))
    rundir = RunDir(tmp_path_factory.mktemp(request.param))
    run = Run(config, plan(config), rundir)
    quality = write_report(run, Rows(recorded["rows"], recorded["notes"], evidence))
    write_page(run)
    return folder / "expected", quality, rundir


def as_numbers(text):
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.8g}", text)


@pytest.mark.long
def test_tables_are_byte_for_byte_what_they_were(reported):
    expected, _, rundir = reported
    names = {path.name for path in expected.iterdir()} - {"report.html", "terminal.txt"}
    assert {path.name for path in rundir.tables.iterdir()} == names
    for name in names:
        now, then = ((folder / name).read_text(encoding="utf-8") for folder in (rundir.tables, expected))
        assert (as_numbers(now) == as_numbers(then)) if name in COMPUTED else (now == then), name


def test_the_page_says_what_it_said(reported):
    expected, _, rundir = reported
    page = rundir.report.read_text(encoding="utf-8")
    drawn = r"<(style|script|svg)\b.*?</\1>|<meta http-equiv[^>]*>"
    assert re.sub(drawn, "", page, flags=re.DOTALL) == (expected / "report.html").read_text(encoding="utf-8")


def test_the_terminal_shows_what_it_showed(reported, capsys, monkeypatch):
    expected, quality, rundir = reported
    monkeypatch.setenv("COLUMNS", "80")
    print_result(rundir, SessionResult({}, quality.rows, quality))
    assert capsys.readouterr().out == (expected / "terminal.txt").read_text(encoding="utf-8")
