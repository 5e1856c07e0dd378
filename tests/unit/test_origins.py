"""A cell of two devices or versions is said to be mixed, as far as the events say who made it."""

import math

import pytest
from snapshots import recorded

from taugrid.config import Config, validate
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.report.collect import row_of
from taugrid.orchestrator.rundir.history import RunHistory

ORACLE = {"name": "x", "data": {"name": "gaussian", "shape": [1, 4, 4]}, "model": {"oracle": "gaussian"}}


def session(*devices, torch="2.9"):
    """A session with a worker on each device."""
    workers = [
        {
            "event": "worker",
            "worker": f"worker-{i}",
            "device": device,
            "versions": {"torch": torch, "ray": "2.60"},
            "threads": 1,
        }
        for i, device in enumerate(devices)
    ]
    return [{"event": "session", "stages": []}, *workers]


def assigned(number, device, worker="worker-0"):
    return {"event": "assigned", "task": f"sample/c/{number}", "worker": worker, "device": device}


def shard(number, device, worker="worker-0", images=8, seconds=2.0, **more):
    return {
        "event": "shard", "cell": "c", "path": f"part-{number:06d}.parquet", "images": images, "seconds": seconds,
        "committed": True, "worker": worker, "device": device, "own": True, "copied": 0, "evaluations": 80, **more,
    }  # fmt: skip


def origin(*events, cell="c"):
    return RunHistory.of(events).origin(cell)


def mixtures(*events):
    return origin(*events).mixtures


LOST = [*session("a100", "cpu"), assigned(0, "a100")]
FIRST = [*session("a100"), assigned(0, "a100"), shard(0, "a100", images=12, seconds=3.0)]
DAMAGED = {"event": "damaged", "path": "samples/S0010-eta0-c/part-000000.parquet"}
AGAIN = [*session("cpu"), assigned(0, "cpu")]
GROWN = shard(0, "cpu", images=4, seconds=1.0, copied=8)


def gpu(name="a100", **libraries):
    accelerator = {"kind": "cuda", "cuda": "13.0", "cudnn": "91002", "driver": "580.65.06"} | libraries
    return [{"event": "session", "stages": []}, {**session(name)[1], "accelerator": accelerator}]


@pytest.mark.parametrize(
    ("is_mixed", "events"),
    [
        (False, [*session("a100", "a100"), assigned(0, "a100"), shard(0, "a100"), shard(1, "a100", "worker-1")]),
        (True, [*session("a100", "cpu"), shard(0, "a100"), shard(1, "cpu", "worker-1")]),
        # The driver was killed between commit and event: who made shard 0 is not known.
        (False, [*LOST, assigned(1, "cpu", "worker-1"), shard(1, "cpu", "worker-1")]),
        (False, [*LOST, assigned(0, "cpu", "worker-1"), shard(0, "cpu", "worker-1", own=False, conflict="")]),
        # A shard that is made again forgets who made it, and one that grew does not.
        (False, [*FIRST, DAMAGED, *AGAIN]),
        (False, [*FIRST, *AGAIN, shard(0, "cpu")]),
        (True, [*FIRST, *AGAIN, GROWN]),
        (True, [*session("cpu"), shard(0, "cpu"), *session("cpu", torch="2.10"), shard(1, "cpu")]),
        # Other libraries of a GPU.
        (False, [*gpu(), shard(0, "a100"), *gpu(), shard(1, "a100")]),
        (True, [*gpu(), shard(0, "a100"), *gpu(cudnn="92000"), shard(1, "a100")]),
    ],
)  # fmt: skip
def test_a_cell_of_several_makers_is_said_to_be_mixed(is_mixed, events):
    """Defect 19, the patch: `LIBRARIES` is empty, as before they were recorded."""
    found = mixtures(*events)
    assert bool(found) == is_mixed
    if is_mixed:
        recorded("\n".join(found))


def test_seconds_are_those_of_the_images_that_are_there():
    assert origin(*session("a100"), shard(0, "a100"), shard(1, "a100")).seconds == 4.0
    assert origin(*FIRST, *AGAIN, GROWN).seconds == pytest.approx(3.0 * 8 / 12 + 1.0)


def test_who_made_the_latents_has_made_what_is_decoded_from_them():
    """Put back by leaving the field out: a GPU's latents that a CPU decodes would count as the CPU's."""
    sampled, decoded = shard(0, "a100"), shard(0, "cpu", cell="d", evaluations=0, latents_of="c")
    events = [*session("a100"), sampled, *session("cpu"), decoded]
    recorded("\n".join(origin(*events, cell="d").mixtures))
    assert mixtures(*events) == []
    alone = origin(*session("cpu"), decoded, cell="d")
    assert devices_of(alone.makers) == ["cpu"], "the other's are not recorded"


def test_other_software_is_a_mixture_too_and_packages_that_make_no_image_are_not():
    one = [*session("cpu", torch="2.9"), shard(0, "cpu")]
    other = [*session("cpu", torch="2.10"), shard(1, "cpu")]
    other[1]["versions"]["ray"] = "2.61"
    [mixture] = mixtures(*one, *other)
    assert mixture.endswith("torch 2.10, 2.9")


def devices_of(makers):
    return sorted(maker.device for maker in makers)


@pytest.mark.parametrize(
    ("is_known", "events"),
    [
        (True, [shard(0, "a100"), shard(1, "a100")]),
        (False, [shard(1, "a100")]),
        # It found the file of a worker that died unheard, with the same bytes or with others.
        (True, [shard(0, "a100", own=False), shard(1, "a100")]),
        (False, [shard(0, "a100", own=False, conflict="has other bytes"), shard(1, "a100")]),
        (True, [shard(0, "a100"), shard(0, "cpu", "worker-1", own=False), shard(1, "a100")]),  # a superfluous copy
    ],
)
def test_of_a_file_without_its_event_the_maker_is_unknown(is_known, events):
    found = origin(*session("a100", "cpu"), *events).if_known(16)
    assert devices_of(found.makers) == (["a100"] if is_known else [])


def test_the_kind_of_an_unknown_maker_is_that_of_the_runs_workers():
    """Else a run of GPUs that was killed would have rows of two protocols."""
    history = RunHistory.of([*gpu(), shard(0, "a100"), shard(0, "a100", cell="d", own=False, conflict="")])
    assert [history.device_kinds(cell)["sampled"] for cell in ("c", "d", "e")] == [{"cuda"}] * 3


def test_the_seconds_of_a_cell_that_was_only_decoded_are_not_those_of_sampling():
    """Put back by counting them: the second VAE of a grid would look nearly free."""
    sampled, decoded = (origin(*session("a100"), shard(0, "a100", evaluations=n)) for n in (80, 0))
    assert sampled.seconds_of(8) == 2.0
    assert math.isnan(decoded.seconds_of(8))
    copied = [*session("a100"), shard(0, "a100", evaluations=80), shard(0, "a100", images=0, copied=8, evaluations=0)]
    assert origin(*copied).seconds == 4.0, "nothing was decoded"
    row = row_of(plan(validate(Config, ORACLE, "test")).cells[0], {}, "p", decoded.seconds_of(8))
    assert row["seconds"] is None
