"""What every storage must do, local folders and object stores alike, and that nobody goes around it."""

import ast
import errno
import os
import pickle
import resource
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import pytest
from snapshots import raises, recorded

from taugrid import errors, parquet, retries
from taugrid.errors import DamagedFile
from taugrid.orchestrator.rundir.events import Events
from taugrid.orchestrator.rundir.ledger import Ledger
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import (
    ANY,
    LocalStorage,
    local,
    open_place,
    read_json,
    read_sealed,
    replacing,
    upload_folder,
    write_json,
    write_sealed,
)
from taugrid.storage.objects import url

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder for the test, and its storage."""
    if request.param == "local":
        return tmp_path, LocalStorage()
    return request.getfixturevalue("bucket")


@pytest.fixture
def folder(place):
    return place[0]


@pytest.fixture
def storage(place):
    return place[1]


def create(storage, path, data):
    with storage.temporary(path) as temporary:
        temporary.write_bytes(data)
        return storage.commit(path, temporary)


def put(storage, path, data):
    with replacing(path, storage) as temporary:
        temporary.write_bytes(data)


def everything(storage, folder):
    found = [path for pattern in ("*", "*/*", "*/*/*") for path in storage.list(folder, pattern)]
    return sorted(path.relative_to(folder).as_posix() for path in found if _is_file(storage, path))


def _is_file(storage, path):
    return not path.is_dir() if storage.on_disk else path in storage.stats(path.parent, path.name)


def test_create_never_overwrites(storage, folder):
    path = folder / "new" / "folder" / "file"
    assert not storage.exists(path)
    assert create(storage, path, b"first") is True
    assert create(storage, path, b"second") is False
    assert storage.read(path) == b"first"
    assert everything(storage, folder) == ["new/folder/file"], "no temporary file is left"


def test_of_many_creators_one_is_first(storage, folder):
    path, together = folder / "file", Barrier(8)

    def creator(n):
        with storage.temporary(path) as temporary:
            temporary.write_bytes(bytes([n]) * 1000)
            together.wait()
            return storage.commit(path, temporary)

    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(creator, range(8)))
    assert sum(first) == 1
    assert storage.read(path) == bytes([first.index(True)]) * 1000


def test_replace_takes_the_place_of_what_was_there(storage, folder):
    path = folder / "a" / "file"
    for data in (b"first", b"second"):
        put(storage, path, data)
        assert storage.read(path) == data
    assert everything(storage, folder) == ["a/file"]


def test_a_file_is_replaced_only_while_it_is_the_one_that_was_seen(storage, folder):
    path = folder / "file"

    def put_over(data, version):
        with storage.temporary(path) as temporary:
            temporary.write_bytes(data)
            return storage.commit(path, temporary, version)

    put(storage, path, b"short")
    seen = storage.stat(path).version
    assert storage.stat(path).version == seen
    assert put_over(b"longer", seen) is True
    assert storage.read(path) == b"longer"
    assert put_over(b"late", seen) is False, "someone else has replaced it since"
    assert storage.read(path) == b"longer"
    storage.delete(path)
    assert put_over(b"late", seen) is False
    assert everything(storage, folder) == []


def test_two_uploads_of_a_folder_are_never_mixed(storage, folder, tmp_path):
    """The second began before the first had named its weights: it must not put its config beside them."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for finished in (ours, theirs):
        finished.mkdir()
        for name in ("config.json", "weights"):
            (finished / name).write_text(f"{name} of {finished.name}")
    model = folder / "models" / "a"
    put(storage, model / "config.json", (theirs / "config.json").read_bytes())
    with pytest.raises(OSError, match=r"config\.json"):
        upload_folder(model, ours, "weights", storage)
    for _ in range(2):
        upload_folder(model, theirs, "weights", storage)
    with pytest.raises(OSError, match=r"config\.json"):
        upload_folder(model, ours, "weights", storage)
    assert [storage.read(model / name).decode()[-6:] for name in ("config.json", "weights")] == ["theirs", "theirs"]


@pytest.mark.parametrize("at", ["log", "weights"])
def test_weights_never_stand_beside_files_that_another_driver_has_put_there(bucket, tmp_path, monkeypatch, at):
    """While the first driver puts `at`, a second one sets its folder aside and puts a config of its own."""
    (root, storage), second = bucket, [True]
    model, commit = root / "models" / "a", type(storage).commit
    for driver in ("ours", "theirs"):
        (tmp_path / driver).mkdir()
        for name in ("config.json", "log", "weights"):
            (tmp_path / driver / name).write_text(f"{name} of {driver}")

    def meanwhile(self, path, finished, if_version=None):
        if path == model / at and second:
            second.clear()
            storage.move(model, root / "damaged" / "a")
            put(storage, model / "config.json", (tmp_path / "theirs" / "config.json").read_bytes())
        return commit(self, path, finished, if_version)

    monkeypatch.setattr(type(storage), "commit", meanwhile)
    with pytest.raises(OSError, match=r"config\.json"):
        upload_folder(model, tmp_path / "ours", "weights", storage)
    assert not storage.exists(model / "weights")
    storage.delete(model / "log")
    upload_folder(model, tmp_path / "theirs", "weights", storage)
    assert {storage.read(path).decode().split()[-1] for path in storage.list(model, "*")} == {"theirs"}


def test_an_error_while_writing_changes_nothing(storage, folder):
    path = folder / "file"
    put(storage, path, b"before")

    def fail():
        with replacing(path, storage) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert storage.read(path) == b"before"
    assert everything(storage, folder) == ["file"]


def test_what_is_not_committed_is_not_there(storage, folder):
    path = folder / "file"
    with storage.temporary(path) as temporary:
        temporary.write_bytes(b"x")
        assert not storage.exists(path)
        assert storage.list(folder, "f*") == []
    assert not storage.exists(path)


def test_ranges(storage, folder):
    path = folder / "file"
    put(storage, path, bytes(range(100)))
    assert storage.stat(path).size == 100
    assert storage.read(path, 10, 5) == bytes(range(10, 15))
    assert storage.read(path, 95, 50) == bytes(range(95, 100))


def test_a_level_is_what_is_directly_in_a_folder(storage, folder):
    for name in ("b", "a", "inner/deep/c", "inner/d"):
        put(storage, folder / name, b"12")
    level = storage.level(folder)
    assert (list(level.files), list(level.folders), list(level.unreadable)) == (["a", "b"], ["inner"], [])
    assert level.files["a"] in (None, storage.stat(folder / "a"))
    assert list(storage.level(folder / "inner").folders) == ["deep"]


def test_an_empty_file(storage, folder):
    path = folder / "file"
    put(storage, path, b"")
    assert storage.read(path) == b""
    assert storage.read(path, 0, 5) == b""
    assert storage.stat(path).size == 0
    with storage.local_path(path) as local:
        assert local.read_bytes() == b""
    for every_byte in (True, False):
        with pytest.raises(DamagedFile):
            parquet.inspect(path, every_byte=every_byte, storage=storage)


def test_what_is_missing(storage, folder):
    path = folder / "nowhere" / "file"
    for call in (storage.read, storage.stat, lambda p: storage.read(p, 0, 1)):
        with pytest.raises(FileNotFoundError):
            call(path)
    assert storage.list(path.parent, "*") == []
    storage.delete(path)
    storage.delete_folder(path.parent)
    assert read_json(path, storage) is None


def test_lists_are_sorted_and_patterns_stay_within_a_part(storage, folder):
    names = ["b/part-1", "a/part-2", "a/part-1", "a/other", "a/deep/part-3"]
    for name in names:
        put(storage, folder / name, b"")
    assert storage.list(folder, "*/part-*") == [folder / n for n in ("a/part-1", "a/part-2", "b/part-1")]
    assert storage.list(folder / "a", "part-*") == [folder / "a/part-1", folder / "a/part-2"]


def test_deleting(storage, folder):
    for name in ("a/1", "a/b/2", "c"):
        put(storage, folder / name, b"x")
    storage.delete(folder / "c")
    storage.delete_folder(folder / "a")
    assert everything(storage, folder) == []
    assert not storage.exists(folder / "a")


def test_moving_a_file_and_a_folder(storage, folder):
    for name in ("a/1", "a/b/2", "c"):
        put(storage, folder / name, name.encode())
    storage.move(folder / "c", folder / "aside" / "0")
    storage.move(folder / "a", folder / "aside" / "1")
    assert storage.read(folder / "aside/0") == b"c"
    assert storage.read(folder / "aside/1/b/2") == b"a/b/2"
    assert not storage.exists(folder / "a")


def test_appending(storage, folder):
    path = folder / "events" / "0001.jsonl"
    storage.append(path, b"one\n")
    storage.append(path, b"two\n")
    assert storage.read(path) == b"one\ntwo\n"


def test_libraries_get_a_local_path(storage, folder):
    path = folder / "file"
    put(storage, path, b"content")
    with storage.local_path(path) as local:
        assert local.read_bytes() == b"content"
    with storage.local_folder(folder / "tables") as local, replacing(local / "quality.csv") as temporary:
        temporary.write_bytes(b"rows")
    assert storage.read(folder / "tables" / "quality.csv") == b"rows"


def test_it_travels_with_a_job(storage):
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert hash(copy) == hash(storage)


OUTSIDE = ["../other/file", "../run-2/file", "a/../../other/file", "a/../mine", "/etc/hostname", "../../x", "../run"]


def uses(storage, root, path):
    """All that may be done with a path."""
    return {
        "stat": lambda: storage.stat(path),
        "stats": lambda: storage.stats(path.parent, path.name),
        "walk": lambda: storage.walk(path),
        "folders": lambda: storage.folders(path, "*"),
        "exists": lambda: storage.exists(path),
        "list": lambda: storage.list(path.parent, "*"),
        "a pattern": lambda: storage.list(path, "../*"),
        "level": lambda: storage.level(path.parent),
        "read": lambda: storage.read(path),
        "read_json": lambda: read_json(path, storage),
        "read a part": lambda: storage.read(path, 1, 1),
        "create": lambda: create(storage, path, b"x"),
        "replace": lambda: put(storage, path, b"x"),
        "write_json": lambda: write_json(path, {}, storage),
        "append": lambda: storage.append(path, b"x"),
        "move from": lambda: storage.move(path, root / "moved"),
        "move to": lambda: storage.move(root / "mine", path),
        "delete": lambda: storage.delete(path),
        "delete_all": lambda: storage.delete_all([path], root),
        "delete_folder": lambda: storage.delete_folder(path.parent),
        "local_path": lambda: storage.local_path(path).__enter__(),
        "readable": lambda: storage.readable(path).__enter__(),
        "opened": lambda: storage.opened(path).__enter__(),
        "local_folder": lambda: _write_to_folder(storage, path.parent),
    }


def _write_to_folder(storage, folder):
    with storage.local_folder(folder) as local_folder:
        (local_folder / "file").write_bytes(b"x")


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_a_run_directory_is_read_written_or_removed(storage, folder, name):
    place = str(folder) if storage.on_disk else url(folder)
    for inside in ("run/mine", "run/a/b/mine", "run-2/file", "other/file"):
        put(storage, folder / inside, b"mine")
    before = everything(storage, folder)
    root, of_run = open_place(f"{place}/run", "--out")
    for call in uses(of_run, root, root / name).values():
        with pytest.raises(errors.UserError, match="outside"):
            call()
    assert everything(storage, folder) == before
    assert {storage.read(folder / path) for path in before} == {b"mine"}
    assert of_run.read(root / "a/b/mine") == b"mine", "what is inside is read"


def test_json_is_whole_or_none(storage, folder):
    path = folder / "value.json"
    write_json(path, {"a": [1, None]}, storage)
    assert read_json(path, storage) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")}, storage)
    assert read_json(path, storage) == {"a": [1, None]}
    put(storage, path, b'{"a": [1,')
    assert read_json(path, storage) is None


def test_a_changed_sealed_file_is_noticed(storage, folder):
    path = folder / "score.json"
    write_sealed(path, {"fid": 1.5}, storage)
    assert read_sealed(path, storage) == {"fid": 1.5}
    data = storage.read(path)
    for changed in (data.replace(b"1.5", b"1.6"), data.replace(b"1.5", b"NaN"), b"[]", b""):
        put(storage, path, changed)
        assert read_sealed(path, storage) is None


# The local one


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_links_are_refused_a_commit_still_overwrites_nothing(tmp_path, monkeypatch, code):
    def refuse(*arguments):
        raise OSError(code, "links are refused")

    monkeypatch.setattr(os, "link", refuse)
    storage, path = LocalStorage(), tmp_path / "file"
    assert create(storage, path, b"first") is True
    assert create(storage, path, b"second") is False
    assert storage.read(path) == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_where_links_are_refused_one_of_many_creators_is_first_and_its_file_stays(tmp_path, monkeypatch):
    together = Barrier(8)

    def refuse(*arguments):
        together.wait()
        raise OSError(errno.EOPNOTSUPP, "links are refused")

    monkeypatch.setattr(os, "link", refuse)
    for path in [tmp_path / str(n) for n in range(20)]:
        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(lambda n, path=path: create(LocalStorage(), path, bytes([n])), range(8)))
        assert (sum(first), path.read_bytes()) == (1, bytes([first.index(True)]))


def test_temporary_names_are_hidden_and_beside_the_file(tmp_path):
    with LocalStorage().temporary(tmp_path / "a" / "part.parquet") as temporary:
        assert temporary.parent == tmp_path / "a"
        assert temporary.name.startswith(".part.parquet.")
        temporary.touch()


def unheard(function, code=errno.ETIMEDOUT):
    """A function of the file system whose first answer is lost: it is done, and an error is raised."""
    calls = []

    def call(*arguments):
        result = function(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(code, os.strerror(code))
        return result

    return call


def test_where_a_link_was_made_but_its_answer_was_lost_the_file_is_ours(tmp_path, monkeypatch, order):
    monkeypatch.setattr(os, "link", unheard(os.link))
    monkeypatch.setattr(retries, "DISK_PAUSES", (0,))
    assert create(LocalStorage(), tmp_path / "file", b"x") is True
    assert order[-1] == tmp_path.name, "the name is on the disk"


@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.EIO])
def test_where_a_rename_was_done_but_its_answer_was_lost_all_is_well(tmp_path, monkeypatch, code):
    monkeypatch.setattr(retries, "DISK_PAUSES", (0,))
    rename, path = Path.replace, tmp_path / "value.json"

    def lose_an_answer():
        monkeypatch.setattr(Path, "replace", unheard(rename, code))

    for value in (1, 2):
        lose_an_answer()
        write_json(path, value)
        assert read_json(path) == value
    lose_an_answer()
    LocalStorage().move(path, tmp_path / "aside" / "0")
    assert read_json(tmp_path / "aside" / "0") == 2
    (tmp_path / "finished").mkdir()
    lose_an_answer()
    local.commit_folder(tmp_path / "finished", tmp_path / "model")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["aside", "model"]


def test_what_was_never_there_is_not_taken_for_renamed(tmp_path, monkeypatch):
    put(LocalStorage(), tmp_path / "target", b"old")
    with pytest.raises(FileNotFoundError):
        LocalStorage().move(tmp_path / "nothing", tmp_path / "target")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_another_error_of_a_link_is_no_reason_to_rename(tmp_path, monkeypatch, code):
    def refuse(*arguments):
        raise OSError(code, "no")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(retries, "DISK_PAUSES", (0,))
    with pytest.raises(OSError, match="no"):
        create(LocalStorage(), tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_user_can_change_is_said_to_be_changed_before_another_try():
    codes = (errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ENOSPC)
    said = {code: errors.in_one_line(OSError(code, "", "/a/file")) for code in codes}
    assert {code for code, text in said.items() if "writable" in text} == {errno.EACCES, errno.EROFS}
    full = {code for code, text in said.items() if "is full" in text and "free some" in text}
    assert full == {errno.EDQUOT, errno.ENOSPC}, "a user's quota, too"
    assert all("/a/file" in text for text in said.values())


@contextmanager
def no_more_files():
    """As many files as this process may open are open; the context gives a function that closes one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, limits[0]), limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield lambda: [os.close(taken.pop()) for _ in range(8)]
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_passes_within_seconds_is_tried_again(tmp_path, monkeypatch):
    """After an error ended the run, too: a disk that is busy would lose its last events."""
    monkeypatch.setattr(retries, "over", threading.Event())
    retries.over.set()
    retries.prepare()
    path, pauses = tmp_path / "a" / "file", []
    put(LocalStorage(), path, b"content")
    with no_more_files() as close_some:
        monkeypatch.setattr(retries.NEVER, "wait", lambda timeout: [pauses.append(timeout), close_some()])
        assert LocalStorage().read(path) == b"content"
    assert pauses == [pytest.approx(retries.DISK_PAUSES[0], rel=0.5)]


def test_workers_that_a_store_refused_together_come_back_one_after_the_other(monkeypatch):
    def pauses():
        waited = []
        monkeypatch.setattr(retries.NEVER, "wait", lambda timeout: waited.append(timeout))
        with pytest.raises(TimeoutError):
            retries.try_again(refuse, retries.STORE_PAUSES, lambda error: isinstance(error, TimeoutError))
        return waited

    def refuse():
        raise TimeoutError

    one, other = pauses(), pauses()
    for usual, *waited in zip((0.1, 0.3, 1.0, 3.0, 9.0, 9.0), one, other, strict=True):
        assert all(0.5 * usual <= seconds <= 1.5 * usual for seconds in waited)
    assert one != other


def test_opening_is_tried_again_wherever_something_is_written(tmp_path, monkeypatch):
    storage, path = LocalStorage(), tmp_path / "new" / "file"
    put(storage, tmp_path / "finished", b"x")

    def write_numbers():
        with parquet.PartWriter(tmp_path / "part", parquet.number_schema({}, ["x"])) as part:
            part.write({"index": range(3), "x": [0.1, 0.2, 0.3]})
            part.commit(replace=False)

    calls = (
        lambda: storage.append(path, b"line\n"),
        lambda: storage.append(path, b"line\n"),
        lambda: local.sync_file(path),
        lambda: local.sync_folder(path.parent),
        lambda: write_json(tmp_path / "value.json", {}),
        lambda: storage.commit(tmp_path / "named", tmp_path / "finished", ANY),
        write_numbers,
    )
    for call in calls:
        pauses = []
        with no_more_files() as close_some:
            monkeypatch.setattr(retries.NEVER, "wait", lambda timeout, p=pauses, c=close_some: [p.append(timeout), c()])
            call()
        assert pauses
    assert storage.read(path) == b"line\nline\n"
    assert storage.exists(tmp_path / "part")


def test_a_folder_is_made_at_the_second_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "DISK_PAUSES", (0,))
    monkeypatch.setattr(Path, "mkdir", unheard(Path.mkdir, errno.ESTALE))
    local.make_folder(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_what_does_not_pass_is_raised_and_is_no_missing_file(tmp_path, monkeypatch):
    path = tmp_path / "a" / "score.json"
    write_sealed(path, {"fid": 1.5})
    shard = tmp_path / "part.parquet"
    with parquet.PartWriter(shard, parquet.number_schema({}, ["x"])) as part:
        part.write({"index": range(3), "x": [0.1, 0.2, 0.3]})
        part.commit(replace=False)
    monkeypatch.setattr(retries, "DISK_PAUSES", (0, 0))
    calls = (
        lambda: read_sealed(path),
        lambda: LocalStorage().list(tmp_path, "*/*.json"),
        lambda: parquet.inspect(shard),
        lambda: parquet.inspect(shard, every_byte=False),
        lambda: list(parquet.read_numbers(shard, "x")),
    )
    for call in calls:
        with no_more_files(), pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EMFILE


def test_an_error_names_its_file_and_a_full_disk_is_said():
    with pytest.raises(OSError) as caught, errors.naming(Path("/run/part")), open("/dev/full", "w") as file:  # noqa: PTH123
        file.write("x" * 100_000)
    said = errors.in_one_line(pickle.loads(pickle.dumps(caught.value)))
    recorded(said, "disk")
    assert "/run/part" in said
    assert "\n" not in said
    assert "damaged" not in errors.in_one_line(PermissionError(errno.EACCES, "x", "y")).split(";")[0]


# After a power loss


@pytest.fixture
def order(monkeypatch):
    """What was synced and named, in order: names of files and folders, and `name:` before those that were named."""
    seen = []

    def fsync(descriptor):
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def recorded(function):
        def call(source, target):
            seen.append(f"name: {Path(target).name}")
            return function(source, target)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", recorded(os.link))
    monkeypatch.setattr(Path, "replace", recorded(Path.replace))
    monkeypatch.setattr(Path, "rename", recorded(Path.rename))
    return seen


def test_bytes_are_on_the_disk_before_a_name_and_the_name_before_it_counts(tmp_path, order):
    path = tmp_path / "new" / "folder" / "file"
    create(LocalStorage(), path, b"x")
    assert order[:2] == [tmp_path.name, "new"], "the new folders are in theirs"
    assert [name.split(".")[-1] for name in order[2:]] == ["tmp", "name: file", "folder"]
    for write in (lambda: put(LocalStorage(), path, b"y"), lambda: write_json(path, {})):
        order.clear()
        write()
        assert [name.split(".")[-1] for name in order] == ["tmp", "name: file", "folder"]


def test_events_are_on_the_disk_once_written_and_the_ledger_waits_for_none(tmp_path, monkeypatch):
    """Nothing else says on which device a file was made; what the ledger lacks is read again."""
    events, ledger, synced = Events(Paths(tmp_path)), Ledger(tmp_path, LocalStorage()), []
    ledger.keep()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor)))
    for number in range(2):
        events.add("planted")
        assert (synced[-1].st_ino, synced[-1].st_size) == (events.path.stat().st_ino, events.path.stat().st_size)
        ledger.add(tmp_path / "file", str(number), parquet.PartSummary(0, 1, {}))
        ledger.flush()
        assert len(synced) == number + 1
    assert (tmp_path / "ledger.jsonl").read_bytes().count(b"\n") == 2


def test_a_model_is_on_the_disk_whole_before_it_has_its_name(tmp_path, order):
    finished = tmp_path / ".m.tmp"
    for name in ("unet/config.json", "unet/weights", "train/log.jsonl"):
        (finished / name).parent.mkdir(parents=True, exist_ok=True)
        (finished / name).write_text(name)
    local.commit_folder(finished, tmp_path / "m")
    named = order.index("name: m")
    assert {"config.json", "weights", "log.jsonl", "unet", "train", ".m.tmp"} == set(order[:named])
    assert order[named + 1 :] == [tmp_path.name]
    assert (tmp_path / "m/unet/weights").read_text() == "unet/weights"


# Nobody goes around it

CALLS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "unlink", "rmdir", "mkdir", "rename",
    "symlink_to", "hardlink_to", "exists", "is_file", "is_dir", "stat", "glob", "rglob", "iterdir", "rmtree", "copy",
    "copyfile", "copytree", "link", "os.remove", "move", "savefig", "to_csv", "to_parquet", "read_csv", "ParquetFile",
    "ParquetWriter", "read_table", "write_table", "save_pretrained", "np.load", "np.save", "np.savez", "torch.load",
    "torch.save",
}  # fmt: skip
"""What touches a file when it is called: methods of paths, and functions of os, shutil and libraries."""

READERS = {
    "read_json", "read_sealed", "write_json", "write_sealed", "replacing", "PartWriter", "inspect", "read_images",
    "read_png", "read_features", "read_numbers", "load_or_compute", "training_progress",
}  # fmt: skip
"""Ours; they go to the local disk unless they are given a storage."""

HOUSE = [
    *sorted(ROOT.glob("orchestrator/**/*.py")),
    *sorted(ROOT.glob("workers/*.py")),
    *sorted(ROOT.glob("workers/training/*.py")),
    *sorted(ROOT.glob("workers/network/*.py")),
    *(ROOT / name for name in ("eval/extract.py", "eval/score_cell.py", "taugrid/api.py", "taugrid/config/load.py")),
]
"""What may reach a run directory."""


class Exceptions(NamedTuple):
    """Calls in a file that need no storage."""

    file: str
    calls: dict[str, int]
    """Name of the call -> how many there are."""
    why: str


RAY_TRAIN = "Ray Train keeps a training in a real folder"
DIFFUSERS = "diffusers keeps networks in real folders"
EXPORT = "`export --to`, which is no part of a run"

ALLOWED = [
    Exceptions(
        "orchestrator/baseline/files.py",
        {"ParquetWriter": 1, "is_dir": 1, "read_bytes": 1, "read_table": 1, "write_table": 1},
        "a baseline, which is a file of the user's repository",
    ),
    Exceptions("orchestrator/board/index.py", {"read_json": 1, "replacing": 1, "write_text": 1}, "the user's cache"),
    Exceptions(
        "orchestrator/board/site.py",
        {"exists": 1, "rename": 2, "write_bytes": 1, "write_json": 1},
        "`board --to`, which is no part of a run",
    ),
    Exceptions("orchestrator/cli/options.py", {"open": 1}, "the null device"),
    Exceptions("orchestrator/cli/start.py", {"read_text": 1, "write_text": 1}, "`init --to`, a config of the user's"),
    Exceptions(
        "orchestrator/cli/text/completion.py",
        {"iterdir": 1, "is_dir": 2, "is_file": 3, "glob": 1, "read_text": 4},
        "words of local files, which a shell completes",
    ),
    Exceptions("orchestrator/cli/text/new_config.py", {"is_dir": 2, "exists": 1}, "what an argument is"),
    Exceptions("orchestrator/cli/jobs.py", {"is_dir": 1}, "what an argument is"),
    Exceptions("orchestrator/view/dry_run.py", {"exists": 1}, "a reference that a user names"),
    Exceptions("orchestrator/dispatch/address.py", {"read_text": 1}, "Ray's token in the user's home"),
    Exceptions(
        "orchestrator/external.py",
        {"np.savez": 1, "glob": 1, "unlink": 1, "stat": 1},
        "a temporary file of images that a caller holds; the user's cache",
    ),
    Exceptions("orchestrator/cli/compare.py", {"exists": 1}, "what an argument is"),
    Exceptions("orchestrator/view/images.py", {"to_csv": 1}, "into a folder that a user names"),
    Exceptions(
        "orchestrator/exports/dataset.py",
        {"ParquetFile": 1, "ParquetWriter": 1, "copyfile": 1, "glob": 1, "stat": 1, "write_table": 1},
        EXPORT,
    ),
    Exceptions("orchestrator/exports/export.py", {"read_bytes": 1}, EXPORT),
    Exceptions(
        "orchestrator/exports/reference.py",
        {"np.savez": 1, "open": 1, "write_bytes": 1},
        EXPORT,
    ),
    Exceptions("orchestrator/exports/images.py", {"open": 1}, "a member of a zip file"),
    Exceptions(
        "orchestrator/exports/target.py",
        {"exists": 3, "is_dir": 1, "is_file": 2, "iterdir": 1, "mkdir": 1, "open": 1, "read_bytes": 2, "read_text": 1}
        | {"replace": 1, "unlink": 2, "write_bytes": 1, "write_text": 1},
        EXPORT,
    ),
    Exceptions(
        "orchestrator/jobs/client.py",
        {"copyfile": 1, "copytree": 1, "open": 1, "write_text": 1},
        "what is sent to a job server, in a temporary folder",
    ),
    Exceptions("orchestrator/nightly/resampling.py", {"write_text": 1}, "a config in a temporary folder"),
    Exceptions("orchestrator/nightly/nights.py", {"read_table": 1}, "of bytes that its storage read"),
    Exceptions("orchestrator/nightly/places.py", {"exists": 1, "is_dir": 2}, "what --history or an argument is"),
    Exceptions(
        "orchestrator/nightly/write.py",
        {"read_table": 1, "write_table": 1, "write_text": 2},
        "of bytes that its storage read, and of what `replacing` gives",
    ),
    Exceptions("orchestrator/opened.py", {"exists": 1, "is_dir": 3, "is_file": 1}, "what --out or an argument is"),
    Exceptions(
        "orchestrator/plan/patterns.py",
        {"exists": 1, "glob": 1, "is_dir": 2, "is_file": 2, "rglob": 1, "stat": 1},
        "checkpoints of a training that goes on elsewhere",
    ),
    Exceptions(
        "orchestrator/doctor/machine.py",
        {"exists": 2, "is_dir": 2, "read_text": 1, "write_bytes": 1},
        "/proc, folders of the system, the driver's probe, and what `temporary` gives",
    ),
    Exceptions(
        "orchestrator/doctor/examination.py",
        {"exists": 1, "glob": 1, "iterdir": 1, "read_text": 2, "stat": 1},
        "/proc, and the file of Ray's token",
    ),
    Exceptions("orchestrator/plan/trust.py", {"read_json": 1, "write_json": 1}, "the user's trust file"),
    Exceptions(
        "orchestrator/report/write.py",
        {"read_json": 1, "replacing": 1, "write_table": 1},
        "pandas' and pyarrow's, of what `local_path` and `local_folder` give",
    ),
    Exceptions("orchestrator/rundir/events.py", {"write_text": 1}, "of what `temporary` gives"),
    Exceptions("orchestrator/rundir/evidence.py", {"read_numbers": 1}, "of what `local_path` gives"),
    Exceptions("orchestrator/rundir/lease.py", {"mkdir": 1, "read_text": 2, "write_text": 1}, "/proc, and the root"),
    Exceptions("orchestrator/rundir/ledger.py", {"write_text": 1}, "of what `replacing` gives"),
    Exceptions(
        "orchestrator/rundir/provenance.py",
        {"exists": 1, "read_bytes": 1},
        "taugrid's own code and checkout",
    ),
    Exceptions("orchestrator/session.py", {"open": 1, "write_text": 1}, "Ray, and what `replacing` gives"),
    Exceptions("orchestrator/dispatch/training.py", {"glob": 1}, RAY_TRAIN),
    Exceptions("orchestrator/work/interpolate.py", {"to_csv": 1, "write_text": 1}, "a text, to what `replacing` gives"),
    Exceptions(
        "taugrid/config/load.py",
        {"exists": 2, "is_dir": 1, "is_file": 1, "iterdir": 1},
        "files and folders that a user names; a run is opened by its config, before it has a storage",
    ),
    Exceptions(
        "orchestrator/trackers/__main__.py", {"open": 2, "mkdir": 1}, "the null device, and a lock in the user's cache"
    ),
    Exceptions("orchestrator/trackers/results.py", {"mkdir": 1, "write_bytes": 1}, "into a temporary folder"),
    Exceptions(
        "orchestrator/trackers/tensorboard.py",
        {"glob": 1, "unlink": 1},
        "event files, which TensorBoard reads from a disk",
    ),
    Exceptions("orchestrator/view/figures.py", {"savefig": 1}, "into memory"),
    Exceptions("orchestrator/view/page.py", {"write_text": 1}, "of what `replacing` gives"),
    Exceptions("orchestrator/view/verify.py", {"inspect": 1, "read_images": 1}, "of what `local_path` gives"),
    Exceptions("workers/content.py", {"open": 2}, "weights, to hash them and to copy them for libraries"),
    Exceptions(
        "workers/network/checkpoint.py",
        {"exists": 2, "is_dir": 6, "is_file": 8, "iterdir": 1},
        DIFFUSERS,
    ),
    Exceptions("workers/actor.py", {"write_bytes": 1}, "of what `temporary` gives"),
    Exceptions("workers/network/custom_process.py", {"is_file": 1}, "the user's weights"),
    Exceptions("workers/network/unet.py", {"save_pretrained": 2, "torch.load": 1, "write_bytes": 1}, DIFFUSERS),
    Exceptions(
        "workers/training/checkpoints.py",
        {"copyfile": 1, "glob": 1, "iterdir": 1, "mkdir": 1, "torch.load": 2, "torch.save": 1},
        RAY_TRAIN,
    ),
    Exceptions(
        "workers/training/fit.py",
        {"rglob": 1, "glob": 1, "is_dir": 2, "read_bytes": 1, "rmtree": 2, "unlink": 1},
        RAY_TRAIN,
    ),
    Exceptions(
        "workers/training/log.py",
        {"mkdir": 1, "open": 1, "replace": 1, "rmtree": 1, "write_text": 1},
        RAY_TRAIN,
    ),
    Exceptions("workers/training/loop.py", {"is_dir": 1}, RAY_TRAIN),
    Exceptions("workers/training/meeting.py", {"is_dir": 1, "open": 1, "unlink": 1}, RAY_TRAIN),
]


def around(text):
    """Calls in a module's text that reach files without a storage, by name."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        given = [ast.unparse(value) for value in (*node.args, *(keyword.value for keyword in node.keywords))]
        by_storage = owner.endswith("storage")
        touches = name in CALLS or f"{owner}.{name}" in CALLS or _replaces_a_file(node, name, owner)
        if (touches and not by_storage) or (name in READERS and not any(g.endswith("storage") for g in given)):
            yield f"{owner}.{name}" if f"{owner}.{name}" in CALLS else name


def _replaces_a_file(call, name, owner):
    """`Path.replace` takes one argument, `str.replace` two, and `dataclasses.replace` keywords."""
    return name == "replace" and (owner == "os" or (len(call.args) == 1 and not call.keywords))


def test_a_run_directory_is_reached_through_its_storage_alone():
    assert len(HOUSE) > 60
    found = {str(path.relative_to(ROOT)): Counter(around(path.read_text())) for path in HOUSE}
    allowed = {exceptions.file: Counter(exceptions.calls) for exceptions in ALLOWED}
    more = {file: calls - allowed.get(file, Counter()) for file, calls in found.items()}
    assert {file: calls for file, calls in more.items() if calls} == {}, "go through rundir.storage or job.storage"
    fewer = {file: calls - found.get(file, Counter()) for file, calls in allowed.items()}
    assert {file: calls for file, calls in fewer.items() if calls} == {}, "no longer needed"


@pytest.mark.parametrize(
    "text",
    ["path.write_text('x')", "open(path)", "rundir.tables.mkdir()", "shutil.rmtree(folder)", "os.link(a, b)",
     "read_json(rundir.config)", "with replacing(path) as t: pass", "parquet.read_images(path, 3)",
     "temporary.replace(path)", "os.replace(a, b)", "shutil.move(a, b)", "np.load(path)", "np.savez(path, a=a)",
     "pd.read_csv(path)", "pq.ParquetFile(path)", "training_progress(rundir.models, 'm')"],
)  # fmt: skip
def test_ways_around_are_seen(text):
    assert list(around(text))


@pytest.mark.parametrize(
    "text",
    ["rundir.storage.exists(path)", "read_json(path, self.rundir.storage)", "parquet.inspect(p, storage=storage)",
     "text.replace('a', 'b')", "dataclasses.replace(job, path=path)", "rundir.storage.commit(path, temporary)",
     "yaml.load(text)", "training_progress(rundir.models, 'm', rundir.storage)"],
)  # fmt: skip
def test_ways_through_are_not(text):
    assert not list(around(text))


def test_a_full_disk_names_the_file_that_is_appended_to():
    """Python writes what it has kept back when it closes the file."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with raises(OSError) as caught:
        LocalStorage().append(Path("/dev/full"), b"line\n")
    assert caught.value.filename == "/dev/full"
