"""The board as others reach it: over HTTP, as a folder of static files, and from a bucket."""

import errno
import gzip
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import nights
import pages
import pytest
import uvicorn
from buckets import quick_retries
from snapshots import recorded
from test_board import RUN, change, look

from taugrid import api
from taugrid.errors import UserError
from taugrid.orchestrator.board import server
from taugrid.orchestrator.board.find import Place
from taugrid.orchestrator.board.index import Index
from taugrid.storage import ANY, open_place
from tools import browser


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def runs(tmp_path):
    shutil.copytree(RUN, tmp_path / "runs" / "a")
    return tmp_path / "runs"


class Client:
    def __init__(self, port, token):
        self.port, self.token = port, token

    def get(self, path, method="GET", **headers):
        """Status, headers and body; the path goes out as it is, after the token."""
        return self.get_outside(f"/{self.token}{path}", method, **headers)

    def get_outside(self, path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def document(self):
        return json.loads(self.get("/board.json")[2])


@contextmanager
def served(*places):
    index = Index([Place.of(str(place)) for place in places])
    listening = server.listen(0)
    address = server.address_of(listening, server.new_token())
    app = server.application(index, index.look(), token := address.split("/")[-2])
    here = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=here.run, args=([listening],))
    thread.start()
    try:
        yield Client(listening.getsockname()[1], token)
    finally:
        here.should_exit = True
        thread.join()


def test_what_the_page_asks_for_is_served(runs):
    (runs / "a" / "report.html").write_text("<script>theirs()</script>")
    with served(runs) as client:
        status, headers, page = client.get("/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        for part in (b'id="board-data"', b"default-src &#39;none&#39;", b"script-src &#39;sha256-"):
            assert part in page
        status, headers, body = client.get("/board.json")
        document = json.loads(body)
        assert headers["etag"] == f'"{document["etag"]}"'
        assert headers["x-content-type-options"] == "nosniff"
        for tag in (headers["etag"], document["etag"]):
            assert client.get("/board.json", If_None_Match=tag)[0] == 304
        [run] = document["runs"]
        columns = ["run", *(column["name"] for column in document["columns"])]
        cell = document["rows"][0][columns.index("cell")]
        status, headers, picture = client.get(f"/images/{run['key']}/{cell}.png")
        assert (status, headers["content-type"], picture[:4]) == (200, "image/png", b"\x89PNG")
        status, headers, _ = client.get(f"/{run['report']}")
        assert status == 303
        assert client.token not in headers["location"], "scripts of a report can read its address"
        status, headers, report = client.get_outside(own := headers["location"])
        assert (status, report) == (200, b"<script>theirs()</script>")
        assert headers["content-security-policy"].startswith("sandbox allow-scripts"), "an origin of its own"
        assert client.get("/board.json", "HEAD")[::2] == (200, b"")
        assert gzip.decompress(client.get("/board.json", Accept_Encoding="gzip")[2]) == body
        a = b = f"{run['key']}/{cell}"
        assert client.get(f"/pair.json?a={a}&b={b}")[::2] == (200, b"{}"), "a run without influences has no pairs"
        (runs / "a" / "report.html").unlink()
        assert client.get_outside(own)[0] == 503
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert client.get("/board.json", method)[0] == 405


def test_no_text_of_a_request_becomes_a_path(runs, tmp_path):
    (tmp_path / "secret.png").write_text("secret")
    (tmp_path / "secret").write_text("secret")
    change(runs / "a" / "tables" / "quality.json", rows=[{"cell": "../../../secret", "fid": 1.0}])
    with served(runs) as client:
        [run] = client.document()["runs"]
        assert client.document()["images"]["rows"] == [False]
        for path in (
            f"/images/{run['key']}/../../../secret.png", f"/images/{run['key']}/..%2f..%2f..%2fsecret.png",
            f"/images/{run['key']}/%2e%2e/secret.png", "/../secret", "//etc/passwd", "/runs/../../secret/report.html",
            f"/runs/{run['key']}/..%2f..%2fsecret", "/pair.json",
            f"/pair.json?a={run['key']}/x&b={run['key']}/..%2f..%2f..%2fsecret",
        ):  # fmt: skip
            status, _, body = client.get(path)
            assert (status, body == b"secret", b"Traceback" in body) == (404, False, False), path


def test_a_name_that_is_not_this_machines_gets_no_answer(runs):
    with served(runs) as client:
        for name in ("localhost", "localhost:9000", "127.0.0.1"):
            assert client.get("/board.json", Host=name)[0] == 200
        for name in ("evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "", "[", "127.0.0.1@x"):
            status, _, body = client.get("/board.json", Host=name)
            assert (status, b"runs" in body) == (400, False), name


def test_without_the_token_nobody_reads_anything(runs):
    (runs / "a" / "report.html").write_text("theirs")
    with served(runs) as client, served(runs) as other:
        assert client.token != other.token
        assert len(client.token) >= 32
        run, cell = client.document()["runs"][0]["key"], client.document()["rows"][0][1]
        for name in ("", "/board.json", f"/images/{run}/{cell}.png", f"/runs/{run}/report.html", "/pair.json"):
            wrong = (f"/{other.token}{name}", f"/{client.token[:-1]}{name}", f"//{client.token}{name}")
            for path in (name or "/", *wrong):
                status, headers, body = client.get_outside(path)
                assert (status, "location" in headers, b"theirs" in body) == (404, False, False), path
        own = other.get(f"/runs/{run}/report.html")[1]["location"]
        assert client.get_outside(own)[0] == 404, "that of a report is of one board, too"


def test_a_taken_port_is_refused_in_one_line_and_the_next_one_is_found(monkeypatch):
    with server.listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"{port}.*--port"):
            server.listen(port)
        monkeypatch.setattr(server, "PORTS", (port,))
        with server.listen(None) as other:
            assert other.getsockname()[1] != port


def test_files_are_looked_at_again_but_not_at_each_request(runs, monkeypatch):
    index, clock, looks, whole = Index([Place.of(str(runs))]), [1000.0], [], Index.look
    monkeypatch.setattr(Index, "look", lambda self: (looks.append(self), whole(self))[1])
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    here = server.Served(index, index.look(), server.new_token())
    first = here.current()
    assert (here.current() is first, len(looks)) == (True, 1)
    clock[0] += 2 * server.LOOK_SECONDS
    assert here.current() is first, "nothing has changed, so it is the same document"
    assert len(looks) == 2
    shutil.copytree(RUN, runs / "b")
    clock[0] += 2 * server.LOOK_SECONDS
    assert len(here.current().runs) == 2


def test_ctrl_c_ends_it(runs):
    command = [sys.executable, "-m", "taugrid", "board", runs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        port, token = re.fullmatch(r"1 run on http://127\.0\.0\.1:(\d+)/([\w-]+)/ \(Ctrl-C ends it\)\n", said).groups()
        assert Client(int(port), token).get("/")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_site_is_whole_replaces_its_own_and_nothing_else(runs, tmp_path, monkeypatch):
    (runs / "a" / "report.html").write_text("small")
    shutil.copytree(RUN, runs / "b")
    (runs / "b" / "report.html").write_bytes(b"x" * (5 * 2**20 + 1))
    site = tmp_path / "site"
    said, _ = nights.taugrid("board", runs, "--to", site)
    recorded(said)
    page = (site / "index.html").read_text()
    document = json.loads(page.split('id="board-data">')[1].split("</script>")[0])
    first, second = document["runs"]
    assert (site / first["report"]).read_text() == "small"
    assert second["report"] is None, "it is large"
    assert document["images"]["rows"] == [True] * 10
    assert len(list(site.glob("images/*/*.png"))) == 10
    shutil.rmtree(runs / "b")
    shutil.rmtree(runs / "a" / "samples")
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("taugrid.orchestrator.board.site.board_html", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            nights.taugrid("board", runs, "--to", site)
    with monkeypatch.context() as patch:
        patch.setattr("taugrid.orchestrator.board.site.commit_folder", full)
        recorded(nights.taugrid("board", runs, "--to", site, code=2)[1])
    assert (site / "index.html").read_text() == page, "an error leaves the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    nights.taugrid("board", runs, "--to", site)
    assert list(site.glob("images/*")) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "the old one is gone"
    (tmp_path / "link").symlink_to(site)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    nights.taugrid("board", runs, "--to", tmp_path / "link")
    assert (tmp_path / "link").readlink() == site
    (site / "CNAME").write_text("mine")
    for folder, said in (
        (tmp_path / "mine", "is not empty, and not a board"), (RUN / "config.json", "Not a directory"),
        (site, "also has 'CNAME'"), (runs / "site", "where the board writes nothing"), ("/proc/x", "can't be written"),
    ):  # fmt: skip
        assert said in nights.taugrid("board", runs, "--to", folder, code=2)[1]
    recorded(nights.taugrid("board", runs, "--to", "s3://bucket/x", code=2)[1], "there")


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_a_site_opens_from_the_disk_with_its_images(runs, tmp_path):
    nights.taugrid("board", runs, "--to", tmp_path / "site")
    with browser.page(tmp_path / "browser") as tab:
        tab.open(tmp_path / "site" / "index.html")
        assert not tab.named("Runtime.exceptionThrown")
        assert "5 cells" in tab.run("document.body.textContent")
        picture = next((tmp_path / "site" / "images").glob("*/*.png"))
        tab.run(f"window.i = new Image(); i.src = 'images/{picture.parent.name}/{picture.name}'; 0")
        tab.until("i.complete")
        assert tab.run("i.naturalWidth") == 16 * 8


def test_a_bucket_is_read_level_by_level_and_one_without_rights_is_a_note(runs, s3, monkeypatch):
    quick_retries(monkeypatch)
    name, closed = s3.bucket(), s3.bucket()
    root, storage = open_place(f"s3://{name}/runs", "DIR")
    for path in sorted(runs.rglob("*")):
        if path.is_file():
            storage.commit(root / path.relative_to(runs), path, ANY)
    for number in range(50):
        s3.ask("PUT", f"/{name}/runs/a/samples/S0004-eta0-06a87da89f/part-{number + 10:06d}.parquet", b"x")
    refused = lambda method, path: (403, "AccessDenied") if closed in path else None  # noqa: E731
    with s3.refusing(refused):
        before = s3.requests.copy()
        board = look(f"s3://{name}", f"s3://{closed}/x")
        cold = s3.requests - before
        [run] = board.runs
        assert (run.found.title, run.found.directory) == ("runs/a", f"s3://{name}/runs/a")
        local = look(runs).runs[0].entry
        assert run.entry | {"versions": None} == local | {"versions": None}
        [note] = board.notes
        assert note.startswith(f"s3://{closed}/x: the object store refused this (403")
        before = s3.requests.copy()
        assert look(f"s3://{name}", f"s3://{closed}/x").runs[0].entry == run.entry
        warm = s3.requests - before
        assert set(warm) == {"LIST"}, "nothing is read that has not changed"
        assert warm.total() < cold.total()
        with pytest.raises(UserError, match="refused this"):
            api.board(f"s3://{closed}/x")
    with served(f"s3://{name}") as client:
        row = next(iter(client.document()["rows"]))
        key = client.document()["runs"][0]["key"]
        assert client.get(f"/images/{key}/{row[1]}.png")[0] == 200


def test_the_page_of_the_docs_shows_what_works(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs, "history")
    lines = [line for block in pages.blocks() if block.page == "docs/board.md" for line in pages.commands(block)]
    assert sum("--" in line for line in lines) == 2
    for line in lines:
        if "--" in line:
            nights.taugrid(*line.split()[1:])
    [python] = [block.text for block in pages.blocks() if block.page == "docs/board.md" and block.language == "python"]
    names = {}
    exec(compile(python, "docs/board.md", "exec"), names)
    assert sorted(names["best"]["run"]) == ["history/a", "runs/a"]
