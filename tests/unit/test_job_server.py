"""How a job server is asked, and what is told of its answers. test_jobs.py asks a real one."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from taugrid.errors import RunFailed
from taugrid.orchestrator.jobs.client import Jobs

REFUSAL = """Traceback (most recent call last):
  File "job_head.py", line 419, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
RuntimeError: Request failed with status code 400: Traceback (most recent call last):
  File "job_manager.py", line 553, in submit_job
    raise ValueError(
ValueError: Job with submission_id mine-1 already exists. Please use a different submission_id.
.
"""
"""What Ray's head makes of what its agent says; Ray's client puts another full stop behind it."""


class Server(ThreadingHTTPServer):
    """Tells its version to whoever has the token, answers all else with the same text, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, code, text, token=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.code, self.text, self.token, self.asked = code, text, token, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, sent = self.server, self.headers.get("authorization")
        server.asked.append((self.path, sent))
        code, text = server.code, server.text
        if self.path == "/api/version" and server.token is not None:
            welcome = sent == f"Bearer {server.token}"
            code, text = (200, json.dumps({"ray_version": "2.60.0"})) if welcome else (401, "no token")
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Nothing."""


@contextmanager
def serving(*arguments):
    with Server(*arguments) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return "5" * 64


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_is_asked_or_told_the_token(variable, token, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(403, "the proxy says no") as proxy, serving(200, "[]", token) as server:
        monkeypatch.setenv(variable, proxy.url)
        assert Jobs(server.url).all() == []
        assert proxy.asked == []
        assert ("/api/version", f"Bearer {token}") in server.asked
        assert server.asked[-1][0] == "/api/jobs/"


def test_a_refusal_is_told_by_the_line_that_says_why(token):
    with serving(500, REFUSAL, token) as server:
        jobs = Jobs(server.url)
        with pytest.raises(RunFailed, match=r"refused: ValueError: Job with submission_id mine-1 already exists\."):
            jobs.all()
