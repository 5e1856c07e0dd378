"""The registry of metrics, and that a new metric is one module and one entry in it."""

import pkgutil
import sys

import numpy as np
import pandas as pd
import pytest
from snapshots import recorded

from taugrid.config import Config, validate
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.score import feasible, score
from taugrid.eval.metrics.statistics import Moments, symmetric_root
from taugrid.eval.tables.long_form import COLUMNS
from taugrid.eval.tables.quality import QualityTable, write_quality
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.report.collect import collect
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.registry.extractors import ExtractorSpec
from taugrid.registry.metrics import METRICS, Metric, MetricColumn, MetricSettings
from taugrid.storage import write_sealed

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


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_every_entry_names_functions_and_settings_that_there_are(metric):
    for function in filter(None, (metric.compute, metric.limits)):
        assert callable(pkgutil.resolve_name(function))
    for name in metric.settings:
        assert hasattr(MetricSettings(), name)


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


def test_a_new_metric_reaches_the_config_the_protocol_the_rows_and_the_tables(spread, tmp_path):
    config = validate(Config, ORACLE | {"evaluate": {"metrics": ["fid", "spread"]}}, "test")
    planned = plan(config)
    scoring, rundir = scoring_of(config, planned), RunDir(tmp_path / "run")
    for cell, value in zip(planned.cells, (1.5, 2.5), strict=True):
        protocol = scoring.protocol(cell).as_dict()
        assert protocol["metrics"] == ["fid", "spread"]
        numbers = {"fid": 4.0, "spread": value, "spread_se": 0.125}
        write_sealed(rundir.score(cell, scoring.id(cell)), {"protocol": protocol, "metrics": numbers, "notes": []})
    found = collect(planned, rundir, scoring)
    write_quality(QualityTable(found.rows, found.evidence), tmp_path / "tables")
    csv = pd.read_csv(tmp_path / "tables" / "quality.csv")
    assert list(csv.columns)[: len(COLUMNS)] == list(COLUMNS)
    assert list(csv.columns)[-2:] == ["spread", "spread_se"], "behind all others"
    assert csv["spread"].tolist() == [1.5, 2.5]
    markdown = (tmp_path / "tables" / "quality.md").read_text(encoding="utf-8")
    recorded(markdown, "Spread")
    assert "± is a guess." in markdown
    assert "**2.50 ± 0.12**" in markdown
    recorded((tmp_path / "tables" / "quality.tex").read_text(encoding="utf-8"), "Spread")
