"""A disk that fails at any moment of a run: each call of `Storage`, once, with each error.

The jobs run in this process, so that their calls fail too; the session, the loop and the files are the real ones.
"""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from in_process import Faulty, drive, results
from snapshots import raises

from taugrid.errors import RunFailed, UserError
from taugrid.storage import LocalStorage

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

ERRORS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ENOSPC, errno.ETIMEDOUT)


@pytest.fixture(scope="module")
def undisturbed(opened, tmp_path_factory):
    """The results of a run without faults; the calls of that run; the calls of the same command on what it left."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    storages = Faulty(root), Faulty(root)
    for storage in storages:
        outcome, _ = drive(opened, root, storage)
        assert outcome.missing == {}
    found = results(root)
    assert len([name for name in found if name.startswith("samples/")]) == 4
    return root, found, [len(storage.calls) for storage in storages]


def check(opened, root, expected, **fault):
    """Run with a fault, then again without: every good file stays, and in the end all is as if there had been none."""
    try:
        _, printed = drive(opened, root, Faulty(root, **fault))
    except (RunFailed, UserError) as error:  # the latter: a folder that can't be written to
        printed = str(error)
    assert "Traceback" not in printed
    assert len(printed.splitlines()) < 20
    assert not (root / "damaged").exists(), printed
    left = results(root)
    assert all(left[name] == expected[name] for name in left if name in expected), "what is there is whole"
    places = {name: (root / name).stat().st_ino for name in left if name.startswith("samples/") and name in expected}
    outcome, printed = drive(opened, root, Faulty(root))
    assert outcome.missing == {}, printed
    assert results(root) == expected
    assert not (root / "damaged").exists(), printed
    assert {name: (root / name).stat().st_ino for name in places} == places, "nothing was done twice"


FRESH, FINISHED = "fresh", "finished"


def faults(number_of_calls, codes):
    """Every call of a run that begins and of one that finds everything done, with each error."""
    calls = [(FRESH, n) for n in range(number_of_calls[0])] + [(FINISHED, n) for n in range(number_of_calls[1])]
    return [(start, n, code) for start, n in calls for code in codes]


def check_all(opened, undisturbed, folder, chosen, for_good=False):
    finished, expected, _ = undisturbed
    for start, n, code in chosen:
        root = folder / f"{start}-{n}-{code}"
        if start == FINISHED:
            shutil.copytree(finished, root)
        try:
            check(opened, root, expected, fails_at=n, code=code, for_good=for_good)
        except BaseException as error:
            error.add_note(f"{start} run, call {n}, {errno.errorcode[code]}")
            raise
        shutil.rmtree(root)


def test_a_call_that_fails_loses_nothing(opened, undisturbed, tmp_path):
    every = faults(undisturbed[2], ERRORS)
    first = [(FRESH, n, errno.EACCES) for n in range(5)]  # the lease's
    check_all(opened, undisturbed, tmp_path, [*first, *random.Random(11).sample(every, 12)])


def test_a_disk_that_is_gone_from_some_call_on_loses_nothing(opened, undisturbed, tmp_path):
    every = faults(undisturbed[2], ERRORS)
    check_all(opened, undisturbed, tmp_path, random.Random(12).sample(every, 4), for_good=True)


def test_a_full_run_directory_ends_the_run_with_one_line_wherever_it_is_met(opened, undisturbed, tmp_path):
    """Trying on every node, with pauses, would not help."""
    storage = Faulty(tmp_path / "probe")
    drive(opened, tmp_path / "probe", storage)
    first = next(n for n, (name, path) in enumerate(storage.calls) if name == "commit" and "samples" in path.parts)
    full = Faulty(tmp_path / "run", first, errno.ENOSPC, for_good=True)
    with raises(RunFailed):
        drive(opened, tmp_path / "run", full)


def test_a_kill_between_a_name_and_its_file_where_links_are_refused_loses_nothing(
    opened, undisturbed, tmp_path, monkeypatch
):
    """Each name is first an empty file there."""

    class Killed(BaseException):
        pass

    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, "links are refused")

    def dies(path, target):
        names = {parent.name for parent in (Path(target), *Path(target).parents)} & to_die
        if names and Path(target).exists() and not Path(target).stat().st_size:
            to_die.difference_update(names)
            raise Killed
        return rename(path, target)

    root, rename, never_empty = tmp_path / "run", Path.replace, {"run.json"}
    to_die = {"lease.json", "events", "samples", "features", "scores"} | never_empty
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "replace", dies)
    while to_die != never_empty:
        with pytest.raises(Killed):
            drive(opened, root, LocalStorage(root))
    outcome, printed = drive(opened, root, LocalStorage(root))
    assert outcome.missing == {}, printed
    assert results(root) == undisturbed[1]
    assert len(list(root.glob("damaged/*"))) == 3, "a shard, features and a score"


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_any_call_that_fails_loses_nothing(opened, undisturbed, tmp_path, pytestconfig, code, for_good):
    """A third of the calls, each run of `make chaos` others: all of them take twenty minutes."""
    every, chance = faults(undisturbed[2], [code]), random.Random(pytestconfig.getoption("--seed"))
    check_all(opened, undisturbed, tmp_path, chance.sample(every, len(every) // 3), for_good)
