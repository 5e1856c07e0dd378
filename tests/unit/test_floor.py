"""The floor is what the metrics themselves give for real images against other real images."""

import json
from dataclasses import replace

import numpy as np
import pytest
from snapshots import recorded

from taugrid.eval.metrics import floor as floor_module
from taugrid.eval.metrics.floor import DRAWS, Floor, floor_path, floors, keep_floors, read_floors
from taugrid.eval.metrics.frechet import frechet_distance
from taugrid.eval.metrics.kernel import discrepancy
from taugrid.eval.metrics.neighbours import covered
from taugrid.eval.metrics.reference_statistics import of_features
from taugrid.eval.metrics.statistics import Moments
from taugrid.registry.metrics import METRICS, MetricSettings

pytestmark = pytest.mark.usefixtures("one_thread")

REAL = (np.random.default_rng(0).standard_normal((500, 12)) * np.geomspace(2, 0.1, 12) + 1).astype(np.float32)
SETTINGS = MetricSettings(("fid", "kid", "prc"), kid_subsets=3, kid_subset_size=50)


@pytest.fixture
def reference():
    return of_features(lambda: iter([REAL]), len(REAL), None, "key", lambda: REAL)


def drawn(n, rest=None):
    stream = np.random.RandomState(SETTINGS.seed)
    for _ in range(DRAWS):
        order = stream.permutation(len(REAL))
        yield REAL[order[:n]], REAL[order[n:]][:rest]


@pytest.mark.parametrize("n", [8, 100, 250], ids=["fewer than features", "many", "halves"])
def test_a_floor_is_the_metric_of_disjoint_real_images(n, monkeypatch):
    monkeypatch.setattr(floor_module, "LEAST_REFERENCE", 120)
    found = floors(REAL, Moments.of(REAL), n, SETTINGS)
    distances = [frechet_distance(Moments.of(a), Moments.of(b)) for a, b in drawn(n)]
    assert found["fid"] == pytest.approx((np.mean(distances), np.std(distances, ddof=1), n, 500 - n, 5, n), rel=1e-7)
    of_rest = max(n, 120)
    kid = [discrepancy(a, b, {}).value for a, b in drawn(n, of_rest)]
    assert found["kid"] == pytest.approx((np.mean(kid), np.std(kid, ddof=1), n, of_rest, 5, n), rel=1e-6)
    recall = [covered(a, b, 3)[1].mean() for a, b in drawn(n, of_rest)]
    assert found["recall"].mean == pytest.approx(np.mean(recall))
    assert found.keys() == {"fid", "kid", "precision", "recall"}
    recorded(found["fid"].in_words, "reference")


def test_a_reference_of_fewer_than_2_n_is_halved_and_it_is_said():
    found = floors(REAL, Moments.of(REAL), 400, SETTINGS)
    assert found["fid"][2:] == (250, 250, 5, 400)
    recorded(found["kid"].in_words, "reference")
    assert found["fid"] != floors(REAL, Moments.of(REAL), 300, replace(SETTINGS, seed=1))["fid"]


def test_three_images_have_the_floors_that_they_can_and_a_feature_that_never_varies_one():
    for few, names in ((REAL[:3], set()), (REAL[:4], {"fid"})):  # one image has no covariance
        assert floors(few, Moments.of(few), 100, SETTINGS).keys() == names
    constant = np.concatenate([REAL, np.ones((500, 1), np.float32)], axis=1)
    found = floors(constant, Moments.of(constant), 100, SETTINGS)["fid"]
    assert found == pytest.approx(floors(REAL, Moments.of(REAL), 100, SETTINGS)["fid"], rel=1e-6)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_has_a_floor_or_says_that_it_has_none(metric):
    found = floors(REAL, Moments.of(REAL), 100, replace(SETTINGS, metrics=(metric.name,)))
    has_one = metric.needs_reference and metric.floor_up_to >= 100
    assert found.keys() == ({column.name for column in metric.columns} if has_one else set())
    assert not floors(REAL, Moments.of(REAL), metric.floor_up_to + 1, replace(SETTINGS, metrics=(metric.name,)))


def test_kid_over_subsets_has_its_floor_beside_kid_too():
    moments = Moments.of(REAL)
    alone = floors(REAL, moments, 100, replace(SETTINGS, metrics=("kid_mean",)))
    both = floors(REAL, moments, 100, replace(SETTINGS, metrics=("kid", "kid_mean")))
    assert both.keys() == {"kid", "kid_mean"}
    assert both["kid_mean"] == alone["kid_mean"]
    assert floors(REAL, moments, 100, replace(SETTINGS, metrics=("kid",))).keys() == {"kid"}


def test_floors_are_kept_and_a_damaged_file_is_replaced(tmp_path, reference, monkeypatch):
    path = floor_path(tmp_path, "key", 100, SETTINGS)
    assert read_floors(path) is None
    found = keep_floors(path, reference, 100, SETTINGS)
    assert path.parent == tmp_path
    assert read_floors(path) == found
    assert isinstance(found["fid"], Floor)
    document = json.loads(path.read_text())
    document["floors"]["fid"]["mean"] = 0.0
    path.write_text(json.dumps(document))
    assert keep_floors(path, reference, 100, SETTINGS) == read_floors(path) == found
    monkeypatch.setattr(floor_module, "floors", pytest.fail)
    assert keep_floors(path, reference, 100, SETTINGS) == found
    others = {floor_path(tmp_path, "key", 101, SETTINGS), floor_path(tmp_path, "key", 100, replace(SETTINGS, seed=1))}
    assert path not in others
    assert len(others) == 2


def test_no_floor_without_features_or_with_too_many(tmp_path, reference, monkeypatch):
    moments_alone = replace(reference, load_features=None)
    path = tmp_path / "floor.json"
    assert keep_floors(path, moments_alone, 100, SETTINGS) == {}
    monkeypatch.setattr(floor_module, "MOST_BYTES", REAL.nbytes - 1)
    assert keep_floors(path, reference, 100, SETTINGS) == {}
    assert not path.exists()
