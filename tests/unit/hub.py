"""A Hugging Face hub on loopback, for huggingface_hub to talk to: repositories are folders with one commit each."""

import hashlib
import json
import re
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import huggingface_hub.file_download

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?/?"
)
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub(BaseHTTPRequestHandler):
    """Knows `main` and the commit of each repository; everything else is not found."""

    protocol_version = "HTTP/1.1"

    def __init__(self, repositories, requests, *arguments):
        self.repositories, self.requests = repositories, requests
        super().__init__(*arguments)

    def do_GET(self):
        self.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        asked = API.fullmatch(path) or FILE.fullmatch(path)
        key = asked and f"{(asked['kind'] or 'models').strip('/')}/{asked['name']}"
        if key is not None and key not in self.repositories:
            return self.answer_missing("RepoNotFound")
        if key is None or asked["revision"] not in (None, "main", commit(self.repositories[key])):
            return self.answer_missing("EntryNotFound" if key is None else "RevisionNotFound")
        files, sha = files_of(self.repositories[key]), commit(self.repositories[key])
        if asked.re is FILE:
            if (content := dict(files).get(asked["path"])) is None:
                return self.answer_missing("EntryNotFound")
            return self.answer(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha})
        tree = [{"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for p, b in files]
        about = {"id": asked["name"], "sha": sha, "siblings": [{"rfilename": path} for path, _ in files]}
        said = json.dumps(tree if asked["what"] == "tree" else about)
        return self.answer(said.encode(), {"Content-Type": "application/json"})

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass

    def answer_missing(self, code):
        self.answer(b"", {"X-Error-Code": code, "X-Error-Message": code}, status=404)

    def answer(self, content, headers, status=200):
        self.send_response(status)
        # A connection that is kept would be answered when the hub is gone.
        for name, value in {"Connection": "close", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def files_of(folder):
    return [(p.relative_to(folder).as_posix(), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


def commit(folder):
    """40 hex digits that name what is in a repository's folder."""
    return hashlib.sha1(repr(files_of(folder)).encode()).hexdigest()


@contextmanager
def serving(repositories, cache, monkeypatch):
    """Has huggingface_hub, in this process, know this hub alone and begin with an empty cache.

    `repositories`: models/ORG/NAME or datasets/ORG/NAME -> its folder. Yields the requests, as they come.
    """
    requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repositories, requests)) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (("ENDPOINT", url), ("HUGGINGFACE_CO_URL_TEMPLATE", template), ("HF_HUB_CACHE", str(cache))):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        # Of 0.34, that module has the template by its own name.
        monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield requests
        server.shutdown()
