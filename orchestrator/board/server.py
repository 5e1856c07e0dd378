"""Serves the board over HTTP: starlette and uvicorn, the extra `board`.

Only GET and HEAD. No text of a request becomes a path: runs are found by their keys, cells by their ids, among what the
index knows. On loopback, the Host header must name this machine (else a page elsewhere could read the board by DNS
rebinding); on another address, or with TAUGRID_BOARD_TOKEN set, a token is required.
"""

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from taugrid.errors import UserError
from taugrid.eval.pages.board import board_html
from taugrid.orchestrator.board.document import BoardDocument, BoardRow, as_json, document_of
from taugrid.orchestrator.board.index import Board, Index
from taugrid.orchestrator.dispatch.address import is_loopback

LOOK_SECONDS = 5.0
"""The minimum time between two looks at the files."""

LOOK_SHARE = 10.0
"""A look that took long is not repeated before this many times its duration: a bucket is paid by the request."""

PORTS = range(8000, 8020)
TOKEN_VARIABLE = "TAUGRID_BOARD_TOKEN"
LEAST_TOKEN = 16

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

    def __init__(self, index: Index, board: Board) -> None:
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
        run = next((run for run in self.current().runs if run.key == request.path_params["run"]), None)
        if run is None or not run.entry["report"]:
            raise UserError("there is no such report")
        html = run.found.storage.read(run.found.root / "report.html")
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


def application(index: Index, board: Board, host: str, token: str | None) -> Starlette:
    """The board as an ASGI application."""
    served = Served(index, board)
    routes = {
        "/": served.page,
        "/board.json": served.document,
        "/images/{run}/{cell}.png": served.image,
        "/pair.json": served.pair,
        "/runs/{run}/report.html": served.report,
    }
    guard = Middleware(BaseHTTPMiddleware, dispatch=Guard(is_loopback(host), token).answer)
    small = Middleware(GZipMiddleware, compresslevel=3)  # of 1,000 runs, 8 MB
    return Starlette(
        routes=[Route(path, method) for path, method in routes.items()],
        middleware=[guard, small],
        exception_handlers={UserError: _failed, OSError: _failed},
    )


def _failed(request: Request, error: Exception) -> Response:
    """One line of text; the page asks again after a 503."""
    is_known = isinstance(error, UserError)
    return PlainTextResponse(str(error) if is_known else "it can't be read now", 404 if is_known else 503)


class Guard(NamedTuple):
    """Lets only those requests through that may read the board."""

    on_loopback: bool
    token: str | None

    async def answer(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = self.refusal(request) or await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def refusal(self, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("the board can only be read", 405, {"Allow": "GET, HEAD"})
        if self.on_loopback and not _names_this_machine(request.headers.get("host", "")):
            return PlainTextResponse("the board answers to localhost only", 421)
        return None if self.token is None else self._unknown(request, self.token)

    def _unknown(self, request: Request, token: str) -> Response | None:
        cookie = f"taugrid-board-{request.url.port or 80}"
        kept = sha256(token.encode()).hexdigest()
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if _same(request.cookies.get(cookie, ""), kept) or (scheme.lower() == "bearer" and _same(bearer, token)):
            return None
        if not _same(request.query_params.get("token", ""), token):
            need = f"this board needs ?token=... : that of the address that it printed, or its {TOKEN_VARIABLE}"
            return PlainTextResponse(need, 401)
        others = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
        path = f"/{request.url.path.lstrip('/')}"  # never another host
        response = RedirectResponse(f"{path}?{urlencode(others)}" if others else path, 303)
        response.set_cookie(cookie, kept, httponly=True, samesite="strict")
        return response


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _names_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def token_of(host: str, given: str | None) -> tuple[str | None, bool]:
    """The token that requests need, and whether it is new; None on loopback, unless one is `given`.

    Raises:
        UserError: if the given one is too short to keep strangers out.
    """
    if given is not None and len(given) < LEAST_TOKEN:
        raise UserError(f"{TOKEN_VARIABLE} has {len(given)} characters; give at least {LEAST_TOKEN}, or unset it")
    if given is None and not is_loopback(host):
        return secrets.token_urlsafe(24), True
    return given, False


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens; without a port, on the first of `PORTS` that is free, or else on any.

    Raises:
        UserError: if the address can't be used, or the port is taken.
    """
    reason: OSError | None = None
    for number in (*PORTS, 0) if port is None else (port,):
        try:
            return socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            reason = error
    raise UserError(f"can't listen on {host} port {port}: {reason and reason.strerror}; give another --host or --port")


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    settings = uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False,
                              server_header=False, timeout_graceful_shutdown=1)  # fmt: skip
    try:
        uvicorn.Server(settings).run([listening])
    except KeyboardInterrupt:  # uvicorn has ended by itself, and passes the signal on
        return


def address_of(listening: socket.socket, host: str, token: str | None) -> str:
    """The URL to open, with a token that was made for it."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{listening.getsockname()[1]}/{'' if token is None else f'?token={token}'}"
