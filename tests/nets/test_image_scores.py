"""Images from anywhere: scores against a second computation, and the verdicts of comparisons and nights of them."""

import json

import numpy as np
import pandas as pd
import pytest
from outside import frechet, measured, taugrid, write_pngs

import taugrid as api

pytestmark = pytest.mark.usefixtures("one_thread")

N = 200
PIXELS = ("--extractor", "pixels")


def fid(a, b):
    return frechet(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


def kid(a, b):
    """The unbiased estimate of the squared maximum mean discrepancy, of all pairs; Binkowski et al. 2018."""

    aa, bb, ab = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = [(of.sum() - np.trace(of)) / (len(of) * (len(of) - 1)) for of in (aa, bb)]
    return sum(within) - 2 * ab.mean()


@pytest.fixture(scope="module")
def sets(one_thread):
    """Name -> pictures; `a` is the accepted side, and the others are what a night may bring."""

    def sampled(seed, **settings):
        settings = {"steps": 10, "eta": 1.0} | settings
        return api.sample({"oracle": "gaussian"}, N, shape=(1, 4, 4), seed=seed, **settings)

    a, draw = sampled(0), np.random.default_rng(0)
    return {
        "reference": sampled(1),
        "a": a,
        "nearby": (a.astype(int) + draw.integers(-1, 2, a.shape)).clip(0, 255).astype(np.uint8),
        "other sampler": sampled(0, eta=0.5, steps=9),
        "wrong sign": 255 - a,
        "darker": (a.astype(int) - 40).clip(0, 255).astype(np.uint8),
        "noisy": (a + draw.normal(0, 60, a.shape)).clip(0, 255).astype(np.uint8),
        "swapped pixels": a[:, ::-1].copy(),
        "few steps": sampled(0, steps=1, eta=0.0),
        "copies": np.repeat(a[:2], N // 2, axis=0),
        "white": np.full_like(a, 255),
    }


@pytest.fixture(scope="module")
def folder(sets, tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    for name, pictures in sets.items():
        write_pngs(place / name, pictures)
    write_pngs(place / "too few", sets["a"][:40])
    return place


def flat(pictures):
    """The features of the extractor `pixels`."""
    return (pictures.reshape(len(pictures), -1).astype(np.float32) / 127.5 - 1).astype(float)


def test_scores_are_those_of_a_second_computation(sets, folder):
    metrics, reference = ["fid", "kid", "prc", "fid_infinity"], folder / "reference"
    for name in ("a", "noisy"):
        asked = ("--samples", folder / name, "--reference", reference, *PIXELS, "--metrics", ",".join(metrics))
        found = taugrid("evaluate", *asked, "--json").json["metrics"]
        assert found["fid"] == pytest.approx(fid(flat(sets[name]), flat(sets["reference"])), rel=1e-9)
        assert found["kid"] == pytest.approx(kid(flat(sets[name]), flat(sets["reference"])), rel=1e-6)
        again = api.evaluate(sets[name], reference, progress=False, extractor="pixels", metrics=metrics)
        assert again["metrics"] == found
        measured(f"scores: {name}", [found["precision"], found["recall"], found["fid_se"] / found["fid"]], 0.05)


def test_a_comparison_has_the_difference_of_two_scores(sets, folder):
    places = [folder / name for name in ("a", "noisy", "reference")]
    ended = taugrid("compare", *places[:2], "--reference", places[2], *PIXELS, "--json", code=3).json
    a, b, reference = (flat(sets[name]) for name in ("a", "noisy", "reference"))
    assert {"result", "metrics", "pairing", "pairs", "notes", "warnings"} <= ended.keys()
    assert ended["result"] == "worse"
    assert ended["pairs"]["count"] == N
    found = ended["metrics"]["fid"]
    assert found["a"] == pytest.approx(fid(a, reference), rel=1e-9)
    assert found["b"] == pytest.approx(fid(b, reference), rel=1e-9)
    assert found["difference"] == pytest.approx(found["b"] - found["a"], rel=1e-9)
    assert found["verdict"] == "worse"
    assert 0 < found["se"] < found["difference"]
    assert api.compare(*places, extractor="pixels", progress=False)["metrics"] == ended["metrics"]


VERDICTS = {
    "a": (0, {"identical"}),
    **dict.fromkeys(["nearby", "other sampler"], (0, {"not worse", "undecided", "better"})),
    **dict.fromkeys(["wrong sign", "darker", "noisy", "swapped pixels"], (3, {"worse"})),
    **dict.fromkeys(["few steps", "copies", "white"], (3, {"collapsed"})),
    "too few": (2, set()),
}


@pytest.fixture(scope="module")
def history(folder):
    """A history whose first night was accepted."""
    place = folder / "history"
    asked = ("--reference", folder / "reference", *PIXELS, "--metrics", "fid")
    first = taugrid("nightly", "--samples", folder / "a", *asked, "--history", place, "--id", "first", "--json").json
    assert first["result"] == "no baseline"
    taugrid("baseline", "accept", folder / "a", *asked, "--to", place / "baseline.json", "--reason", "first")
    return place


@pytest.mark.parametrize("name", VERDICTS)
def test_a_night_of_images_is_red_for_a_fault_alone(folder, history, name):
    code, results = VERDICTS[name]
    id = name.replace(" ", "-")
    words = ("nightly", "--samples", folder / name, "--history", history)
    printed = taugrid(*words, "--id", id, "--json", code=code).stdout
    if code != 2:
        verdict = json.loads((history / "nights" / id / "verdict.json").read_text())
        assert verdict["result"] == json.loads(printed)["result"]
        assert verdict["result"] in results
        assert {"night", "comparison", "scores"} <= verdict.keys()
        table = pd.read_parquet(history / "history.parquet").set_index(["night", "metric"])
        assert table["result"][id, "fid"] == verdict["result"]
    if name == "darker":
        row = table.loc[id, "fid"]
        assert row["t"] == pytest.approx((row["difference"] - row["margin"]) / row["difference_se"], rel=1e-9)
    if name == "nearby":
        taugrid(*words, "--id", "sharp", "--sharpness", 1e-6, code=5)
