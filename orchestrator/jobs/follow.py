"""Follows a job: prints its log, and returns its status when it has ended.

Ray's tail of a log can end while the job runs (ray#57002), or hang when the head is gone. So only the job's status
shows that it has ended; a tail that breaks off is restarted, and the rest of the log is read at the end.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from taugrid.errors import Exit, RunFailed
from taugrid.orchestrator.jobs.client import Jobs, Submission

POLL_SECONDS = 1.0
"""Time between two polls of the job's status."""

LOST_SECONDS = 60.0
"""Time without an answer after which the head counts as gone. The job may still run then."""


class Tail:
    """Prints a job's log, each character once, however often it is read from the start."""

    def __init__(self, jobs: Jobs, job: str, write: Callable[[str], Any]) -> None:
        self._jobs = jobs
        self._job = job
        self._write = write
        self._printed = 0

    async def until_it_breaks_off(self) -> None:
        """Print the log from its start until Ray's tail ends, for whatever reason."""
        import aiohttp

        position, texts = 0, self._jobs.client.tail_job_logs(self._job)
        while True:
            try:
                text = await anext(texts)
            except (StopAsyncIteration, aiohttp.ClientError, RuntimeError, OSError):
                return
            self._print(position, text)
            position += len(text)

    def finish(self) -> None:
        self._print(0, self._jobs.log(self._job))

    def _print(self, start: int, text: str) -> None:
        """Print the part of `text` that is new; its first character is number `start` of the log."""
        new = text[max(0, self._printed - start) :]
        if new:
            self._write(new)
            self._printed = start + len(text)


def follow(jobs: Jobs, job: str, write: Callable[[str], Any]) -> Submission:
    """Print a job's log until the job has ended; return its final state.

    Raises:
        UserError: if there is no such job.
        RunFailed: if the head is gone.
    """
    tail = Tail(jobs, job, write)
    ended = asyncio.run(_follow(jobs, job, tail))
    tail.finish()
    return ended


async def _follow(jobs: Jobs, job: str, tail: Tail) -> Submission:
    answered = time.monotonic()
    reading: asyncio.Task[None] | None = None
    try:
        while True:
            try:
                submission = await _in_thread(jobs.one, job)
                answered = time.monotonic()
                if submission.has_ended:
                    return submission
            except RunFailed as error:
                if time.monotonic() - answered > LOST_SECONDS:
                    raise RunFailed(f"{error}; the job may still run: `{again(jobs, job)}` follows it") from error
            if reading is None:
                reading = asyncio.create_task(tail.until_it_breaks_off())
            await asyncio.sleep(POLL_SECONDS)
            if reading.done():
                reading.result()  # raises what printing raised
                reading = None
    finally:
        if reading is not None:
            reading.cancel()


def _in_thread(request: Callable[[str], Submission], job: str) -> asyncio.Future[Submission]:
    """As `asyncio.to_thread`, but does not wait for the thread at exit: a head that hangs must not hold up Ctrl-C."""
    answer: Future[Submission] = Future()
    answer.set_running_or_notify_cancel()  # it can no longer be cancelled, only abandoned

    def run() -> None:
        try:
            answer.set_result(request(job))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(answer)


def again(jobs: Jobs, job: str) -> str:
    return f"taugrid logs {job} --follow --address {jobs.address}"


def exit_code(job: Submission) -> Exit:
    """The exit code of a job's run; 130 for a stopped job.

    Raises:
        RunFailed: if there is none: the run could not be started, or was killed.
    """
    if job.status == "STOPPED":
        return Exit.INTERRUPTED
    if job.status == "SUCCEEDED":
        return Exit.DONE
    if job.exit_code in set(Exit):
        return Exit(job.exit_code)
    if job.exit_code is not None:
        number = -job.exit_code if job.exit_code < 0 else job.exit_code - 128
        end = f"was killed by signal {number}" if number > 0 else f"ended with the exit code {job.exit_code}"
        raise RunFailed(f"the driver of job {job.id} {end}; submit it again to continue")
    lines = [line.strip() for line in job.message.splitlines() if line.strip()]
    raise RunFailed(f"job {job.id} could not be run: {lines[0] if lines else 'Ray does not say why'}")


def until_ended(jobs: Jobs, job: str) -> Submission:
    """Wait for the end of a job that was asked to stop, and return its final state. Ray kills it after some seconds."""
    while not (submission := jobs.one(job)).has_ended:
        time.sleep(POLL_SECONDS)
    return submission
