"""What every storage must do, local folders and object stores alike, and that nobody goes around it."""

import ast
import errno
import os
import pickle
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Barrier
from unittest.mock import Mock

import pytest
from snapshots import recorded

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
from taugrid.storage.objects import ObjectStorage, url

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "s3", *(pytest.param(name, marks=pytest.mark.long) for name in ("gs", "az"))])
def place(request, tmp_path, monkeypatch):
    """A folder for the test, and its storage."""
    if request.param == "local":
        return tmp_path, LocalStorage()
    monkeypatch.setattr(ObjectStorage, "rewrite_seconds", 0.0)
    return open_place(request.getfixturevalue(request.param).url(), "--out")


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
    return sorted(path.relative_to(folder).as_posix() for path in storage.walk(folder))


def test_create_never_overwrites_and_replace_does(storage, folder):
    path = folder / "new" / "folder" / "file"
    assert not storage.exists(path)
    with storage.temporary(path) as temporary:
        temporary.write_bytes(b"x")
        assert not storage.exists(path)
        assert storage.list(path.parent, "f*") == []
    assert not storage.exists(path), "what is not committed is not there"
    assert create(storage, path, b"first") is True
    assert create(storage, path, b"second") is False
    assert storage.read(path) == b"first"
    assert everything(storage, folder) == ["new/folder/file"], "no temporary file is left"
    for data in (b"second", bytes(range(100))):
        put(storage, path, data)
        assert storage.read(path) == data
    assert storage.stat(path).size == 100
    assert storage.read(path, 10, 5) == bytes(range(10, 15))
    assert storage.read(path, 95, 50) == bytes(range(95, 100))
    with storage.opened(path) as (file, _):
        assert (file.read(200), file.read(5)) == (bytes(range(100)), b"")
    assert everything(storage, folder) == ["new/folder/file"]


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


@pytest.fixture
def drivers(tmp_path):
    """The folders of two drivers that have trained the same model."""
    for driver in ("ours", "theirs"):
        (tmp_path / driver).mkdir()
        for name in ("config.json", "log", "weights"):
            (tmp_path / driver / name).write_text(f"{name} of {driver}")
    return tmp_path / "ours", tmp_path / "theirs"


def test_two_uploads_of_a_folder_are_never_mixed(storage, folder, drivers):
    """The second began before the first had named its weights: it must not put its config beside them."""
    (ours, theirs), model = drivers, folder / "models" / "a"
    put(storage, model / "config.json", (theirs / "config.json").read_bytes())
    with pytest.raises(OSError, match=r"config\.json"):
        upload_folder(model, ours, "weights", storage)
    for _ in range(2):
        upload_folder(model, theirs, "weights", storage)
    with pytest.raises(OSError, match=r"config\.json"):
        upload_folder(model, ours, "weights", storage)
    assert [storage.read(model / name).decode()[-6:] for name in ("config.json", "weights")] == ["theirs", "theirs"]


@pytest.mark.parametrize("at", ["log", "weights"])
def test_weights_never_stand_beside_files_that_another_driver_has_put_there(bucket, drivers, monkeypatch, at):
    """While the first driver puts `at`, a second one sets its folder aside and puts a config of its own."""
    (root, storage), second, (ours, theirs) = bucket, [True], drivers
    model, commit = root / "models" / "a", type(storage).commit

    def meanwhile(self, path, finished, if_version=None):
        if path == model / at and second:
            second.clear()
            storage.move(model, root / "damaged" / "a")
            put(storage, model / "config.json", (theirs / "config.json").read_bytes())
        return commit(self, path, finished, if_version)

    monkeypatch.setattr(type(storage), "commit", meanwhile)
    with pytest.raises(OSError, match=r"config\.json"):
        upload_folder(model, ours, "weights", storage)
    assert not storage.exists(model / "weights")
    storage.delete(model / "log")
    upload_folder(model, theirs, "weights", storage)
    assert {storage.read(path).decode().split()[-1] for path in storage.list(model, "*")} == {"theirs"}


def test_an_error_while_writing_changes_nothing(storage, folder):
    path = folder / "file"
    put(storage, path, b"before")
    with suppress(ZeroDivisionError), replacing(path, storage) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert storage.read(path) == b"before"
    assert everything(storage, folder) == ["file"]


def test_what_is_in_a_folder(storage, folder):
    """Lists are sorted, and patterns stay within a part of a path; a level is what is directly there."""
    for name in ("part-2", "part-1", "inner/deep/part-3", "inner/part-4"):
        put(storage, folder / name, b"12")
    names = ["part-1", "part-2"]
    assert storage.list(folder, "part-*") == [folder / name for name in names]
    assert storage.list(folder, "*/part-*") == [folder / "inner/part-4"]
    level = storage.level(folder)
    assert (list(level.files), list(level.folders), list(level.unreadable)) == (names, ["inner"], [])
    assert level.files["part-1"] in (None, storage.stat(folder / "part-1"))
    assert list(storage.level(folder / "inner").folders) == ["deep"]
    assert storage.stats(folder, "part-1") == {folder / "part-1": storage.stat(folder / "part-1")}


def test_moving_and_deleting_files_and_folders(storage, folder):
    for name in ("a/1", "a/b/2", "c", *map(str, range(25))):
        put(storage, folder / name, name.encode())
    storage.move(folder / "c", folder / "aside" / "0")
    storage.move(folder / "a", folder / "aside" / "1")
    assert storage.read(folder / "aside/0") == b"c"
    assert storage.read(folder / "aside/1/b/2") == b"a/b/2"
    assert not storage.exists(folder / "a")
    storage.delete_folder(folder / "aside" / "1")
    storage.delete_all([*(folder / str(number) for number in range(25)), folder / "never"], folder)
    assert everything(storage, folder) == ["aside/0"]
    storage.delete(folder / "aside" / "0")
    assert everything(storage, folder) == []
    put(storage, folder / "target", b"old")
    with pytest.raises(FileNotFoundError):  # the target is not taken for it
        storage.move(folder / "nothing", folder / "target")


def test_an_empty_file(storage, folder):
    path = folder / "file"
    put(storage, path, b"")
    assert storage.read(path) == b""
    assert storage.read(path, 0, 5) == b""
    assert storage.stat(path).size == 0
    with storage.local_path(path) as local, storage.opened(path) as (file, _):
        assert local.read_bytes() == file.read() == b""
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


def test_appending_and_local_paths_for_libraries(storage, folder):
    path = folder / "events" / "0001.jsonl"
    for line in (b"one\n", b"two\n"):
        storage.append(path, line)
    with storage.local_path(path) as local:
        assert local.read_bytes() == b"one\ntwo\n"
    with storage.local_folder(folder / "tables") as local, replacing(local / "quality.csv") as temporary:
        temporary.write_bytes(b"rows")
    assert storage.read(folder / "tables" / "quality.csv") == b"rows"


OUTSIDE = ["../other/file", "../run-2/file", "a/../../other/file", "a/../mine", "/etc/hostname", "../../x", "../run"]


def uses(storage, root, path):
    """All that may be done with a path."""
    return {
        "stat": lambda: storage.stat(path),
        "stats": lambda: storage.stats(path.parent, path.name),
        "walk": lambda: storage.walk(path),
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
def test_where_links_are_refused_one_of_many_creators_is_first_and_its_file_stays(tmp_path, monkeypatch, code):
    together = Barrier(8)

    def refuse(*arguments):
        together.wait()
        raise OSError(code, "links are refused")

    monkeypatch.setattr(os, "link", refuse)
    for path in [tmp_path / str(n) for n in range(10)]:
        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(lambda n, path=path: create(LocalStorage(), path, bytes([n])), range(8)))
        assert (sum(first), path.read_bytes()) == (1, bytes([first.index(True)]))
    assert len(list(tmp_path.iterdir())) == 10


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
    monkeypatch.setattr(Path, "mkdir", unheard(Path.mkdir, errno.ESTALE))
    monkeypatch.setattr(retries, "DISK_PAUSES", (0,))
    assert create(LocalStorage(), tmp_path / "a" / "file", b"x") is True
    assert order[-1] == "a", "the name is on the disk"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_another_error_of_a_link_is_no_reason_to_rename(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(code, "no")))
    monkeypatch.setattr(retries, "DISK_PAUSES", (0,))
    with pytest.raises(OSError, match="no"):
        create(LocalStorage(), tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_user_can_change_is_said_to_be_changed_before_another_try():
    for code in (errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ENOSPC):
        recorded(errors.in_one_line(OSError(code, "", "/a/file")))


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
    """After an error ended the run, too: a disk that is busy would lose its last events."""
    monkeypatch.setattr(retries, "over", threading.Event())
    retries.over.set()
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
        lambda: storage.read(path),
    )
    for call in calls:
        pauses = []
        with no_more_files() as close_some:
            monkeypatch.setattr(retries.NEVER, "wait", lambda timeout, p=pauses, c=close_some: [p.append(timeout), c()])
            call()
        assert pauses
    assert storage.read(path) == b"line\nline\n"
    monkeypatch.setattr(retries.NEVER, "wait", lambda timeout: None)
    for call in (
        lambda: read_sealed(tmp_path / "value.json"),
        lambda: storage.list(tmp_path, "*/*.json"),
        lambda: parquet.inspect(tmp_path / "part", every_byte=False),
        lambda: list(parquet.read_numbers(tmp_path / "part", "x")),
    ):
        with no_more_files(), pytest.raises(OSError) as caught:  # what does not pass is no missing file
            call()
        assert caught.value.errno == errno.EMFILE


def test_an_error_names_its_file_and_a_full_disk_is_said():
    with pytest.raises(OSError) as caught, errors.naming(Path("/run/part")), open("/dev/full", "w") as file:  # noqa: PTH123
        file.write("x" * 100_000)
    said = errors.in_one_line(pickle.loads(pickle.dumps(caught.value)))
    recorded(said, "disk")
    assert "/run/part" in said
    assert "\n" not in said
    with pytest.raises(OSError) as caught:  # Python writes what it has kept back when it closes the file
        LocalStorage().append(Path("/dev/full"), b"line\n")
    assert caught.value.filename == "/dev/full"


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

WRITE = {
    "open", "write_text", "write_bytes", "touch", "unlink", "rmdir", "mkdir", "rename", "symlink_to", "hardlink_to",
    "rmtree", "copyfile", "copytree", "link", "savefig", "to_csv", "to_parquet", "ParquetWriter", "write_table",
    "save_pretrained", "savez",
}  # fmt: skip
"""What changes a file when it is called: methods of paths, and functions of os, shutil and libraries."""

OURS = {"write_json", "write_sealed", "replacing", "PartWriter", "load_or_compute"}
"""They write to the local disk unless they are given a storage."""

ELSEWHERE = (
    "orchestrator/exports/", "orchestrator/board/", "orchestrator/trackers/", "orchestrator/jobs/client.py",
    "orchestrator/baseline/files.py", "orchestrator/doctor.py", "orchestrator/external.py",
)  # fmt: skip
"""Modules whose files are in no run directory."""

ALLOWED = {
    "eval/standalone.py": {"mkdir", "unlink"},
    "orchestrator/cli/options.py": {"open"},
    "orchestrator/cli/machine.py": {"write_text"},
    "orchestrator/nightly/history.py": {"write_table", "write_text"},
    "orchestrator/nightly/judging.py": {"write_text"},
    "orchestrator/nightly/summary.py": {"write_text"},
    "orchestrator/plan/trust.py": {"write_json"},
    "orchestrator/report/write.py": {"replacing", "write_table"},
    "orchestrator/rundir/events.py": {"write_text"},
    "orchestrator/rundir/lease.py": {"mkdir", "write_text"},
    "orchestrator/rundir/ledger.py": {"write_text"},
    "orchestrator/session.py": {"open", "write_text"},
    "orchestrator/view/figures.py": {"savefig"},
    "orchestrator/view/images.py": {"to_csv"},
    "orchestrator/view/page.py": {"write_text"},
    "orchestrator/work/ode.py": {"to_csv", "write_text"},
    "workers/actor.py": {"write_bytes"},
    "workers/content.py": {"open"},
}
"""Modules that write the user's files, or what `temporary`, `replacing`, `local_path` or `local_folder` gives."""


def around(text):
    """Calls in a module's text that write files without a storage, by name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            given = [ast.unparse(value) for value in (*node.args, *(keyword.value for keyword in node.keywords))]
            renames = name == "replace" and len(given) == 1  # `str.replace` takes two, as `dataclasses.replace` does
            is_given_one = any(value.endswith("storage") for value in (owner, *given))
            if (name in WRITE | OURS or renames) and not is_given_one:
                yield name


def test_a_run_directory_is_written_through_its_storage_alone():
    files = [*ROOT.glob("orchestrator/**/*.py"), *ROOT.glob("workers/*.py"), *ROOT.glob("eval/*.py")]
    found = {str(path.relative_to(ROOT)): set(around(path.read_text())) for path in files}
    writing = {name: calls for name, calls in found.items() if calls and not name.startswith(ELSEWHERE)}
    assert writing == ALLOWED, "go through rundir.storage or job.storage"
