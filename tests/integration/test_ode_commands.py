"""`reconstruct` and `interpolate` on a finished run: right numbers, and nothing done twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from denoisers import decode, encode
from shared import taugrid

from taugrid import parquet
from taugrid.config import Data
from taugrid.config.load import load
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.network.load import load_network

pytestmark = pytest.mark.long

IMAGES = 40


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("probes") / "run"))


def test_errors_are_those_of_encoding_and_decoding(run):
    arguments = ("reconstruct", run, "--set", f"report.reconstructed_images={IMAGES}", "--json")
    document = json.loads(taugrid(*arguments).stdout)
    assert document["status"] == "done"
    rundir = RunDir(run)  # the network and its alpha_bar, loaded as by a worker
    [model] = plan(load(str(run)), Lookups(rundir.read_checkpoint)).models
    network = load_network(rundir.network(model, "ema"), model.diffusion, "cpu")
    alpha_bar = schedules.alpha_bar(model.diffusion)
    x0 = torch.from_numpy(data.load_images(Data())[:IMAGES]).float() / 127.5 - 1
    for row in document["cells"]:
        times = {2: (500, 1000), 4: (250, 500, 750, 1000)}[row["steps"]]
        rebuilt = decode(network, encode(network, x0, alpha_bar, times), alpha_bar, times)
        each = ((rebuilt - x0) / 2).square().flatten(1).mean(dim=1).numpy()
        assert row["mse"] == pytest.approx(each.mean(), rel=1e-4)
        assert row["mse_se"] == pytest.approx(each.std(ddof=1) / IMAGES**0.5, rel=1e-4)
        assert (row["num_images"], row["network_evaluations"]) == (IMAGES, 2 * row["steps"])
        assert row["mse_8bit"] <= row["mse"] * 1.001, "clipping to [0, 1] brings an untrained network's images nearer"


def test_interpolations_end_in_the_samples_themselves(run):
    taugrid("interpolate", run, "--set", "report.interpolated_pairs=2")
    for steps in (2, 4):
        [path] = run.glob(f"interpolations/S{steps:04d}-eta0-*/part-000000.parquet")
        pictures = np.concatenate([batch for _, batch in parquet.read_images(path)]).astype(int)
        assert len(pictures) == 2 * 11 + 11 * 11
        [folder] = run.glob(f"samples/S{steps:04d}-eta0-*")
        samples = np.concatenate([b for part in sorted(folder.iterdir()) for _, b in parquet.read_images(part)])
        rows, square = pictures[:22].reshape(2, 11, 1, 8, 8), pictures[22:].reshape(11, 11, 1, 8, 8)
        ends = [rows[0, 0], rows[0, -1], rows[1, 0], rows[1, -1]]
        corners = [square[0, 0], square[0, -1], square[-1, 0], square[-1, -1]]
        for shown in (ends, corners):
            assert np.abs(np.stack(shown) - samples[:4].astype(int)).max() <= 1
        assert np.abs(rows[:, 5] - rows[:, 0]).max() > 20, "the middle is another image"
    names = {path.name.rsplit("-", 1)[0] for path in (run / "figures").glob("interpolation*")}
    assert names == {f"{kind}-S{steps:04d}-eta0" for kind in ("interpolations", "interpolation-square")
                     for steps in (2, 4)}  # fmt: skip
    assert "starting Ray" not in taugrid("interpolate", run, "--set", "report.interpolated_pairs=2").stderr
