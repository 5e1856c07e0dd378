"""The jobs of a remote Ray cluster, through the job server on its head (Ray's dashboard, port 8265).

Requests have time limits and errors are one line, unlike those of Ray's own client. With a job go the config, the
user's own modules and, with `--ship`, taugrid itself; nothing else of this machine is sent: no other folder, no
environment variable, no token. Ray copies them to every node as the job's working directory, from which Python imports
first.
"""

import http.client
import json
import logging
import os
import shlex
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import taugrid
from taugrid.config import Config
from taugrid.errors import Exit, RunFailed, UserError
from taugrid.hashing import SourceFile
from taugrid.orchestrator.dispatch.cluster import (
    COMMON_ENVIRONMENT,
    CONNECT_SECONDS,
    is_loopback,
    require_token,
    require_token_accepted,
)
from taugrid.orchestrator.plan.trust import custom_code
from taugrid.workers.custom.describe import ask
from taugrid.workers.custom.source import pack
from taugrid.workers.ray_compat import Header
from taugrid.yaml_text import to_yaml

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

ANSWER_SECONDS = 60.0  # time limit for an answer of the job server once it is connected

POLL_SECONDS = 2.0  # time between two looks at the job

PAUSE = 5.0  # a pause is at least so many times as long as the look before it, for which Ray sent the whole log

LOST_SECONDS = 60.0
"""Time without an answer after which the head counts as gone. The job may still run then."""

ENTRY = "on_the_head.py"  # the job's entry point, a file beside this one

NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc")


class Jobs:
    """The jobs of one cluster. Every method raises `UserError` or `RunFailed` with one line."""

    def __init__(self, address: str) -> None:
        """Connect to the job server at `address`, http://HOST:PORT. Raises `UserError` if the address is not valid,
        nothing answers there, or the cluster is open or refuses this machine's token."""
        self.address = address.rstrip("/")
        os.environ.update(COMMON_ENVIRONMENT)
        _check_form(self.address)
        is_local = is_loopback(urlsplit(self.address).hostname or "")
        if not is_local:
            require_token(self.address)
        require_token_accepted(self.address, is_local, partial(_accepts, self.address))
        from ray.dashboard.modules.job.sdk import JobSubmissionClient

        class Client(JobSubmissionClient):  # type: ignore[misc]
            def _do_request(self, *arguments: Any, **options: Any) -> Any:
                options |= {"timeout": (CONNECT_SECONDS, ANSWER_SECONDS), "proxies": {"no_proxy": "*"}}
                return super()._do_request(*arguments, **options)

        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)  # they would log each package that they send
        # Ray's client prefers these variables to its argument, and inside a job RAY_ADDRESS names another cluster.
        with self._one_line_errors(), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            self.client = Client(self.address)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turn errors of Ray's client into one line."""
        import requests
        from ray.exceptions import RayError

        try:
            yield
        except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
            raise RunFailed(f"the job server at {self.address} does not answer ({_last_line(error)})") from error
        except (RuntimeError, RayError, ValueError) as error:
            raise RunFailed(f"the job server at {self.address} refused: {_last_line(error)}") from error

    def submit(self, config: Config, out: str, ships: bool, break_lock: bool, only: Sequence[str] = ()) -> str:
        """Start a run of `config`, or of the cells that `only` selects, in the run directory `out` as a job. Returns
        its id, which is <run>-<attempt>."""
        with tempfile.TemporaryDirectory(prefix="taugrid-") as name:
            folder = Path(name)
            pack_job(config, folder, ships)
            while True:
                job = self._next_id(config.name)
                try:
                    with self._one_line_errors():
                        submitted: str = self.client.submit_job(
                            entrypoint=shlex.join(entrypoint(config, out, break_lock, only)),
                            submission_id=job,
                            runtime_env={"working_dir": name},
                            metadata={"taugrid": taugrid.__version__, "run": config.name, "out": out},
                        )
                    return submitted
                except RunFailed as error:
                    if "already exists" not in str(error):  # another user was faster
                        raise

    def _next_id(self, run: str) -> str:
        """One more than the last attempt's, by any user: an id can't be used twice."""
        with self._one_line_errors():
            attempts = [(details.submission_id or "").rpartition("-") for details in self.client.list_jobs()]
        numbers = [int(number) for name, _, number in attempts if name == run and number.isdecimal()]
        return f"{run}-{max(numbers, default=0) + 1}"

    def state(self, job: str) -> "JobDetails":
        """The status of a job, its times, and how it ended."""
        with self._one_line_errors():
            details: JobDetails = self.client.get_job_info(job)
            return details

    def log(self, job: str) -> str:
        """What a job has printed."""
        with self._one_line_errors():
            text: str = self.client.get_job_logs(job)
            return text


def follow(jobs: Jobs, job: str, write: Callable[[str], Any]) -> "JobDetails":
    """Print a job's log until the job has ended; return its final state. It polls: Ray's tail of a log can end while
    the job runs (ray#57002), or hang when the head is gone. Raises `RunFailed` if the head is gone."""
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


def described(state: "JobDetails") -> dict[str, Any]:
    """The status, the exit code and the times of a job, for JSON."""
    times = {"started": state.start_time, "ended": state.end_time}
    return {
        "status": state.status.value,
        "exit_code": int(Exit.INTERRUPTED) if state.status == "STOPPED" else state.driver_exit_code,
        **{name: at and datetime.fromtimestamp(at / 1000).astimezone().isoformat() for name, at in times.items()},
    }


def exit_code(state: "JobDetails") -> Exit:
    """The exit code of a job's run; 130 for a stopped job. Raises `RunFailed` if there is none: the run could not be
    started, or was killed."""
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


def pack_job(config: Config, folder: Path, ships: bool) -> None:
    """Fill the empty `folder` with the files that a job of `config` needs; `ships` adds this taugrid. Raises
    `UserError` if a module that the config names can't be found, or the modules are too large."""
    values = config.recorded
    (folder / f"{config.name}.yaml").write_text(to_yaml(values), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(ENTRY), folder / ENTRY)
    files: dict[str, SourceFile] = {}
    for code in custom_code(config):
        module = code.name.partition(":")[0]
        source = ask("taugrid.workers.custom.source:find_source", {"module": module}, code.name, "be found")
        if source["sha256"] is None:
            raise UserError(
                f"{code.key}: there is no module {module!r}, neither in the current folder {Path.cwd()} nor on "
                "Python's path"
            )
        files |= {file[0]: SourceFile(*file) for file in source["files"]}
    pack(files.values(), folder)
    if ships:  # as a wheel would lay it out
        shutil.copytree(Path(taugrid.__file__).parent, folder / "taugrid", ignore=NOT_CODE)


def entrypoint(config: Config, out: str, break_lock: bool, only: Sequence[str] = ()) -> list[str]:
    """The command line that runs the job on the cluster, in the folder."""
    lock = ["--break-lock"] if break_lock else []
    part = [word for selector in only for word in ("--only", selector)]
    run = ["run", f"{config.name}.yaml", "--address", "auto", "--out", out, *part, *lock]
    return ["python3", ENTRY, taugrid.__version__, *run]


def _check_form(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        shown = address.rpartition("@")[2]  # without user and password
        raise UserError(f"--address must be http://HOST:8265, where the head's dashboard listens, not {shown!r}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token must not follow a redirection to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""


def _accepts(address: str, header: Header | None) -> bool:
    """Whether a job server accepts this token's header, or none; `UserError` if it neither accepts nor refuses. The
    request bypasses the environment's proxy, which would see the token and could answer in the server's place."""
    request = urllib.request.Request(f"{address}/api/version", headers=dict([header] if header else ()))
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=CONNECT_SECONDS) as answer:
            is_ray = "ray_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False
        raise UserError(f"--address {address}: no Ray job server answers there (HTTP {error.code})") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"--address {address}: nothing answers there ({getattr(reason, 'strerror', None) or reason}); give the "
            "address of the head's dashboard, port 8265 by default"
        ) from None
    except (ValueError, http.client.HTTPException):  # no JSON, or not even HTTP
        is_ray = False
    if not is_ray:
        raise UserError(f"--address {address}: that is not a Ray job server")
    return True


@contextmanager
def _without(*names: str) -> Iterator[None]:
    values = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)


def _last_line(error: BaseException) -> str:
    """The last line with text: the job server answers with nested tracebacks that end with lines of full stops."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line.strip(".")), type(error).__name__)
