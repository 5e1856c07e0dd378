"""`taugrid compare A B --reference R` and `evaluate` of several sets, in this process."""

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nights import taugrid
from PIL import Image
from snapshots import raises, recorded

from taugrid import api, parquet
from taugrid.config import Data
from taugrid.errors import Exit, UserError
from taugrid.eval.pairs import psnr, ssim
from taugrid.images import encode_png
from taugrid.orchestrator.external import open_sets, section_of
from taugrid.orchestrator.progress import Progress
from taugrid.run_id import claim
from taugrid.storage import LOCAL
from taugrid.workers.data.decoding import SourceError
from taugrid.workers.data.load import load_images

pytestmark = pytest.mark.usefixtures("one_thread")

N = 700
"""Enough for a standard error of FID on the 64 features of digits-convnet."""

REFERENCE = ("--reference", "digits/test")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
def noisy():
    """Digits with noise of a given strength, always the same."""
    digits = load_images(Data())[:N].astype(float)
    noise = np.random.default_rng(0).normal(0, 20, digits.shape)
    return lambda strength: np.clip(np.rint(digits + strength * noise), 0, 255).astype(np.uint8)


def folder(place, images, names="{:04d}.png"):
    place.mkdir()
    for i, image in enumerate(images):
        (place / names.format(i)).write_bytes(encode_png(image))
    return place


@pytest.fixture(scope="module")
def places(tmp_path_factory, noisy):
    """A, a worse B whose first 70 images are A's, and the same images as B in an .npz."""
    root = tmp_path_factory.mktemp("images")
    a, b = noisy(1), noisy(1.15)
    b[:70] = a[:70]
    np.savez(root / "b.npz", b.transpose(0, 2, 3, 1))
    folder(root / "a", a)
    folder(root / "b", b)
    return root


def compared(*words, code=0):
    return json.loads(taugrid("compare", *words, *REFERENCE, "--json", code=code)[0])


@pytest.fixture(scope="module")
def worse(places):
    return compared(places / "a", places / "b", "--to", places / "out", code=Exit.REGRESSION)


def refused(*words):
    said = taugrid(*words, code=2)[1]
    assert "\n" not in said.removeprefix("reading images\n"), said
    return said.removeprefix("reading images\n")


def test_pairs_are_judged_by_the_paired_error_and_b_is_new(places, worse):
    found = worse
    assert (found["new"], found["result"], found["pairing"][:9]) == ("b", "worse", "700 pairs")
    fid = found["metrics"]["fid"]
    assert fid["difference"] == pytest.approx(fid["b"] - fid["a"])
    assert fid["difference"] > 0
    assert fid["margin"] == pytest.approx(0.02 * fid["a"])
    assert 0 < fid["se"] < 0.2 * fid["a_se"]
    assert {"fid": fid["verdict"], "kid": found["metrics"]["kid"]["verdict"]} == {"fid": "worse", "kid": "worse"}
    assert (found["metrics"]["kid_mean"]["se"], found["metrics"]["kid_mean"]["verdict"]) == (None, "not judged")
    pairs = found["pairs"]
    assert (pairs["count"], pairs["identical"], pairs["psnr"]["pairs"]) == (700, 70, 630)
    table = pd.read_csv(places / "out" / "pairs.csv", dtype={"name": str})
    assert np.isinf(table.psnr).sum() == 70
    assert [pair["name"] for pair in pairs["worst"]] == table.sort_values("psnr", kind="stable").name[:10].tolist()
    assert pairs["psnr"]["quantiles"]["0"] == pytest.approx(table.psnr.min())
    with Image.open(places / "out" / "worst_pairs.png") as picture:
        assert picture.height > 10 * 48
    back = compared(places / "b", places / "a", "--margin", "0.5", "--metrics", "fid")
    assert back["metrics"]["fid"]["difference"] == -fid["difference"]
    assert back["metrics"]["fid"]["verdict"] == "not worse"
    isc = compared(places / "a", places / "b", "--metrics", "isc", "--margin", "0", code=None)["metrics"]["isc_mean"]
    assert (isc["difference"] < 0, isc["verdict"]) == (True, "worse"), "higher is better"
    out, _ = taugrid("compare", places / "a", places / "b", *REFERENCE, code=Exit.REGRESSION)
    first, second, *_ = out.splitlines()
    assert first == f"B (new) - A: {places / 'b'} - {places / 'a'}"
    recorded(second)
    recorded(out, "identical")
    strict = compared(places / "b", places / "a", "--margin", "0")
    assert {name: strict["metrics"][name]["margin"] for name in ("fid", "kid")} == {"fid": 0, "kid": 0}


def test_sets_without_names_are_independent(places, tmp_path):
    found = compared(places / "a", places / "b.npz", "--to", tmp_path / "out")
    recorded("\n".join(found["notes"]), "compared")
    assert (found["written"], (tmp_path / "out").exists()) == (None, False)
    recorded(found["pairing"])
    assert found["pairs"] is None
    for row in (found["metrics"]["fid"], found["metrics"]["kid"]):
        assert row["se"] == pytest.approx(np.hypot(row["a_se"], row["b_se"]))
        assert (row["verdict"], row["paired"]) == ("undecided", False)


def test_sets_of_different_sizes_are_judged_by_what_does_not_depend_on_n(places, tmp_path, noisy):
    """FID falls as N grows, also where nothing else changes."""
    more = folder(tmp_path / "more", np.concatenate([noisy(1), 255 - noisy(1)[:1]]))
    found = compared(more, places / "a", "--metrics", "fid,kid", code=Exit.NOT_JUDGED)
    reason = "no verdict on fid: its bias depends on N, of which A has 701 and B 700"
    assert (found["not_judged"], reason in found["notes"]) == ([reason], True)
    verdicts = {name: row["verdict"] for name, row in found["metrics"].items()}
    assert verdicts == {"fid": "not judged", "kid_mean": "not judged", "kid": "undecided"}
    assert compared(more, places / "a")["result"] == "undecided", "without --metrics, what can be judged is enough"


def test_the_same_images_are_identical_however_they_are_kept(places):
    found = compared(places / "b", places / "b.npz", "--metrics", "fid,isc")
    assert (found["result"], found["not_judged"]) == ("identical", [])
    numbers = {(row["verdict"], row["difference"], row["se"]) for row in found["metrics"].values()}
    assert numbers == {("identical", 0.0, 0.0)}
    assert (found["pairs"]["identical_share"], found["pairs"]["psnr"]) == (1, None)


def test_parquet_is_paired_by_a_column_in_any_order(worse, tmp_path, noisy):
    b = noisy(1.15)
    b[:70] = noisy(1)[:70]
    order = np.random.default_rng(1).permutation(N)
    rows = {"image": [encode_png(b[i]) for i in order], "file": [f"{i:04d}.webp.png" for i in order]}
    rows["twice"] = ["x"] * N
    pq.write_table(pa.table(rows), tmp_path / "b.parquet")
    a = folder(tmp_path / "a", noisy(1), names="{:04d}.webp.png")
    found = compared(a, tmp_path / "b.parquet", "--pair-by", "file", code=Exit.REGRESSION)
    for column, key in (("fid", "difference"), ("fid", "se"), ("kid", "se"), ("kid_mean", "b")):
        assert found["metrics"][column][key] == pytest.approx(worse["metrics"][column][key], rel=1e-5)
    assert found["pairs"]["psnr"]["mean"] == worse["pairs"]["psnr"]["mean"]
    assert [pair["name"][:4] for pair in found["pairs"]["worst"]] == [pair["name"] for pair in worse["pairs"]["worst"]]
    recorded(compared(a, tmp_path / "b.parquet")["pairing"], "Parquet")
    pair = ("compare", a, tmp_path / "b.parquet", *REFERENCE, "--pair-by")
    recorded(refused(*pair, "row"), "column")
    recorded(refused(*pair, "twice"), "images")
    recorded(refused("compare", a, a, *REFERENCE, "--pair-by", "file"), "neither")


def test_names_without_endings_pair_unless_they_differ_in_nothing_else(tmp_path, noisy):
    images = noisy(1)[:4]
    folder(tmp_path / "a", images)
    jpeg = tmp_path / "jpeg"
    jpeg.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(jpeg / f"{i:04d}.jpg", quality=20)
    found = compared(tmp_path / "a", jpeg, code=None)
    recorded(found["pairing"])
    assert any("are JPEG" in warning for warning in found["warnings"])
    (jpeg / "0000.png").write_bytes((tmp_path / "a" / "0000.png").read_bytes())
    recorded(compared(tmp_path / "a", jpeg, code=None)["pairing"], "unpaired")
    folder(tmp_path / "more", noisy(1)[:5])
    recorded(compared(tmp_path / "more", tmp_path / "a", code=None)["pairing"])


def test_images_that_repeat_are_a_collapse(places, tmp_path, noisy):
    collapsed = folder(tmp_path / "b", np.repeat(noisy(1)[:1], N, axis=0))
    found = compared(places / "a", collapsed, code=Exit.REGRESSION)
    assert (found["result"], found["distinct"]) == ("collapsed", [1.0, 1 / N])


def test_what_cannot_be_compared_is_one_line(places, tmp_path):
    a, b = places / "a", places / "b"
    recorded(refused("compare", a, b), "reference")
    recorded(refused("compare", a, tmp_path / "none", *REFERENCE), "there")
    recorded(refused("compare", tmp_path / "none", b, *REFERENCE), "there")
    recorded(refused("compare", tmp_path / "none", b), "reference")
    run = tmp_path / "run"
    run.mkdir()
    claim(run, LOCAL)
    (run / "config.json").write_text(
        json.dumps({"name": "r", "model": {"oracle": "gaussian"}, "sample": {}, "diffusion": {}, "evaluate": {}})
    )
    recorded(refused("compare", run, b, *REFERENCE), "holds no")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    recorded(refused("compare", a, b, *REFERENCE, "--to", tmp_path / "full"), "folder")
    with raises(UserError):
        api.compare(np.zeros((9, 8, 8), np.uint8), b, "digits/test")


def test_what_one_set_cost_stays_if_the_other_cannot_be_scored(cache, tmp_path, noisy):
    sets = {name: str(folder(tmp_path / name, noisy(3)[:count])) for name, count in (("A", 30), ("B", 20))}
    section = section_of({"metrics": ["fid"]}, ())
    opened = open_sets(sets, "digits/test", section)
    (tmp_path / "B" / "0011.png").unlink()
    before = set((cache / "taugrid").rglob("features/*"))
    with pytest.raises(SourceError, match="have changed"):
        opened.scored(Progress.silent(), keep=True)
    [kept] = set((cache / "taugrid").rglob("features/*")) - before
    assert parquet.inspect(kept).stop == 30
    os.utime(kept, (0, 0))
    with pytest.raises(SourceError, match="have changed"):
        opened.scored(Progress.silent(), keep=True)
    assert kept.stat().st_mtime > 0, "it was too old, and is made again"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("size.png", encode_png(np.zeros((1, 9, 8), np.uint8))),
        ("alpha.png", Image.new("RGBA", (8, 8))),
        ("broken.jpg", b"\xff\xd8\xff\xe0 this is no JPEG"),
    ],
)
def test_an_image_that_does_not_belong_is_named_with_its_side(places, tmp_path, noisy, name, data):
    b = folder(tmp_path / "b", noisy(1)[:3])
    if isinstance(data, bytes):
        (b / name).write_bytes(data)
    else:
        data.save(b / name)
    said = refused("compare", places / "a", b, *REFERENCE)
    assert said.startswith("B: ")
    recorded(said, name)


def test_few_images_are_not_judged_and_told_each_reason_once(places, tmp_path, noisy):
    a, b = (folder(tmp_path / name, noisy(sharp)[:3]) for name, sharp in (("a", 1), ("b", 2)))
    found = compared(a, b, "--metrics", "fid", code=Exit.NOT_JUDGED)
    assert (found["metrics"]["fid"]["verdict"], len(found["not_judged"])) == ("not judged", 1)
    reference = folder(tmp_path / "reference", noisy(3)[:100])
    scored = ("--reference", reference, "--extractor", "digits-convnet", "--metrics", "fid,kid")
    out, told = taugrid("compare", a, b, *scored, code=Exit.NOT_JUDGED)
    said = [line for line in out.splitlines() if "no fid_se: " in line or "no kid_se: " in line]
    recorded("\n".join([line.partition(" samples")[0] for line in said]))
    recorded(told, "extracting")
    recorded(out, "references")


def test_evaluate_gives_each_set_a_column(places):
    words = ("evaluate", "--samples", places / "a", "--samples", places / "b", *REFERENCE, "--metrics", "fid,kid")
    out, _ = taugrid(*words)
    one, other = (
        json.loads(taugrid("evaluate", "--samples", places / name, *REFERENCE, "--metrics", "fid,kid", "--json")[0])
        for name in ("a", "b")
    )
    both = json.loads(taugrid(*words, "--json")[0])
    assert both == {"samples": [one, other]}
    [line] = [line for line in out.splitlines() if line.startswith("FID (")]
    assert [f"{scores['metrics']['fid']:.1f}" in line for scores in (one, other)] == [True, True]
    recorded(refused("evaluate", *words[1:3], *words[1:3], *REFERENCE), "given")


def test_ssim_and_psnr_are_scikit_images():
    """As its 0.26.0 gives them, with Gaussian weights of sigma 1.5 and the covariance of the population."""
    generator = np.random.default_rng(3)
    expected = {
        (1, 28, 28): ([0.9078946075505732, 0.8957085854339797], [17.79897741859148, 17.90444243478977]),
        (3, 33, 40): ([0.8997571571245496, 0.9002077422603092], [17.74088402126552, 17.795366954063194]),
    }
    for shape, (similarities, ratios) in expected.items():
        a = generator.integers(0, 256, (4, *shape), dtype=np.uint8)
        b = np.clip(a.astype(int) + generator.integers(-60, 61, a.shape), 0, 255).astype(np.uint8)
        assert ssim(a, b)[:2] == pytest.approx(similarities, rel=1e-12)
        assert psnr(a, b)[:2] == pytest.approx(ratios, rel=1e-12)
