"""The registry of metrics, and that a new metric is one module and one entry in it."""

import sys

import numpy as np
import pytest
from snapshots import recorded

from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.score import feasible, score
from taugrid.eval.metrics.statistics import Moments, symmetric_root
from taugrid.registry.extractors import ExtractorSpec
from taugrid.registry.metrics import METRICS, Metric, MetricColumn, MetricSettings

ORACLE = {
    "name": "x",
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "model": {"oracle": "gaussian"},
    "sample": {"seed": 0, "num_samples": 100, "batch_size": 10, "steps": 5},
    "grid": {"eta": [0.0, 1.0]},
}

SPREAD = """
from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.registry.metrics import Limits, MetricSettings, Sizes


def spread_limits(settings: MetricSettings, sizes: Sizes) -> Limits:
    return Limits("it needs 3 samples" if sizes.num_samples < 3 else None)


def compute_spread(inputs: MetricInputs) -> MetricResult:
    values = inputs.all_features
    return MetricResult({"spread": float(values.std()), "spread_se": 0.125}, notes=("a note on spread",))
"""


@pytest.fixture
def spread(tmp_path, monkeypatch):
    (tmp_path / "spread_metric.py").write_text(SPREAD)
    monkeypatch.syspath_prepend(tmp_path)
    column = MetricColumn("spread", "Spread", "spread_se", "a guess", higher_is_better=True)
    metric = Metric(
        "spread",
        "standard deviation of all features",
        (column,),
        compute="spread_metric:compute_spread",
        limits="spread_metric:spread_limits",
        needs_all_features=True,
    )
    monkeypatch.setitem(METRICS, "spread", metric)
    yield metric
    sys.modules.pop("spread_metric", None)


def scored(values, metrics):
    moments = Moments.of(values)
    reference = ReferenceStatistics(moments, symmetric_root(moments.covariance), len(values))
    stream = lambda: iter([values])  # noqa: E731
    return score(stream, None, len(values), reference, MetricSettings(metrics))


def test_a_new_metric_is_scored(spread):
    values = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    found = scored(values, ("spread", "fid"))
    assert list(found.values) == ["fid", "fid_se", "spread", "spread_se"], "in the order of the registry"
    assert found.values["spread"] == float(values.std())
    recorded("\n".join(found.notes))
    alone = scored(values, ("fid",))
    assert alone.values == {name: found.values[name] for name in ("fid", "fid_se")}
    assert np.array_equal(alone.influences["fid"], found.influences["fid"])


def test_a_new_metric_says_when_it_cannot_be_given(spread):
    spec = ExtractorSpec("pixels", None, "0" * 64, "pixels", None, 4, None)
    found = [feasible(MetricSettings(("spread",)), spec, n, 100) for n in (2, 3)]
    assert [each.settings.metrics for each in found] == [(), ("spread",)]
    recorded(found[0].reasons["spread"])
