"""The figure of a history: its verdicts, its gaps, and where it says that the baseline is another."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from taugrid.eval.pages.history import judged_metrics, trend_figure
from taugrid.orchestrator.nightly.history import SCHEMA
from taugrid.registry.metrics import COLUMNS


def history(*cells):
    told = {"metric": "fid", "value": 5.0, "se": 0.1, "baseline_value": 5.0, "margin": 0.1}
    rows = [
        dict.fromkeys(SCHEMA.names) | told | {"night": night, "steps": steps, "baseline": baseline, "label": label}
        for night, steps, baseline in cells
        for label in [f"S{steps:04d}-eta0"]
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()


def new_baselines(panel):
    return [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"]


def test_a_night_without_an_s_or_a_baseline_does_not_make_the_next_ones_baseline_new():
    rows = history(
        ("1", 10, None), ("1", 20, None), ("2", 10, "A"), ("2", 20, "A"), ("3", 20, "A"), ("4", 10, "A"),
        ("4", 20, None), ("5", 10, "B"), ("5", 20, "B"),
    )  # fmt: skip
    of_10, of_20 = trend_figure(rows, dict.fromkeys("12345", "green")).axes
    assert new_baselines(of_10) == [0.5, 3.5], "the third night had no S = 10"
    assert new_baselines(of_20) == [0.5, 3.5], "the fourth had no baseline"


def test_a_metric_beside_fid_has_a_figure_if_it_judged_the_nights():
    """KID of images from elsewhere, negative and without an S."""
    told = {"metric": "kid", "value": -1e-4, "se": 1e-5, "baseline_value": -2e-4, "margin": 1e-5, "t": 4.0}
    rows = [dict.fromkeys(SCHEMA.names) | told | {"night": night, "label": "images"} for night in "12"]
    frame = pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()
    assert judged_metrics(frame) == [COLUMNS["kid"]]
    of_both = pd.concat([frame, history(("1", 10, "A")).assign(t=1.0)])
    assert [metric.name for metric in judged_metrics(of_both)] == ["fid", "kid"]
    assert judged_metrics(of_both.assign(t=np.nan)) == [COLUMNS["fid"]], "nothing judged: the first"
    (panel,) = trend_figure(frame, dict.fromkeys("12", "green"), {}, COLUMNS["kid"]).axes
    line = next(line for line in panel.lines if line.get_linestyle() == "-")
    assert (panel.get_title(), list(line.get_ydata())) == ("images", pytest.approx([-1e-4, -1e-4]))
    assert panel.get_ylabel().startswith(COLUMNS["kid"].title)
    (band,) = [shape for shape in panel.collections if shape.get_alpha() == 0.2]
    assert [part.vertices[:, 1].max() for part in band.get_paths()] == pytest.approx([-1.9e-4, -1.9e-4])


def test_a_band_covers_each_night_that_has_a_baseline_from_its_fid_to_that_and_the_margin():
    rows = history(("1", 10, None), ("2", 10, "A"), ("4", 10, "A"))
    (panel,) = trend_figure(rows, dict.fromkeys("1234", "grey")).axes
    (band,) = [shape for shape in panel.collections if shape.get_alpha() == 0.2]
    corners = [(part.vertices.min(axis=0).tolist(), part.vertices.max(axis=0).tolist()) for part in band.get_paths()]
    assert corners == [([place - 0.5, 5.0], [place + 0.5, pytest.approx(5.1)]) for place in (0, 1, 3)]
