import subprocess
from pathlib import Path

import pytest
from experiment import Lab

from tools import raylets

DISK = "64m"


def pytest_collection_modifyitems(items):
    if not raylets.possible():
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="needs Linux and the right to make namespaces"))


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
