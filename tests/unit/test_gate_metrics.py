"""The gate judges any metric with a standard error: nights by KID where FID has none, and by FID and KID together."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from nights import CONFIG, begin, checkpoint, compared, night, summary, taugrid, write_config
from nights_of_kid import World, by_floor
from planted_faults import darken_later_batches
from proofs import proof
from scipy.stats import norm
from snapshots import raises, recorded
from threadpoolctl import threadpool_limits

from taugrid.errors import UserError
from taugrid.eval.gate.rule import (
    INDISTINGUISHABLE_FROM_ZERO,
    MARGIN,
    MARGIN_FLOOR,
    Change,
    Scored,
    judge,
    margin_of,
    size_of,
)
from taugrid.eval.metrics.statistics import too_few_carry
from taugrid.orchestrator.baseline.compared import GateSettings, Sharpness
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import read_baseline
from taugrid.orchestrator.nightly.before import expected_sharpness
from taugrid.registry.metrics import METRICS

KID = next(column for column in METRICS["kid"].columns if column.sampling_error)
ONE = {"steps": [2], "eta": [0.0]}
FEW = {**CONFIG["sample"], "num_samples": 150, "batch_size": 75}
"""Too few for FID's standard error on 16 pixels, which takes 160."""
BOTH = {"evaluate": {"metrics": ["fid", "kid"]}}

pytestmark = pytest.mark.usefixtures("one_thread", "few_draws", "sketched", "unreported")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return begin(tmp_path_factory.mktemp("few"), grid=ONE, sample=FEW, **BOTH)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return begin(tmp_path_factory.mktemp("both"), grid=ONE, gate={"metrics": ["fid", "kid"]}, **BOTH)


@pytest.fixture
def history(few, tmp_path):
    return shutil.copytree(few / "history", tmp_path / "history")


def only_cell(found):
    (cell,) = found["comparison"]["cells"]
    return cell


def test_a_healthy_night_of_few_images_is_green_and_says_its_sharpness_in_kid(few, history):
    found = night(history, few / "nearby.yaml", "2")
    assert found["result"] == "not worse"
    assert found["comparison"]["sharpness"] is None, "FID judged nothing"
    line = summary(history, "2").splitlines()[0]
    share = found["comparison"]["sharpnesses"]["kid"]["loss"]
    assert f"{100 * share:.2g} % of {KID.title}" in line
    assert f"of {KID.title}" in taugrid("plan", few / "same.yaml", "--history", history)[0]


def test_a_worse_network_is_red_by_kid_where_fid_has_no_standard_error(few, history):
    found = night(history, few / "worse.yaml", "2", code=3)
    cell = only_cell(found)
    kid = cell["metrics"]["kid"]
    assert (cell["result"], cell["by"], cell["seeds"]) == ("worse", "kid", "fresh")
    assert (cell["fid"] > cell["baseline_fid"], cell["se"], cell["t"]) == (True, None, None)
    assert kid["t"] == pytest.approx((kid["difference"] - kid["margin"]) / kid["se"])
    assert kid["margin"] == pytest.approx(MARGIN * kid["size"])
    assert kid["difference"] == pytest.approx(kid["judged"][0] - kid["judged"][1]) != kid["value"] - kid["baseline"]
    assert f">{KID.title} " in (history / "nights/2/junit.xml").read_text()
    recorded(summary(history, "2"), "| verdict |")
    row = pd.read_parquet(history / "history.parquet").set_index(["night", "metric"]).loc["2", "kid"]
    assert (row["by"], row["t"], row["margin"]) == ("kid", kid["t"], kid["margin"])
    assert (row["value"], row["baseline_value"]) == (kid["value"], kid["baseline"])
    assert row["se"] > 0
    assert f"judged by {KID.title}" in taugrid("status", history)[0]
    compared, _ = taugrid("compare", history / "nights/2/run", history / "baseline.json", code=3)
    recorded(compared, "baseline")


def changed(few, **fields):
    """The baseline's only cell as another network's: `fields` differ."""
    old = read_baseline(few / "history/baseline.json")
    cell = replace(old.cells[0], network=replace(old.cells[0].network, weights_sha256="0" * 64))
    return replace(old, cells=(replace(cell, **fields),)), old


@pytest.mark.parametrize(("distinct", "result"), [(1, "collapsed"), (75, "collapsed"), (149, "not judged")])
def test_images_that_repeat_are_collapsed_where_kid_has_lost_its_error(few, distinct, result):
    """All images the same give influences that vary by rounding, or not at all: then KID has no error, as by chance."""
    reasons = {"fid": "150 samples for 16 varying features", "kid": "it would rest on fewer than 20 of 150 samples"}
    new, old = changed(few, influences={}, reasons=reasons, load_digests=lambda: np.arange(150) % distinct)
    new = replace(new, cells=(replace(new.cells[0], metrics={"fid": 9.0, "kid": 9.0}),))
    (cell,) = compare_snapshots(new, old).cells
    assert cell.result == result
    note = f"{reasons['kid']}; distinct images: {100 * distinct / 150:.3g} % (the baseline: 100 %)"
    assert (cell.note == note) == (result == "collapsed")


def test_images_that_repeat_are_collapsed_by_their_pixels_whatever_their_scores(few):
    """A metric in which more is better, such as precision, has influences of few values in a healthy cell, too."""
    new, old = changed(few, load_digests=lambda: np.arange(150) % 75)
    for cell in (*new.cells, *old.cells):
        assert len(np.unique(cell.influences["kid"])) == 150
    (cell,) = compare_snapshots(new, old).cells
    assert cell.result == "collapsed"
    assert cell.note == "images repeat; distinct images: 50 % (the baseline: 100 %)"


def test_a_run_is_not_compared_with_a_baseline_of_images(few):
    images, run = changed(few, images="names", settings={"num_samples": 150})
    with raises(UserError):
        compare_snapshots(run, images)


def test_the_same_images_must_have_the_same_scores_by_the_metrics_whose_settings_are_the_same(few):
    """A metric that is new, or has other settings, says nothing of the scorer."""
    new, old = changed(few)
    (cell,) = new.cells
    metrics = {name: value for name, value in cell.metrics.items() if "fid" not in name}
    for settings, changes, result in (
        ({"prc_neighborhood": 5}, {}, "identical"),
        ({"prc_neighborhood": 5}, {"kid": metrics["kid"] + 1}, "changed scorer"),
        ({"kid_subsets": 7}, {"kid_mean": metrics["kid_mean"] + 1}, "identical"),
        ({"kid_subsets": 7}, {"kid": metrics["kid"] + 1}, "changed scorer"),
    ):
        its = replace(cell, protocol={**cell.protocol, **settings}, metrics={**metrics, **changes})
        (found,) = compare_snapshots(replace(new, cells=(its,)), old, GateSettings(metrics=("kid",))).cells
        assert found.result == result, settings


def test_a_fault_that_no_canary_shows_is_red_because_kid_of_fresh_samples_denies_it(few, history, monkeypatch):
    darken_later_batches(monkeypatch)
    found = night(history, few / "nearby.yaml", "2", code=3)
    assert (found["result"], only_cell(found)["by"]) == ("worse", "kid")
    _, because = found["comparison"]["rule"].split("second stage")
    assert f"{KID.title} " in because


@pytest.mark.long
def test_fid_and_kid_share_alpha_and_the_worst_of_them_is_the_cells(both, tmp_path):
    history = shutil.copytree(both / "history", tmp_path / "history")
    healthy = night(history, both / "nearby.yaml", "2")
    verdicts = {name: metric["verdict"] for name, metric in only_cell(healthy)["metrics"].items()}
    assert verdicts == {"fid": "not worse", "kid": "not worse"}
    recorded(healthy["comparison"]["rule"], "cell")
    critical = compared(history / "nights/2/run", history / "nights/1/run")["critical"]
    assert norm.isf(0.01) <= critical <= norm.isf(0.005), "between one test and Bonferroni's two"
    line = summary(history, "2").splitlines()[0]
    assert all(said in line for said in ("% of FID", f"% of {KID.title}"))
    asked = 1.01 * min(found["loss"] for found in healthy["comparison"]["sharpnesses"].values())
    told = compared(history / "nights/2/run", history / "baseline.json", "--sharpness", asked, code=5)["not_judged"]
    assert "FID" not in told[0] or KID.title not in told[0], "one of them is sharp enough"
    numbers = only_cell(night(history, both / "worse.yaml", "3", "--set", "gate.margin_floor=500", code=3))
    accepted = read_baseline(history / "baseline.json").cells[0].metrics
    metrics = numbers["metrics"]
    assert metrics["kid"]["margin"] == pytest.approx(500 * accepted["kid_se"], rel=0.01), "the config's floor"
    assert metrics["fid"]["margin"] == pytest.approx(0.02 * accepted["fid"])
    assert (metrics["fid"]["verdict"], metrics["kid"]["verdict"]) == ("worse", "not worse")
    assert (numbers["fid"], numbers["t"]) == (metrics["fid"]["value"], metrics["fid"]["t"])
    recorded(next(row for row in summary(history, "3").splitlines() if "**worse**" in row), "worse")
    again = compared(history / "nights/3/run", history / "baseline.json", "--margin", "0", code=3)
    assert only_cell({"comparison": again})["metrics"]["kid"]["margin"] == 0


def test_undecided_cells_grow_with_all_their_metrics(both, tmp_path):
    history = shutil.copytree(both / "history", tmp_path / "history")
    config = write_config(tmp_path / "slight.yaml", checkpoint(tmp_path / "slight", 0.005), grid=ONE, **BOTH,
                          gate={"metrics": ["fid", "kid"]})  # fmt: skip
    found = night(history, config, "2", "--grow-to", 400, "--alpha", 1e-4, code=None)
    cell = only_cell(found)
    assert "grown to N = 400" in found["comparison"]["rule"]
    assert (cell["seeds"], cell["grows"]) == ("grown", True)
    assert all(metric["judged"] is not None for metric in cell["metrics"].values())


def test_a_baseline_without_kid_is_judged_by_fid_and_says_so_if_kid_was_asked_for(both, tmp_path):
    fid = {"metrics": ["fid"]}
    config = write_config(tmp_path / "fid.yaml", both / "same", grid=ONE, evaluate=fid)
    taugrid("run", config, "--out", tmp_path / "fid")
    taugrid("baseline", "accept", tmp_path / "fid", "--to", tmp_path / "old.json", "--reason", "of FID alone")
    assert pq.read_schema(tmp_path / "old.parquet").names == ["cell", "index", "influence", "pixels", "image"]
    words = ("--baseline", tmp_path / "old.json")
    found = night(tmp_path / "history", both / "nearby.yaml", "1", *words)
    assert only_cell(found)["by"] == "fid"
    note = f"{KID.title} is not judged: the baseline was not scored by it (S0002-eta0)"
    assert found["comparison"]["notes"] == [note]
    alone = ("--set", "gate.metrics=[kid]")
    told = taugrid("nightly", both / "nearby.yaml", "--history", tmp_path / "h", "--id", "1", *words, *alone, code=2)[1]
    assert f"has no {KID.title}" in told
    silent = night(tmp_path / "history", both / "nearby.yaml", "2", *words, "--set", "gate.metrics=null")
    assert (only_cell(silent)["by"], silent["comparison"]["notes"]) == ("fid", [])


@pytest.mark.parametrize(
    ("computed", "judging"),
    [(["fid"], "null"), (["fid", "kid"], "[fid]"), (["fid"], "[kid]"), (["prc"], "null"), (["fid"], "[x]"),
     (["fid"], "[]")],
)  # fmt: skip
def test_a_night_that_nothing_can_judge_is_refused(few, tmp_path, computed, judging):
    changes = ("--set", f"evaluate.metrics={json.dumps(computed)}", "--set", f"gate.metrics={judging}")
    found = taugrid("nightly", few / "same.yaml", "--history", tmp_path / "h", "--id", "1", *changes, code=2)[1]
    recorded(found.splitlines()[-1])


def scored(value, spread=0.1, n=100, seed=0):
    influence = np.random.default_rng(seed).standard_normal(n)
    return Scored(value, spread * np.sqrt(n) * influence / influence.std(ddof=1))


def test_a_share_of_a_metric_near_zero_is_of_two_of_its_standard_errors():
    assert size_of(scored(3.0)) == 3.0
    assert size_of(scored(-3.0)) == 3.0
    assert size_of(scored(1e-4)) == pytest.approx(INDISTINGUISHABLE_FROM_ZERO * 0.1)


def test_only_a_distance_that_may_be_zero_has_a_margin_in_its_errors():
    near, far = scored(1e-4), scored(30.0)
    assert margin_of(near, MARGIN, KID) == pytest.approx(MARGIN_FLOOR * 0.1)
    assert margin_of(near, MARGIN, KID, 0.0) == pytest.approx(MARGIN * size_of(near))
    assert margin_of(near, 0.0, KID) == 0.0, "margin 0 is 0 for every metric"
    assert margin_of(near, MARGIN, METRICS["fid"].columns[0]) == pytest.approx(MARGIN * size_of(near))
    assert margin_of(far, MARGIN, KID) == pytest.approx(MARGIN * 30)


@pytest.mark.parametrize(("worse", "result"), [(0.0, "green"), (0.05, "red")])
def test_two_metrics_make_a_healthy_night_green_although_kid_is_near_0(worse, result):
    """FID alone does; KID, 3 standard errors from 0 here, was undecided in all such nights."""
    world, floors = World(0.2, False, 16), Counter[float | str]()
    for number in range(4):
        colours = by_floor(world, number, 500, 0.01, lambda latent: (1 - worse) * latent, 2_000)
        floors.update(floor for floor, colour in colours.items() if colour == result)
    assert floors == {"FID alone": 4, MARGIN_FLOOR: 4, **({} if result == "green" else {0.0: 4})}


HEALTHY = ((0.2, 500, 0.01), (0.1, 2_000, 0.01), (0.2, 2_000, 0.015), (0.35, 500, 0.015))


@pytest.mark.parametrize(("far", "n", "b"), [proof(*world) for world in HEALTHY])
def test_the_floor_makes_19_of_20_healthy_nights_of_fid_and_kid_green(far, n, b):
    """400 nights, in worlds where FID alone makes nights green. 0.15 was the smallest floor tried that does it."""
    world = World(far, False, 16)
    with threadpool_limits(limits=1):
        nights = [by_floor(world, number, n, b, lambda latent: latent, 5_000) for number in range(400)]
    assert np.mean([night[MARGIN_FLOOR] == "green" for night in nights]) >= 0.95


@pytest.mark.parametrize(
    ("far", "skewed", "dimensions", "metrics"),
    [
        proof(far, skewed, dimensions, metrics)
        for far, skewed in product((False, True), (False, True))
        for dimensions, metrics in ((64, ("kid",)), (16, ("fid", "kid")))
    ],
)
def test_kid_raises_false_alarms_in_at_most_1_percent_of_nights(far, skewed, dimensions, metrics):
    """200 nights of equal networks at margin 0; 2 are expected, and 7 or more with a chance of 0.4 %."""
    world = World(far, skewed, dimensions)
    alarms = 0
    with threadpool_limits(limits=1):
        for number in range(200):
            changes = [cell.change(0.0) for cell in world.night(number, 500, 0.6, metrics)]
            alarms += bool(judge(changes, draws=20_000).worse)
    assert alarms <= 6


@pytest.mark.parametrize(("n", "known"), [(150, {"fid": 0.3, "kid": 0.5}), (600, {"fid": 0.16})])
def test_at_another_n_the_sharpness_by_kid_is_unknown_because_its_margin_may_be_errors(n, known):
    """FID's part beyond the margin of 2 % halves at four times the N."""
    sharpnesses = {"fid": Sharpness(0.3, 1), "kid": Sharpness(0.5, 1)}
    comparison = SimpleNamespace(result="undecided", gate=GateSettings(), sharpnesses=sharpnesses)
    verdict = SimpleNamespace(comparison=comparison, scores=[SimpleNamespace(settings={"num_samples": 150})])
    plan = SimpleNamespace(cells=[SimpleNamespace(settings=SimpleNamespace(num_samples=n))])
    assert expected_sharpness([verdict], plan) == pytest.approx(known)


def test_the_metrics_of_a_cell_are_tested_at_one_alpha_by_their_joint_influences():
    old, new, other = scored(1.0), scored(1.0, seed=1), scored(1.0, seed=2)
    by_fid = Change.between("a", new, old, 0.0, "s")
    same = judge([by_fid, Change.between("a", new, old, 0.0, "s", KID)])
    assert same.critical == pytest.approx(norm.isf(0.01), abs=0.02), "both are one number"
    independent = judge([by_fid, Change.between("a", other, scored(1.0, seed=3), 0.0, "s", KID)])
    assert independent.critical == pytest.approx(norm.isf(1 - np.sqrt(0.99)), abs=0.08)


def test_a_metric_that_should_be_high_is_worse_when_it_falls():
    agreement = METRICS["agreement"].columns[0]
    fell = Change.between("a", scored(0.7), scored(0.9, seed=1), 0.0, "s", agreement)
    assert fell.difference == pytest.approx(0.2)
    assert fell.influence == pytest.approx(scored(0.9, seed=1).influence - scored(0.7).influence)


RARE = 20.0
"""How far a rare sample moves the metric, in standard deviations of the others."""


def nights_by_means(share, repeats, n=300):
    """Verdicts at alpha 5 % of nights by a mean with a share of `RARE` samples; and whether tonight's is unsure."""
    random = np.random.default_rng(29)
    for _ in range(repeats):
        old, new = random.standard_normal((2, n)) + RARE * (random.random((2, n)) < share)
        if too_few_carry(old) is None:
            change = Change.between("cell", Scored(new.mean(), new), Scored(old.mean(), old), 0.0, 0)
            unsure = too_few_carry(new) is not None
            (found,) = judge([replace(change, only_worse=unsure)], 0.05).cells
            yield found.verdict, unsure


@pytest.mark.parametrize("share", [0.002, 0.01, 0.03])
def test_nights_of_equal_networks_whose_metric_has_lost_its_error_alarm_no_more_than_alpha(share):
    """Of 2,000 nights, 140 are 4.1 standard deviations of a binomial more than the 5 % that are allowed."""
    found = list(nights_by_means(share, 2_000))
    assert sum(unsure for _, unsure in found) > (20 if share < 0.03 else 0), "the simulation has such nights"
    assert sum(verdict == "worse" for verdict, _ in found) <= 0.07 * len(found)
    assert {verdict for verdict, unsure in found if unsure} <= {"worse", "not judged"}


def test_a_few_samples_far_from_all_others_are_not_judged_and_named(few):
    new, old = changed(few)
    (cell,) = new.cells
    heavy = cell.influences["kid"] * 1e-3
    heavy[[3, 141]] += (2.0, 5.0)
    metrics = {name: value for name, value in cell.metrics.items() if name not in ("kid_se", "fid")}
    metrics["kid"] += heavy.mean()
    why = {"kid": too_few_carry(heavy)}
    its = replace(cell, influences={}, unsure={"kid": heavy}, metrics=metrics, reasons=why, load_digests=lambda: None)
    for index, (shift, result) in enumerate([(0.0, "not judged"), (1.0, "worse")]):
        moved = replace(its, metrics={**its.metrics, "kid": its.metrics["kid"] + shift})
        found = compare_snapshots(replace(new, cells=(moved,)), old, GateSettings(metrics=("kid",)))
        (judged,) = found.cells
        assert judged.result == result, index
        assert " 141, 3, " in judged.note
        assert found.exit == (5, 3)[index]
