"""docs/custom-network.md as a reader follows it: its files and then its commands, with fewer samples."""

import importlib.util
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import taugrid_alone
from denoisers import decode, of_time
from shared import taugrid

from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS
from taugrid.hashing import file_sha256
from taugrid.images import to_uint8
from taugrid.workers import schedules
from taugrid.workers.diffusion import noise

PAGE = Path(__file__).parents[2] / "docs" / "custom-network.md"
SMALLER = {
    "sample.num_samples": 60,
    "grid": "[{steps: [5, 10], eta: [0.0]}]",
    "evaluate.isc_splits": 2,
    "evaluate.kid_subsets": 2,
    "evaluate.kid_subset_size": 20,
    "cluster.workers": 1,
}


def files():
    """Name -> text of each file that the page shows: what a line that names it and ends in a colon introduces."""
    blocks = re.findall(r"`(\w+\.(?:py|yaml))`[^\n]*:\n\n((?: {4}[^\n]*\n|\n)+)", PAGE.read_text())
    return {name: textwrap.dedent(text) for name, text in blocks}


def commands():
    return re.findall(r"^ {4}(taugrid [^\n]+)$", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's files, where its training has been run."""
    path = tmp_path_factory.mktemp("custom")
    for name, text in files().items():
        (path / name).write_text(text)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other take minutes on a busy machine
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.syspath_prepend(path)
        runpy.run_path("train_my_network.py", run_name="__main__")
    torch.set_num_threads(threads)
    del sys.modules["my_network"]
    return path


def test_the_page_is_complete():
    assert set(files()) == {"my_network.py", "my_network.yaml", "train_my_network.py"}
    assert len(files()["my_network.py"].splitlines()) <= 32, "short enough to be read"
    assert [command.split()[1] for command in commands()] == ["plan", "run"]


def test_the_pages_commands_work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    smaller = [word for key, value in SMALLER.items() for word in ("--set", f"{key}={value}")]
    plan, run = (shlex.split(command)[1:] for command in commands())
    taugrid(*plan, *smaller)
    taugrid_alone(*run, *smaller)  # Ray's workers import from the folder that they start in
    root = folder / "runs" / "my-network"
    table = pd.read_csv(root / "tables" / "quality.csv")
    assert table["steps"].tolist() == [5, 10]
    assert table["fid"].notna().all()
    for row in table.itertuples():
        [part] = root.glob(f"samples/*-{row.cell}/*.parquet")
        assert parquet.inspect(part).metadata["weights_sha256"] == file_sha256(folder / "my_network.pt")
        drawn = np.concatenate([batch for _, batch in parquet.read_images(part)])
        assert np.abs(by_hand(folder, row.steps).astype(int) - drawn).max() <= 1


def by_hand(folder, steps):
    """The 60 images, (60, 1, 8, 8) uint8, of the network that was trained, asked at the indices it was trained with."""
    spec = importlib.util.spec_from_file_location("my_network", folder / "my_network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.load(folder / "my_network.pt")
    times = [1000 * i // steps for i in range(1, steps + 1)]
    x_T = noise.normal(0, torch.arange(60), 0, (1, 8, 8))

    @of_time
    def predicted(x, t):
        return network(x, torch.full((len(x),), t - 1))

    return to_uint8(decode(predicted, x_T, schedules.alpha_bar(DIFFUSION_DEFAULTS), times).numpy())
