"""The run directory in tests/data opens with nothing to do, keeps its numbers, grows and compares."""

import io
import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from command import sample_files, scores
from PIL import Image
from shared import taugrid

from taugrid.orchestrator.baseline.compared import Situation

pytestmark = pytest.mark.usefixtures("sketched")

DATA = Path(__file__).parents[1] / "data"
KEPT = DATA / "kept-run"
"""A trained run, and the baseline that it accepted."""
TRAINED_IDS = {"06a87da89f", "cf7a5c9512", "c5de04f9c0", "7ee7a97b4b", "ad2c66b357"}


def run_with_nothing_to_do(root, original, ids):
    """Run a copy of `original`: nothing is made again. Returns its quality table as it was and as it is."""
    before, scored = sample_files(root), scores(root)
    done = taugrid("run", root, "--json")
    assert "Ray" not in done.stderr
    assert {cell["cell"] for cell in json.loads(done.stdout)["cells"]} == ids
    assert (sample_files(root), scores(root)) == (before, scored)
    assert not (root / "damaged").exists()
    taugrid("verify", root)
    files = (each / "tables" / "quality.csv" for each in (original, root))
    return (pd.read_csv(file, index_col="cell", dtype={"cell": str}) for file in files)


def pixels(path):
    images = pd.read_parquet(path)["image"]
    return np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"])), dtype=int) for image in images])


@pytest.fixture
def trained(tmp_path):
    return shutil.copytree(KEPT / "run", tmp_path / "trained")


@pytest.mark.long
def test_a_trained_run_has_nothing_left_to_do(trained):
    old, new = run_with_nothing_to_do(trained, KEPT / "run", TRAINED_IDS)
    pd.testing.assert_frame_equal(old, new[old.columns], rtol=1e-9)


def protocols_in(tables):
    """Each protocol without what tells versions apart, sorted."""
    found = json.loads(tables.read_text())["protocols"].values()
    return sorted(json.dumps({k: v for k, v in each.items() if k not in ("versions", "scoring")}) for each in found)


@pytest.mark.long
def test_a_trained_run_makes_again_what_it_lost_and_is_compared(trained):
    """The same ids, images and protocol: the network, the noise and the scores have not moved."""
    tables = trained / "tables" / "quality.json"
    protocols = protocols_in(tables)
    lost = trained / "samples" / "S0008-sigma_hat-ad2c66b357" / "part-000001.parquet"
    before = pixels(lost)
    lost.unlink()
    (score,) = (trained / "scores").glob("ad2c66b357-*.json")
    fid = json.loads(score.read_text())["metrics"]["fid"]
    score.unlink()
    taugrid("run", trained)
    after = pixels(lost)
    assert after.shape == (20, 8, 8)
    assert np.abs(before - after).max() <= 1, "another kind of machine may round otherwise"
    assert json.loads(score.read_text())["metrics"]["fid"] == pytest.approx(fid, rel=0.01)
    assert protocols_in(tables) == protocols
    assert "-99.95" in taugrid("compare", trained, "steps=4,eta=0", "steps=8,eta=0").stdout
    night = json.loads(taugrid("compare", trained, KEPT / "baseline.json", "--json").stdout)
    assert {cell["situation"] for cell in night["cells"]} == {get_args(Situation)[0]}


@pytest.mark.long
def test_a_trained_run_grows(trained):
    before = sample_files(trained)
    grid = json.loads((trained / "config.json").read_text())["grid"] + [{"steps": [2], "eta": [0.0]}]
    done = taugrid("run", trained, "--set", "sample.num_samples=100", "--set", f"grid={grid}", "--json")
    cells = json.loads(done.stdout)["cells"]
    assert [cell["num_samples"] for cell in cells] == [100] * 6
    assert {cell["cell"] for cell in cells} > TRAINED_IDS
    whole = {name: data for name, data in before.items() if "S0008" in name and "000002" not in name}
    assert whole
    assert whole.items() <= sample_files(trained).items(), "shards that were whole stay as they were"
