"""Cost beside quality, and which cells are Pareto-optimal."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_one_table import SCHEDULE, TRAINING, ablation
from test_tables import table

from taugrid.eval.figures.ablation import GREY, costs_figure
from taugrid.eval.tables.cost import costs, costs_markdown, pareto, write_costs


def rows():
    """Two schedules, two trainings, S = 10 and 20; cosine is better at S = 10 and no better at 20."""
    fids = {("linear", 10): 9.0, ("linear", 20): 5.0, ("cosine", 10): 7.0, ("cosine", 20): 6.0}
    made = ablation({(s, None, seed, steps): fid + seed for (s, steps), fid in fids.items() for seed in (0, 1)})
    seconds = {"linear": 0.4, "cosine": 0.2}
    return [
        row | {"network_evaluations": row["steps"], "seconds": seconds[row[SCHEDULE]] * row["steps"]} for row in made
    ]


def test_means_over_replicates_with_what_they_took():
    found = costs(table(rows()), {row["cell"]: 10.0 + row[TRAINING] for row in rows()})
    assert [(c.settings["schedule"], c.settings["S"], c.value, c.evaluations, c.train_seconds) for c in found] == [
        ("linear", "10", 9.5, 10, 10.5), ("linear", "20", 5.5, 20, 10.5),
        ("cosine", "10", 7.5, 10, 10.5), ("cosine", "20", 6.5, 20, 10.5),
    ]  # fmt: skip
    assert [c.seconds for c in found] == pytest.approx([10.0, 20.0, 5.0, 10.0]), "400 images took 4 s"
    assert [c.best_for_evaluations for c in found] == [False, True, True, False]
    assert [c.best_for_seconds for c in found] == [False, True, True, True]


def cheapest(found, what):
    return [cost for cost in found if getattr(cost, f"best_for_{what}")]


def test_the_figure_marks_the_cells_of_the_table():
    found = costs(table(rows()), {})
    assert costs_markdown(found).count("●") == 1 + 5
    figure = costs_figure(found)
    figure.draw_without_rendering()
    assert [len(panel.containers) for panel in figure.axes] == [4, 4]
    for panel, names in zip(figure.axes, (cheapest(found, "evaluations"), cheapest(found, "seconds")), strict=True):
        (front,) = [line for line in panel.lines if line.get_color() == GREY]
        assert sorted(front.get_ydata()) == sorted(cost.value for cost in names)
    assert costs(table([]), {}) == []


def test_cost_goes_by_the_metric_that_decides(tmp_path):
    kid = {10: 0.02, 20: -0.01}
    once = [row for row in rows() if not row[TRAINING]]
    found = costs(table([row | {"fid_se": None, "kid": kid[row["steps"]], "kid_se": 0.001} for row in once]), {})
    assert [cost.best_for_evaluations for cost in found] == [True] * 4, "by FID, two are worse"
    write_costs(found, tmp_path)
    frame = pd.read_csv(tmp_path / "cost.csv")
    assert list(frame.columns[4:9]) == ["fid", "fid_se", "kid", "kid_se", "evaluations_per_image"]
    assert list(frame["fid"]) == [row["fid"] for row in once]
    assert costs_figure(found).axes[0].get_yscale() == "linear", "KID may be 0 or less"


def test_columns_of_costs_have_the_names_of_quality_csv(tmp_path):
    once = [row for row in rows() if not row[TRAINING]]
    scored = [row | {"fid": None, "fid_se": None, "isc_mean": 3.0, "isc_std": 0.5, "isc_se": 0.1} for row in once]
    write_costs(costs(table(scored), {}), tmp_path)
    frame = pd.read_csv(tmp_path / "cost.csv")
    assert list(frame["isc_se"]) == [0.1] * 4
    assert "isc_mean_se" not in frame


def test_cells_that_cannot_be_compared_do_not_beat_each_other_and_what_has_no_cost_is_not_marked():
    assert pareto([("a", 1, 5.0), ("b", 1, 4.0), ("a", 2, 5.0), ("a", None, 1.0)]) == [True, True, False, False]
    assert pareto([("a", 1, 5.0), ("a", 1, 5.0)]) == [True, True]


@given(st.lists(st.tuples(st.just(0), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_every_point_is_optimal_or_beaten_by_an_optimal_one(points):
    marks = pareto(points)
    best = [point for point, mark in zip(points, marks, strict=True) if mark]
    for point, mark in zip(points, marks, strict=True):
        beaten = any(a[1] <= point[1] and a[2] <= point[2] and a[1:] != point[1:] for a in best)
        assert mark != beaten
