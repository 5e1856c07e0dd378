"""Object stores on loopback: moto's S3 server, and what stands in for Google and Azure (`stores.py`).

A server in this process counts requests, and fails some of them when a test asks for it.
"""

import http.client
import random
import re
import socket
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from obstore.exceptions import AlreadyExistsError, PreconditionError
from werkzeug.serving import make_server

from taugrid import retries
from taugrid.storage.requests import bucket_here, connected

SECRET = "secret-that-must-be-nowhere"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}

_CREDENTIAL = "testing/20260101/us-east-1/s3/aws4_request"
AUTHORIZATION = {"Authorization": f"AWS4-HMAC-SHA256 Credential={_CREDENTIAL}, SignedHeaders=host"}

EVERYWHERE = pytest.mark.parametrize("store", ["s3", "gs", "az"], indirect=True)
"""A test for each store."""

_ELSEWHERE = [pytest.param(name, marks=[pytest.mark.chaos, pytest.mark.slow]) for name in ("gs", "az")]
AT_LENGTH = pytest.mark.parametrize("store", ["s3", *_ELSEWHERE], indirect=True)
"""A test for each store, of which `make test` runs that for S3."""

_LISTS = re.compile(r"list-type=2|comp=list")

AZURE_EXPIRED = "AuthenticationFailed</Code><Message>Signature not valid in the specified time frame</Message><Code>x"
"""A code with a text, as Azure tells of a signature that has expired."""

_TIMES = frozenset({"Last-Modified", "last-modified", "Date", "date"})
_LISTED_TIME = re.compile(r"(?<=<LastModified>)[^<]+|(?<=<Last-Modified>)[^<]+")

Answer = Callable[[str, str], tuple[int, str] | None]
"""From a request's method and path to the status and the code that refuse it; None: it passes."""


class Server:
    """An object store. Ray's workers reach it too: a run directory carries the endpoint, and the environment the rest.

    Args:
        scheme: of its URLs.
        application: what answers (WSGI); None: moto.
        creation: from the name of a bucket to the path and the headers of the request that creates it.
    """

    def __init__(
        self,
        scheme: str = "s3",
        application: Any = None,
        creation: Callable[[str], tuple[str, dict[str, str]]] = lambda name: (f"/{name}", AUTHORIZATION),
    ) -> None:
        self.scheme, self.creation = scheme, creation
        self._app = application or moto()
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: Counter[str] = Counter()
        """How many requests of each method there were. A list is `LIST`."""
        self.failed = 0
        """How many of them were failed on purpose."""
        self.ahead = 0
        """Seconds by which its clock is ahead of this machine's."""
        self._may_answer = threading.Event()
        self._may_answer.set()
        self.faults: random.Random | None = None
        self.share = 0.0
        self.refusal: Answer = lambda method, path: None
        threading.Thread(target=self._server.serve_forever, daemon=True, name="store").start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """An answer's status and body, without taugrid and obstore."""
        connection = http.client.HTTPConnection("127.0.0.1", self._server.server_port, timeout=30)
        try:
            connection.request(method, path, body, headers or AUTHORIZATION)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        path, headers = self.creation(name)
        assert self.ask("PUT", path, headers=headers)[0] in (200, 201)
        return name

    def url(self) -> str:
        """A place in a new bucket."""
        return f"{self.scheme}://{self.bucket()}/some/run"

    def require_conditions(self) -> None:
        """A test on a server that ignores conditions would prove nothing."""
        store = connected(bucket_here(self.scheme, self.bucket()))
        store.put("x", b"first", mode="create")
        with pytest.raises(AlreadyExistsError):
            store.put("x", b"second", mode="create")
        with pytest.raises(PreconditionError):
            store.put("x", b"third", mode={"e_tag": '"another"', "version": "7"})
        with pytest.raises(PreconditionError):
            store.get("x", options={"if_match": '"another"'})
        assert bytes(store.get("x").bytes()) == b"first"

    @contextmanager
    def failing(self, share: float, seed: int) -> Iterator[None]:
        """That share of the requests fails: 503, 409 for those with a condition, resets before and after the work."""
        self.faults, self.share = random.Random(seed), share
        try:
            yield
        finally:
            self.faults = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Requests are accepted and not answered; the connections of those that still wait at the end are reset."""
        self._may_answer.clear()
        try:
            yield
        finally:
            self._may_answer.set()

    @contextmanager
    def refusing(self, refusal: Answer) -> Iterator[None]:
        """Some requests are refused as `refusal` says."""
        self.refusal = refusal
        try:
            yield
        finally:
            self.refusal = lambda method, path: None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        is_list = method == "GET" and _LISTS.search(environ.get("QUERY_STRING", "")) is not None
        with self._lock:
            self.requests["LIST" if is_list else method] += 1
            fails = self.faults is not None and self.faults.random() < self.share
            how = self.faults.choice(("503", "409", "reset", "lost")) if fails and self.faults else ""
            self.failed += fails
        if not self._may_answer.is_set():
            self._may_answer.wait()
            return _reset(environ)
        refused = self.refusal(method, path)
        if how == "409":
            conditional = method == "PUT" and ("HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ)
            how = how if conditional else "503"
        if refused is None and how in ("503", "409"):
            refused = (503, "SlowDown") if how == "503" else (409, "ConditionalRequestConflict")
        if refused is not None:
            _drain(environ)
            status, code = refused
            body = b"" if method == "HEAD" else f"<Error><Code>{code}</Code><Message>-</Message></Error>".encode()
            start_response(f"{status} refused", [("Content-Length", str(len(body))), ("Content-Type", "text/xml")])
            return [body]
        if how == "reset":
            return _reset(environ)

        def respond(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            shifted = [(name, self._shifted(value) if name in _TIMES else value) for name, value in headers]
            return start_response(status, shifted, *rest)

        answer: Iterable[bytes] = self._app(environ, respond)
        if self.ahead and is_list:
            text = b"".join(answer).decode()
            answer = [_LISTED_TIME.sub(lambda found: self._shifted(found[0]), text).encode()]
        return _reset(environ) if how == "lost" else answer

    def _shifted(self, text: str) -> str:
        """A time as its clock tells it, in the same format and length."""
        later = timedelta(seconds=self.ahead)
        if text.endswith("GMT"):
            return format_datetime(parsedate_to_datetime(text) + later, usegmt=True)
        return (datetime.fromisoformat(text) + later).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def moto() -> Any:
    """Moto as a WSGI application."""
    return DomainDispatcherApplication(create_backend_app)


class _Quiet(MotoRequestHandler):
    def log(self, *arguments: Any) -> None:
        pass

    def connection_dropped(self, error: BaseException, environ: dict[str, Any] | None = None) -> None:
        self.close_connection = True


def _drain(environ: dict[str, Any]) -> None:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _reset(environ: dict[str, Any]) -> Iterable[bytes]:
    """Have the connection closed without an answer, by a reset."""
    environ["werkzeug.socket"].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionResetError


def quick_retries(patch: Any) -> None:
    """Let what is tried again be tried at once."""
    patch.setattr(retries, "STORE_PAUSES", (0.001,) * 6)
    patch.setattr(retries, "PATIENCE_SECONDS", 0.0)
