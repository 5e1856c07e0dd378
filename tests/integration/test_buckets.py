"""A run in a bucket, by the command line and Ray's workers: the same files as in a folder."""

import json
import re

import pytest
import yaml
from buckets import SECRET
from shared import taugrid

from taugrid.storage import open_place

pytestmark = pytest.mark.usefixtures("sketched")

CONFIG = {
    "name": "bucket",
    "model": {"oracle": "gaussian"},
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "sample": {"num_samples": 40, "batch_size": 10, "shard_evaluations": 40},
    "grid": [{"steps": [2, 4]}],
    "evaluate": {"metrics": ["fid", "kid"], "kid_subsets": 2, "kid_subset_size": 20, "keep_features": True},
    "cluster": {"workers": 2},
}
RESULTS = ("samples/*/*", "features/*/*/*", "scores/*", "tables/*", "figures/*")
VOLATILE = ("quality.csv", "quality.json", "cost.csv", "cost.md")
"""They tell seconds, which are outside any promise."""


def contents(out):
    """The bytes of what a run is for, by name."""
    root, storage = open_place(str(out), "--out")
    paths = [path for pattern in RESULTS for path in storage.list(root, pattern)]
    return {path.relative_to(root).as_posix(): storage.read(path) for path in paths}


def same(out, other):
    ours, theirs = contents(out), contents(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    differing = [name for name in ours if ours[name] != theirs[name] and not name.endswith(VOLATILE)]
    assert [name for name in differing if not name.startswith("figures/")] == []


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "bucket.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.mark.long  # test_object_runs.py has one in seconds, without Ray
def test_a_run_in_a_bucket_is_that_of_a_folder(config, s3, tmp_path, monkeypatch):
    """Run, lose a shard, resume, grow, look, export, report; each as with a folder, and nothing on this disk."""
    monkeypatch.chdir(tmp_path)
    url, folder = f"s3://{s3.bucket()}/runs/mine", tmp_path / "run"
    root, storage = open_place(url, "--out")
    done = taugrid("run", config, "--out", url, "--json")
    assert json.loads(done.stdout)["dir"] == url
    taugrid("run", config, "--out", folder)
    same(url, folder)
    lost = storage.list(root, "samples/*/part-000001.parquet")[0]
    storage.delete(lost)
    assert "1 shard" in taugrid("run", url).stderr
    grown = ("--set", "sample.num_samples=65")
    taugrid("run", url, *grown)
    taugrid("run", folder, *grown)
    same(url, folder)
    taugrid("report", url)
    same(url, folder)
    status = json.loads(taugrid("status", url, "--json").stdout)
    assert status["dir"] == url
    assert status["network_evaluations_remaining"] == 0
    assert re.search("130 images.*intact", taugrid("verify", url).stdout)
    assert taugrid("compare", url, "S0002-eta0-", "S0004-eta0-").stdout == (
        taugrid("compare", folder, "S0002-eta0-", "S0004-eta0-").stdout
    )
    taugrid("export", url, "S0002-eta0-", "--to", tmp_path / "png")
    assert len(list((tmp_path / "png").glob("*.png"))) == 65
    everything = [path for depth in range(1, 5) for path in storage.stats(root, "/".join("*" * depth))]
    assert not [path for path in everything if SECRET.encode() in storage.read(path)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["png", "run"], "nothing named s3: is on the disk"


@pytest.mark.long
def test_training_for_a_bucket_on_a_cluster_needs_a_shared_folder(s3, tmp_path):
    command = ("train", "digits", "--out", f"s3://{s3.bucket()}/x", "--address", "127.0.0.1:9")
    [line] = taugrid(*command, code=2).stderr.strip().splitlines()
    assert "cluster.scratch" in line
