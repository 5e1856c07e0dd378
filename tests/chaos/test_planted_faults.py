"""One fault at a time, planted on one node or on all: what is lost, doubled or changed, and what the run says."""

import os
import re
import resource
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from command import events
from experiment import Counts, compare, parts, write_checkpoint

from tools.raylets import LOST, READ_ONLY

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

WELL = Counts(lost=0, doubled=0, other=0, quarantined=0)
NODES = ("A", "B", "C")
FAKETIME = [str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]


@pytest.fixture(scope="module")
def undisturbed(lab):
    lab.cluster.start(*NODES)
    lab.finish(lab.shared / "undisturbed")
    return lab.shared / "undisturbed"


@pytest.fixture
def root(lab, undisturbed, request):
    """A run directory. It is removed at the end, because all tests share a small disk."""
    yield (path := lab.shared / request.node.name)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def check(root, undisturbed):
    """Compare the run directory with an undisturbed one."""

    def compared(expected: Counts = WELL) -> None:
        assert compare(root, undisturbed) == expected
        assert not list(root.glob("damaged/**/*.parquet"))

    return compared


@pytest.fixture
def bad(lab):
    """Node B, which is a new one after the test."""
    yield "B"
    lab.plant("B")
    if "B" in lab.cluster.names:
        lab.cluster.kill("B")
    lab.cluster.start("B")


def restarted(lab, node, **how):
    lab.cluster.kill(node)
    lab.cluster.start(node, **how)


def some(root, count=10):
    return lambda: len(parts(root)) > count


def test_a_stale_checkpoint_on_one_node(lab, bad, undisturbed):
    """Loaded by diffusers, as most networks are."""
    right, stale = write_checkpoint(lab.folder / "unet", seed=0), write_checkpoint(lab.folder / "stale-unet", seed=1)
    config = lab.write_config("unet.yaml", model={"checkpoint": str(right)})
    expected, root = lab.shared / "undisturbed-unet", lab.shared / "unet"
    lab.finish(expected, config=config)
    restarted(lab, bad, then=f"mount --bind {stale} {right}")
    assert lab.cluster.ips[bad] in lab.finish(root, config=config)
    assert compare(root, expected) == WELL


def test_weights_that_are_replaced_in_mid_run(lab, root, check):
    """Workers that start after it refuse them; with the old file back the same command ends."""
    with lab.start(root) as driver:
        driver.wait_until(some(root))
        old = lab.weights.read_text()
        try:
            lab.weights.write_text("0.7")
            for node in NODES:
                os.kill(lab.cluster.workers(node)[0], signal.SIGKILL)
            driver.wait(2)
            assert str(lab.weights) in driver.output
        finally:
            lab.weights.write_text(old)
    lab.finish(root)
    check()


BAD_PLACES = {
    "run directory read-only": lambda lab, bad: lab.cluster.inside(bad, READ_ONLY.format(lab.shared)),
    "mount lost": lambda lab, bad: lab.cluster.inside(bad, LOST.format(lab.shared)),
    "EIO": lambda lab, bad: lab.plant(bad, "open parquet EIO", "os.link parquet EIO"),
    "ESTALE": lambda lab, bad: lab.plant(bad, "open parquet ESTALE", "os.link parquet ESTALE"),
    "EMFILE": lambda lab, bad: lab.plant(bad, "open parquet EMFILE", "os.link parquet EMFILE"),
}


@pytest.mark.parametrize("fault", BAD_PLACES)
def test_a_file_system_that_goes_bad_on_one_node_in_mid_run(lab, bad, root, check, fault):
    with lab.start(root) as driver:
        driver.wait_until(some(root))
        BAD_PLACES[fault](lab, bad)
        driver.wait(0)
        assert lab.cluster.ips[bad] in driver.output
    assert not list(lab.cluster.void(bad).rglob("*.parquet")), "nothing is written below a lost mount"
    check()


def test_a_run_directory_that_one_node_may_only_read(lab, bad, root, check):
    lab.cluster.inside(bad, READ_ONLY.format(lab.shared))
    assert lab.cluster.ips[bad] in lab.finish(root)
    check()


def test_a_node_without_the_mount(lab, bad, root, check):
    restarted(lab, bad, without_mount=True)
    assert lab.cluster.ips[bad] in lab.finish(root)
    check()


def test_a_run_directory_that_is_renamed_in_mid_run(lab, root, check):
    """It is not made again; back in its place, it is finished by the same command."""
    aside = root.with_name("aside")
    with lab.start(root) as driver:
        driver.wait_until(some(root))
        root.rename(aside)
        assert driver.process.wait(60) in (1, 2), driver.output
        assert "Traceback" not in driver.output
    assert not list(root.rglob("*.parquet"))
    if root.exists():
        root.rename(root.with_name("remains"))
    aside.rename(root)
    lab.finish(root)
    check()


def test_all_workers_stop_at_once(lab, root, check):
    """As if the file system hung for all: no copy can help, only the deadline."""
    with lab.start(root, "--set", "cluster.hang_seconds=5") as driver:
        driver.wait_until(some(root))
        for node in NODES:
            for pid in lab.cluster.workers(node):
                os.kill(pid, signal.SIGSTOP)
        driver.wait(0)
        assert "hang" in driver.output
    check()


def test_a_worker_that_runs_out_of_file_descriptors(lab, bad, root, check):
    with lab.start(root) as driver:
        driver.wait_until(some(root))
        for pid in lab.cluster.workers(bad):
            used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, used))
        driver.wait(0)
    check()


def test_a_full_disk(lab, root, check):
    """One line, and with room again the same command ends."""
    filler = lab.shared / "filler"
    with lab.start(root) as driver:
        driver.wait_until(some(root))
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**12))
        try:
            assert driver.process.wait(60) == 1, driver.output
        finally:
            filler.unlink()
        assert "Traceback" not in driver.output
        assert re.search("no space|full", driver.output, re.IGNORECASE)
    lab.finish(root)
    check()


def test_shards_that_kill_their_workers(lab, root, check):
    """Two such shards are set aside, and all else is done. Once they are harmless, the same command ends."""
    poison = "S0010-eta0-[0-9a-f]+/[.]?part-00000[23]"
    for node in NODES:
        lab.plant(node, f"os.link {poison} KILL")
    with lab.start(root) as driver:
        driver.wait(4)
    done = {path.name for path in parts(root)}
    assert compare(root, lab.shared / "undisturbed")._replace(quarantined=0) == WELL._replace(lost=2), done
    for node in NODES:
        lab.plant(node)
    lab.finish(root)
    check(WELL._replace(quarantined=2))


@pytest.mark.parametrize("is_replaced", [False, True])
def test_the_head_dies(lab, root, check, is_replaced):
    """The driver says so in one line, and the same command ends on a new cluster.

    So it does with a head at the same address, which does not know the driver, nor its nodes.
    """
    for node in NODES:
        lab.plant(node, "os.link parquet 10")  # else the workers, who need no head, would just finish
    with lab.start(root) as driver:
        driver.wait_until(some(root, 0))
        lab.cluster.kill("head")
        if is_replaced:
            lab.cluster.head()
        assert driver.process.wait(90) == 1, driver.output
        last = driver.output.splitlines()[-1]
        assert "the head" in (last if is_replaced else driver.output)  # died, if the new one comes late
        assert "Stack" not in driver.output
        assert "Traceback" not in driver.output
    for node in NODES:
        lab.plant(node)
        if is_replaced:
            restarted(lab, node)
    if not is_replaced:
        lab.another_cluster()
        lab.cluster.head()
        lab.cluster.start(*NODES)
    lab.finish(root)
    check()


@pytest.mark.parametrize("seconds", [-100, 100])
def test_a_clock_of_a_node_that_is_wrong(lab, bad, root, check, seconds):
    """Heartbeats, deadlines and temporary files count no time of another machine's clock."""
    restarted(lab, bad, then=f"export TG_CLOCK={seconds}")
    lab.finish(root)
    assert lab.cluster.ips[bad] in {event["node"] for event in events(root) if event["event"] == "shard"}
    check()


@pytest.mark.skipif(not FAKETIME, reason="needs libfaketime (apt install libfaketime)")
@pytest.mark.parametrize("seconds", [-100, 100])
def test_a_clock_of_the_driver_that_is_wrong(lab, root, check, seconds):
    """Nor does the lease."""
    clock = {"LD_PRELOAD": FAKETIME[0], "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with lab.start(root, environment=clock) as driver:
        driver.wait(0)
    check()


def test_a_second_driver(lab, root, check):
    with lab.start(root) as driver:
        driver.wait_until(some(root))
        lab.finish(root, code=2)
        driver.wait(0)
    check()


def test_a_slow_node(lab, bad, root, check):
    """Its commits take 3 s: others do its work once more, and nothing is there twice."""
    lab.plant(bad, "os.link parquet 3")
    lab.finish(root)
    check()
    assert [event for event in events(root) if event["event"] == "duplicate"]
