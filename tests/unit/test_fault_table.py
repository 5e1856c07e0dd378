"""Faults planted in nights of 12 cells of digits, with the baseline's weights, nearby ones, and those of a retraining.

`make proofs` runs it, twenty nights of noise too; `pytest -s` prints the table of docs/decisions.md. `make chaos` kills
a night. tests/unit/test_night_faults.py has the short form.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nights
import pandas as pd
import pytest
import yaml
from diffusers import UNet2DModel
from digits_nights import CONFIG, Without, train
from nights import taugrid
from planted_faults import (
    added_eta,
    collapse,
    darken_later_batches,
    drop_last_step,
    repeat_the_first_batch,
    round_down,
    scaled_fid,
    scaled_sigma,
    swap_images,
    swap_scores,
)

from taugrid.orchestrator.baseline.text import BAD, GOOD, NEUTRAL

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

CELLS, STEPS = 12, 1_500
HALF, NEARBY, LAST = 375, 748, 750
"""Steps of the checkpoints; the learning rate at the last one is half of what it was."""

COLUMNS = {"same weights": (0, LAST), "nearby weights": (0, NEARBY), "retrained": (1, LAST)}
"""Tonight's network: the seed of its training, and the step."""

NIGHTS = 20
FLAT = [STEPS - 2 * back for back in range(NIGHTS + 1)]
"""Steps of the checkpoints at the end of the training, where the learning rate is nearly 0."""

SHARPNESS = 0.08
"""Of all nights: one that could not see such a loss must not pass."""

DIGIT = 3
"""The class that is missing."""


class Fault(NamedTuple):
    """What is planted, in the code or in tonight's network, and how each night must end.

    `caught` has, for each column, the stage that must catch it; in the last one a network of other weights may be red
    beside it. Empty: the night must be green. "not judged": it must say that it is too blunt. None: no such night.
    """

    caught: tuple[str | None, str | None, str | None]
    code: Callable[[pytest.MonkeyPatch], None] = lambda monkeypatch: None
    network: str | None = None
    """A name of `_network`; None: the column's."""


BLUNT = "not judged"
IN_THE_SAMPLER = ("pixels", "sampler canary", "sampler canary")
IN_THE_NETWORK = (None, "fresh seed", "fresh seed")
FAULTS = {
    "nothing (the control)": Fault(("", "", "fresh seed")),
    "last step of the sampler dropped": Fault(IN_THE_SAMPLER, drop_last_step),
    "sigma x 1.02": Fault(IN_THE_SAMPLER, scaled_sigma(1.02)),
    "sigma x 1.3": Fault(IN_THE_SAMPLER, scaled_sigma(1.3)),
    "0.3 added to eta": Fault(IN_THE_SAMPLER, added_eta(0.3)),
    "images rounded down": Fault(IN_THE_SAMPLER, round_down),
    "images of two cells swapped": Fault(IN_THE_SAMPLER, swap_images),
    "later batches darker": Fault(("pixels", "one stage", "one stage"), darken_later_batches),
    "second batch repeats the first": Fault(("pixels", "collapse", "collapse"), repeat_the_first_batch),
    "scores of two cells swapped": Fault(("scorer", "one stage", "fresh seed"), swap_scores),
    "FID x 1.01": Fault(("scorer", "scorer", "scorer"), scaled_fid(1.01)),
    "EMA off": Fault(IN_THE_NETWORK, network="raw"),
    "half the training": Fault(IN_THE_NETWORK, network="half"),
    "one digit missing": Fault((None, BLUNT, BLUNT), network="without"),
    "all images white": Fault((None, "collapse", "collapse"), network="white"),
    "NaN": Fault((None, "collapse", "collapse"), network="nan"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The trainings, a folder for each seed, and a history whose first night is the baseline."""
    place = tmp_path_factory.mktemp("table")
    for seed, since in ((0, 500), (1, 1)):
        train(place / f"seed-{seed}", STEPS, [HALF, NEARBY, LAST, *FLAT], seed, LAST if seed else None)
        train(place / f"seed-{seed}/without", STEPS, [LAST], seed, LAST, Without(DIGIT, since))
        for name, value in (("white", 100.0), ("nan", float("nan"))):
            network = UNet2DModel.from_pretrained(place / f"seed-{seed}/step-{LAST}")
            collapse(network, value)
            network.save_pretrained(place / f"seed-{seed}/{name}")
    (place / "night.yaml").write_text(yaml.safe_dump(CONFIG))
    night(place, "seed-0/step-750", "0")
    accept(place, "baseline", place / "history/nights/0/run")
    return place


def accept(folder, name, *runs):
    file = folder / f"history/{name}.json"
    taugrid("baseline", "accept", *runs, "--to", file, "--reason", "the measure")
    return file


def night(folder, network, name, *options, code=0):
    chosen = ("--set", f"model.checkpoint={folder / network}")
    return nights.night(folder / "history", folder / "night.yaml", name, *chosen, *options, code=code)


def network_of(seed, step, kind):
    """Its folder; "one digit missing" is a loss from step 500 on for seed 0, and from the first one for others."""
    names = {None: f"step-{step}", "raw": f"step-{LAST}-raw", "half": f"step-{HALF}", "without": f"without/step-{LAST}"}
    return f"seed-{seed}/{names.get(kind, kind)}"


def stage(cell):
    named = {"changed pixels": "pixels", "changed sampler": "sampler canary", "changed scorer": "scorer",
             "collapsed": "collapse", "worse": "fresh seed" if cell["seeds"] == "fresh" else "one stage"}  # fmt: skip
    return named.get(cell["result"], "")


def shown(found):
    counts = Counter(filter(None, map(stage, found["comparison"]["cells"])))
    return ": ".join(filter(None, [found["result"], ", ".join(f"{name} {count}" for name, count in counts.items())]))


@pytest.mark.proof
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_broken_is_green(folder, monkeypatch, fault):
    """Exit code and first line of each night; a retraining is another network, and rightly red where it is worse."""
    caught, plant, kind = FAULTS[fault]
    row = [fault]
    for number, (column, expected) in enumerate(zip(COLUMNS, caught, strict=True)):
        if expected is None:
            row.append("-")
            continue
        name, code = f"{list(FAULTS).index(fault)}-{number}", {"": 0, BLUNT: 5}.get(expected, 3)
        with monkeypatch.context() as patch:
            plant(patch)
            found = night(folder, network_of(*COLUMNS[column], kind), name, "--sharpness", SHARPNESS, code=code)
        row.append(f"{code}, {shown(found)}")
        line = (folder / f"history/nights/{name}/summary.md").read_text().splitlines()[0]
        assert {0: GOOD, 5: NEUTRAL, 3: BAD}[code] in line
        stages = {stage(cell) for cell in found["comparison"]["cells"]} - {""}
        assert stages == {expected} - {"", BLUNT} or (column == "retrained" and expected in stages), row
    print(f"\n| {' | '.join(row)} |")


def history_of(folder):
    return pd.read_parquet(folder / "history/history.parquet").groupby("night")["cell"].nunique()


@pytest.mark.proof
def test_twenty_nights_at_the_end_of_a_flat_curve(folder):
    night(folder, f"seed-0/step-{FLAT[-1]}", "flat")
    options = ("--baseline", accept(folder, "flat", folder / "history/nights/flat/run"), "--keep-images", 2)
    names = [f"flat-{number:02d}" for number in range(1, NIGHTS + 1)]
    alarms = []
    for name, step in zip(names, reversed(FLAT[:-1]), strict=True):
        found = night(folder, f"seed-0/step-{step}", name, *options, code=None)
        print(f"\n{name}: {shown(found)}; {found['comparison']['rule']}")
        alarms.append(found["result"] == "worse")
    assert sum(alarms) <= 1
    assert history_of(folder)[names].eq(CELLS).all()


ALONE = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from nights import taugrid; taugrid(*sys.argv[1:])"


@pytest.mark.chaos
def test_a_night_killed_at_random_moments_ten_times(folder, pytestconfig):
    """SIGKILL of the real process, ten times, at moments drawn over the time that an undisturbed night takes.

    A night that ends before the tenth kill is followed by another. Each is in the history once, as if undisturbed.
    """
    chosen = ("--set", f"model.checkpoint={folder}/seed-0/step-{HALF}")
    words = ("nightly", folder / "night.yaml", *chosen, "--history", folder / "history", "--id")
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
            process.kill()
            process.wait()
            kills += 1
    first = json.loads((folder / "history/nights/undisturbed/verdict.json").read_text())
    for name in names:
        found = night(folder, f"seed-0/step-{HALF}", name, code=3)
        fids = [[cell["metrics"]["fid"] for cell in verdict["scores"]] for verdict in (found, first)]
        assert fids[0] == fids[1]
        for run in (path.parent for path in (folder / "history/nights" / name).glob("*/config.json")):
            if run.is_dir():
                taugrid("verify", run)
    assert history_of(folder)[["undisturbed", *names]].eq(CELLS).all()
