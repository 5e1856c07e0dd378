"""`reconstruct` from a plan to its table without Ray: what is missing, which images are compared, what is said of them.

Networks are untrained or oracles: nothing here depends on how good a reconstruction is.
"""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import CONFIG as SMALL
from in_process import small_run
from rich.console import Console
from snapshots import raises, recorded
from tiny import UNET

from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS, Config, Data, Unet, validate
from taugrid.errors import NotFinite, UserError
from taugrid.images import to_uint8
from taugrid.jobs import Result
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.sources import Trained
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.work.ode import InterpolateWork, ReconstructWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.parquet import first_pictures
from taugrid.storage import LocalStorage
from taugrid.workers.data import load as data
from taugrid.workers.device import Device
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import build_unet, ema_start, save_pipeline
from taugrid.workers.ode import interpolate_cell, reconstruct_shard
from taugrid.workers.samplers.sampler import SamplingSpec, sample_batch

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

GAUSSIAN = {"model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "shape": [1, 4, 4]}}


def reconstruct(root, count, **sections):
    """The work of a config that asks for `count` images; shards of S = 2 hold 8 of them."""
    values = {
        "name": "x",
        "model": {"unet": UNET},
        "sample": {"steps": 2, "batch_size": 4, "shard_evaluations": 16, "seed": 0},
        "train": {"seed": 0},
        "report": {"reconstructed_images": count},
    }
    config = validate(Config, values | sections, "test")
    rundir = RunDir(root)
    root.mkdir(exist_ok=True)
    return ReconstructWork(
        Survey(Run(config, plan(config), rundir), None, frozenset({"reconstruct"}), rundir.set_aside)
    )


def save_networks(work, seed=1):
    for model in work.plan.models:
        if isinstance(model.source, Trained):
            save_network(work.rundir.models / model.id, model.source.unet, model.image_shape, seed)


def save_network(folder: Path, unet, shape, seed=1):
    torch.manual_seed(seed)
    network = build_unet(unet, shape)
    save_pipeline(folder, network, ema_start(network), DIFFUSION_DEFAULTS)


def do(work):
    tasks = list(work.tasks())
    for task in tasks:
        network = load_network(task.job.network, task.job.diffusion, "cpu")
        assert reconstruct_shard(task.job, network, Device("cpu")).created_file
    assert work.missing() == {}
    return tasks


def done(root, count, **sections):
    work = reconstruct(root, count, **sections)
    do(work)
    return work


def files(work):
    return {path.name: path.read_bytes() for path in sorted(work.path.glob("*/part-*.parquet"))}


def errors_of(path, of):
    """(mse_8bit as the file says, and as its pictures differ from the images `of` at their indices)."""
    listed = np.concatenate([part for _, part in parquet.read_numbers(path, "mse_8bit")])
    parts = list(parquet.read_images(path))
    kept = np.concatenate([batch for _, batch in parts]).astype(float)
    index = np.concatenate([i for i, _ in parts])
    return listed, (((kept - of[index]) / 255) ** 2).reshape(len(kept), -1).mean(axis=1)


def test_the_price_and_the_way_to_a_lower_one_are_said_before_it_starts(tmp_path):
    printed = io.StringIO()
    with small_run(tmp_path, f"{SMALL}report: {{reconstructed_images: 12}}\n") as opened:
        progress = Progress(Console(file=printed, soft_wrap=True))
        Session(replace(opened, rundir=RunDir(tmp_path / "run")), "local", progress).do(("reconstruct",))
    said, started, _ = printed.getvalue().partition("starting Ray")
    assert started
    assert f" {12 * 2 * 2} " in said
    recorded(said, "report.reconstructed_images")


@pytest.mark.parametrize("process", ["ddpm", "edm", "flow"])
def test_images_are_reconstructed_and_samples_interpolated_on_every_process(tmp_path, process):
    """The error falls with S, and rows of interpolations end in the samples themselves."""
    sections = GAUSSIAN | {
        "diffusion": {"process": process},
        "report": {"reconstructed_images": 8, "interpolated_pairs": 1},
    }
    work = done(tmp_path, 8, **sections, grid={"steps": [10, 80]})
    few, many = (row["mse"] for row in work.conclude().rows)
    assert many < few / 8 < 3e-4
    job = next(InterpolateWork(work.survey).tasks()).job
    network = load_network(job.network, job.diffusion, "cpu")
    assert interpolate_cell(job, network, Device("cpu")).images == 11 + 11**2
    shown = first_pictures([Path(job.path)], 11, job.storage)
    cell = work.plan.cells[0]
    spec = SamplingSpec(cell.model.decoder, cell.model.diffusion, cell.settings, cell.tau, cell.nfe)
    samples = to_uint8(sample_batch(network, torch.arange(2), spec).numpy())
    np.testing.assert_array_equal(shown[[0, -1]], samples[:, 0])


def test_nan_of_a_network_names_its_images_and_a_remedy(tmp_path):
    def network(x, *where):
        return x * math.nan

    work = reconstruct(tmp_path / "run", 8, **GAUSSIAN)
    with raises(NotFinite):
        reconstruct_shard(next(work.tasks()).job, network, Device("cpu"))
    with raises(NotFinite):
        interpolate_cell(next(InterpolateWork(work.survey).tasks()).job, network, Device("cpu"))


def test_raising_the_number_replaces_the_short_shard(tmp_path):
    done(tmp_path / "run", 12, **GAUSSIAN)
    work = reconstruct(tmp_path / "run", 20, **GAUSSIAN)
    [reason] = work.missing().values()  # there are 12 images: 8, and 4 of the second 8
    recorded(reason)
    assert work.conclude().rows == []
    before = files(work)
    tasks = do(work)
    assert [(task.job.start, task.job.stop, task.job.replaces is not None) for task in tasks] == [
        (8, 16, True),
        (16, 20, False),
    ]
    afresh = done(tmp_path / "afresh", 20, **GAUSSIAN)
    assert files(work) == files(afresh)
    assert files(work)["part-000000.parquet"] == before["part-000000.parquet"]
    assert work.conclude().rows == afresh.conclude().rows
    assert work.conclude().rows[0]["num_images"] == 20


def test_seeds_make_one_row_and_a_cell_that_lacks_a_shard_none_which_the_table_says(tmp_path):
    work = done(tmp_path, 8, **GAUSSIAN, grid={"seed": [1, 2], "steps": [2, 4]})
    rows = work.conclude().rows
    assert [row["steps"] for row in rows] == [2, 4]
    assert "seed" not in rows[0]
    assert "seed" not in (tmp_path / "tables/reconstruction.csv").read_text()
    [lost, *_] = tmp_path.glob("reconstructions/S0004-*/part-000000.parquet")
    lost.unlink()
    assert [row["steps"] for row in work.conclude().rows] == [2]
    recorded((tmp_path / "tables/reconstruction.md").read_text(), "reconstructed")


def test_lowering_the_number_does_nothing_again(tmp_path):
    many = done(tmp_path / "run", 20, **GAUSSIAN)
    fewer = reconstruct(tmp_path / "run", 12, **GAUSSIAN)
    assert fewer.missing() == {}
    assert do(fewer) == []
    [row], [all_of_them] = fewer.conclude().rows, many.conclude().rows
    [afresh] = done(tmp_path / "afresh", 12, **GAUSSIAN).conclude().rows
    assert row == afresh
    assert row["num_images"] == 12
    assert row["mse"] != all_of_them["mse"]


def test_files_of_other_weights_are_not_taken(tmp_path):
    work = reconstruct(tmp_path, 8)
    save_networks(work, seed=1)
    do(work)
    [old] = work.conclude().rows
    save_networks(work, seed=2)
    recorded("\n".join(list(work.missing().values())))
    assert work.conclude().rows == []
    [task] = do(work)
    assert task.job.replaces is None
    [new] = work.conclude().rows
    assert new["mse"] != old["mse"]
    save_networks(work, seed=1)
    assert do(work) == [], "the old weights' files are kept"
    assert work.conclude().rows == [old]


def test_the_360_held_out_digits_are_reconstructed(tmp_path):
    work = reconstruct(tmp_path, 1000, data={"split": "train"},
                       sample={"steps": 1, "batch_size": 360, "shard_evaluations": 1, "seed": 0})  # fmt: skip
    save_networks(work)
    do(work)
    [row] = work.conclude().rows
    assert (row["num_images"], row["network_evaluations"]) == (360, 2), "one up and one down"
    [path] = tmp_path.glob("reconstructions/*/part-*.parquet")
    test, everything = (data.load_images(Data(split=split)) for split in ("test", "all"))
    np.testing.assert_array_equal(test, everything[1437:])
    np.testing.assert_allclose(*errors_of(path, test))
    assert row["mse_8bit"] == pytest.approx(errors_of(path, test)[1].mean())


def test_a_long_list_of_times_makes_no_name_too_long(tmp_path):
    times = list(range(5, 1000, 10))
    work = done(tmp_path, 2, **GAUSSIAN, grid={"steps": [100], "spacing": ["linear", times]})
    assert [row["spacing"] for row in work.conclude().rows] == ["linear", ",".join(map(str, times))]
    assert len(list((tmp_path / "figures").glob("reconstructions-*.png"))) == 2
    assert max(len(path.name) for path in tmp_path.rglob("*")) < 150


def test_a_loaded_model_of_another_shape_is_refused_in_one_line(tmp_path):
    save_network(tmp_path / "loaded", Unet(**UNET), (3, 4, 4))
    work = reconstruct(tmp_path / "run", 8, model={"checkpoint": str(tmp_path / "loaded")})
    with pytest.raises(UserError) as caught:
        work.check()
    recorded(str(caught.value))
    reconstruct(tmp_path / "run", 8).check()


def test_the_table_says_what_its_images_are_to_each_network(tmp_path):
    save_network(tmp_path / "loaded", Unet(**UNET), (1, 8, 8))
    grid = [
        {"model.oracle": ["gaussian"], "data.name": ["gaussian"]},
        {"model.checkpoint": [str(tmp_path / "loaded")]},
        {"model.unet": [UNET], "data.split": ["train"]},
        {"model.unet": [UNET]},
    ]
    work = reconstruct(tmp_path / "run", 2, model={}, grid=grid)
    save_networks(work)
    do(work)
    assert len(work.conclude().rows) == 4
    text = (tmp_path / "run/tables/reconstruction.md").read_text()
    assert text.count("Images: ") == 4
    recorded(text, "Images: ")


def test_a_damaged_file_is_one_piece_again(tmp_path):
    work = done(tmp_path, 20, **GAUSSIAN)
    before, rows = files(work), work.conclude().rows
    [path] = tmp_path.glob("reconstructions/*/part-000001.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    [task] = do(work)
    assert (task.key.rsplit("/", 1)[1], task.job.start, task.job.replaces is not None) == ("1", 8, False)
    assert [path.read_bytes() for path in (tmp_path / "damaged").iterdir()] == [content]
    assert files(work) == before
    assert work.conclude().rows == rows


def test_the_seconds_of_all_cells_are_found_by_reading_the_events_once(tmp_path, monkeypatch):
    """They were read anew for each cell: with a thousand cells, a thousand times."""
    work = reconstruct(tmp_path / "run", 8, **GAUSSIAN, grid={"steps": [2, 3, 5]})
    events = Events(work.rundir)
    for number, task in enumerate(do(work)):
        for attempt in range(2):  # the second is of a later file, in the place of a damaged one
            result = Result(number + attempt / 4, task.job.stop - task.job.start, True)
            name, fields = work.event(task, result, True)
            events.add(name, **fields)
    tasks = [task.cell.id for task in reconstruct(tmp_path / "new", 8, **GAUSSIAN, grid={"steps": [2, 3, 5]}).tasks()]
    opened, reads = LocalStorage.opened, []
    monkeypatch.setattr(LocalStorage, "opened", lambda self, path: [reads.append(path), opened(self, path)][1])
    rows = work.conclude().rows
    expected = [sum(n + 0.25 for n, cell in enumerate(tasks) if cell == of) for of in dict.fromkeys(tasks)]
    assert [row["seconds"] for row in rows] == expected
    assert reads.count(events.path) == 1
