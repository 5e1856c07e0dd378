"""Moto's S3 server on loopback, in this process: it counts requests, and fails some of them when a test asks for it."""

import http.client
import random
import socket
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from taugrid import retries

SECRET = "secret-that-must-be-nowhere"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}

Answer = Callable[[str, str], tuple[int, str] | None]
"""From a request's method and path to the status and the code that refuse it; None: it passes."""


class Server:
    """An S3 server. Ray's workers reach it too: a run directory carries the endpoint, and the environment the rest."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: Counter[str] = Counter()
        """How many requests of each method there were. A list is `LIST`."""
        self.failed = 0
        """How many of them were failed on purpose."""
        self.faults: random.Random | None = None
        self.share = 0.0
        self.refusal: Answer = lambda method, path: None
        threading.Thread(target=self._server.serve_forever, daemon=True, name="s3").start()
        self.require_conditions()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """An answer's status and body, without taugrid and obstore."""
        connection = http.client.HTTPConnection("127.0.0.1", self._server.server_port, timeout=30)
        try:
            authorization = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host"
            connection.request(method, path, body, {"Authorization": authorization, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        assert self.ask("PUT", f"/{name}")[0] == 200
        return name

    def require_conditions(self) -> None:
        """A test on a server that ignores conditions would prove nothing."""
        name = self.bucket()
        assert self.ask("PUT", f"/{name}/x", b"first", {"If-None-Match": "*"})[0] == 200
        assert self.ask("PUT", f"/{name}/x", b"second", {"If-None-Match": "*"})[0] == 412
        assert self.ask("PUT", f"/{name}/x", b"third", {"If-Match": '"another"'})[0] == 412
        assert self.ask("GET", f"/{name}/x", headers={"If-Match": '"another"'})[0] == 412
        assert self.ask("GET", f"/{name}/x") == (200, b"first")

    @contextmanager
    def failing(self, share: float, seed: int) -> Iterator[None]:
        """That share of the requests fails: 503, 409 for those with a condition, resets before and after the work."""
        self.faults, self.share = random.Random(seed), share
        try:
            yield
        finally:
            self.faults = None

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
        is_list = method == "GET" and "list-type" in environ.get("QUERY_STRING", "")
        with self._lock:
            self.requests["LIST" if is_list else method] += 1
            fails = self.faults is not None and self.faults.random() < self.share
            how = self.faults.choice(("503", "409", "reset", "lost")) if fails and self.faults else ""
            self.failed += fails
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
        answer: Iterable[bytes] = self._app(environ, start_response)
        return _reset(environ) if how == "lost" else answer


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
