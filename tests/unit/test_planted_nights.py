"""Regressions planted in nights of 12 cells of digits: the gate finds each, and sleeps through twenty nights of noise.

These take minutes: `make chaos` runs them. tests/unit/test_baseline.py and test_nightly.py have the short forms, and
test_fault_table.py has the table of faults.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nights
import pandas as pd
import pytest
import yaml
from digits_nights import CONFIG, train
from nights import taugrid

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow, pytest.mark.chaos]

CELLS, STEPS, NIGHTS = 12, 1_500, 20
LAST = [STEPS - 2 * back for back in range(NIGHTS + 1)]
"""Steps of the checkpoints at the end of the training, where the learning rate is nearly 0."""


def config(folder, step):
    path = folder / f"step-{step}.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "model": {"checkpoint": str(folder / f"step-{step}")}}))
    return path


def night(folder, step, name, *options, code=0):
    return nights.night(folder / "history", config(folder, step), name, *options, code=code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, and a history whose first night is the baseline."""
    place = tmp_path_factory.mktemp("digits")
    train(place, STEPS, [STEPS // 5, *LAST])
    night(place, LAST[-1], "0")
    nights.accept(place / "history", "0")
    return place


def show(title, found):
    results = [cell["result"] for cell in found["comparison"]["cells"]]
    print(f"\n{title}: {found['result']}, { ({result: results.count(result) for result in results}) }")
    print(found["comparison"]["rule"])


def test_a_checkpoint_trained_much_shorter(folder):
    found = night(folder, STEPS // 5, "c", code=3)
    show("(c) a fifth of the steps", found)
    assert found["result"] == "worse"
    worse = [cell["name"] for cell in found["comparison"]["cells"] if cell["result"] == "worse"]
    assert worse
    text = (folder / "history/nights/c/summary.md").read_text()
    assert all(name.rsplit("-", 1)[0] in text for name in worse)


def test_twenty_nights_at_the_end_of_a_flat_curve(folder):
    alarms = []
    for number, step in enumerate(reversed(LAST[:-1]), start=1):
        found = night(folder, step, f"d{number:02d}", "--keep-images", 2, code=None)
        show(f"(d) night {number}", found)
        alarms.append(found["result"] == "worse")
    assert sum(alarms) <= 1
    history = pd.read_parquet(folder / "history/history.parquet")
    assert history.groupby("night").size().loc[[f"d{number:02d}" for number in range(1, NIGHTS + 1)]].eq(CELLS).all()
    print(history.groupby("result").size())


ALONE = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from nights import taugrid; taugrid(*sys.argv[1:])"


def test_a_night_killed_at_random_moments_ten_times(folder, pytestconfig):
    """SIGKILL of the real process, ten times, at moments drawn over the time that an undisturbed night takes.

    A night that ends before the tenth kill is followed by another. Each is in the history once, as if undisturbed.
    """
    words = ("nightly", config(folder, STEPS // 5), "--history", folder / "history", "--id")
    command = [sys.executable, "-c", ALONE, str(Path(__file__).parent), *map(str, words)]

    def start(name):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, name], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert start("undisturbed").wait(600) == 1, "the planted regression ends with 3, which the helper refuses"
    undisturbed, draw = time.monotonic() - began, random.Random(pytestconfig.getoption("--seed"))
    names, kills = ["f0"], 0
    while kills < 10:
        process = start(names[-1])
        try:
            process.wait(undisturbed * draw.uniform(0.05, 0.95))
            names.append(f"f{len(names)}")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    print(f"\n(f) {kills} kills, {len(names)} nights")
    first = json.loads((folder / "history/nights/undisturbed/verdict.json").read_text())
    for name in names:
        found = night(folder, STEPS // 5, name, code=3)
        fids = [[cell["metrics"]["fid"] for cell in verdict["scores"]] for verdict in (found, first)]
        assert fids[0] == fids[1]
        for run in (path.parent for path in (folder / "history/nights" / name).glob("*/config.json")):
            if run.is_dir():
                taugrid("verify", run)
    counted = pd.read_parquet(folder / "history/history.parquet").groupby("night").size()
    assert counted[["undisturbed", *names]].eq(CELLS).all()
