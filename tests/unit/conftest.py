import subprocess
import sys
from pathlib import Path

import pytest
from asking import answer, forget_code_here, forget_samplers


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine cost more than they bring with arrays and networks this small.

    A module that wants it says `pytestmark = pytest.mark.usefixtures("one_thread")`.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The run of `in_process.CONFIG`, whose workers are this process."""
    from in_process import small_run

    with small_run(tmp_path_factory.mktemp("config")) as run:
        yield run


@pytest.fixture(scope="module")
def unreported():
    """Runs write no tables, figures and pages, and histories an empty figure: half of the time of a night this small.

    For modules whose tests look at verdicts; a test that looks at a report asks for `reported`.
    """
    from matplotlib.figure import Figure

    from taugrid.eval import score_cell
    from taugrid.eval.pages import history
    from taugrid.orchestrator.view import page
    from taugrid.orchestrator.work import score

    instead = [
        (score, "write_report", lambda *_: None),
        (page, "write_page", lambda *_: []),
        (history, "trend_figure", lambda *_: Figure()),
        (history, "_trends", lambda *_: {}),
        (score_cell, "keep_floors", lambda *_: {}),  # which are for tables alone
    ]
    with pytest.MonkeyPatch.context() as patch:
        whole = [(module, name, getattr(module, name)) for module, name, _ in instead]
        for module, name, function in instead:
            patch.setattr(module, name, function)
        yield whole


@pytest.fixture
def reported(unreported, monkeypatch):
    """Runs write their report in this test, though not in others of its module."""
    for module, name, function in unreported:
        monkeypatch.setattr(module, name, function)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 64 MB in memory, as Docker gives containers for /dev/shm."""
    folder = tmp_path_factory.mktemp("small")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def user_cache(tmp_path, monkeypatch):
    """A user's cache of the test's own, and no images remembered from other tests."""
    from taugrid.workers.data import load

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load.decoded.cache_clear()
    return tmp_path / "cache" / "taugrid"


@pytest.fixture(scope="module")
def few_draws():
    """Distributions have 2,000 images, not 10,000: KID takes all pairs of a reference, in each session anew."""
    from taugrid.workers.data import load, published

    def forget():
        load.decoded.cache_clear()
        load.load_labels.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "DRAWN_IMAGES", 2_000)
        forget()
        yield
    forget()


@pytest.fixture(scope="session", autouse=True)
def no_users_code():
    """The checkout's own files are not a user's: a process of pytest has loaded hundreds of tests, and the identity of
    what a user's code loads would cover them all, each time."""
    from taugrid.workers.custom import source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "NOT_USER_FOLDERS", [*source.NOT_USER_FOLDERS, Path(__file__).parents[2]])
        source.is_user_file.cache_clear()
        yield
    source.is_user_file.cache_clear()


@pytest.fixture
def asked_here(monkeypatch):
    """What another process is asked about a user's code, this one answers: it has torch. Then it forgets the code.

    The code is of modules in the current folder.
    """
    from taugrid.eval.features import resolve
    from taugrid.orchestrator.plan import trust
    from taugrid.workers.network import custom_process
    from taugrid.workers.samplers import description

    def ask(function, arguments, *_):
        with monkeypatch.context() as other:
            other.setattr(sys, "path", [*sys.path, str(Path.cwd())])
            forget_samplers()
            try:
                return answer(function, arguments)
            finally:
                forget_code_here()

    for module in (resolve, trust, custom_process, description):
        monkeypatch.setattr(module, "ask", ask)
    yield
    forget_code_here()  # which work that is done here has loaded
