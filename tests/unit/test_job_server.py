"""How a job server is asked, and what is told of its answers. test_cluster.py asks a real one."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from snapshots import raises

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
    """Tells its version, answers all else with the same text, both to the token alone, and keeps what it was asked."""

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
        if server.token is not None and sent != f"Bearer {server.token}":
            code, text = 401, "no token"
        elif self.path == "/api/version":
            code, text = 200, json.dumps({"ray_version": "2.60.0"})
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


def test_no_proxy_is_asked_or_told_the_token():
    """In a process of its own: Ray reads the token once in each."""
    token = "5" * 64
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with serving(403, "the proxy says no") as proxy, serving(200, '{"logs": "printed"}', token) as server:
        environment |= dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), proxy.url)
        code = f"from taugrid.orchestrator.jobs.client import Jobs; print(Jobs({server.url!r}).log('mine-1'))"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "printed\n"), done.stderr
        assert proxy.asked == []
        assert server.asked[-1] == ("/api/jobs/mine-1/logs", f"Bearer {token}")


def test_a_refusal_is_told_by_the_line_that_says_why():
    with serving(500, REFUSAL) as server:
        jobs = Jobs(server.url)
        with raises(RunFailed):
            jobs.log("mine-1")
