"""A Hugging Face hub on loopback, for huggingface_hub to talk to: repositories are folders with one commit each."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?/?"
)
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub(BaseHTTPRequestHandler):
    """Knows `main` and the commit of each repository; everything else is not found."""

    protocol_version = "HTTP/1.1"

    def __init__(self, repositories: Mapping[str, Path], requests: list[str], *arguments) -> None:
        self.repositories, self.requests = repositories, requests
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if match := API.fullmatch(path):
            self._describe(f"{match['kind']}/{match['name']}", match["what"], match["revision"])
        elif match := FILE.fullmatch(path):
            self._file(f"{match['kind'] or 'models/'}{match['name']}", match["revision"], match["path"])
        else:
            self._missing("EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass

    def _describe(self, key: str, what: str | None, revision: str | None) -> None:
        if not self._knows(key, revision):
            return
        files = _files(self.repositories[key])
        tree = [{"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for p, b in files]
        siblings = [{"rfilename": path} for path, _ in files]
        about = {"id": key.split("/", 1)[1], "sha": commit(self.repositories[key]), "siblings": siblings}
        self._answer(json.dumps(tree if what == "tree" else about).encode(), {"Content-Type": "application/json"})

    def _file(self, key: str, revision: str, path: str) -> None:
        if not self._knows(key, revision):
            return
        content = dict(_files(self.repositories[key])).get(path)
        if content is None:
            self._missing("EntryNotFound")
        else:
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(content, {"ETag": etag, "X-Repo-Commit": commit(self.repositories[key])})

    def _knows(self, key: str, revision: str | None) -> bool:
        if key not in self.repositories:
            self._missing("RepoNotFound")
        elif revision not in (None, "main", commit(self.repositories[key])):
            self._missing("RevisionNotFound")
        else:
            return True
        return False

    def _missing(self, code: str) -> None:
        self._answer(b"", {"X-Error-Code": code, "X-Error-Message": code}, status=404)

    def _answer(self, content: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        # A connection that is kept would be answered when the hub is gone.
        for name, value in {"Connection": "close", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _files(folder: Path) -> list[tuple[str, bytes]]:
    return [(p.relative_to(folder).as_posix(), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


def commit(folder: Path) -> str:
    """40 hex digits that name what is in a repository's folder."""
    return hashlib.sha1(repr(_files(folder)).encode()).hexdigest()


@contextmanager
def serving(repositories: Mapping[str, Path], cache: Path, monkeypatch) -> Iterator[list[str]]:
    """Has huggingface_hub, in this process, know this hub alone and begin with an empty cache.

    `repositories`: models/ORG/NAME or datasets/ORG/NAME -> its folder. Yields the requests, as they come.
    """
    requests: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repositories, requests)) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        yield requests
        server.shutdown()
