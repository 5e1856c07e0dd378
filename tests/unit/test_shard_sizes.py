"""What is said of shards that do not fit the workers."""

import json

import pytest
from snapshots import recorded

from taugrid.config import Config, validate
from taugrid.orchestrator.cli.text import plan_text
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.shard_sizes import longest_shard, too_few_shards
from taugrid.orchestrator.view.dry_run import describe_plan

MANY = {"num_samples": 1024, "batch_size": 64, "shard_evaluations": 50_000}


def configured(workers=None, **sample):
    values = {"name": "x", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "shape": [1, 4, 4]}}
    cluster = {} if workers is None else {"cluster": {"workers": workers}}
    return validate(Config, values | {"sample": {"seed": 0, "steps": 10} | sample} | cluster, "test")


def test_the_default_gives_a_small_cell_shards_for_several_workers():
    assert plan(configured(num_samples=1000)).num_shards >= 8


@pytest.mark.parametrize(("evaluations", "shards"), [(50_000, 1), (10_000, 2)])
def test_a_shard_of_more_than_a_workers_share_leaves_workers_idle(evaluations, shards):
    """1,024 images at S = 10: one shard, or 960 and 64 images: measured at 0.61 and 0.67 of diffusers' pipeline."""
    found = plan(configured(**MANY | {"shard_evaluations": evaluations}))
    assert found.num_shards == shards
    assert "10,240" in too_few_shards(found, 2)


def test_enough_shards_are_not_spoken_of(tmp_path):
    config = configured(workers=2, **MANY | {"shard_evaluations": 5000})
    found = plan(config)
    assert too_few_shards(found, 2) is None
    halves = plan(configured(**MANY | {"shard_evaluations": 5120}))
    assert (halves.num_shards, too_few_shards(halves, 2)) == (2, None)
    assert describe_plan(Run(config, found, RunDir(tmp_path)))["remarks"] == []


def test_a_plan_foretells_the_time_of_all_workers_that_find_a_shard(tmp_path):
    """Three shards, of 4,480, 4,480 and 1,280 network evaluations."""
    rundir = RunDir(tmp_path)
    rundir.events.mkdir()
    keys = dict.fromkeys(("cell", "path", "worker", "device"), "") | {"committed": True, "own": True}
    event = {"event": "shard", "seconds": 10, "evaluations": 1000, "images": 0, "copied": 0, **keys}
    (rundir.events / "0001.jsonl").write_text(json.dumps(event) + "\n")

    def foretold(workers):
        config = configured(workers, **MANY | {"shard_evaluations": 5000})
        return describe_plan(Run(config, plan(config), rundir))

    keys = ("worker_seconds_remaining", "seconds_remaining", "workers_at_a_time")
    assert [foretold(8)[key] for key in keys] == [102.4, 44.8, 3]
    assert [foretold(2)[key] for key in keys] == [102.4, 51.2, 2]
    recorded(plan_text(foretold(8)), "on one worker")
    recorded(plan_text(foretold(1)), "on one worker")
    assert [part in plan_text(foretold(8)) for part in (" 1 min 42 s on ", " 45 s on 3")] == [True, True]
    assert " 1 min 42 s on " in plan_text(foretold(1))


@pytest.mark.parametrize(("rate", "minutes"), [(None, None), (70, None), (40, "4 min 16 s"), (10, "17 min 04 s")])
def test_a_plan_speaks_of_a_long_shard(rate, minutes):
    """10,240 evaluations: 146, 256 and 1,024 s."""
    said = longest_shard(plan(configured(**MANY)), rate)
    if minutes is None:
        assert said is None
    else:
        assert minutes in said
