"""The figure of a history: where it says that the baseline is another."""

import pyarrow as pa

from taugrid.eval.figures.trend import trend_figure
from taugrid.orchestrator.nightly.history import SCHEMA


def history(*cells):
    """Rows of (night, S, baseline)."""
    told = {"fid": 5.0, "fid_se": 0.1, "baseline_fid": 5.0, "margin": 0.1}
    rows = [
        dict.fromkeys(SCHEMA.names) | told | {"night": night, "steps": steps, "baseline": baseline, "label": label}
        for night, steps, baseline in cells
        for label in [f"S{steps:04d}-eta0"]
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()


def new_baselines(panel):
    """Between which nights a panel has its dotted lines."""
    return [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"]


def test_a_night_without_an_s_or_a_baseline_does_not_make_the_next_ones_baseline_new():
    figure = trend_figure(history(
        ("1", 10, None), ("1", 20, None), ("2", 10, "A"), ("2", 20, "A"), ("3", 20, "A"), ("4", 10, "A"),
        ("4", 20, None), ("5", 10, "B"), ("5", 20, "B"),
    ))  # fmt: skip
    of_10, of_20 = figure.axes
    assert new_baselines(of_10) == [0.5, 3.5], "the third night had no S = 10"
    assert new_baselines(of_20) == [0.5, 3.5], "the fourth had no baseline"
