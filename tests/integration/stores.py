"""What stands in for Google's and Azure's stores: Google's protocol on moto's server; Azurite, a process of Node's."""

import atexit
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable
from email.utils import formatdate
from functools import cache
from hashlib import sha256
from hmac import digest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from buckets import AUTHORIZATION, SECRET, Server, moto

from tools.machine import free_port

AZURITE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "taugrid-azurite"
"""Where `make azurite` installs it. Read before tests move the user's cache."""

SCRIPT = AZURITE / "node_modules/azurite/dist/src/blob/main.js"
ACCOUNT, KEY = "tester", b64encode(SECRET.encode()).decode()


def why_not_azure() -> str:
    """Why no test can use Azurite here, and what installs it; empty if one can."""
    if shutil.which("node") is None:
        return "no Node, so no Azurite: apt-get install nodejs npm && make azurite"
    return "" if SCRIPT.exists() else "Azurite is not installed: make azurite"


# Google


class Google:
    """Google's XML API on top of an S3 server: its credentials, generations, conditions and 404 are made here.

    Objects, lists, ranges and ETags are those of the S3 server, whose XML Google's equals as far as obstore reads it.
    """

    def __init__(self) -> None:
        self._s3, self._lock = moto(), threading.Lock()
        self._last, self._generations = 0, dict[str, int]()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if not environ.pop("HTTP_AUTHORIZATION", "").startswith("Bearer "):
            return _refuse(start_response, "401 Unauthorized", "AuthenticationRequired")
        # Google's client escapes more than S3's, and moto looks at what was sent.
        environ["RAW_URI"] = environ["REQUEST_URI"] = f"{quote(path)}?{environ.get('QUERY_STRING', '')}"
        environ["HTTP_AUTHORIZATION"] = AUTHORIZATION["Authorization"]
        if (source := environ.pop("HTTP_X_GOOG_COPY_SOURCE", None)) is not None:
            environ["HTTP_X_AMZ_COPY_SOURCE"] = source
        with self._lock:
            now = self._generations.get(path, 0)
            if int(environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", now)) != now:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return _refuse(start_response, "412 Precondition Failed", "PreconditionFailed")
            if method == "DELETE" and not self._generations.pop(path, 0):
                return _refuse(start_response, "404 Not Found", "NoSuchKey")

            def respond(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                if method == "PUT" and status.startswith("200"):
                    self._last += 1
                    self._generations[path] = self._last
                generation = str(self._generations.get(path, 0))
                return start_response(status, [*headers, ("x-goog-generation", generation)], *rest)

            return list(self._s3(environ, respond))


def _refuse(start_response: Any, status: str, code: str) -> Iterable[bytes]:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    start_response(status, [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
    return [body]


@cache
def google_credentials() -> Path:
    """The file of a service account with a key of its own, which signs its tokens itself: no server is asked."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
    folder = Path(tempfile.mkdtemp(prefix="taugrid-google-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    account = {"type": "service_account", "private_key": pem, "private_key_id": SECRET, "client_email": "me@test"}
    (folder / "account.json").write_text(json.dumps(account))
    return folder / "account.json"


def google() -> tuple[Server, dict[str, str]]:
    """A server of gs://, and the environment that reaches it."""
    server = Server("gs", Google(), lambda name: (f"/{name}", {"Authorization": "Bearer me"}))
    return server, {"GOOGLE_BASE_URL": server.endpoint, "GOOGLE_APPLICATION_CREDENTIALS": str(google_credentials())}


# Azure


class Forward:
    """A WSGI application that passes requests on to a server on loopback, with the same path and headers."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        names = [name for name in environ if name.startswith("HTTP_")]
        headers = {name[5:].replace("_", "-"): environ[name] for name in names}
        headers |= {name.replace("_", "-"): environ[name] for name in ("CONTENT_TYPE",) if environ.get(name)}
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers |= {"Content-Length": str(len(body)), "Connection": "close"}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(environ["REQUEST_METHOD"], environ["REQUEST_URI"], body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_A_CONNECTION]
        if not any(name.lower() == "content-length" for name, _ in kept):
            kept.append(("Content-Length", str(len(data))))
        start_response(f"{answer.status} {answer.reason}", kept)
        return [data]


_OF_A_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding"})


def azure() -> tuple[Server, dict[str, str]]:
    """A server of az:// in front of an Azurite, which ends with this process, and the environment that reaches it."""
    port = free_port()
    options = ("--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent")
    environment = {"PATH": os.environ["PATH"], "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    process = subprocess.Popen(
        ["node", str(SCRIPT), *options, "--skipApiVersionCheck", "--disableTelemetry"],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    atexit.register(process.kill)
    end = time.monotonic() + 60
    while True:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, f"Azurite ended with {process.returncode}"
        assert time.monotonic() < end, "Azurite does not listen after 60 s"
        time.sleep(0.05)
    server = Server("az", Forward(port), creation)
    return server, {
        "AZURE_STORAGE_ENDPOINT": f"{server.endpoint}/{ACCOUNT}",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
    }


def creation(name: str) -> tuple[str, dict[str, str]]:
    """The path and the headers, signed, of the request that creates a container."""
    path = f"/{ACCOUNT}/{name}"
    ours = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = [f"{name}:{value}" for name, value in ours.items()]
    text = "\n".join(["PUT", *[""] * 11, *named, f"/{ACCOUNT}{path}", "restype:container"])
    signature = b64encode(digest(b64decode(KEY), text.encode(), sha256)).decode()
    return f"{path}?restype=container", ours | {"Authorization": f"SharedKey {ACCOUNT}:{signature}"}
