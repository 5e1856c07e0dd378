"""Evaluation as people ask for it: of a run, later and in other ways, and of external images."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from command import events, scores, write_config
from shared import taugrid

from taugrid.storage import read_sealed, write_sealed

ORACLE = {
    "data": {"name": "gaussian", "shape": [1, 8, 8]},
    "model": {"oracle": "gaussian"},
    "sample": {"num_samples": 700, "batch_size": 350},
    "grid": {"steps": [5, 10], "eta": [0.0, 1.0]},
    "evaluate": {"metrics": ["fid"]},
}
"""Samples of 64 features, enough of them for standard errors."""

pytestmark = pytest.mark.usefixtures("private_cache", "sketched")

DIGITS = ("--extractor", "digits-convnet")

MORE = (
    "--set", "evaluate.metrics=[fid, isc, kid, prc, fid_infinity]",
    "--set", "evaluate.kid_subsets=3",
    "--set", "evaluate.keep_features=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def oracle_config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"), **ORACLE)


@pytest.fixture(scope="module")
def oracle(oracle_config, tmp_path_factory):
    root = tmp_path_factory.mktemp("oracle") / "run"
    taugrid("run", oracle_config, "--out", root)
    return root


@pytest.fixture(scope="module")
def more(oracle_config, oracle, tmp_path_factory):
    """The oracle's run, asked for more metrics later; features are no longer to be kept."""
    root = shutil.copytree(oracle, tmp_path_factory.mktemp("more") / "run")
    taugrid("run", oracle_config, "--out", root, *MORE)
    return root


def table(root):
    return pd.read_csv(root / "tables/quality.csv", dtype={"cell": str}).set_index("cell")


# Asked for later


@pytest.mark.long
def test_metrics_asked_for_later_extract_nothing_again(oracle, more):
    did = [event for event in events(more) if event["event"] in ("shard", "extract", "score")]
    assert [event["event"] for event in did] == ["score"] * 4
    before, after = table(oracle), table(more)
    assert before[["precision", "kid_mean", "fid_infinity"]].isna().all(axis=None)
    assert after[["precision", "recall", "kid_mean", "kid_std", "fid_infinity"]].notna().all(axis=None)
    assert after[["fid", "fid_se"]].equals(before[["fid", "fid_se"]])
    assert ((after["fid_infinity"] - after["fid_exact"]).abs() < 4 * after["fid_se"]).all()
    assert (after["fid_infinity"] < after["fid"]).all(), "the bias of N is upwards"
    assert after["isc_mean"].isna().all()
    assert (more / "tables/quality.md").read_text().count("no isc: ") == 1
    protocols = json.loads((more / "tables/quality.json").read_text())["protocols"].values()
    assert {protocol["kid_subset_size"] for protocol in protocols} == {700}, "above N it is reduced"


@pytest.mark.long
def test_features_are_removed_once_scored_and_nobody_misses_them(oracle_config, oracle, more, tmp_path):
    root = Path(shutil.copytree(more, tmp_path / "run"))
    [folder] = (root / "features").iterdir()
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["reference"]
    done = taugrid("run", oracle_config, "--out", root, *MORE)
    assert "starting Ray" not in done.stderr
    assert scores(root) == scores(more)
    done = taugrid("run", oracle_config, "--out", root)
    assert "starting Ray" not in done.stderr, "the scores of before are there"
    for name in ("quality.csv", "quality.md", "differences.csv"):
        assert (root / "tables" / name).read_bytes() == (oracle / "tables" / name).read_bytes()


# Other references


def scored_against(root, reference):
    """The row of each cell, and what was extracted for it."""
    rows = json.loads(taugrid("run", root, "--set", f"evaluate.reference={reference}", "--json").stdout)["cells"]
    extracted = {event["task"] for event in events(root) if event["event"] == "extract"}
    return {row["cell"]: row | {"seconds": None} for row in rows}, extracted


@pytest.mark.long
def test_a_folder_is_the_reference_that_its_images_are(finished, copy, held_out):
    """Held-out digits, by name and as files: one reference, whose features are extracted once."""
    rows, extracted = scored_against(copy, "{name: digits, split: test}")
    assert extracted == {"reference/0"}
    assert all(rows[cell]["fid"] != fid for cell, fid in table(finished)["fid"].items())
    assert scored_against(copy, held_out) == (rows, set())
    [folder] = (copy / "samples").glob("S0004-eta1-*")
    sets = [f"--set=evaluate.{setting}" for setting in ("isc_splits=5", "kid_subsets=4", "kid_subset_size=50")]
    asked = ("--samples", folder, "--reference", held_out, *DIGITS, *sets, "--json")
    elsewhere = json.loads(taugrid("evaluate", *asked).stdout)["metrics"]
    row = rows[folder.name.rsplit("-", 1)[1]]
    assert elsewhere == pytest.approx({name: row[name] for name in elsewhere}, rel=1e-6)


# Differences


@pytest.mark.long
def test_scores_of_another_version_stand_apart_and_are_not_compared_unless_told_to(oracle, tmp_path):
    """As after an upgrade of torch, when the grid has grown: scores of before stay."""
    oracle_copy = Path(shutil.copytree(oracle, tmp_path / "run"))
    old = [path.name.rsplit("-", 1)[1] for path in oracle_copy.glob("samples/S0005-*")]
    for path in oracle_copy.glob("scores/*.json"):
        if path.name.split("-")[0] in old:
            score = read_sealed(path)
            score["protocol"]["versions"]["torch"] = "2.9.1"
            write_sealed(path, score)
    taugrid("report", oracle_copy)
    text = (oracle_copy / "tables/quality.md").read_text()
    assert "2.9.1" in text
    assert not [line for line in text.splitlines() if line.startswith("| η") and "5 | 10" in line], "no common columns"
    assert set(pd.read_csv(oracle_copy / "tables/differences.csv")["along"]) == {"eta"}
    pair = ("S0005-eta0-", "S0010-eta0-")
    error = taugrid("compare", oracle_copy, *pair, code=2).stderr
    assert all(word in error for word in ("versions.torch", "2.9.1", "--join"))
    assert len(error.strip().splitlines()) == 1
    joined = json.loads(taugrid("compare", oracle_copy, *pair, "--join", "--json").stdout)
    assert joined["joined"]
    assert "2.9.1" in joined["note"]
    expected = json.loads(taugrid("compare", oracle, *pair, "--json").stdout)
    assert (joined["difference"], joined["se"]) == (expected["difference"], expected["se"])
