"""Runs in a bucket while requests fail and drivers race: the same bytes and the same table as in a calm folder."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from buckets import AZURE_EXPIRED, EVERYWHERE
from command import TINY, Started, taugrid_alone

from taugrid.storage import open_place

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

RACER = """
from taugrid.orchestrator.rundir.lease import Lease
Lease.take = lambda lease, by_force, say: None
from taugrid.orchestrator.cli.main import main
main()
"""
"""A driver that no lease keeps out."""

CONFIG = {
    "name": "race",
    "model": {"oracle": "gaussian"},
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "sample": {"num_samples": 200, "batch_size": 10, "shard_evaluations": 40},
    "grid": [{"steps": [2, 4], "eta": [0.0, 1.0]}],
    "evaluate": {"metrics": ["fid"], "keep_features": True},
    "cluster": {"workers": 1},
}
SHARE = 0.05


def contents(out, patterns=("samples/*/*", "features/*/*/*", "scores/*", "tables/*.md")):
    root, storage = open_place(str(out), "--out")
    paths = [path for pattern in patterns for path in storage.list(root, pattern)]
    # cost.md has the seconds of this run, which no other run repeats
    return {path.relative_to(root).as_posix(): storage.read(path) for path in paths if path.name != "cost.md"}


def write(folder, config):
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The config, and its run in a folder."""
    folder = tmp_path_factory.mktemp("calm")
    config = write(folder, CONFIG)
    taugrid_alone("run", config, "--out", folder / "run")
    return config, contents(folder / "run")


@EVERYWHERE
def test_a_run_whose_requests_fail_is_resumed_verified_and_grown(calm, store, pytestconfig, tmp_path):
    config, expected = calm
    url, failed = store.url(), store.failed
    root, storage = open_place(url, "--out")
    with store.failing(SHARE, pytestconfig.getoption("--seed")):
        with Started(tmp_path / "log", "run", config, "--out", url) as run:
            run.wait_until(lambda: len(storage.list(root, "samples/*/*")) > 5)
            run.process.kill()
        taugrid_alone("run", config, "--out", url)
        assert contents(url) == expected
        assert "intact" in taugrid_alone("verify", url).stdout
        grown = ("--set", "sample.num_samples=215")
        taugrid_alone("run", config, "--out", url, *grown)
        taugrid_alone("run", config, "--out", tmp_path / "grown", *grown)
    made_at_once, ours = contents(tmp_path / "grown"), contents(url)
    assert {name: ours.get(name) for name in made_at_once} == made_at_once, "besides, it has the scores of N = 200"
    assert store.failed - failed > 20
    print(f"{store.failed - failed} requests failed")


@pytest.mark.parametrize("how", ["silent", "refusing"])
def test_buckets_that_are_down_for_90_seconds_delay_their_runs(calm, s3, gs, az, tmp_path, how):
    """The three stores side by side, each with its run."""
    config, expected = calm

    def during_an_outage(store):
        url = store.url()
        root, storage = open_place(url, "--out")
        with Started(tmp_path / store.scheme, "run", config, "--out", url) as run:
            run.wait_until(lambda: len(storage.list(root, "samples/*/*")) > 5)
            with store.silent() if how == "silent" else store.refusing(lambda method, path: (503, "SlowDown")):
                time.sleep(90)
            run.wait(0)
        print(run.output)
        lines = [line for line in run.output.splitlines() if line.startswith(url.rsplit("/", 2)[0])]
        assert [("trying again" in line, "answers again" in line) for line in lines] == [(True, False), (False, True)]
        return contents(url)

    with ThreadPoolExecutor(3) as at_once:
        assert list(at_once.map(during_an_outage, (s3, gs, az))) == [expected] * 3


@EVERYWHERE
def test_credentials_that_expire_end_a_run_that_goes_on_with_others(calm, store, tmp_path):
    config, expected = calm
    url = store.url()
    root, storage = open_place(url, "--out")
    refusal = (403, AZURE_EXPIRED) if store.scheme == "az" else (400, "ExpiredToken")
    with Started(tmp_path / "log", "run", config, "--out", url) as run:
        run.wait_until(lambda: len(storage.list(root, "samples/*/*")) > 5)
        with store.refusing(lambda method, path: refusal):
            run.wait(1)
    print(run.output)
    assert "the object store refused this" in run.output.splitlines()[-1]
    assert "Traceback" not in run.output
    taugrid_alone("run", config, "--out", url)
    assert contents(url) == expected


@EVERYWHERE
def test_two_drivers_that_run_all_the_same_do_no_harm(calm, store, pytestconfig):
    config, expected = calm
    url = store.url()
    racer = [sys.executable, "-c", RACER, "run", str(config), "--out", url]
    with store.failing(SHARE, pytestconfig.getoption("--seed")):
        drivers = [subprocess.Popen(racer, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            said = [driver.communicate(timeout=400)[1] for driver in drivers]
        finally:
            for driver in drivers:
                driver.kill()
    assert [driver.returncode for driver in drivers] == [0, 0], "\n".join(said)
    assert contents(url) == expected
    assert sum(map(bool, contents(url, ["events/*.jsonl"]).values())) == 2, "each has its own"
    taugrid_alone("verify", url)


def test_a_model_is_trained_for_a_bucket(s3, tmp_path, monkeypatch):
    """Interrupted once, with requests that fail: the weights and the images are those of a run in a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = write(tmp_path, TINY | {"grid": [{"steps": [2], "eta": [0.0]}]})
    url = f"s3://{s3.bucket()}/run"
    with s3.failing(SHARE, 3):
        with Started(tmp_path / "log", "run", config, "--out", url) as run:
            run.wait_until(lambda: list(tmp_path.glob("cache/taugrid/scratch/*/models/.training-*/checkpoint_*")))
            run.process.kill()
        taugrid_alone("run", config, "--out", url)
    taugrid_alone("run", config, "--out", tmp_path / "run")
    patterns = ("models/*/unet/*", "models/*/unet_raw/*", "samples/*/*", "tables/*.md")
    assert contents(url, patterns) == contents(tmp_path / "run", patterns)
    assert not list(tmp_path.glob("cache/taugrid/scratch/*/models/.training-*")), "nothing is left of it"
    assert not list(tmp_path.glob("cache/taugrid/scratch/*/models/[0-9a-f]*"))
