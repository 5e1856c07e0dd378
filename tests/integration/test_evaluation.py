"""Evaluation as people ask for it: of a run, later and in other ways, and of external images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import events, scores, write_config
from shared import taugrid

from taugrid import parquet
from taugrid.config import Data
from taugrid.config.load import load
from taugrid.eval import extract, score_cell
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.evidence import floors_of
from taugrid.orchestrator.work.extract import ExtractWork, ReferenceWork
from taugrid.orchestrator.work.score import ScoreWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import read_sealed, write_sealed
from taugrid.workers.data.load import load_images
from taugrid.workers.device import Device

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


@pytest.fixture
def oracle_copy(oracle, tmp_path):
    return Path(shutil.copytree(oracle, tmp_path / "run"))


def table(root):
    return pd.read_csv(root / "tables/quality.csv", dtype={"cell": str}).set_index("cell")


def differences(root):
    return pd.read_csv(root / "tables/differences.csv")


# Asked for later


@pytest.mark.long
def test_metrics_asked_for_later_extract_nothing_again(oracle, more):
    did = [event for event in events(more) if event["event"] in ("shard", "extract", "score")]
    assert [event["event"] for event in did] == ["score"] * 4
    before, after = table(oracle), table(more)
    assert before[["precision", "kid_mean", "fid_infinity"]].isna().all(axis=None)
    assert after[["precision", "recall", "kid_mean", "kid_std", "fid_infinity"]].notna().all(axis=None)
    assert after["fid"].tolist() == before["fid"].tolist()
    assert after["fid_se"].tolist() == before["fid_se"].tolist()
    assert ((after["fid_infinity"] - after["fid_exact"]).abs() < 4 * after["fid_se"]).all()
    assert (after["fid_infinity"] < after["fid"]).all(), "the bias of N is upwards"


@pytest.mark.long
def test_what_can_not_be_given_is_said_once_under_the_table(more):
    assert table(more)["isc_mean"].isna().all()
    assert (more / "tables/quality.md").read_text().count("no isc: ") == 1


@pytest.mark.long
def test_a_kid_subset_size_above_n_is_reduced_and_recorded(more):
    protocols = json.loads((more / "tables/quality.json").read_text())["protocols"].values()
    assert {protocol["kid_subset_size"] for protocol in protocols} == {700}


@pytest.mark.long
def test_floors_are_computed_once_and_kept_with_the_reference(oracle_config, oracle, more):
    for root, assignments, columns in ((oracle, (), {"fid"}), (more, MORE[1::2], {"fid", "kid", "precision"})):
        config = load(str(oracle_config), assignments)
        floors = floors_of(RunDir(root), scoring_of(config, plan(config)), 700)
        assert floors.keys() >= columns
        assert floors["fid"].num_samples == 700
        assert 0 < floors["fid"].mean < table(root)["fid"].min(), "the oracle's samples have a true distance, too"
    assert len(list(oracle.glob("features/*/reference-*/*-floor-*.json"))) == 1


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


@pytest.mark.long
def test_a_run_and_the_same_images_elsewhere_have_the_same_numbers(more, tmp_path):
    """Parquet as a run leaves it, against the reference's images in an .npz."""
    np.savez(tmp_path / "reference.npz", load_images(Data(name="gaussian", shape=(1, 8, 8))).transpose(0, 2, 3, 1))
    [folder] = (more / "samples").glob("S0005-eta1-*")
    asked = ("--extractor", "pixels", "--metrics", "fid,kid,prc,fid_infinity", "--set", "evaluate.kid_subsets=3")
    done = taugrid("evaluate", "--samples", folder, "--reference", tmp_path / "reference.npz", *asked, "--json")
    found = json.loads(done.stdout)
    row = table(more).loc[folder.name.rsplit("-", 1)[1]]
    assert {"fid", "kid", "precision", "fid_infinity"} <= found["metrics"].keys()
    assert found["metrics"] == pytest.approx({name: row[name] for name in found["metrics"]}, rel=1e-9)


# Other references


def score_here(root, *assignments):
    """Does in this process what workers would. Returns (the row by cell, what was extracted)."""
    config = load(str(root), assignments)
    stages = frozenset({"evaluate"})
    survey = Survey(Run(config, plan(config), RunDir(root)), scoring_of(config, plan(config)), stages, pytest.fail)
    extracted = []
    for task in (*ReferenceWork(survey).tasks(), *ExtractWork(survey).tasks(), *ScoreWork(survey).tasks()):
        if isinstance(task.job, extract.ExtractJob):
            extracted.append(task.key)
            extract.run(task.job, Device("cpu"))
        else:
            score_cell.run(task.job, Device("cpu"))
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    done = taugrid("run", root, *sets, "--json")
    assert "starting Ray" not in done.stderr, "all was done"
    return {row["cell"]: row for row in json.loads(done.stdout)["cells"]}, extracted


@pytest.mark.long
def test_a_folder_is_the_reference_that_its_images_are(finished, copy, held_out):
    """Held-out digits, by name and as files: one reference, whose features are extracted once."""
    rows, extracted = score_here(copy, "evaluate.reference={name: digits, split: test}")
    assert extracted == ["reference/0"]
    assert all(rows[cell]["fid"] != fid for cell, fid in table(finished)["fid"].items())
    again, extracted = score_here(copy, f"evaluate.reference={held_out}")
    assert extracted == []
    assert again == rows
    [folder] = (copy / "samples").glob("S0004-eta1-*")
    settings = ("isc_splits=5", "kid_subsets=4", "kid_subset_size=50")
    sets = [word for setting in settings for word in ("--set", f"evaluate.{setting}")]
    elsewhere = json.loads(
        taugrid("evaluate", "--samples", folder, "--reference", held_out, *DIGITS, *sets, "--json").stdout
    )["metrics"]
    row = rows[folder.name.rsplit("-", 1)[1]]
    assert elsewhere == pytest.approx({name: row[name] for name in elsewhere}, rel=1e-6)


@pytest.mark.long
def test_a_reference_of_moments_gives_fid_alone(finished, copy, tmp_path):
    """The moments of the digits' features, as pytorch-fid would keep them: the same FID, and no KID."""
    [path] = finished.glob("features/*/reference-*/part-*.parquet")
    features = np.concatenate([values for _, values in parquet.read_features(path, "features")]).astype(np.float64)
    np.savez(tmp_path / "moments.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    rows, extracted = score_here(copy, f"evaluate.reference={tmp_path / 'moments.npz'}")
    assert extracted == []
    for cell, expected in table(finished).iterrows():
        assert rows[cell]["fid"] == pytest.approx(expected["fid"], rel=1e-9)
        assert rows[cell]["isc_mean"] == pytest.approx(expected["isc_mean"], rel=1e-12)
        assert rows[cell]["kid_mean"] is None
    assert "no kid" in (copy / "tables/quality.md").read_text()


# Differences


@pytest.mark.long
def test_neighbours_in_the_table_have_their_differences(oracle):
    rows, found = table(oracle), differences(oracle)
    pairs = {
        (along, *((rows.loc[cell, "steps"], rows.loc[cell, "eta"]) for cell in (a, b)))
        for along, a, b in zip(found["along"], found["cell_a"], found["cell_b"], strict=True)
    }
    assert pairs == {
        ("steps", (5, 0), (10, 0)), ("steps", (5, 1), (10, 1)), ("eta", (5, 0), (5, 1)), ("eta", (10, 0), (10, 1)),
    }  # fmt: skip
    fid, fid_se = rows["fid"], rows["fid_se"]
    for row in found.itertuples():
        assert row.difference == fid[row.cell_b] - fid[row.cell_a]
        assert row.se > 0
        assert row.z == pytest.approx(row.difference / row.se)
    deterministic = found[(found["along"] == "steps") & (found["eta_a"] == 0)].iloc[0]
    unpaired = np.hypot(fid_se[deterministic["cell_a"]], fid_se[deterministic["cell_b"]])
    assert deterministic["se"] < 0.3 * unpaired, "all their noise is the same, and cancels"
    assert found[["note", "settings", "others"]].isna().all(axis=None)
    assert "S 5 -> 10 at eta 0: -0.15" in (oracle / "tables/differences.md").read_text()


@pytest.mark.long
def test_too_few_samples_for_an_error_are_said_with_the_difference(finished):
    found = differences(finished)
    assert len(found) == 7
    assert found[["se", "z"]].isna().all(axis=None)
    assert found["note"].str.contains("100 samples for 64 varying features").all()
    [clipped] = found.loc[found["others"].notna() & (found["steps_a"] == 2), "others"]
    assert "x0_and_eps" in clipped


@pytest.mark.long
def test_compare_takes_any_two_cells(oracle):
    first, second = "S0005-eta0-", "S0010-eta1-"
    rows = table(oracle)
    cells = [path.name.rsplit("-", 1)[1] for name in (first, second) for path in oracle.glob(f"samples/{name}*")]
    difference = rows.loc[cells[1], "fid"] - rows.loc[cells[0], "fid"]
    line = taugrid("compare", oracle, first, second).stdout
    assert line.startswith("FID, S 5, eta 0 ")
    assert f"S 10, eta 1: {difference:.3f}"[:-1] in line
    found = json.loads(taugrid("compare", oracle, first, cells[1], "--json").stdout)
    assert (found["cell_a"], found["cell_b"], found["difference"]) == (*cells, difference)
    assert found["se"] > 0
    for name in ("S0099", "S0005"):
        error = taugrid("compare", oracle, name, second, code=2).stderr
        assert len(error.strip().splitlines()) == 1
        assert f"{name!r}" in error
    assert "config.json" in taugrid("compare", oracle / "tables", first, second, code=2).stderr


@pytest.mark.long
def test_lost_and_damaged_influences_take_the_errors_of_differences_alone(oracle, oracle_copy):
    lost, cut = sorted(oracle_copy.glob("scores/*.parquet"))[:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-50])
    taugrid("report", oracle_copy)
    assert (oracle_copy / "tables/quality.csv").read_bytes() == (oracle / "tables/quality.csv").read_bytes()
    gone = {path.name.split("-")[0] for path in (lost, cut)}
    before, after = differences(oracle), differences(oracle_copy)
    assert after["difference"].tolist() == before["difference"].tolist()
    without = after["cell_a"].isin(gone) | after["cell_b"].isin(gone)
    assert 0 < without.sum() <= 4
    assert after.loc[without, ["se", "z"]].isna().all(axis=None)
    assert after.loc[without, "note"].str.contains("standard error").all()
    assert after.loc[~without, "se"].tolist() == before.loc[~without, "se"].tolist()


@pytest.mark.long
def test_scores_of_another_version_stand_apart_and_are_not_compared_unless_told_to(oracle, oracle_copy):
    """As after an upgrade of torch, when the grid has grown: scores of before stay."""
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
    assert set(differences(oracle_copy)["along"]) == {"eta"}
    pair = ("S0005-eta0-", "S0010-eta0-")
    error = taugrid("compare", oracle_copy, *pair, code=2).stderr
    assert all(word in error for word in ("versions.torch", "2.9.1", "--join"))
    assert len(error.strip().splitlines()) == 1
    joined = json.loads(taugrid("compare", oracle_copy, *pair, "--join", "--json").stdout)
    assert joined["joined"]
    assert "2.9.1" in joined["note"]
    expected = json.loads(taugrid("compare", oracle, *pair, "--json").stdout)
    assert (joined["difference"], joined["se"]) == (expected["difference"], expected["se"])
