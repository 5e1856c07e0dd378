"""A storm: workers, idle workers, nodes, drivers and heads are killed at random times, over a hundred in all."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command import Started, events
from experiment import Counts, compare

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

NODES = ("A", "B", "C", "D")
DECK = {"worker": 70, "node": 14, "driver": 14, "head": 3}
"""What is killed, and how often."""
PAUSE = (0.5, 2.5)
"""Seconds between two kills. A shard takes 0.2, so that the same one is hardly ever hit three times."""
KILLS_WITHOUT_WORK = 4
"""Kills in a row with no work done in between; then the storm waits for some. On a busy machine, workers take longer to
start than the storm pauses, and taugrid gives up after ten that die without work."""
IDLE_ROUNDS = 5
"""Each kills all workers that have nothing to do: two. They are not replaced, since there is no work for others."""


class Storm:
    """Kills what the deck says next, if it is there to be killed."""

    def __init__(self, lab, seed):
        self._lab, self.random = lab, random.Random(seed)
        self._deck = [what for what, count in DECK.items() for _ in range(count)]
        self.random.shuffle(self._deck)
        self._work, self._kills = -1, 0

    @property
    def over(self):
        return not self._deck

    def waits(self, root) -> bool:
        """Whether work must be done before the next kill."""
        work = sum(event["event"] in ("shard", "extract", "score") for event in events(root))
        if work != self._work:
            self._work, self._kills = work, 0
        return self._kills >= KILLS_WITHOUT_WORK

    def hit(self, driver: Started) -> bool:
        """Kill one thing; False if the driver can't go on."""
        what = self._deck.pop(0)
        self._kills += 1
        cluster = self._lab.cluster
        if what == "worker":
            found = [pid for node in cluster.names for pid in cluster.workers(node)]
            if found:
                os.kill(self.random.choice(found), signal.SIGKILL)
            else:
                self._deck.append(what)
        elif what == "node":
            node = self.random.choice(cluster.names)
            cluster.kill(node)
            cluster.begin(node)
        elif what == "driver":
            os.killpg(driver.process.pid, signal.SIGKILL)
            driver.process.wait()
        else:
            cluster.kill("head")
            # It may just have come to its end.
            assert driver.process.wait(40) == 0 or "the head" in driver.output, driver.output
            assert driver.process.returncode in (0, 1)
            assert "Traceback" not in driver.output
            self._lab.another_cluster()
            self._lab.cluster.head()
            self._lab.cluster.start(*NODES)
        return what in ("worker", "node")


def finish(lab, storm, root):
    """Start drivers until one ends by itself."""
    while True:
        with lab.start(root) as driver:
            driver.wait_until(lambda: "to do" in driver.output or driver.process.poll() == 0)
            going = True
            while going and not storm.over and driver.process.poll() is None:
                time.sleep(storm.random.uniform(*PAUSE))
                if driver.process.poll() is None and not storm.waits(root):
                    going = storm.hit(driver)
            if going:
                driver.wait(0)
                return


def test_a_hundred_kills_lose_double_and_change_nothing(lab, pytestconfig):
    lab.cluster.start(*NODES)
    undisturbed = lab.shared / "undisturbed"
    lab.finish(undisturbed)
    storm, found = Storm(lab, pytestconfig.getoption("--seed")), []
    while not storm.over:
        root = lab.shared / f"run-{len(found)}"
        finish(lab, storm, root)
        found.append(compare(root, undisturbed))
    assert set(found) == {Counts(lost=0, doubled=0, other=0, quarantined=0)}


def is_idle(pid: int, root) -> bool:
    """Whether a worker has no file of the run directory open; the one that it writes is open while it samples."""
    return not any(str(target).startswith(str(root)) for target in open_files(pid))


def open_files(pid):
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield link.readlink()


def test_idle_workers_that_die_are_seen_and_no_task_pays(lab):
    """Two long shards keep two workers busy while those that have nothing to do are killed."""
    cluster = lab.cluster
    cluster.start(*[node for node in NODES if node not in cluster.names])
    long = {"num_samples": 4, "batch_size": 1, "shard_evaluations": 2000}
    config = lab.write_config("idle.yaml", sample=long, grid={"steps": [1000], "eta": [0.0]})
    undisturbed = lab.shared / "undisturbed-idle"
    lab.finish(undisturbed, config=config)
    for number in range(IDLE_ROUNDS):
        root = lab.shared / f"idle-{number}"
        with lab.start(root, config=config) as driver:

            def idle(root=root):
                """Those that have nothing to do, once all parts of the reference, and all their copies, are made."""
                of_reference = [e["event"] for e in events(root) if e.get("task", "").startswith("reference/")]
                given, made = of_reference.count("assigned"), of_reference.count("extract")
                found = [pid for node in cluster.names for pid in cluster.workers(node)]
                rest = [pid for pid in found if is_idle(pid, root)]
                return rest if made == given >= 3 and len(found) == len(NODES) and len(rest) == 2 else []

            driver.wait_until(lambda driver=driver: "to do" in driver.output)
            for kills, pid in enumerate(driver.wait_until(idle), 1):
                os.kill(pid, signal.SIGKILL)
                driver.wait_until(
                    lambda kills=kills, root=root: sum(e["event"] == "lost" for e in events(root)) == kills, timeout=10
                )
            driver.wait(0)
        assert compare(root, undisturbed) == Counts(lost=0, doubled=0, other=0, quarantined=0)
        assert not [event for event in events(root) if event["event"] == "failed"]
