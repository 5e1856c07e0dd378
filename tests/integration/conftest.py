import os
import secrets
from pathlib import Path

from buckets import ENVIRONMENT

os.environ.update(
    ENVIRONMENT,  # Ray's workers have the credentials of the environment in which it was started
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # listen on loopback alone; these are read when ray is imported
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",  # in place of 2: how soon an end or a death is noticed
    PYTHONPATH=os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),  # napping.py
)

import fcntl
import shutil

import pytest
from command import write_config, write_folder
from matplotlib.figure import Figure
from shared import shared_ray, taugrid, train_here

from taugrid.config import Data
from taugrid.workers.data.load import load_images
from taugrid.workers.training import fit

RENDERED = Figure.savefig


@pytest.fixture(scope="module")
def ray_session():
    """The Ray that this process's tests share."""
    shared_ray()


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """Trained by one thread: two of this small network wait for each other, for minutes on a busy machine."""
    return write_config(tmp_path_factory.mktemp("config"), cluster={"train": {"cpus_per_worker": 1}})


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory, worker_id):
    """A run that nothing disturbed, made once for all of xdist's processes; tests work on copies."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "finished" / "run"
    root.parent.mkdir(exist_ok=True)
    with (root.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root.parent / "stdout").exists():
            with pytest.MonkeyPatch.context() as patch:  # whoever asks first may want its own figures sketched
                patch.setattr(Figure, "savefig", RENDERED)
                patch.setattr(fit, "train", train_here)  # test_run.py trains the same through Ray Train
                done = taugrid("run", config, "--out", root, "--json")
            (root.parent / "stdout").write_text(done.stdout)
    return root


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def held_out(tmp_path_factory):
    """The 360 held-out digits as a folder of PNG files."""
    return write_folder(tmp_path_factory.mktemp("digits") / "test", load_images(Data(split="test")))


@pytest.fixture
def few(tmp_path):
    """A folder of 12 digits, for a test to spoil."""
    return write_folder(tmp_path / "few", load_images(Data())[:12])


@pytest.fixture
def private_cache(monkeypatch, tmp_path):
    """The user's cache is this test's alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
