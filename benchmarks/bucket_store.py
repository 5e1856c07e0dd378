"""An object store on loopback whose answers take as long as those of a store far away. It counts its requests.

    python -m benchmarks.bucket_store PORT

It speaks as much of S3 as obstore asks of it: conditional puts, ranged gets, heads, deletes, copies and lists. All is
in memory; equal contents are held once. It checks no signatures. Moto's server in front of which a proxy would wait
costs too much CPU for 64 workers, a driver and a store on two cores.

`POST /-/?seconds=0.05` sets the time from a request to its answer; `GET /-/` returns the counts, by method and the
first folder of a run, and begins them anew.
"""

import asyncio
import hashlib
import json
import re
import sys
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from email.utils import formatdate
from time import gmtime, strftime, time
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
"""Names in an answer to a list, as S3's."""


class Stored(NamedTuple):
    data: bytes
    etag: str
    written: float


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


class Store:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.counts: Counter[str] = Counter()
        self._objects: dict[str, Stored] = {}  # bucket/key
        self._names: list[str] = []  # sorted
        self._contents: dict[str, bytes] = {}  # ETag -> the one copy of it

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(target)
        name, query = unquote(parts.path).strip("/"), parse_qs(parts.query, keep_blank_values=True)
        if name == "-":
            return self._control(query)
        is_list = method == "GET" and "list-type" in query
        self._count("LIST" if is_list else method, query["prefix"][0] if is_list and "prefix" in query else name)
        if is_list:
            return self._list(name, query)
        if method == "POST":
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self._remove(f"{name}/{key}")
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return _xml(f"<DeleteResult>{deleted}</DeleteResult>")
        if method == "DELETE":
            self._remove(name)
            return Answer(204)
        return self._put(name, headers, body) if method == "PUT" else self._get(name, headers)

    def _control(self, query: dict[str, list[str]]) -> Answer:
        if "seconds" in query:
            self.seconds = float(query["seconds"][0])
        counts, self.counts = self.counts, Counter()
        return Answer(200, {}, json.dumps(counts).encode())

    def _count(self, method: str, name: str) -> None:
        folders = ("samples", "features", "scores", "events", "ledger", "lease", "run.json")
        self.counts[f"{method} {next((folder for folder in folders if f'/{folder}' in f'/{name}'), 'other')}"] += 1

    def _remove(self, name: str) -> None:
        if self._objects.pop(name, None) is not None:
            del self._names[bisect_left(self._names, name)]

    def _put(self, name: str, headers: dict[str, str], body: bytes) -> Answer:
        there = self._objects.get(name)
        if headers.get("if-none-match") == "*" and there is not None:
            return _error(412, "PreconditionFailed")
        if (wanted := headers.get("if-match")) is not None and (there is None or there.etag != wanted):
            return _error(412, "PreconditionFailed")
        source = headers.get("x-amz-copy-source")
        data = body if source is None else self._objects[unquote(source).strip("/")].data
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if there is None and "/" in name:
            insort(self._names, name)
        self._objects[name] = stored = Stored(self._contents.setdefault(etag, data), etag, time())
        if source is not None:
            when = strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(stored.written))
            return _xml(f"<CopyObjectResult><ETag>{etag}</ETag><LastModified>{when}</LastModified></CopyObjectResult>")
        return Answer(200, {"ETag": etag})

    def _get(self, name: str, headers: dict[str, str]) -> Answer:
        stored = self._objects.get(name)
        if stored is None:
            return _error(404, "NoSuchKey")
        if headers.get("if-match", stored.etag) != stored.etag:
            return _error(412, "PreconditionFailed")
        size, status = len(stored.data), 200
        said = {"ETag": stored.etag, "Last-Modified": formatdate(stored.written, usegmt=True)}
        start, stop = 0, size
        if (match := re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))) is not None:
            if not size:
                return _error(416, "InvalidRange")
            first, last = match.groups()
            start = int(first) if first else max(0, size - int(last))
            stop = min(size, int(last) + 1) if first and last else size
            status, said["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
        return Answer(status, said, stored.data[start:stop])

    def _list(self, bucket: str, query: dict[str, list[str]]) -> Answer:
        prefix, delimiter = (query.get(key, [""])[0] for key in ("prefix", "delimiter"))
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        first, begin = len(bucket) + 1, f"{bucket}/{prefix}"
        at = bisect_left(self._names, max(begin, f"{bucket}/{after}\0") if after else begin)
        found: list[str] = []
        last, truncated = "", ""
        while at < len(self._names) and self._names[at].startswith(begin):
            name = self._names[at]
            if len(found) == PAGE:
                truncated = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
                break
            end = name.find(delimiter, len(begin)) if delimiter else -1
            if end < 0:
                last, at = name[first:], at + 1
                found.append(_entry(last, self._objects[name]))
            else:
                folder = name[: end + 1]
                last, at = f"{folder[first:]}\U0010ffff", bisect_left(self._names, f"{folder}\U0010ffff", at)
                found.append(f"<CommonPrefixes><Prefix>{escape(folder[first:])}</Prefix></CommonPrefixes>")
        said = f"<Name>{bucket}</Name><KeyCount>{len(found)}</KeyCount><IsTruncated>{str(bool(truncated)).lower()}"
        return _xml(f"<ListBucketResult>{said}</IsTruncated>{truncated}{''.join(found)}</ListBucketResult>")


def _entry(key: str, stored: Stored) -> str:
    when = strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(stored.written))
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>{escape(stored.etag)}</ETag>"
        f"<Size>{len(stored.data)}</Size></Contents>"
    )


def _xml(text: str) -> Answer:
    return Answer(200, {"Content-Type": "application/xml"}, f'<?xml version="1.0"?>{text}'.encode())


def _error(status: int, code: str) -> Answer:
    return Answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())


async def _serve(store: Store, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The requests of one connection, each answered `store.seconds` after it came."""
    loop = asyncio.get_running_loop()
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            began = loop.time()
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            answer = store.answer(method, target, headers, body)
            await asyncio.sleep(began + store.seconds - loop.time())
            said = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
            said += f"Content-Length: {len(answer.body)}\r\n\r\n"
            writer.write(f"HTTP/1.1 {answer.status} -\r\n{said}".encode("latin-1"))
            if method != "HEAD":
                writer.write(answer.body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    store = Store()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve(store, reader, writer)

    async with await asyncio.start_server(serve, "127.0.0.1", port, limit=2**20, backlog=1024) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
