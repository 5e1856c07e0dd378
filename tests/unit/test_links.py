"""Links below a run directory lead nowhere else: whoever made it may have linked any file of its reader's."""

import errno
import json
import os
import shutil
from contextlib import contextmanager

import nights
import pytest
from in_process import drive, small_run
from test_board import RUN, look
from test_board_served import served
from test_training import a_spec

from taugrid.errors import UserError
from taugrid.run_id import FORMAT
from taugrid.storage import ANY, LocalStorage, open_place, read_json
from taugrid.workers.training import fit

SECRET = b'{"secret": 1}\n'


@pytest.fixture
def outside(tmp_path):
    """A folder with a file, beside the run directory."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "secret").write_bytes(SECRET)
    (folder / "deep" / "secret").write_bytes(SECRET)
    return folder


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "run"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "own").write_bytes(b"own")
    return root


def whole(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def to_a_file(root, outside, kind):
    """A path below `root` that leads to the file in `outside`."""
    (root / "b").symlink_to(outside / "secret")
    (root / "inner" / "b").symlink_to(outside)
    link = root / "a"
    link.symlink_to(KINDS[kind].format(outside=outside))
    return link / "secret" if "folder" in kind else link


KINDS = {
    "absolute": "{outside}/secret",
    "relative": "../outside/secret",
    "link to a link": "b",
    "folder": "{outside}",
    "folder to a link to a folder": "inner/b/deep",
    "up and down": "inner/../../outside/secret",
    "proc": "/proc/self/root{outside}/secret",
}


def finished(root):
    path = root / ".finished.tmp"
    path.write_bytes(b"mine")
    return path


OPERATIONS = {
    "read": lambda storage, path: storage.read(path),
    "read_json": lambda storage, path: read_json(path, storage),
    "stat": lambda storage, path: storage.stat(path),
    "exists": lambda storage, path: storage.exists(path),
    "list": lambda storage, path: storage.list(path.parent, "s*") or storage.list(path.parent, "a*"),
    "list deep": lambda storage, path: storage.list(path.parents[1], "*/s*") or storage.list(path.parent, "*"),
    "stats": lambda storage, path: storage.stats(path.parent, "*"),
    "local_path": lambda storage, path: storage.local_path(path).__enter__().read_bytes(),
    "readable": lambda storage, path: storage.readable(path).__enter__().read_bytes(),
    "opened": lambda storage, path: storage.opened(path).__enter__(),
    "append": lambda storage, path: storage.append(path, b"mine"),
    "commit": lambda storage, path: storage.commit(path, finished(storage.root)),
    "commit over": lambda storage, path: storage.commit(path, finished(storage.root), ANY),
    "temporary": lambda storage, path: storage.temporary(path).__enter__(),
    "move there": lambda storage, path: storage.move(finished(storage.root), path),
}


@contextmanager
def refused(outside):
    """What is done in the context is refused, and changes nothing outside."""
    before = whole(outside)
    with pytest.raises(OSError) as error:
        yield
    assert error.value.errno == errno.ELOOP
    assert whole(outside) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_leaves_a_run_directory_is_refused(root, outside, kind):
    path = to_a_file(root, outside, kind)
    (root / "inner" / "c").symlink_to(outside / "secret")
    for operation, do in OPERATIONS.items():
        with refused(outside):
            is_deep = operation == "list deep" and path.parent == root
            do(LocalStorage(root), root / "inner" / "c" if is_deep else path)


def test_nothing_is_appended_to_a_hard_link(root, outside):
    os.link(outside / "secret", root / "ledger.jsonl")
    with refused(outside):
        LocalStorage(root).append(root / "ledger.jsonl", b"mine")


FOLDERS = {
    "walk": lambda storage, folder: storage.walk(folder),
    "level": lambda storage, folder: storage.level(folder),
    "local_folder": lambda storage, folder: storage.local_folder(folder).__enter__(),
    "new file": lambda storage, folder: storage.temporary(folder / "new").__enter__(),
    "new folder": lambda storage, folder: storage.local_folder(folder / "new").__enter__(),
    "append": lambda storage, folder: storage.append(folder / "new", b"mine"),
    "delete": lambda storage, folder: storage.delete(folder / "secret"),
    "delete_all": lambda storage, folder: storage.delete_all([folder / "secret"], storage.root),
    "delete_folder": lambda storage, folder: storage.delete_folder(folder / "deep"),
    "move away": lambda storage, folder: storage.move(folder / "secret", storage.root / "mine"),
}


@pytest.mark.parametrize("target", ["outside", "outside/none"])
@pytest.mark.parametrize("operation", FOLDERS)
def test_a_linked_folder_is_neither_read_nor_filled_nor_emptied(tmp_path, root, outside, operation, target):
    """One that is dangling would be made where it leads."""
    (root / "tables").symlink_to(tmp_path / target)
    with refused(outside):
        FOLDERS[operation](LocalStorage(root), root / "tables")
    level = LocalStorage(root).level(root)
    assert (dict(level.files), level.folders, level.unreadable) == ({}, ["inner"], ["tables"])


def test_links_that_stay_inside_and_a_root_that_is_a_link_are_used(tmp_path, root):
    (root / "link").symlink_to("inner")
    (root / "inner" / "again").symlink_to(root / "inner" / "own")
    (tmp_path / "elsewhere").symlink_to(root)
    for place in (root, tmp_path / "elsewhere"):
        here, storage = open_place(str(place), "DIR")
        assert storage.read(here / "link" / "own") == b"own"
        assert storage.read(here / "inner" / "again") == b"own"
        assert {here / "link" / name for name in ("again", "own")} <= storage.stats(here, "link/*").keys()
        assert storage.level(here).folders == ["inner", "link"]
        assert [path.name for path in storage.list(here, "*/own")] == ["own", "own"]
        storage.append(here / "link" / "log", b"line\n")
        with storage.temporary(here / "link" / "new") as temporary:
            temporary.write_bytes(b"new")
            storage.commit(here / "link" / "new", temporary, ANY)
        assert (root / "inner" / "new").read_bytes() == b"new"
    with pytest.raises(OSError, match="again"):  # what is appended to is no link at all
        LocalStorage(root).append(root / "inner" / "again", b"x")
    LocalStorage(root).delete(root / "inner" / "again")
    assert (root / "inner" / "own").read_bytes() == b"own"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(RUN, tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a" / "run.json").write_text(json.dumps({"run": "0123456789abcdef" * 2, "format": FORMAT}))
    return tmp_path / "runs"


def linked(path, target):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_the_board_shows_nothing_that_a_link_leads_to(runs, outside, tmp_path):
    run = runs / "a"
    (run / "own.html").write_text("own")
    (run / "report.html").symlink_to("own.html")
    with served(runs) as client:
        [shown] = client.document()["runs"]
        own = client.get(f"/{shown['report']}")[1]["location"]
        assert client.get_outside(own)[2] == b"own", "a link within the run"
        linked(run / "report.html", outside / "secret")
        assert client.get_outside(own)[0] == 503, "also while it is served"
    for name in ("events", "removed"):
        linked(run / name, outside)
    for folder in (run / "samples").iterdir():
        shutil.move(folder, outside / folder.name)
        folder.symlink_to(outside / folder.name)
    nights.taugrid("board", runs, "--to", tmp_path / "site")
    assert not list((tmp_path / "site").glob("runs/*")), "no report"
    assert not list((tmp_path / "site").glob("images/*")), "and no images"
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "site").rglob("*") if path.is_file())
    shutil.copy(run / "tables" / "quality.json", outside / "quality.json")
    linked(run / "tables" / "quality.json", outside / "quality.json")
    assert look(runs).runs[0].entry["rows"] == []
    shutil.move(run, tmp_path / "moved")
    run.symlink_to(tmp_path / "moved")
    assert len(look(runs).runs) == 1, "a run may be a link itself"


def test_a_folder_is_no_run_by_a_run_json_that_leaves_it(runs, outside):
    shutil.move(runs / "a" / "run.json", outside / "run.json")
    linked(runs / "a" / "run.json", outside / "run.json")
    (runs / "a" / "config.json").unlink()
    assert look(runs).runs == []


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    root = tmp_path_factory.mktemp("reported")
    with small_run(root) as opened:
        drive(opened, root / "run", LocalStorage(root / "run"), ("sample", "evaluate", "report"))
    return root / "run"


@pytest.mark.long
@pytest.mark.parametrize("name", ["ledger.jsonl", "tables", "figures", "report.html", "events", "scores", "samples"])
def test_a_report_of_a_directory_with_links_writes_nowhere_else(reported, tmp_path, outside, name):
    run = tmp_path / "run"
    shutil.copytree(reported, run)
    before = whole(outside)
    linked(run / name, outside / "secret" if "." in name else outside)
    _, said = nights.taugrid("report", run, code=2)
    assert name in said.splitlines()[-1], "after what was written before"
    assert whole(outside) == before


@pytest.mark.parametrize("name", ["", "log.jsonl", "checkpoint_1/state.pt", ".log.jsonl.tmp"])
def test_a_training_writes_through_no_link(tmp_path, outside, name):
    spec = a_spec(tmp_path / "models")
    path = spec.running / name if name else tmp_path / "models"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(UserError, match="is a link"):
        fit.train(spec)
