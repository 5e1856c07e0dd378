"""taugrid as its users have it: the package, the program and user code. Nets import nothing below `taugrid`.

A rewrite may rely on tests/nets: if they pass before and after it, nothing that they hold was lost. Only the fixtures
`fast_lease_poll` and `reset_ending` of tests/conftest.py, for commands run in this process, name what it may move.
"""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import snapshots
import yaml
from PIL import Image

NUMBERS = Path(__file__).parents[1] / "data" / "nets.json"
"""What was measured once; `pytest tests/nets --texts` measures anew."""

OWN = {"nets_own": Path(__file__).with_name("own.py"), "nets_extractor": Path(__file__).with_name("own_extractor.py")}
"""Code of a user, by the names of modules under which tests copy it to where a command is started."""


UNET = {
    "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
}  # fmt: skip
"""A small network, as diffusers and a config take it."""


class Ended(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str

    @property
    def json(self):
        return json.loads(self.stdout)


def taugrid(*words, code=0):
    """Run the program in this process; the test fails if it ends otherwise than with `code`, or with a traceback."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            pytest.raises(SystemExit) as end,
            mock.patch.object(sys, "argv", ["taugrid", *map(str, words)]),
            mock.patch.object(os, "_exit"),  # which a timer calls some seconds after a failure, whatever still runs
            warnings.catch_warnings(),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            runpy.run_module("taugrid", run_name="__main__")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert end.value.code == code, f"exit {end.value.code}, not {code}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return Ended(out.getvalue(), err.getvalue())


class Alone:
    """The program in a process of its own, which a test may kill."""

    def __init__(self, folder, *words):
        self._log = folder / "log"
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "taugrid", *map(str, words)]
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)

    def end(self, code=0):
        """Wait for its end; returns what it printed."""
        assert self.process.wait(240) == code, self._log.read_text()
        return self._log.read_text()

    def kill_once(self, condition):
        """SIGKILL as soon as a condition holds, which must be before its end."""
        try:
            end = time.monotonic() + 240
            while not condition():
                assert self.process.poll() is None, f"it ended too soon\n{self._log.read_text()}"
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.01)
        finally:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Place:
    """A folder with a user's code, in which runs of a config are made on a cluster."""

    def __init__(self, folder, head, config):
        self.folder, self._head, self._config = folder, head, config
        for name, file in OWN.items():  # workers have copies elsewhere, but look for faults here
            source = file.read_text().replace("Path(__file__).parent", f"Path({str(folder)!r})")
            (folder / f"{name}.py").write_text(source)

    def start(self, name, workers, *options, command="run", **changes):
        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(self._config | changes))
        out = ("--out", self.folder / name) if command == "run" else ()
        where = ("--address", self._head.gcs, "--workers", workers)
        return Alone(self.folder, command, config, *where, *out, *options)

    def run(self, name, workers, **changes):
        """The directory of a run that is done."""
        self.start(name, workers, **changes).end()
        return self.folder / name


def measured(key, numbers, tolerance):
    """Assert that numbers are those that were once measured, up to a tolerance that no kind of CPU breaks."""
    known = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
    numbers = np.asarray(numbers, float).tolist()
    if snapshots.update:
        known[key] = np.round(numbers, 6).tolist()
        lines = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in sorted(known.items()))
        NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.testing.assert_allclose(numbers, known[key], rtol=0, atol=tolerance, err_msg=key)


def most_apart(a, b):
    """The largest difference of two sets of pictures, in grey levels."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def frechet(mu, sigma, other_mu, other_sigma):
    """Frechet's distance of two normal distributions, by symmetric eigenvalues."""
    values, vectors = np.linalg.eigh(sigma)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_sigma @ root).clip(0)).sum()
    return ((mu - other_mu) ** 2).sum() + np.trace(sigma) + np.trace(other_sigma) - 2 * cross


def files(root, pattern="**/*"):
    """Name -> bytes of the files below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob(pattern)) if path.is_file()}


def write_pngs(folder, pictures):
    """Write pictures (n, H, W) as files of a new folder, named by their index."""
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:05d}.png")
    return folder
