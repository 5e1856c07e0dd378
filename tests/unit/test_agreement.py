"""Agreement: the share of images that a classifier puts in the class that was asked for."""

import numpy as np
import pytest
from snapshots import recorded

from taugrid.config import Data
from taugrid.eval.features.load import load
from taugrid.eval.features.resolve import resolve
from taugrid.eval.gate.rule import Change, Scored, judge
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.metrics.logits import binomial_error
from taugrid.eval.metrics.score import feasible, score
from taugrid.eval.metrics.statistics import standard_error
from taugrid.orchestrator.plan.scoring import per_sample
from taugrid.registry.extractors import IMAGENET_LITE0, INCEPTION, ExtractorSpec
from taugrid.registry.metrics import COLUMNS, MetricSettings, PerSample
from taugrid.workers.data.load import load_images

WANTED = MetricSettings(("agreement",))
DIGITS = Data(name="digits")


def spec(name, classes=10):
    return ExtractorSpec(name, None, "", "f", "logits" if classes else None, 64, classes)


def agreement(logits, labels, cut=7):
    chunks = lambda: iter([logits[i : i + cut] for i in range(0, len(logits), cut)])  # noqa: E731
    return score(chunks, chunks, len(logits), None, WANTED, {"label": labels})


def test_it_is_the_share_with_the_largest_logit_at_the_label():
    stream = np.random.default_rng(0)
    labels = stream.integers(0, 10, 400)
    asked = stream.random(400) < 0.8
    logits = stream.random((400, 10)).astype(np.float32)
    logits[np.arange(400), np.where(asked, labels, (labels + 1) % 10)] += 2
    found = agreement(logits, labels.astype(np.float64))
    p = asked.mean()
    assert found.values == {"agreement": p, "agreement_se": pytest.approx((p * (1 - p) / 400) ** 0.5, rel=1e-12)}
    assert np.array_equal(found.influences["agreement"], asked.astype(np.float64))
    assert found.values["agreement_se"] == pytest.approx(standard_error(found.influences["agreement"]), rel=0.002)
    shifted = agreement(logits, np.roll(labels, 1).astype(np.float64)).values
    assert shifted["agreement"] < 0.3, "labels of other images"


def test_what_needs_no_reference_is_computed_of_a_class_that_the_reference_lacks():
    wanted = MetricSettings(("isc", "agreement", "prc"))
    found = feasible(wanted, spec("digits-convnet"), 1000, 0, per_sample(DIGITS, 10))
    assert found.settings.metrics == ("isc", "agreement")
    recorded(found.reasons["prc"])


def test_its_error_is_never_zero_and_is_the_spread_of_its_draws():
    assert binomial_error(np.ones(100)) == pytest.approx(0.0097, abs=1e-4), "an error of 0 would claim certainty"
    assert binomial_error(np.zeros(100)) == pytest.approx(binomial_error(np.ones(100)))
    draws = (np.random.default_rng(1).random((2000, 300)) < 0.7).astype(float)
    errors = [binomial_error(draw) for draw in draws]
    assert np.mean(errors) == pytest.approx(draws.mean(axis=1).std(), rel=0.05)


@pytest.mark.parametrize(
    ("extractor", "samples", "is_left_out"),
    [
        (spec("digits-convnet"), per_sample(DIGITS, 10), False),
        (spec("digits-convnet"), per_sample(DIGITS, None), True),
        (spec("digits-convnet"), PerSample(()), True),
        (spec("fashion-convnet"), per_sample(DIGITS, 10), True),
        (spec("digits-convnet", None), per_sample(DIGITS, 10), True),
        (spec(INCEPTION, 1008), per_sample(DIGITS, 10), True),
        (spec("my:Own"), per_sample(DIGITS, 10), True),
        (spec(IMAGENET_LITE0, 1000), per_sample(Data(name="folder", root="x", shape=(3, 8, 8)), 1000), False),
        (spec(IMAGENET_LITE0, 1000), per_sample(DIGITS, 10), True),
        (spec("digits-convnet"), per_sample(DIGITS, 11), True),
    ],
)
def test_it_is_left_out_with_a_reason_where_logits_and_labels_have_no_common_order(extractor, samples, is_left_out):
    found = feasible(WANTED, extractor, 100, 100, samples)
    assert found.settings.metrics == (() if is_left_out else ("agreement",))
    if is_left_out:
        recorded(found.reasons["agreement"])


def test_the_convnets_classes_are_in_the_order_of_the_labels():
    """9 of 10 real digits are put in their class; an order of its own would give 1 of 10."""
    import torch
    from sklearn.datasets import load_digits

    images, labels = load_images(DIGITS)[:200], load_digits().target[:200]
    extraction = load(resolve(None, "digits", None, (1, 8, 8)), "cpu")(torch.from_numpy(np.array(images)))
    assert agreement(extraction.logits.numpy(), labels.astype(float)).values["agreement"] > 0.9


def judged(before, after):
    both = [Scored(side.mean(), side) for side in (before, after)]
    change = Change.between("c", both[1], both[0], 0.02, 0, COLUMNS["agreement"])
    return judge([change]).cells[0].verdict


def test_the_gate_judges_it_also_where_the_baseline_is_perfect():
    """Its influences then don't vary, but those of the difference do."""
    perfect, but_one = np.ones(200), np.ones(200)
    but_one[0] = 0
    ignores = (np.arange(200) % 10 == 0).astype(float)
    assert judged(perfect, ignores) is Verdict.WORSE
    assert judged(but_one, perfect) is Verdict.NOT_WORSE
    assert judged(perfect, but_one) is not Verdict.WORSE
