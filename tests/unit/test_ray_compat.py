"""Ray's private parts: in one file alone, and each is still there."""

import re
from pathlib import Path

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from taugrid.errors import UserError
from taugrid.workers import ray_compat

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"ray\._|ray\.core\.generated|ray\.train\.v2|[^.\w]_private\b")


def test_only_ray_compat_names_private_parts_of_ray():
    files = [file for room in ("taugrid", "eval", "workers", "orchestrator") for file in (ROOT / room).rglob("*.py")]
    naming = [str(file.relative_to(ROOT)) for file in files if PRIVATE.search(file.read_text())]
    assert naming == ["workers/ray_compat.py"]


def test_a_head_that_is_not_there_does_not_answer():
    with pytest.raises(UserError, match="UNAVAILABLE"):
        ray_compat.nodes_of("127.0.0.1:9", None)


def test_only_a_start_that_timed_out_found_no_room():
    timed_out, died = WorkerGroupStartupTimeoutError(2), WorkerGroupStartupFailedError("At least one failed.")
    assert [ray_compat.is_placement_timeout(failure) for failure in (timed_out, died, None)] == [True, False, False]
    assert [ray_compat.failed_to_start(failure) for failure in (timed_out, died, None)] == [False, True, False]
    assert ControllerError(timed_out).controller_failure is timed_out, "where fit.py finds it"
