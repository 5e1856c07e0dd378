import os
import signal
import subprocess

import pytest
import raylets
from experiment import Lab
from tally import Tally

TALLY = pytest.StashKey[Tally]()
DISK = "64m"


def pytest_configure(config):
    config.stash[TALLY] = Tally(config.getoption("--seed"))


def pytest_terminal_summary(terminalreporter, config):
    if (tally := config.stash[TALLY]).runs:
        terminalreporter.write_line(str(tally))


def pytest_collection_modifyitems(items):
    if not raylets.possible():
        for item in items:
            if item.path.parent == raylets.HERE:
                item.add_marker(pytest.mark.skip(reason="needs Linux and the right to make namespaces"))


@pytest.fixture
def tally(pytestconfig):
    return pytestconfig.stash[TALLY]


@pytest.fixture
def strike(lab, tally):
    """Kill a process on a node, and count it."""

    def kill(what: str, node: str, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        tally.kills[what] += 1
        tally.nodes.add(node)

    return kill


@pytest.fixture(scope="module")
def lab(tmp_path_factory, pytestconfig):
    """A cluster without nodes, whose shared folder is a disk of 64 MB. The short forms lose no node."""
    made = Lab(tmp_path_factory.mktemp("lab"), patient=not pytestconfig.getoption("--long"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", made.shared], check=True)
    try:
        made.cluster.head()
        yield made
    finally:
        made.cluster.close()
        subprocess.run(["umount", "-l", made.shared], check=True)
