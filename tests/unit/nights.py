"""Small nights for tests of the gate: untrained networks with 4x4 images, sampled and scored in this process."""

import io
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import click
import torch
import yaml
from diffusers import UNet2DModel
from in_process import COOLDOWN_SECONDS, PoolHere

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
    """Workers are this process."""
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
