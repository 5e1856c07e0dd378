"""Requests to an object store: which are tried again, and the messages of those that fail.

obstore's own retries are off: they hide whether an answer was lost, after which a name that exists may be the one that
this process has just made, and treat S3's 409 ("two writers at a time, try again") as 412 ("exists").
"""

import errno
import io
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from taugrid import retries
from taugrid.errors import StoreError
from taugrid.words import duration

T = TypeVar("T")

REQUEST_SECONDS = 300  # how long a request may take, with its body
SMALL_SECONDS = 30  # how long one with little to carry may take: after a broken connection it is tried on another
LAST_SECONDS = 3  # how long such a one may take once the run has ended
SMALL_BYTES = 2**20
CONNECT_SECONDS = 10

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, with AWS_SESSION_TOKEN if they are temporary",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""The schemes of URLs, and the environment variables that hold the credentials for each."""

OVERLOADED = frozenset({408, 425, 429, 500, 502, 503, 504})
ALREADY_EXISTS = "BlobAlreadyExists"  # Azure's code for a name that exists; S3's 409 means that two write at a time

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_ANSWER = re.compile(r"kind: (Connect|Timeout|Interrupted|Request|Decode)|body error|error sending request")
_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|Missing(SecretAccessKey|AccessKeyId)")
"""The address from which a machine in a cloud gets credentials, and no other has; one of S3's variables without the
other."""


class Bucket(NamedTuple):
    """A bucket, and how it is reached. Nothing in it is secret."""

    scheme: str
    name: str
    endpoint: str | None
    region: str | None
    account: str | None

    @property
    def options(self) -> dict[str, Any]:
        """What obstore must be given to reach it."""
        address = "base_url" if self.scheme == "gs" else "endpoint"
        named = {address: self.endpoint, "region": self.region, "account_name": self.account}
        return {name: value for name, value in named.items() if value}

    @property
    def client_options(self) -> dict[str, Any]:
        """What obstore's HTTP client must be given."""
        return {"allow_http": (self.endpoint or "").startswith("http://")}


def bucket_here(scheme: str, name: str) -> Bucket:
    """A bucket as this process's environment reaches it. Workers get the same, but their credentials are their own."""

    def variable(*names: str) -> str | None:
        return next((value for name in names if (value := os.environ.get(name))), None)

    if scheme == "s3":
        endpoint = variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        return Bucket(scheme, name, endpoint, variable("AWS_REGION", "AWS_DEFAULT_REGION"), None)
    if scheme == "gs":
        return Bucket(scheme, name, variable("GOOGLE_BASE_URL"), None, None)
    account = variable("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME")
    return Bucket(scheme, name, variable("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"), None, account)


@lru_cache(maxsize=16)
def connected(bucket: Bucket, seconds: int = REQUEST_SECONDS) -> ObjectStore:
    """The store of a bucket, with the credentials of this process's environment. Sends no request yet; one that takes
    longer than `seconds` will fail."""
    times = {"timeout": f"{seconds}s", "connect_timeout": f"{CONNECT_SECONDS}s"}
    store: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[bucket.scheme]
    opened: ObjectStore = store(
        bucket.name, **bucket.options, client_options=bucket.client_options | times, retry_config={"max_retries": 0}
    )
    return opened


def file_system(bucket: Bucket) -> Any:
    """The store of a bucket as an fsspec file system, for libraries that read one: a name begins with the bucket's."""
    from obstore.fsspec import FsspecStore

    create: Any = FsspecStore  # its overloads want the scheme as a literal
    return create(bucket.scheme, **bucket.options, client_options=bucket.client_options)


class Refusal(NamedTuple):
    """Why a request failed."""

    status: int | None  # the HTTP status; None if there was no answer
    code: str  # S3's or Azure's name of the error; empty if there is none
    is_transient: bool  # whether the same request may succeed in a moment

    @property
    def answer(self) -> str:
        """The status and the code; empty if there was no answer."""
        return " ".join(filter(None, [str(self.status or ""), self.code]))

    @property
    def shown(self) -> str:
        """A sentence about a store that may answer in a moment."""
        return f"the object store answered {self.answer}" if self.answer else "the object store did not answer"


def refusal_in(error: Exception) -> Refusal:
    """The status and code in the text of an error of obstore."""
    text = str(error)
    status_match, code_match = _STATUS.search(text), _CODE.search(text)
    status, code = int(status_match[1]) if status_match else None, code_match[1] if code_match else ""
    is_busy = status in OVERLOADED or (status == 409 and code != ALREADY_EXISTS)
    is_transient = is_busy or (status is None and _NO_ANSWER.search(text) is not None)
    return Refusal(status, code, is_transient)


def as_os_error(error: Exception, scheme: str, url: str, tried: str) -> OSError:
    """An error of obstore as an `OSError` that says what to do. Its own text is dropped: it may hold a signature."""
    refusal, variables = refusal_in(error), CREDENTIALS[scheme]
    if refusal.code in ("NoSuchBucket", "ContainerNotFound"):
        return StoreError(
            errno.ENODEV, "there is no such bucket; create it, or check its name, region and endpoint", url
        )
    if _NO_CREDENTIALS.search(str(error)):
        where = "on a cluster, on every node before `ray start`"
        return StoreError(errno.EACCES, f"no credentials for the object store: set {variables} ({where})", url)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    if refusal.is_transient:
        return StoreError(errno.EHOSTUNREACH, f"{refusal.shown}, {tried}; check the endpoint", url)
    if refusal.status == 412:
        return StoreError(errno.ESTALE, "it was changed while it was read", url)
    number = errno.EACCES if refusal.status in (400, 401, 403) else errno.EPROTO
    answer = refusal.answer or type(error).__name__
    what = f"{variables}, their rights (list, read, write, delete), and the bucket's region"
    return StoreError(number, f"the object store refused this ({answer}); check {what}", url)


def ask(call: Callable[[], T], scheme: str, url: str) -> T:
    """What `call` returns. Transient failures are tried again, so `call` must be safe to repeat. Raises
    FileNotFoundError if there is no such object, `StoreError` for any other error."""
    bucket = "/".join(url.split("/")[:3])
    began, failures, ended = time.monotonic(), 0, retries.over
    patience = retries.PATIENCE_SECONDS if retries.patient.get() else 0.0

    def may_pass(error: BaseException) -> bool:
        nonlocal failures
        if not isinstance(error, BaseError) or not (refusal := refusal_in(error)).is_transient:
            return False
        failures += 1
        if not ended.is_set():
            retries.attempt_failed(bucket, began, began + patience, refusal.shown)
        return True

    answered = False  # as after Ctrl-C
    try:
        found = retries.try_again(call, retries.STORE_PAUSES, may_pass, patience, ended)
        answered = True
    except (BaseError, FileNotFoundError) as error:
        answered = not refusal_in(error).is_transient
        tried = f"{failures} times in {duration(time.monotonic() - began)}"
        raise as_os_error(error, scheme, url, tried) from None
    finally:
        if failures:
            retries.request_ended(bucket, answered)
    return found


class RangeFile(io.RawIOBase):
    """An object of `size` bytes, read by ranges of one version: `fetch(start, stop)`. Its `end` was fetched, where
    Parquet keeps its footer: a small file needs no other request."""

    def __init__(self, end: bytes, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._end, self._start, self._size, self._fetch, self._at = end, size - len(end), size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        start = min(self._at, self._size)
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        self._at = stop
        if stop <= start:
            return b""
        if start >= self._start:
            return self._end[start - self._start : stop - self._start]
        fetched = self._fetch(start, min(stop, self._start))
        return fetched if stop <= self._start else fetched + self._end[: stop - self._start]
