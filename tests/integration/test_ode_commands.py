"""`reconstruct` and `interpolate` on a finished run: right numbers, and nothing done twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import events
from denoisers import decode, encode
from shared import taugrid

from taugrid import parquet
from taugrid.config import Data
from taugrid.config.load import load
from taugrid.eval.figures import pictures
from taugrid.eval.figures.drawing import save
from taugrid.eval.figures.over_steps import reconstruction_figure
from taugrid.eval.tables.reconstruction import reconstruction_frame
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.network.load import load_network

pytestmark = pytest.mark.long

IMAGES = 40


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("probes") / "run"))


@pytest.fixture(scope="module")
def reconstructed(run):
    arguments = ("reconstruct", run, "--set", f"report.reconstructed_images={IMAGES}", "--json")
    return json.loads(taugrid(*arguments).stdout), arguments


def model_of(run):
    """The network and its alpha_bar, loaded as a worker does."""
    rundir = RunDir(run)
    [model] = plan(load(str(run)), rundir.read_checkpoint).models
    return load_network(rundir.network(model, "ema"), model.diffusion, "cpu"), schedules.alpha_bar(model.diffusion)


def test_errors_are_those_of_encoding_and_decoding(run, reconstructed):
    document, _ = reconstructed
    assert document["status"] == "done"
    network, alpha_bar = model_of(run)
    x0 = torch.from_numpy(data.load_images(Data())[:IMAGES]).float() / 127.5 - 1
    for row in document["cells"]:
        times = {2: (500, 1000), 4: (250, 500, 750, 1000)}[row["steps"]]
        rebuilt = decode(network, encode(network, x0, alpha_bar, times), alpha_bar, times)
        each = ((rebuilt - x0) / 2).square().flatten(1).mean(dim=1).numpy()
        assert row["mse"] == pytest.approx(each.mean(), rel=1e-4)
        assert row["mse_se"] == pytest.approx(each.std(ddof=1) / IMAGES**0.5, rel=1e-4)
        assert (row["num_images"], row["network_evaluations"]) == (IMAGES, 2 * row["steps"])
        assert row["mse_8bit"] <= row["mse"] * 1.001, "clipping to [0, 1] brings an untrained network's images nearer"


def test_the_table_has_a_row_for_each_number_of_steps(run, reconstructed):
    table = pd.read_csv(run / "tables" / "reconstruction.csv")
    assert table["steps"].tolist() == [2, 4], "eta and clip have no part in it, so six cells make two rows"
    text = (run / "tables" / "reconstruction.md").read_text()
    assert "trained on" in text


def test_the_figures_show_the_rows_and_the_images_that_are_on_disk(run, reconstructed, tmp_path):
    """Equal figures have equal bytes."""
    document, _ = reconstructed
    save(reconstruction_figure(reconstruction_frame(document["cells"])), tmp_path / "reconstruction-error")
    rebuilt = {}
    for steps in (2, 4):
        parts = sorted((run / "reconstructions").glob(f"S{steps:04d}-eta0-*/part-*.parquet"))
        read = [batch for part in parts for batch in parquet.read_images(part)]
        assert np.concatenate([index for index, _ in read]).tolist() == list(range(IMAGES))
        rebuilt[steps] = np.concatenate([images for _, images in read])[:12, 0]
    assert len(parts) == 2, "of S = 4"
    pictures.reconstructions(data.load_images(Data())[:12, 0], rebuilt, tmp_path / "reconstructions.png")
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(drawn) == 3
    assert drawn == {name: (run / "figures" / name).read_bytes() for name in drawn}


def test_only_what_is_damaged_or_new_is_reconstructed(run, reconstructed):
    document, arguments = reconstructed
    files = sorted((run / "reconstructions").glob("*/part-*.parquet"))
    before = {path: path.read_bytes() for path in files}
    files[0].write_bytes(before[files[0]][:-9])
    again = taugrid(*arguments)
    assert {path: path.read_bytes() for path in files} == before
    redone = [event["task"] for event in events(run) if event["event"] == "reconstruct"]
    assert len(set(redone)) == 1
    assert "damaged: reconstructions/" in again.stderr
    rows = [{**row, "seconds": None} for row in json.loads(again.stdout)["cells"]]
    assert rows == [{**row, "seconds": None} for row in document["cells"]]
    once_more = taugrid(*arguments)
    assert "starting Ray" not in once_more.stderr


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
