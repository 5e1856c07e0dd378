"""Small nights for tests of the gate: untrained networks with 4x4 images, sampled and scored in this process."""

import io
import json
import shutil
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import click
import pytest
import torch
import yaml
from diffusers import UNet2DModel
from in_process import COOLDOWN_SECONDS, PoolHere

from taugrid.orchestrator.baseline.compared import NightVerdict
from taugrid.orchestrator.baseline.snapshot import Software
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.dispatch import capacity, cluster, pool
from taugrid.orchestrator.dispatch.policy import health

UNET = {
    "sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8], "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
}  # fmt: skip

CONFIG = {
    "name": "night",
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "sample": {"num_samples": 200, "batch_size": 100, "shard_evaluations": 300},
    "grid": {"steps": [2, 3], "eta": [0.0, 1.0]},
    "diffusion": {"prediction": "sample"},
    "evaluate": {"metrics": ["fid"]},
}
"""Four cells; 200 images are enough for a standard error of FID on 16 pixels."""

CELLS = 4


def checkpoint(folder: Path, worse: float = 0.0) -> Path:
    """A network that predicts x0; `worse` shifts its images away from the data."""
    torch.manual_seed(0)
    network = UNet2DModel(**UNET)
    with torch.no_grad():
        network.conv_out.weight *= 2
        network.conv_out.bias -= worse
    network.save_pretrained(folder)
    return folder


def write_config(path: Path, checkpoint: Path | str, **changes) -> Path:
    path.write_text(yaml.safe_dump({**CONFIG, "model": {"checkpoint": str(checkpoint)}, **changes}))
    return path


connections: list[str] = []
"""The addresses of all connections to Ray that commands have opened."""


def connected(address, *arguments):
    connections.append(address)
    return nullcontext()


@contextmanager
def workers_here():
    with (
        mock.patch.object(pool, "Pool", PoolHere),
        mock.patch.object(cluster, "connected", connected),
        mock.patch.object(health, "FIRST_COOLDOWN_SECONDS", COOLDOWN_SECONDS),
        mock.patch.object(capacity, "embedded_workers", return_value=1),
        mock.patch.object(capacity, "worker_size", return_value=capacity.Size(1, 0)),
        mock.patch.object(capacity, "staying", return_value=[capacity.Node("here", 1, 0)]),
    ):
        yield


def taugrid(*arguments, code=0):
    """Run a command in this process; returns what it printed on stdout, and on stderr."""
    from taugrid.errors import UserError

    out, err, found = io.StringIO(), io.StringIO(), 0
    with workers_here(), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([*map(str, arguments)], prog_name="taugrid", standalone_mode=False)
        except SystemExit as end:
            found = end.code
        except click.Abort:
            raise KeyboardInterrupt from None
        except UserError as error:
            err.write(str(error))
            found = 2
    assert code is None or found == code, f"exit {found}, not {code}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def night(history, config, name, *options, code=0):
    out, _ = taugrid("nightly", config, "--history", history, "--id", name, *options, "--json", code=code)
    return json.loads(out)


def empty_verdict(name, time):
    """The content of verdict.json of a night without cells and baseline."""
    nothing = dict.fromkeys(("baseline", "images", "comparison"))
    return NightVerdict(
        night=name, name="n", time=time, result="no baseline", missing={}, failed={}, not_judged=(), model=(),
        scores=(), software=Software(), **nothing,
    ).as_dict()  # fmt: skip


def accept(history, name, *options, code=0):
    words = ("--to", f"{history}/baseline.json", "--reason", "the first", *options)
    return taugrid("baseline", "accept", f"{history}/nights/{name}/run", *words, code=code)


def begin(folder, **changes):
    """A history whose first night is its baseline; configs of that network, of one nearby and of one that is worse."""
    for name, worse in (("same", 0.0), ("nearby", 1e-4), ("worse", 0.3)):
        write_config(folder / f"{name}.yaml", checkpoint(folder / name, worse), **changes)
    night(folder / "history", folder / "same.yaml", "1")
    accept(folder / "history", "1")
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """What `begin` makes, for all modules; its first run and the baseline also by themselves, as run, baseline.json."""
    folder = tmp_path_factory.getbasetemp() / "begun"
    if not folder.exists():
        folder.mkdir()
        begin(folder)
        shutil.copytree(folder / "history/nights/1/run", folder / "run")
        for kind in ("json", "parquet"):
            shutil.copy(folder / f"history/baseline.{kind}", folder)
    return folder


@pytest.fixture
def history(begun, tmp_path):
    return shutil.copytree(begun / "history", tmp_path / "history")


def compared(*words, code=0):
    return json.loads(taugrid("compare", *words, "--json", code=code)[0])


def checks(found):
    return {name: check["result"] for name, check in found["comparison"]["checks"].items()}


def results(found):
    return {cell["result"] for cell in found["comparison"]["cells"]}


def summary(history, name):
    return (history / f"nights/{name}/summary.md").read_text()


def submitted(monkeypatch, change):
    """Workers get `change(job)` in the place of each job."""
    submit = PoolHere.submit
    monkeypatch.setattr(PoolHere, "submit", lambda pool, worker, job, key: submit(pool, worker, change(job), key))


def failing(monkeypatch, fails):
    """Jobs of samples for which `fails(job)` holds are ones that no worker can do."""
    submitted(monkeypatch, lambda job: None if type(job).__name__ == "SampleJob" and fails(job) else job)


def interrupted(monkeypatch, *arguments, at=lambda job: True):
    """A night that Ctrl-C ends as soon as a worker gets a job for which `at(job)` holds."""

    def stopped(job):
        if at(job):
            raise KeyboardInterrupt
        return job

    with monkeypatch.context() as patch:
        submitted(patch, stopped)
        with pytest.raises(KeyboardInterrupt):
            night(*arguments)
