"""Ray's private parts: in one file alone, and each is still there."""

import re
from pathlib import Path

import psutil
import pytest
from architecture import files
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from taugrid.errors import UserError
from taugrid.workers import ray_compat

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"ray\._|ray\.core\.generated|ray\.train\.v2|[^.\w]_private\b")


def test_only_ray_compat_names_private_parts_of_ray():
    naming = [file for file in files(ROOT) if PRIVATE.search((ROOT / file).read_text())]
    assert naming == ["workers/ray_compat.py"]


def test_the_recorded_address_is_what_ray_start_wrote(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_compat.recorded_address() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    assert ray_compat.recorded_address() == "127.0.0.1:9"


def test_a_head_that_is_not_there_does_not_answer():
    with pytest.raises(UserError, match="UNAVAILABLE"):
        ray_compat.nodes_of("127.0.0.1:9", None)


def test_the_memory_is_no_more_than_the_machines():
    assert 2**30 < ray_compat.memory_here() <= psutil.virtual_memory().total


def test_the_trainer_makes_no_process_group_of_its_own():
    assert ray_compat.trainer_without_process_group().__name__ == "DataParallelTrainer"


def test_only_a_start_that_timed_out_found_no_room():
    timed_out, died = WorkerGroupStartupTimeoutError(2), WorkerGroupStartupFailedError("At least one failed.")
    assert [ray_compat.is_placement_timeout(failure) for failure in (timed_out, died, None)] == [True, False, False]
    assert [ray_compat.failed_to_start(failure) for failure in (timed_out, died, None)] == [False, True, False]
    assert ControllerError(timed_out).controller_failure is timed_out, "where fit.py finds it"
