import csv
import faulthandler
import gc
import os
import random
import signal
from collections import Counter
from contextlib import contextmanager
from html import escape
from io import StringIO
from pathlib import Path
from threading import Event

import pytest
import snapshots
from hypothesis import settings

from taugrid import retries
from taugrid.orchestrator import ending
from taugrid.orchestrator.rundir import lease

# `nohup make test &` and many CI runners start their processes with SIGINT ignored. A driver that must stop then sends
# SIGTERM to itself (`orchestrator/ending.py`), which would end pytest's process. Children start with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests move the user's cache. matplotlib would list the machine's fonts again, which takes four seconds a process.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
os.environ.setdefault("MPLCONFIGDIR", str(CACHE / "matplotlib"))

gc.disable()  # until all files are imported: passes over what stays are a third of the time

# Machines here share their cores: a time limit for each example would fail tests for what else is running.
settings.register_profile("taugrid", deadline=None)
settings.load_profile("taugrid")


@pytest.fixture(scope="session", autouse=True)
def users_state(tmp_path_factory):
    """Tests name code that the user's own trust file should not hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def texts(tmp_path_factory):
    """What taugrid says is compared without the names of temporary files, and recorded with --texts."""
    snapshots.base = tmp_path_factory.getbasetemp()
    yield
    if snapshots.update:
        snapshots.write()


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """What a test's process writes need not survive a power loss: it would wait for the disk ten thousand times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def fast_lease_poll():
    """A driver looks again whether it holds its lease, after a pause that hundreds of drivers here would take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "POLL_SECONDS", 0.01)
        yield


@pytest.fixture(autouse=True)
def reset_ending():
    """Neither the end of a run nor its reason reaches the next test."""
    yield
    if retries.over.is_set():
        retries.over = Event()
    ending.begin()


@contextmanager
def reached(server, environment):
    """The server of a store, proven to refuse what a condition forbids."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server.require_conditions()
        yield server
    server.close()


@pytest.fixture(scope="session")
def s3():
    """Moto's S3 server on loopback."""
    from buckets import ENVIRONMENT, Server

    server = Server()
    with reached(server, ENVIRONMENT | {"AWS_ENDPOINT_URL": server.endpoint}):
        yield server


@pytest.fixture(scope="session")
def gs():
    """Google's protocol on moto's server, without its limit of one write to an object per second."""
    from stores import google

    with reached(*google()) as server:
        yield server


@pytest.fixture(scope="session")
def az():
    """Azurite on loopback."""
    from stores import azure, why_not_azure

    if reason := why_not_azure():
        pytest.skip(reason)
    with reached(*azure()) as server:
        yield server


@pytest.fixture
def store(request, monkeypatch):
    """The object store of a test: S3's, unless the test is for each (`buckets.EVERYWHERE`)."""
    server = request.getfixturevalue(getattr(request, "param", "s3"))
    if server.scheme == "gs":
        from taugrid.storage.objects import ObjectStorage

        monkeypatch.setattr(ObjectStorage, "rewrite_seconds", 0.0)
    return server


@pytest.fixture
def bucket(store):
    """A folder in a new bucket, and its storage."""
    from taugrid.storage import open_place

    return open_place(store.url(), "--out")


@pytest.fixture(scope="module")
def sketched():
    """A figure's files hold its texts, and its SVG in a page the ids too, which are all that a page needs.

    Rendering them would take a third of the time of a night this small.

    For modules whose tests look at no figure; test_figures.py and others render all kinds. A test that looks at one
    after all asks for `rendered`.
    """
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    def write_texts(figure, file, **_):
        texts = [text.get_text() for text in figure.findobj(Text)]
        if isinstance(file, StringIO):
            ids = (f'<g id="{artist.get_gid()}"/>' for artist in figure.findobj(Artist.get_gid))
            file.write(f'<svg viewBox="0 0 4 3">{"".join(ids)}<text>{escape(" ".join(texts))}</text></svg>')
        else:
            Path(file).write_text("\n".join(texts))

    with pytest.MonkeyPatch.context() as patch:
        rendered = Figure.savefig
        patch.setattr(Figure, "savefig", write_texts)
        yield rendered


@pytest.fixture
def rendered(sketched, monkeypatch):
    """Figures are rendered in this test, though not in others of its module."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", sketched)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


UNIT = Path(__file__).parent / "unit"
UNIT_SECONDS, SLOW_SECONDS = 240, 3600
"""Limits of a test of tests/unit and of a long form, setup included; others have that of pyproject.toml."""

BACKSTOP_SECONDS = 60
STDERR = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
    """End the process, and print its stacks, if the test does not end: code in C may let no signal handler run."""
    faulthandler.dump_traceback_later(settings.timeout + BACKSTOP_SECONDS, exit=True, file=item.config.stash[STDERR])


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer():
    faulthandler.cancel_dump_traceback_later()


def pytest_configure(config):
    snapshots.update = config.getoption("--texts")
    config.stash[STDERR] = os.dup(2)  # during a test, 2 is what captures its output


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long forms of tests too")
    parser.addoption("--texts", action="store_true", help="write tests/texts in place of comparing with it")
    parser.addoption("--times", action="store_true", help="write tests/durations.csv")
    parser.addoption("--seed", type=int, default=random.randrange(1_000_000), help="of what the chaos tests kill, when")


def pytest_report_header(config):
    return f"chaos: seed {config.getoption('--seed')}" if config.getoption("--long") else None


DURATIONS = Path(__file__).parent / "durations.csv"
"""The seconds of each test, all its cases and what it sets up. `make texts` writes it; it orders the files."""

seconds: Counter[str] = Counter()


def recorded_seconds():
    """Test -> its seconds, as recorded."""
    with DURATIONS.open(newline="") as file:
        return {row["test"]: float(row["seconds"]) for row in csv.DictReader(file)}


def pytest_runtest_logreport(report):
    seconds[report.nodeid.partition("[")[0]] += report.duration


def pytest_sessionfinish(session):
    if session.config.getoption("--times") and not hasattr(session.config, "workerinput"):
        known = recorded_seconds() | seconds
        with DURATIONS.open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("test", "seconds"))
            rows.writerows((test, f"{known[test]:.1f}") for test in sorted(known))


def longest_first(items):
    """The same tests, the files that take longest first, so that no process is left alone with one at the end."""
    known, files = recorded_seconds(), {}
    for item in items:
        files.setdefault(item.path, {}).setdefault(item.nodeid.partition("[")[0], []).append(item)
    order = sorted(files, key=lambda path: -sum(known.get(test, 0.0) for test in files[path]))
    return [item for path in order for tests in files[path].values() for item in tests]


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # a process of xdist, which gives out files in this order
        items[:] = longest_first(items)
    for module in {item.getparent(pytest.Module) for item in items}:
        if module.path.is_relative_to(UNIT):
            module.add_marker(pytest.mark.timeout(UNIT_SECONDS))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
            if not config.getoption("--long"):
                item.add_marker(
                    pytest.mark.skip(reason="a long form: `make chaos`, `make proofs` or `make cluster-tests` runs it")
                )
