"""What was found whole is not read again; what may have changed is."""

import gc
import json
import os
import shutil
import weakref
from dataclasses import replace

import pytest
from in_process import CONFIG, Faulty, drive, flip, results, small_run
from nights import taugrid
from snapshots import recorded

from taugrid import parquet
from taugrid.hashing import json_sha256
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import unreadable_lines
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.rundir.ledger import CHECK_DIGITS, DAMAGED, Ledger
from taugrid.orchestrator.view.inspection import describe
from taugrid.orchestrator.view.verify import verify
from taugrid.storage import LOCAL, end_session
from taugrid.storage.local import MAX_READ_BYTES

pytestmark = pytest.mark.usefixtures("one_thread")

PART = parquet.PartSummary(0, 3, {"cell": "c"})


@pytest.fixture(scope="module")
def finished(opened, tmp_path_factory):
    """A finished run. What its workers committed is known without being read."""
    root = tmp_path_factory.mktemp("finished") / "run"
    drive(opened, root, LOCAL)
    return root


@pytest.fixture
def copy(finished, tmp_path):
    """Of that run, files and times; only the inodes are others, so that the ledger is of no use."""
    return shutil.copytree(finished, tmp_path / "run")


def read(storage):
    """Names of the Parquet files of which bytes were read."""
    readings = {"local_path", "read"}
    return {path.name for name, path in storage.calls if name in readings and path.suffix == ".parquet"}


def read_by_a_run(opened, root):
    """The Parquet files that the same command reads again: images and features by number, and influences."""
    storage = Faulty(root)
    outcome, printed = drive(opened, root, storage)
    assert outcome.missing == {}
    return {path for name, path in storage.calls if name == "local_path"}, printed


def scored(root):
    """What a run reads for its tables, however much is known: the influences that differences are computed from."""
    return set((root / "scores").glob("*.parquet"))


def test_what_is_done_is_read_neither_by_the_same_command_nor_by_status(opened, finished):
    again, _ = read_by_a_run(opened, finished)
    assert again == scored(finished)
    storage = Faulty(finished)
    told = describe(replace(opened, rundir=RunDir(finished, storage)))
    assert told["network_evaluations_remaining"] == 0
    assert read(storage) == set()


def test_a_copied_directory_is_read_once_and_looking_writes_no_ledger(opened, copy):
    (copy / "ledger.jsonl").unlink()
    describe(replace(opened, rundir=RunDir(copy)))
    verify(replace(opened, rundir=RunDir(copy)), lambda count: None)
    assert not (copy / "ledger.jsonl").exists()
    every = set(copy.glob("*/*/part-*.parquet")) | set(copy.glob("*/*/*/part-*.parquet"))
    first, _ = read_by_a_run(opened, copy)
    assert every <= first
    second, _ = read_by_a_run(opened, copy)
    assert second == scored(copy)


@pytest.mark.parametrize(
    "harm", [lambda whole: b"", lambda whole: whole[:-20], lambda whole: whole.replace(b'"stop": 20', b'"stop": 21')]
)
def test_a_ledger_that_lost_a_line_costs_a_reading_of_its_file(opened, copy, harm):
    drive(opened, copy, LOCAL)
    ledger = copy / "ledger.jsonl"
    ledger.write_bytes(harm(ledger.read_bytes()))
    before = results(copy)
    again, printed = read_by_a_run(opened, copy)
    assert len(again) > len(scored(copy))
    assert "damaged" not in printed
    assert results(copy) == before
    second, _ = read_by_a_run(opened, copy)
    assert second == scored(copy), "it is whole again"


@pytest.mark.parametrize("harm", [flip, os.utime])
def test_a_file_that_may_have_changed_is_read_and_what_has_is_made_again(opened, copy, harm):
    drive(opened, copy, LOCAL)
    before, path = results(copy), sorted(copy.glob("samples/*/part-000001.parquet"))[0]
    harm(path)
    again, printed = read_by_a_run(opened, copy)
    assert path in again
    assert printed.count(f"damaged: {path.relative_to(copy)}") == len(list(copy.glob("damaged/*"))) == (harm is flip)
    assert results(copy) == before


def test_verify_believes_no_ledger(opened, copy):
    """Bits that rot change no time: only a full reading finds them. The file counts as missing until it is read."""
    drive(opened, copy, LOCAL)
    path = sorted(copy.glob("samples/*/part-000001.parquet"))[0]
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    again, _ = read_by_a_run(opened, copy)
    assert path not in again
    damages, _ = verify(replace(opened, rundir=RunDir(copy)), lambda count: None)
    assert [damage.path for damage in damages] == [path]
    for _ in range(2):
        told = describe(replace(opened, rundir=RunDir(copy)))
        [cell] = [each for each in told["cells"] if each["name"] == path.parent.name]
        assert (cell["shards_done"], cell["images_done"], cell["scored"]) == (1, 10, False)
        assert told["network_evaluations_remaining"] == cell["network_evaluations"] // 2
        assert told["remarks"] == [], "or `plan --strict` would stop the run that mends it"
        read = next(other for other in sorted(copy.glob("samples/*/*")) if other != path)
        ledger_with(copy, read, version=LOCAL.stat(read).version, part=parquet.inspect(read))  # by another run
    again, _ = read_by_a_run(opened, copy)
    assert path in again, "what verify has found, the next run finds too"
    assert describe(replace(opened, rundir=RunDir(copy)))["network_evaluations_remaining"] == 0


@pytest.mark.parametrize(("shards", "line_bytes"), [(140, 2**20), pytest.param(230_000, 320, marks=pytest.mark.long)])
def test_events_and_a_ledger_larger_than_what_is_read_whole_stop_no_command(opened, copy, shards, line_bytes):
    """They grow with the shards. Fast: few shards, whose lines are padded."""
    drive(opened, copy, LOCAL)
    before = results(copy)
    events, ledger = copy / "events/0001.jsonl", copy / "ledger.jsonl"
    lines = list(map(json.loads, events.read_text().splitlines()))
    last = {line["event"]: line for line in lines}
    entry = json.loads(ledger.read_text().splitlines()[0])
    with events.open("a") as more_events, ledger.open("a") as more_entries:
        for number in range(shards):
            path = f"part-{number + 10:06d}.parquet"
            for name in ("assigned", "assigned", "shard", "extract"):
                line = {**last[name], "path": path} if name == "shard" else last[name]
                more_events.write(json.dumps(line | {"padding": "x" * (line_bytes // 4)}) + "\n")
            metadata = entry["metadata"] | {"padding": "x" * line_bytes}
            value = {**entry, "file": f"samples/gone/{path}", "metadata": metadata}
            del value["check"]
            more_entries.write(json.dumps(value | {"check": json_sha256(value)[:CHECK_DIGITS]}) + "\n")
    assert min(events.stat().st_size, ledger.stat().st_size) > MAX_READ_BYTES

    assert len(RunHistory.read(RunDir(copy)).shards[last["shard"]["cell"]]) > shards
    assert sum(unreadable_lines(RunDir(copy)).values()) == 0
    taugrid("status", copy)
    taugrid("report", copy)
    again, _ = read_by_a_run(opened, copy)
    assert again == scored(copy), "the ledger is read"
    assert results(copy) == before


def test_in_a_bucket_all_pieces_are_forgotten_and_a_damaged_file_until_it_is_read_again(bucket):
    root, storage = bucket
    path, other = root / "samples/a.parquet", root / "samples/b.parquet"

    def session(added):
        end_session(storage)
        ledger_with(root, added, storage=storage, version="version")

    def found(path):
        return [Ledger(root, storage).find(path, prefix + "version") is not None for prefix in ("", DAMAGED)]

    for each in (path, other):  # the ledger has two pieces then
        session(each)
    Ledger(root, storage).forget({path: "version"})
    assert (found(path), found(other)) == ([False, True], [False, False])
    session(other)
    assert (found(path), found(other)) == ([False, True], [True, False])
    session(path)
    assert found(path) == [True, False]


def test_what_the_caller_leaves_in_cycles_is_freed_after_a_run(opened, finished):
    """In a notebook it may be a model of many gigabytes."""
    large = type("Large", (), {})()
    large.itself, is_there = large, weakref.ref(large)
    drive(opened, finished, LOCAL)
    del large
    gc.collect()
    assert is_there() is None


def test_verify_reads_files_side_by_side_and_tells_all_of_them_in_order(opened, copy):
    cut, flipped, missing = sorted(copy.glob("samples/*/part-*.parquet"))[:3]
    cut.write_bytes(cut.read_bytes()[:-10])
    flip(flipped)
    missing.unlink()
    features = sorted(copy.glob("features/*/*/part-000001.parquet"))[0]
    flip(features)
    ticks = []
    damages, _ = verify(replace(opened, rundir=RunDir(copy)), ticks.append)
    assert {damage.path for damage in damages} == {cut, flipped, missing, features}
    assert [damage.path for damage in damages][-1] == features
    assert sum(ticks) == 10, "of 40 images, the 10 of the last file are whole"


def ledger_with(root, *paths, storage=LOCAL, version="0", part=PART):
    """A ledger with new lines."""
    ledger = Ledger(root, storage)
    ledger.keep()
    for path in paths:
        ledger.add(path, version, part)
    ledger.flush()
    return ledger


def test_a_last_line_without_its_end_is_not_continued(tmp_path):
    """As on a disk that was full for a moment. What is appended would make one unreadable line of two."""
    path, other = tmp_path / "part", tmp_path / "other"
    ledger = tmp_path / "ledger.jsonl"
    for added in (path, other):
        added.touch()
        ledger_with(tmp_path, added)
        if added == path:
            ledger.write_bytes(ledger.read_bytes()[:-1])
    again = ledger_with(tmp_path)
    assert [again.find(each, "0") for each in (path, other)] == [PART] * 2


def test_a_damaged_influence_takes_no_claim_of_the_table_with_it_unsaid(tmp_path, sketched):
    """A cell without a mark is worse, and without the best's influences no cell of its column can be tested."""
    text = CONFIG.replace("num_samples: 20", "num_samples: 200").replace("1.0]", "0.05]")
    root = tmp_path / "run"
    with small_run(tmp_path, text):
        command = ("run", tmp_path / "small.yaml", "--out", root)
        told = taugrid(*command)
        table = (root / "tables/quality.md").read_text()
        assert "≈" in table
        assert not any("is tested" in shown for shown in (*told, table))
        rows = json.loads((root / "tables/quality.json").read_text())["rows"]
        best = min(rows, key=lambda row: row["fid"])["cell"]
        (path,) = (root / "scores").glob(f"{best}-*.parquet")
        flip(path)
        told = taugrid("report", root)[1]
        [of_damage] = [line for line in told.splitlines() if "is tested" in line]
        recorded(of_damage)
        after = (root / "tables/quality.md").read_text()
        assert "≈" not in after
        assert after.count(" ?") == len(rows) - 1, "all but the best"
        assert of_damage.removeprefix("warning: ") in after
        taugrid(*command)
        assert (root / "tables/quality.md").read_text() == table


def test_files_with_equal_metadata_share_them_when_they_are_read_again(tmp_path):
    """Else a million files of a thousand cells take a million dictionaries: 1.1 kB a file instead of 0.4."""
    kept, paths = Ledger(tmp_path, LOCAL), [tmp_path / "samples" / name for name in ("a", "b")]
    kept.keep()
    for path in paths:
        kept.add(path, "0", parquet.PartSummary(0, 3, {"cell": "c"}))
    kept.flush()
    again = Ledger(tmp_path, LOCAL)
    first, second = (again.find(path, "0") for path in paths)
    assert first == second == PART
    assert first.metadata is second.metadata
