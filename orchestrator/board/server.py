"""Serves the board over HTTP, to this machine alone: starlette and uvicorn, the extra `board`.

Only GET and HEAD. All paths begin with a random token, since every user of this machine can reach the port; others get
404. No text of a request becomes a path of the disk: runs are found by their keys, cells by their ids, among what the
index knows.
"""

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from taugrid.errors import UserError
from taugrid.eval.pages.environment import board_html
from taugrid.orchestrator.board.document import BoardDocument, BoardRow, as_json, document_of
from taugrid.orchestrator.board.index import Board, Index

LOOK_SECONDS = 5.0  # the minimum time between two looks at the files

LOOK_SHARE = 10.0
"""A look that took long is not repeated before this many times its duration: a bucket is paid by the request."""

HOST = "127.0.0.1"
PORTS = range(8000, 8020)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGE_POLICY = "frame-ancestors 'none'"
"""The page has the rest in itself: its own scripts alone, and nothing from elsewhere."""

REPORT_POLICY = (
    "sandbox allow-scripts allow-popups allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)
"""A report is a page of somebody else's directory: it runs in an origin of its own, and reaches nothing."""


class Served:
    """What is served now. Requests come from several threads."""

    def __init__(self, index: Index, board: Board, token: str) -> None:
        self._token = token
        self._index, self._looking, self._next = index, threading.Lock(), time.monotonic() + LOOK_SECONDS
        self._newest = document_of(board, index.places)

    def current(self) -> BoardDocument:
        """The newest document. While another thread is looking at the files, the one before."""
        began = time.monotonic()
        if began >= self._next and self._looking.acquire(blocking=False):
            try:
                found = document_of(self._index.look(), self._index.places)
                self._newest = self._newest if found.etag == self._newest.etag else found
            finally:
                ended = time.monotonic()
                self._next = ended + max(LOOK_SECONDS, LOOK_SHARE * (ended - began))
                self._looking.release()
        return self._newest

    def page(self, request: Request) -> Response:
        html = board_html(self.current().value, live=True)
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})

    def document(self, request: Request) -> Response:
        found = self.current()
        headers = {"ETag": f'"{found.etag}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match", "").removeprefix("W/").strip('"') == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(as_json(found.value), media_type="application/json", headers=headers)

    def image(self, request: Request) -> Response:
        from taugrid.orchestrator.board.cells import strip  # the first picture loads what decodes

        picture = strip(self._cell(request.path_params["run"], request.path_params["cell"]))
        return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=300"})

    def pair(self, request: Request) -> Response:
        from taugrid.orchestrator.board.cells import paired

        given = [request.query_params.get(name, "").partition("/") for name in ("a", "b")]
        cells = [self._cell(run, cell) for run, _, cell in given]
        try:
            differences = paired(*cells)
        except UserError:
            differences = {}  # they have none, and the page says "unpaired"
        return Response(as_json(differences), media_type="application/json")

    def _cell(self, run: str, cell: str) -> BoardRow:
        """`UserError` if the newest document has no such cell."""
        if (row := self.current().by_cell.get((run, cell))) is None:
            raise UserError("there is no such cell; load the board again")
        return row

    def report(self, request: Request) -> Response:
        """Leads to a path of its own: scripts of a report can read their address, which must not hold the token."""
        return RedirectResponse(f"/{self._secret(request.path_params['run'])}/report.html", 303)

    def own_report(self, request: Request) -> Response:
        secret = request.path_params["secret"]
        run = next((run for run in self.current().runs if _same(self._secret(run.key), secret)), None)
        if run is None or not run.entry["report"]:
            raise UserError("there is no such report")
        html = run.found.storage.read(run.found.root / "report.html")
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    def _secret(self, run: str) -> str:
        return hmac.digest(self._token.encode(), run.encode(), "sha256").hex()


def application(index: Index, board: Board, token: str) -> Starlette:
    """The board as an ASGI application."""
    served = Served(index, board, token)
    routes = {
        f"/{token}/": served.page,
        f"/{token}/board.json": served.document,
        f"/{token}/images/{{run}}/{{cell}}.png": served.image,
        f"/{token}/pair.json": served.pair,
        f"/{token}/runs/{{run}}/report.html": served.report,
        "/{secret}/report.html": served.own_report,
    }
    of_this_machine = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # against DNS rebinding
    small = Middleware(GZipMiddleware, compresslevel=3)  # of 1,000 runs, 8 MB
    return Starlette(
        routes=[Route(path, method) for path, method in routes.items()],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=_answer), of_this_machine, small],
        exception_handlers={UserError: _failed, OSError: _failed},
    )


def _failed(request: Request, error: Exception) -> Response:
    """One line of text; the page asks again after a 503."""
    is_known = isinstance(error, UserError)
    return PlainTextResponse(str(error) if is_known else "it can't be read now", 404 if is_known else 503)


async def _answer(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    if request.method in ("GET", "HEAD"):
        response = await call_next(request)
    else:
        response = PlainTextResponse("the board can only be read", 405, {"Allow": "GET, HEAD"})
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def new_token() -> str:
    return secrets.token_urlsafe(24)


def listen(port: int | None) -> socket.socket:
    """A socket that listens on loopback; without a port, on the first of `PORTS` that is free, or else on any. Raises
    `UserError` if the port is taken."""
    reason: OSError | None = None
    for number in (*PORTS, 0) if port is None else (port,):
        try:
            return socket.create_server((HOST, number))
        except OSError as error:
            reason = error
    raise UserError(f"can't listen on {HOST} port {port}: {reason and reason.strerror}; give another --port")


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    settings = uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False,
                              server_header=False, timeout_graceful_shutdown=1)  # fmt: skip
    try:
        uvicorn.Server(settings).run([listening])
    except KeyboardInterrupt:  # uvicorn has ended by itself, and passes the signal on
        return


def address_of(listening: socket.socket, token: str) -> str:
    """The URL to open."""
    return f"http://{HOST}:{listening.getsockname()[1]}/{token}/"
