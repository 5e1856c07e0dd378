"""A metric from outside: a file and its registration. It reads a column of the sample files and needs no reference."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from in_process import CONFIG, drive, small_run
from snapshots import raises

from taugrid.errors import UserError
from taugrid.orchestrator.external import score_images
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.registry import metrics
from taugrid.registry.extractors import PIXELS
from taugrid.registry.metrics import Metric, MetricColumn
from taugrid.storage import LOCAL, read_json

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

TOY = """
from taugrid.eval.metrics.score import MetricResult

def drift(inputs):
    assert inputs.reference is None
    index = inputs.columns["index"]
    grey = [float(row.mean()) for chunk in inputs.features() for row in chunk]
    slope = sum(i * g for i, g in zip(index, grey)) / inputs.num_samples
    return MetricResult({"drift": slope, "drift_se": 0.125})
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_metric.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    column = MetricColumn("drift", "Drift", "drift_se", "a guess")
    found = Metric("drift", "a toy", (column,), "toy_metric:drift", needs_reference=False, sample_columns=("index",))
    monkeypatch.setitem(metrics.METRICS, "drift", found)


def test_a_metric_from_outside_is_in_scores_and_tables(toy, tmp_path):
    with small_run(tmp_path, CONFIG.replace("metrics: [fid]", "metrics: [drift]")) as opened:
        drive(opened, tmp_path / "run", LOCAL)
        Session(replace(opened, rundir=RunDir(tmp_path / "run")), "local", Progress.silent()).do(("report",))
    frame = pd.read_csv(tmp_path / "run/tables/quality.csv")
    assert len(frame) == len(opened.plan.cells)
    assert list(frame.columns)[-2:] == ["drift", "drift_se"], "behind all others"
    assert "± is a guess." in (tmp_path / "run/tables/quality.md").read_text(encoding="utf-8")
    features = tmp_path / "run/features"
    for _, row in frame.iterrows():
        parts = sorted(features.glob(f"*/*{row['cell']}/part-*.parquet"))
        grey = np.concatenate([np.stack(pd.read_parquet(part)["features"]).mean(axis=1) for part in parts])
        assert row["drift"] == pytest.approx((np.arange(len(grey)) * grey).sum() / len(grey), rel=1e-5)
    [protocol] = {
        tuple(each["metrics"]) for each in read_json(tmp_path / "run/tables/quality.json")["protocols"].values()
    }
    assert protocol == ("drift",)


def test_images_from_elsewhere_have_no_such_column(toy):
    images = np.zeros((20, 4, 4), dtype=np.uint8)
    with raises(UserError):
        score_images([images], images, {"extractor": PIXELS, "metrics": ["drift"]}, (), Progress.silent())
