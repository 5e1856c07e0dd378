"""Follows a job: polls its log and prints it, and returns the job's state when it has ended.

Ray's tail of a log can end while the job runs (ray#57002), or hang when the head is gone.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taugrid.errors import Exit, RunFailed
from taugrid.orchestrator.jobs.client import Jobs

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

POLL_SECONDS = 2.0
"""Time between two looks at the job."""

PAUSE = 5.0
"""A pause is at least so many times as long as the look before it, for which Ray sent the whole log."""

LOST_SECONDS = 60.0
"""Time without an answer after which the head counts as gone. The job may still run then."""


def follow(jobs: Jobs, job: str, write: Callable[[str], Any]) -> "JobDetails":
    """Print a job's log until the job has ended; return its final state.

    Raises:
        RunFailed: if the head is gone.
    """
    printed, answered = 0, time.monotonic()
    while True:
        began = time.monotonic()
        try:
            state = jobs.state(job)  # before the log: that of a job that has ended is complete
            log = jobs.log(job)
        except RunFailed as error:
            if time.monotonic() - answered > LOST_SECONDS:
                raise RunFailed(f"{error}; the job may still run: {ways(jobs, job)}") from error
        else:
            write(log[printed:])
            printed, answered = len(log), time.monotonic()
            if state.status.is_terminal():
                return state
        time.sleep(max(POLL_SECONDS, PAUSE * (time.monotonic() - began)))


def ways(jobs: Jobs, job: str) -> str:
    """Ray's commands for a job that is no longer followed."""
    shows, stops = (f"`ray job {words} {job} --address {jobs.address}`" for words in ("logs --follow", "stop"))
    return f"{shows} shows its log, {stops} stops it"


def exit_code(state: "JobDetails") -> Exit:
    """The exit code of a job's run; 130 for a stopped job.

    Raises:
        RunFailed: if there is none: the run could not be started, or was killed.
    """
    code = state.driver_exit_code
    if state.status == "STOPPED":
        return Exit.INTERRUPTED
    if state.status == "SUCCEEDED":
        return Exit.DONE
    if code in set(Exit):
        return Exit(code)
    if code is not None:
        number = -code if code < 0 else code - 128
        end = f"was killed by signal {number}" if number > 0 else f"ended with the exit code {code}"
        raise RunFailed(f"the driver of job {state.submission_id} {end}; submit it again to continue")
    lines = [line.strip() for line in (state.message or "").splitlines() if line.strip()]
    raise RunFailed(f"job {state.submission_id} could not be run: {lines[0] if lines else 'Ray does not say why'}")
