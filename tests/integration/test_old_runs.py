"""Run directories of the first version (commit e3fe5ca) open with nothing to do, keep their numbers, and grow."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from command import sample_files, scores
from shared import taugrid

OLD = Path(__file__).parents[1] / "data" / "first_version"
IDS = {"2e09d2f2e0", "d79541ad1f", "43bc3f8996", "2f0704c433"}


@pytest.fixture
def oracle(tmp_path):
    return shutil.copytree(OLD / "oracle", tmp_path / "oracle")


def test_an_old_run_is_finished(oracle):
    before, scored = sample_files(oracle), scores(oracle)
    done = taugrid("run", oracle, "--json")
    assert "Ray" not in done.stderr
    assert {cell["cell"] for cell in json.loads(done.stdout)["cells"]} == IDS
    assert (sample_files(oracle), scores(oracle)) == (before, scored)
    old, new = (pd.read_csv(root / "tables" / "quality.csv", index_col="cell") for root in (OLD / "oracle", oracle))
    exact = "fid_exact"  # computed anew for each table: its last digits are those of the machine's linear algebra
    pd.testing.assert_series_equal(new.pop(exact), old.pop(exact), rtol=1e-9)
    pd.testing.assert_frame_equal(old, new, check_exact=True)
    assert not (oracle / "damaged").exists()
    taugrid("verify", oracle)


def test_an_old_run_grows(oracle):
    before = sample_files(oracle)
    status = json.loads(taugrid("run", oracle, "--set", "sample.num_samples=40", "--json").stdout)
    assert [cell["num_samples"] for cell in status["cells"]] == [40] * 4
    after = sample_files(oracle)
    whole = {name: data for name, data in before.items() if "S0004" in name}
    assert whole.items() <= after.items(), "shards that were whole stay as they were"
    assert len(after) == 2 * 3 + 2 * 5


def test_an_old_custom_run_can_be_looked_at_without_its_code(tmp_path):
    root = shutil.copytree(OLD / "custom", tmp_path / "custom")
    status = json.loads(taugrid("status", root, "--json").stdout)
    assert [model["id"] for model in status["models"]] == ["e77efddc05"]
    assert [(cell["cell"], cell["scored"]) for cell in status["cells"]] == [("6dea2e0524", True)]
    taugrid("export", root, "6dea2e0524", "--to", tmp_path / "pngs")
    assert len(list((tmp_path / "pngs").iterdir())) == 8
    assert "--trust-code" in taugrid("run", root, code=2).stderr
    assert "no module 'net'" in taugrid("run", root, "--trust-code", "--set", "sample.num_samples=16", code=2).stderr
