"""A look at a run lists its folders once: few calls and requests, and nothing that it finds is older than the look."""

import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from in_process import CONFIG, drive, small_run
from snapshots import recorded

from taugrid.config.load import load
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.view.dry_run import describe_plan
from taugrid.orchestrator.view.inspection import describe
from taugrid.orchestrator.view.verify import verify
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import open_place, replacing

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    on_disk = request.param == "folder"
    return open_place(str(tmp_path / "run"), "--out") if on_disk else request.getfixturevalue("bucket")


def survey(run, root, storage, stages=("sample", "evaluate")):
    """What a command finds, and the damage that it moves away."""
    run, damages = replace(run, rundir=RunDir(root, storage)), []

    def set_aside(damage):
        damages.append(damage)
        run.rundir.set_aside(damage)

    run.rundir.run_id = None
    scoring = scoring_of(run.config, run.plan, run.rundir.extractor)
    return Survey(run, scoring, frozenset(stages), set_aside), damages


def put(storage, path, data):
    with replacing(path, storage) as temporary:
        temporary.write_bytes(data)


def counting(calls, name, real, path, *arguments, **options):
    calls[name] += any(folder in str(path) for folder in ("/samples", "/features", "/scores"))
    return real(path, *arguments, **options)


@contextmanager
def counted(monkeypatch):
    calls = Counter()
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "scandir", "listdir", "open"):
            patch.setattr(os, name, partial(counting, calls, name, getattr(os, name)))
        yield calls


def test_a_plan_of_many_cells_asks_an_empty_directory_no_more_than_one_of_few(tmp_path, monkeypatch):
    """10,000 cells of 50,000 images took 57 s: each file that could be there was asked for."""
    asked = []
    for cells in (2, 40):
        values = {"name": "x", "data": {"name": "gaussian", "shape": [1, 4, 4]}, "model": {"oracle": "gaussian"}}
        grid = {"grid": {"eta": [i / cells for i in range(cells)]}, "sample": {"num_samples": 5000}}
        config = load(values | grid)
        run = Run(config, plan(config), RunDir(tmp_path))
        with counted(monkeypatch) as calls:
            assert describe_plan(run)["network_evaluations_remaining"] == sum(cell.total_nfe for cell in run.plan.cells)
        asked.append(calls)
    assert asked[0] == asked[1]
    assert asked[0].total() <= 8


def test_a_plan_of_many_images_makes_no_shard_whose_file_is_not_there(opened, tmp_path, monkeypatch):
    """With `--set sample.num_samples=100000000`, `plan` of a run with images took minutes and gigabytes."""
    root, storage = open_place(str(tmp_path / "run"), "--out")
    drive(opened, root, storage, stages=("sample",))
    monkeypatch.setattr(Cell, "shards", property(lambda cell: pytest.fail("it made them all")))
    many = opened.config.sample.model_copy(update={"num_samples": 10**8})
    config = opened.config.model_copy(update={"sample": many})
    described = describe_plan(Run(config, plan(config), RunDir(root, storage)))
    counts = [(cell["shards"], cell["shards_done"], cell["images_done"]) for cell in described["cells"]]
    assert counts == [(10**7, 2, 20)] * 2


def test_the_shards_of_a_folder_are_those_whose_names_are_there(opened):
    cell, names = opened.plan.cells[0], [f"part-{number:06d}.parquet" for number in (7, 1, 10**6, 2 * 10**6)]
    cell = replace(cell, settings=cell.settings.model_copy(update={"num_samples": 2 * 10**7}))
    others = ["notes.txt", "part-01000000.parquet", "part-00001.parquet", "part-000002.parquet.tmp"]
    assert cell.shards_in({*names, *others}) == tuple(map(cell.shard, (1, 7, 10**6)))


def test_a_file_that_the_ledger_knows_costs_one_call(opened, tmp_path, monkeypatch):
    root, storage = open_place(str(tmp_path / "run"), "--out")
    drive(opened, root, storage)
    run = replace(opened, rundir=RunDir(root, storage))
    with counted(monkeypatch) as calls:
        assert describe(run)["network_evaluations_remaining"] == 0
    files = sum(cell.num_shards for cell in run.plan.cells) + len(list(root.glob("scores/*")))
    others = 2 * len(run.plan.cells) + 7  # a folder each and the one above it, and what is there at all
    assert calls["stat"] + calls["lstat"] <= files + others
    assert calls["scandir"] <= others
    assert calls["open"] == 0


def runs_of_one_and_six(s3, tmp_path):
    """Two sampled runs in buckets of their own, of as many values of eta."""
    for number, etas in enumerate(("0.0", "0.0, 0.2, 0.4, 0.6, 0.8, 1.0")):
        root, storage = open_place(f"s3://{s3.bucket()}/run", "--out")
        folder = tmp_path / str(number)
        folder.mkdir()
        with small_run(folder, CONFIG.replace("0.0, 1.0", etas)) as run:
            drive(run, root, storage, stages=("sample",))
            yield run, root, storage


@pytest.mark.long
def test_the_requests_of_a_look_do_not_grow_with_the_cells(s3, tmp_path):
    """Sampled in part, with damage in no file. Scores must be read: a request each, for cells that have one."""
    used = []
    for run, root, storage in runs_of_one_and_six(s3, tmp_path):
        lists = s3.requests["LIST"]
        assert verify(replace(run, rundir=RunDir(root, storage)), lambda images: None).damages == []
        each = [s3.requests["LIST"] - lists]  # it reads all images
        for part in storage.list(root / "samples", "*/part-000001.parquet"):
            storage.delete(part)
        put(storage, root / "features/0123456789/reference/part-000000.parquet", b"x")
        for look in (
            lambda run=run, root=root, storage=storage: describe(replace(run, rundir=RunDir(root, storage))),
            lambda run=run, root=root, storage=storage: survey(run, root, storage, ("sample",))[0].found,
            lambda run=run, root=root, storage=storage: list(SampleWork(survey(run, root, storage)[0]).tasks()),
        ):
            before = s3.requests.total()
            look()
            each.append(s3.requests.total() - before)
        used.append(each)
    assert used[0] == used[1]


def test_what_a_command_commits_after_its_first_look_is_seen_by_the_next(opened, place):
    root, storage = place
    rundir, [cell, _] = RunDir(root, storage), opened.plan.cells
    old = Listing(rundir)
    assert rundir.sampled(cell, None, True, pytest.fail, old) == set()
    outcome, _ = drive(opened, root, storage)
    assert outcome.missing == {}, "its last look sees what its workers have committed"
    assert rundir.sampled(cell, None, True, pytest.fail, Listing(rundir)) == {shard.number for shard in cell.shards}


@pytest.mark.long
def test_what_was_damaged_missing_foreign_or_replaced_is_found_as_before(opened, place):
    root, storage = place
    drive(opened, root, storage)
    [cell, other], rundir = opened.plan.cells, RunDir(root, storage)
    [first, second] = [storage.read(rundir.sample_part(cell, shard)) for shard in cell.shards]
    [part, later] = [rundir.sample_part(cell, shard) for shard in cell.shards]
    others = [rundir.sample_part(other, shard) for shard in other.shards]
    changed = bytearray(first)
    changed[len(changed) // 2] ^= 1
    put(storage, part, bytes(changed))  # damaged
    put(storage, later.with_name("part-000077.parquet"), b"x")  # foreign, and no cell's
    put(storage, later.with_name("notes.txt"), b"x")
    put(storage, others[0], second)  # of another cell, at another image
    storage.delete(others[1])
    found, damages = survey(opened, root, storage)
    states = {state.cell.id: state for state in found.found.cells}
    reasons = {damage.path: damage.reason.partition(":")[0] for damage in damages}
    assert reasons.keys() == {part, others[0]}
    recorded(reasons[part])
    recorded(reasons[others[0]])
    assert (states[cell.id].sampled, states[other.id].sampled) == ({1}, set())
    assert all(state.to_score for state in states.values())
    assert storage.list(root / "scores", "*.json") == [], "they were made of images that are gone"
    folder = rundir.extractor_folder(found.scoring.extractor)
    there = [path for each in (cell, other) for path in storage.list(root / "features" / folder / each.name, "*")]
    assert there == [rundir.feature_part(folder, cell, cell.shards[1])]
    assert (states[cell.id].extracted, states[other.id].extracted) == ({1}, set())
    tasks = list(SampleWork(found).tasks())
    assert sorted(task.job.path for task in tasks) == sorted(map(str, [part, *others]))
    assert [task.job.replaces for task in tasks] == [None] * 3, "damaged files were moved away"
    outcome, _ = drive(opened, root, storage)
    assert outcome.missing == {}
    assert [storage.read(path) for path in (part, later)] == [first, second]
