"""A history of nights as people see it: index.html, `report`, `status` and `taugrid.open`, on nights that really ran."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from in_process import PoolHere
from nights import CELLS, checkpoint, taugrid, write_config

import taugrid as api
from taugrid.errors import UserError
from taugrid.orchestrator.nightly.places import History, open_history
from taugrid.orchestrator.nightly.shown.nights import night_line, nights_of
from taugrid.orchestrator.nightly.write import write_history
from taugrid.storage import open_place, read_sealed, write_sealed

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

NAME = "tonight"


def night(history, config, name, *options, code=0):
    taugrid("nightly", config, "--history", history, "--id", name, *options, code=code)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six nights: without a baseline, identical, not worse, with two cells only, worse, and one that was killed."""
    folder = tmp_path_factory.mktemp("made")
    history, name = folder / "history", {"name": NAME}
    for kind, worse in (("old", 0.0), ("worse", 0.3), ("alike", 1e-4)):
        write_config(folder / f"{kind}.yaml", checkpoint(folder / kind, worse), **name)
    night(history, folder / "old.yaml", "1")
    taugrid("baseline", "accept", history / "nights/1/run", "--to", history / "baseline.json", "--reason", "the first")
    night(history, folder / "old.yaml", "2")
    night(history, folder / "alike.yaml", "3")
    night(history, folder / "alike.yaml", "4", "--set", "grid={steps: [2, 3], eta: [0.0]}", code=None)
    night(history, folder / "worse.yaml", "5", code=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoolHere, "give", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            night(history, folder / "old.yaml", "6")
    write_history(open_history(str(history)))
    return folder


def test_x(made):
    shutil.rmtree("/tmp/hist", ignore_errors=True)
    shutil.copytree(made, "/tmp/hist")
    print(taugrid("status", made / "history")[0])
    print(taugrid("status", made / "history", "--json")[0])
    print(api.open(made / "history"))
