"""Object stores: S3, Google Cloud Storage, Azure, and compatible stores; and which place a URL or a path names.

A name is a `Path` of the parts of its URL, such as s3:/bucket/run/config.json. A file that must not be overwritten is
created by one conditional request (`If-None-Match: *`), one that is replaced only in the version that was read by one
with its ETag.
"""

import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore

from taugrid import retries
from taugrid.errors import StoreError, UserError
from taugrid.storage.files import append, is_same, together
from taugrid.storage.local import LocalStorage
from taugrid.storage.protocol import ANY, Level, Stat, Storage, check_inside
from taugrid.storage.requests import (
    CREDENTIALS,
    LAST_SECONDS,
    SMALL_BYTES,
    SMALL_SECONDS,
    Bucket,
    RangeFile,
    ask,
    bucket_here,
    connected,
    refusal_in,
)
from taugrid.words import with_urls

if TYPE_CHECKING:
    from obstore import ObjectMeta

T = TypeVar("T")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")

CHUNK_BYTES = 8 * 2**20
END_BYTES = 2**16  # how much of a file's end is fetched first: a Parquet file's footer, and often all of a small one
MAX_PUT_BYTES = 2**32  # S3 takes up to 5 GB in one request; larger files go in parts, which can't have a condition


@dataclass(frozen=True)
class ObjectStorage:
    """A bucket. Workers reach it as the driver does, with the credentials of their own environment."""

    bucket: Bucket
    root: Path | None = field(default=None, repr=False)
    """The root of a run directory, outside which nothing is read, written or removed. None: any path."""

    @property
    def on_disk(self) -> bool:
        return False

    def require(self, folder: Path, to_write: bool = False) -> None:
        before = retries.patient.set(False)
        try:
            if to_write:
                self._require_conditional_writes(folder)
            else:
                self._children(folder)
        except StoreError as error:
            if to_write:
                raise
            raise UserError(f"{url(folder)}: {error.strerror}") from None
        finally:
            retries.patient.reset(before)

    def _require_conditional_writes(self, folder: Path) -> None:
        path = folder / f".conditions-{uuid.uuid4().hex[:12]}.tmp"
        with self.temporary(path) as first, self.temporary(path) as second:
            first.write_bytes(b"first")
            second.write_bytes(b"second")
            self.commit(path, first)
            replaced = _only(self._head(path))
            self.commit(path, second, ANY)
            refused = {"If-Match": replaced, "If-None-Match": "create"}
            ignored = [name for name in refused if self._put(path, first, partial(refused.get, name))]
        self.delete(path)
        if ignored:
            raise UserError(
                f"{url(folder)}: this object store ignores {' and '.join(ignored)}, so two drivers or workers could "
                "overwrite each other's files; use a store that does not, or a folder"
            )

    def stat(self, path: Path) -> Stat:
        return _stat(self._head(path))

    def stats(self, folder: Path, pattern: str) -> Mapping[Path, Stat]:
        matches = self._matching(folder, pattern)
        return {path: _stat(meta) for path, meta in matches.items() if meta is not None}

    def walk(self, folder: Path) -> Mapping[Path, Stat]:
        return {path: _stat(meta) for path, meta in self._below(folder).items()}

    def exists(self, path: Path) -> bool:
        try:
            self._head(path)
        except FileNotFoundError:
            return bool(self._below(path))
        return True

    def list(self, folder: Path, pattern: str) -> Sequence[Path]:
        return sorted(self._matching(folder, pattern))

    def level(self, folder: Path) -> Level:
        children = sorted(self._children(folder).items())
        files = {path.name: _stat(meta) for path, meta in children if meta is not None}
        return Level(files, [path.name for path, meta in children if meta is None], [])

    def read(self, path: Path, start: int = 0, length: int | None = None) -> bytes:
        if start == 0 and length is None:
            return self._ask(path, lambda: bytes(self._quick.get(self._key(path)).bytes()))
        with self.readable(path) as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def commit(self, path: Path, finished: Path, if_version: str | None = None) -> bool:
        return self._put(path, finished, lambda: self._condition(path, if_version))

    def _put(self, path: Path, finished: Path, condition: Callable[[], Any]) -> bool:
        """`commit` under obstore's mode that `condition` returns before each attempt; None: it does not hold. 412, or
        Azure's BlobAlreadyExists, means that a different file has this name; any other 409 that one is being written.
        If an answer was lost and the stored file has the same bytes, the commit succeeded; but an empty file, which
        reserves a name, may just as well be another process's."""
        lost = False

        def attempt() -> bool:
            nonlocal lost
            try:
                mode = condition()
                if mode is not None:
                    size = finished.stat().st_size
                    in_parts = size > MAX_PUT_BYTES if mode == "overwrite" else None
                    store = self._quick if size <= SMALL_BYTES else self._store
                    store.put(self._key(path), finished, mode=mode, use_multipart=in_parts)
                    return True
            except BaseError as error:
                refusal = refusal_in(error)
                if refusal.is_transient or not isinstance(error, AlreadyExistsError | PreconditionError):
                    lost = lost or refusal.status != 409
                    raise
            return lost and finished.stat().st_size > 0 and is_same(path, finished, self)

        return self._ask(path, attempt)

    def _condition(self, path: Path, if_version: str | None) -> Any:
        """Obstore's mode of a put; None if the file has a different version or is gone. Google needs its generation."""
        if if_version is None:
            return "create"
        if if_version == ANY:
            return "overwrite"
        try:
            meta = self._quick.head(self._key(path))
        except FileNotFoundError:
            return None
        if _stat(meta).version != if_version:
            return None
        return _only(meta)

    def append(self, path: Path, data: bytes, synced: bool = False) -> None:
        append(self, path, data, self.rewrite_seconds)

    def move(self, path: Path, target: Path) -> None:
        for old in list(self._below(path)) or [path]:
            new = target / old.relative_to(path)
            self._ask(old, partial(self._store.copy, self._key(old), self._key(new)))
            self.delete(old)

    def delete(self, path: Path) -> None:
        self._delete([path])

    def delete_all(self, paths: Sequence[Path], root: Path) -> None:
        self._delete(paths)

    def delete_folder(self, folder: Path) -> None:
        with suppress(StoreError):
            self._delete(list(self._below(folder)))

    @contextmanager
    def temporary(self, path: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="taugrid-") as scratch:
            yield Path(scratch) / path.name

    @contextmanager
    def local_path(self, path: Path) -> Iterator[Path]:
        def download() -> None:
            with copy.open("wb") as file:
                for chunk in self._store.get(self._key(path)).stream(CHUNK_BYTES):
                    file.write(chunk)

        with self.temporary(path) as copy:
            self._ask(path, download)
            yield copy

    @contextmanager
    def readable(self, path: Path) -> Iterator[IO[bytes]]:
        with self.opened(path) as (file, _):
            yield file

    @contextmanager
    def opened(self, path: Path) -> Iterator[tuple[IO[bytes], Stat]]:
        """A file that changes while it is read is an error (ESTALE), not a mixture."""
        end, meta = self._ask(path, lambda: self._end(path))

        def fetch(start: int, stop: int) -> bytes:
            options: Any = {"range": (start, stop), "if_match": meta["e_tag"]}
            return self._ask(path, lambda: bytes(self._store.get(self._key(path), options=options).bytes()))

        yield cast(IO[bytes], RangeFile(end, meta["size"], fetch)), _stat(meta)

    @contextmanager
    def local_folder(self, folder: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="taugrid-") as scratch:
            try:
                yield Path(scratch)
            finally:
                files = [path for path in sorted(Path(scratch).rglob("*")) if path.is_file()]
                for _ in together(self, lambda path: self.commit(folder / path.relative_to(scratch), path, ANY), files):
                    pass

    @property
    def rewrite_seconds(self) -> float:
        """Minimum seconds between two writes to the same object: Google Cloud Storage allows one a second."""
        return 1.0 if self.bucket.scheme == "gs" else 0.0

    @property
    def _store(self) -> ObjectStore:
        return connected(self.bucket)

    @property
    def _quick(self) -> ObjectStore:
        """The same, for requests whose bodies are small, and for what `read` holds in memory."""
        return connected(self.bucket, LAST_SECONDS if retries.over.is_set() else SMALL_SECONDS)

    def _ask(self, path: Path, call: Callable[[], T]) -> T:
        return ask(call, self.bucket.scheme, url(path))

    def _head(self, path: Path) -> "ObjectMeta":
        return self._ask(path, lambda: self._quick.head(self._key(path)))

    def _end(self, path: Path) -> "tuple[bytes, ObjectMeta]":
        """The last bytes of an object, and what the store says of it."""
        options: Any = {"range": {"suffix": END_BYTES}}
        if self.bucket.scheme == "az":  # Azure has no suffix ranges
            size = self._quick.head(self._key(path))["size"]
            options = {"range": (max(0, size - END_BYTES), size)} if size else {}
        try:
            got = self._quick.get(self._key(path), options=options)
        except BaseError as error:
            # An empty object has no range: S3 answers 416, other stores return a response that obstore can't parse.
            refusal = refusal_in(error)
            if refusal.is_transient or refusal.status not in (None, 416) or self._quick.head(self._key(path))["size"]:
                raise
            got = self._store.get(self._key(path))
        return bytes(got.bytes()), got.meta

    def _delete(self, paths: Sequence[Path]) -> None:
        try:
            if paths:
                self._ask(paths[0], lambda: self._quick.delete([self._key(path) for path in paths]))
        except FileNotFoundError:  # Google and Azure refuse to delete what is gone, and Google has kept the rest then
            for path in paths if len(paths) > 1 else ():
                self._delete([path])

    def _key(self, path: Path) -> str:
        check_inside(path, self.root)
        return "/".join(path.parts[2:])

    def _path(self, name: str) -> Path:
        return Path(f"{self.bucket.scheme}:", self.bucket.name, name)

    def _below(self, folder: Path) -> Mapping[Path, "ObjectMeta"]:
        listed = self._ask(folder, lambda: list(chain.from_iterable(self._quick.list(self._key(folder) or None))))
        return {self._path(meta["path"]): meta for meta in listed}

    def _children(self, folder: Path) -> Mapping[Path, "ObjectMeta | None"]:
        """The files directly in a folder; None for the folders there."""
        listing = self._ask(folder, lambda: self._quick.list_with_delimiter(self._key(folder) or None))
        files: dict[Path, Any] = {self._path(meta["path"]): meta for meta in listing["objects"]}
        return files | {self._path(prefix): None for prefix in listing["common_prefixes"]}

    def _matching(self, folder: Path, pattern: str) -> Mapping[Path, "ObjectMeta | None"]:
        """The files and folders below `folder` that match a pattern, in as few requests as possible."""
        first, *rest = [part for part in pattern.split("/") if part != "."] or ["*"]
        if not _is_wild(first):
            if rest:
                return self._matching(folder / first, "/".join(rest))
            try:
                return {folder / first: self._head(folder / first)}
            except FileNotFoundError:
                return {}
        if rest and all(map(_is_wild, rest)):  # everything below is of interest: a thousand names a request
            depth, parts = len(folder.parts), (first, *rest)
            below = {path: meta for path, meta in self._below(folder).items() if len(path.parts) == depth + len(parts)}
            return {path: meta for path, meta in below.items() if all(map(fnmatchcase, path.parts[depth:], parts))}
        children = self._children(folder)
        matches = {path: meta for path, meta in children.items() if fnmatchcase(path.name, first)}
        if not rest:
            return matches
        inner: dict[Path, Any] = {}
        for place, meta in matches.items():
            if meta is None:
                inner |= self._matching(place, "/".join(rest))
        return inner


def url(path: Path) -> str:
    return with_urls(path.as_posix())


def _stat(meta: "ObjectMeta") -> Stat:
    modified = meta["last_modified"].timestamp()
    version = meta["e_tag"] or f"{meta['size']}-{modified}"
    if not version.endswith('"'):  # Azure's lists leave out the quotes of its other answers
        version = f'"{version}"'
    return Stat(meta["size"], version, modified)


def _only(meta: "ObjectMeta") -> Any:
    """Obstore's mode of a put that replaces this version only."""
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _is_wild(part: str) -> bool:
    return "*" in part or "[" in part


def is_url(text: str) -> bool:
    """Whether a text names a place by a scheme, such as s3://bucket/run, and not by a path."""
    return _SCHEME.match(text) is not None


def open_place(text: str, named: str) -> tuple[Path, Storage]:
    """The root of a run directory and its storage, by a path, or s3://BUCKET/PREFIX, gs://... or az://CONTAINER/PREFIX;
    raises `UserError` for any other URL. `named` is the option or argument, for messages. Sends no request yet."""
    if not is_url(text):
        root = Path(text).absolute()
        return root, LocalStorage(root)
    scheme, rest = text.split(":", 1)
    names = [name for name in rest.split("/") if name] or [""]
    if scheme not in CREDENTIALS or not names[0] or {".", ".."} & {*names} or set("@?#") & {*rest}:
        raise UserError(
            f"{named}: a URL of a run directory is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, "
            f"without . and .., a user, a password or a query; credentials belong in "
            f"{CREDENTIALS.get(scheme, 'the environment')}"
        )
    bucket = bucket_here(scheme, names[0])
    if bucket.endpoint is not None and not re.match(r"https?://[^/@]+(/[^@]*)?$", bucket.endpoint):
        raise UserError(
            f"the endpoint of {scheme}:// in the environment must be http://HOST:PORT or https://HOST, without a "
            f"password; credentials belong in {CREDENTIALS[scheme]}"
        )
    if scheme == "az" and bucket.account is None:
        raise UserError(f"{named}: az:// needs the storage account; set AZURE_STORAGE_ACCOUNT_NAME")
    root = Path(f"{scheme}:", *names)
    return root, ObjectStorage(bucket, root)
