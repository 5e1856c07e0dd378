"""The benchmark of evaluation tells what a cell costs apart from what the first one costs."""

from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return import_module("benchmarks.evaluation")


def test_the_first_cell_is_no_part_of_the_later_ones_median(benchmark, capsys):
    slow, fast = ({benchmark.THEIRS: 9.0, benchmark.OURS: seconds} for seconds in (9.0, 6.0))
    benchmark.report("kid", [slow, fast])
    assert "ratio 1.50" in capsys.readouterr().out
    benchmark.report("kid", [slow])
    assert "ratio 1.00" in capsys.readouterr().out
