"""Object stores: S3, Google Cloud Storage, Azure, and whatever speaks one of their languages.

A name is a `Path` of the parts of its URL, such as s3:/bucket/run/config.json; it never touches the disk. What must not
be overwritten is created by one conditional request (`If-None-Match: *`), what is replaced only as it was seen by one
with its ETag. obstore is imported when a store is first asked, not with this module.
"""

import errno
import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from taugrid.errors import StoreError, UserError
from taugrid.storage import appended
from taugrid.storage.ranges import END_BYTES, FetchedEnd, RangeFile
from taugrid.storage.requests import Bucket, ask, connected, fault
from taugrid.words import with_urls

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")

CHUNK_BYTES = 8 * 2**20

LARGEST_PUT_BYTES = 2**32
"""S3 takes up to 5 GB in one request. What is larger goes up in parts, which only `replace` can do."""


@dataclass(frozen=True)
class ObjectStorage:
    """A bucket. Workers reach it as the driver does, with the credentials of their own environment."""

    bucket: Bucket

    @property
    def on_disk(self) -> bool:
        return False

    def require(self, folder: Path) -> None:
        """See `Storage`. Lists what is directly in the folder."""
        try:
            self._children(folder)
        except StoreError as error:
            raise UserError(f"{url(folder)}: {error.strerror}") from None

    def require_creation(self, folder: Path) -> None:
        """See `Storage`. Some servers that speak S3 ignore conditions, and overwrite."""
        path = folder / f".conditions-{uuid.uuid4().hex[:12]}.tmp"
        with self.temporary(path) as first, self.temporary(path) as second:
            first.write_bytes(b"first")
            second.write_bytes(b"second")
            self.create(path, first)
            overwritten = self.create(path, second)
        self.delete(path)
        if overwritten:
            raise UserError(
                f"{url(folder)}: this object store ignores If-None-Match, so two drivers or workers could "
                "overwrite each other's files; use a store that does, or a folder"
            )

    def read(self, path: Path) -> bytes:
        import obstore

        return self._ask(path, lambda: bytes(obstore.get(self._store, key(path)).bytes()))

    def read_range(self, path: Path, start: int, length: int) -> bytes:
        with self.readable(path) as file:
            assert not isinstance(file, Path)
            file.seek(start)
            return file.read(length)

    def size(self, path: Path) -> int:
        return self._head(path)["size"]

    def version(self, path: Path) -> str:
        """See `Storage`. The ETag."""
        return _version(self._head(path))

    def versions(self, folder: Path, pattern: str) -> Mapping[Path, str]:
        """See `Storage`. The list of a folder holds them."""
        return {path: _version(meta) for path, meta in self._matching(folder, pattern).items() if meta is not None}

    def modified(self, path: Path) -> float:
        return self._head(path)["last_modified"].timestamp()

    def exists(self, path: Path) -> bool:
        try:
            self._head(path)
        except FileNotFoundError:
            return any(True for _ in self._below(path))
        return True

    def list(self, folder: Path, pattern: str) -> Sequence[Path]:
        """See `Storage`. Also folders that match."""
        return sorted(self._matching(folder, pattern))

    def create(self, path: Path, finished: Path) -> bool:
        """See `Storage`. One conditional request: 412 says that a file is there, and so does Azure's BlobAlreadyExists.

        Any other 409 says that another is being written. If an answer was lost, and the file that is there then has our
        bytes, it is ours.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        lost = False

        def attempt() -> bool:
            nonlocal lost
            try:
                obstore.put(self._store, key(path), finished, mode="create")
            except BaseError as error:
                found = fault(error)
                if isinstance(error, AlreadyExistsError | PreconditionError) and not found.passes:
                    return lost and not self.other_bytes(path, finished)
                lost = lost or found.status != 409
                raise
            return True

        return self._ask(path, attempt)

    def replace(self, path: Path, finished: Path) -> None:
        import obstore

        in_parts = finished.stat().st_size > LARGEST_PUT_BYTES
        self._ask(path, lambda: obstore.put(self._store, key(path), finished, use_multipart=in_parts))

    def replace_if(self, path: Path, finished: Path, version: str) -> bool:
        """See `Storage`. Here no other writer can come in between."""
        import obstore
        from obstore.exceptions import BaseError, PreconditionError

        lost = False

        def attempt() -> bool:
            nonlocal lost
            try:
                meta = obstore.head(self._store, key(path))
                if _version(meta) == version:
                    obstore.put(self._store, key(path), finished, mode=_seen(meta))
                    return True
            except FileNotFoundError:
                return False
            except BaseError as error:
                found = fault(error)
                if found.passes or not isinstance(error, PreconditionError):
                    lost = lost or found.status != 409
                    raise
            return lost and not self.other_bytes(path, finished)

        return self._ask(path, attempt)

    def other_bytes(self, path: Path, finished: Path) -> bool:
        """See `Storage`. Reads both."""
        try:
            with self.local_path(path) as theirs:
                return _digest(theirs) != _digest(finished)
        except FileNotFoundError:
            return True

    def create_folder(self, folder: Path, finished: Path, last: str) -> None:
        """See `Storage`. The files of an upload that was cut short are replaced."""
        marker = folder / last
        if not self.exists(marker):
            for path in sorted(finished.rglob("*")):
                if path.is_file() and path != finished / last:
                    self.replace(folder / path.relative_to(finished), path)
        if not self.create(marker, finished / last) and self.other_bytes(marker, finished / last):
            raise StoreError(
                errno.EEXIST, "another driver has put other content there; remove that folder", url(marker)
            )

    def append(self, path: Path, data: bytes) -> None:
        """See `Storage`. Written at once, with what this process has appended before (`storage.appended`)."""
        appended.append(self, path, data)

    def move(self, path: Path, target: Path) -> None:
        """See `Storage`. A copy, then a deletion."""
        below = list(self._below(path))
        for old in below or [path]:
            self._copy(old, target / old.relative_to(path))
            self.delete(old)

    def delete(self, path: Path) -> None:
        self._delete([path])

    def delete_folder(self, folder: Path) -> None:
        with suppress(StoreError):
            self._delete(list(self._below(folder)))

    def delete_temporaries(self, folder: Path, pattern: str, before: float) -> None:
        """See `Storage`. A killed writer leaves nothing here but the probes beside config.json."""
        if pattern == ".":
            metas = self._matching(folder, ".*.tmp")
            old = [path for path, meta in metas.items() if meta and meta["last_modified"].timestamp() < before]
            self._delete(old)

    @contextmanager
    def temporary(self, path: Path) -> Iterator[Path]:
        """See `Storage`. In the temporary folder of this machine."""
        with tempfile.TemporaryDirectory(prefix="taugrid-") as scratch:
            yield Path(scratch) / path.name

    @contextmanager
    def local_path(self, path: Path) -> Iterator[Path]:
        """See `Storage`. A copy in the temporary folder of this machine."""
        with self.temporary(path) as copy:
            self._ask(path, lambda: self._download(path, copy))
            yield copy

    @contextmanager
    def readable(self, path: Path) -> Iterator[Path | IO[bytes]]:
        """See `Storage`. A file that changes while it is read is an error (ESTALE), not a mixture."""
        end = self._ask(path, lambda: self._end(path))

        def fetch(start: int, stop: int) -> bytes:
            import obstore

            options: Any = {"range": (start, stop), "if_match": end.e_tag}
            return self._ask(path, lambda: bytes(obstore.get(self._store, key(path), options=options).bytes()))

        yield cast(IO[bytes], RangeFile(end, fetch))

    @contextmanager
    def local_folder(self, folder: Path) -> Iterator[Path]:
        """See `Storage`. A temporary folder, whose files are uploaded at the end, even after an error."""
        with tempfile.TemporaryDirectory(prefix="taugrid-") as scratch:
            try:
                yield Path(scratch)
            finally:
                for path in sorted(Path(scratch).rglob("*")):
                    if path.is_file():
                        self.replace(folder / path.relative_to(scratch), path)

    @property
    def rewrite_seconds(self) -> float:
        """The least time between two writes to the same object: Google Cloud Storage allows one a second."""
        return 1.0 if self.bucket.scheme == "gs" else 0.0

    @property
    def _store(self) -> "ObjectStore":
        return connected(self.bucket)

    def _ask(self, path: Path, call: Callable[[], T]) -> T:
        return ask(call, self.bucket.scheme, url(path))

    def _head(self, path: Path) -> "ObjectMeta":
        import obstore

        return self._ask(path, lambda: obstore.head(self._store, key(path)))

    def _end(self, path: Path) -> FetchedEnd:
        import obstore
        from obstore.exceptions import BaseError

        options: Any = {"range": {"suffix": END_BYTES}}
        if self.bucket.scheme == "az":  # knows no ranges from the end
            size = obstore.head(self._store, key(path))["size"]
            options = {"range": (max(0, size - END_BYTES), size)} if size else {}
        try:
            got = obstore.get(self._store, key(path), options=options)
        except BaseError as error:
            # An empty object has no range: S3 answers 416, and others what obstore can't read.
            found = fault(error)
            if found.passes or found.status not in (None, 416) or obstore.head(self._store, key(path))["size"]:
                raise
            got = obstore.get(self._store, key(path))
        meta, data = got.meta, bytes(got.bytes())
        return FetchedEnd(data, meta["size"] - len(data), meta["size"], meta["e_tag"])

    def _download(self, path: Path, copy: Path) -> None:
        import obstore

        with copy.open("wb") as file:
            for chunk in obstore.get(self._store, key(path)).stream(CHUNK_BYTES):
                file.write(chunk)

    def _copy(self, path: Path, target: Path) -> None:
        import obstore

        self._ask(path, lambda: obstore.copy(self._store, key(path), key(target)))

    def _delete(self, paths: Sequence[Path]) -> None:
        import obstore

        if paths:
            with suppress(FileNotFoundError):
                self._ask(paths[0], lambda: obstore.delete(self._store, [key(path) for path in paths]))

    def _path(self, name: str) -> Path:
        return Path(f"{self.bucket.scheme}:", self.bucket.name, name)

    def _below(self, folder: Path) -> Mapping[Path, "ObjectMeta"]:
        """All files in a folder and in those below it."""
        import obstore

        found = self._ask(folder, lambda: obstore.list(self._store, key(folder) or None).collect())
        return {self._path(meta["path"]): meta for meta in found}

    def _children(self, folder: Path) -> Mapping[Path, "ObjectMeta | None"]:
        """The files directly in a folder; None for the folders there."""
        import obstore

        found = self._ask(folder, lambda: obstore.list_with_delimiter(self._store, key(folder) or None))
        files: dict[Path, Any] = {self._path(meta["path"]): meta for meta in found["objects"]}
        return files | {self._path(prefix): None for prefix in found["common_prefixes"]}

    def _matching(self, folder: Path, pattern: str) -> Mapping[Path, "ObjectMeta | None"]:
        """What matches a pattern below a folder, in as few requests as seems possible."""
        first, *rest = [part for part in pattern.split("/") if part != "."] or ["*"]
        if not _is_wild(first):
            if rest:
                return self._matching(folder / first, "/".join(rest))
            try:
                return {folder / first: self._head(folder / first)}
            except FileNotFoundError:
                return {}
        if not rest:
            children = self._children(folder)
            return {path: meta for path, meta in children.items() if fnmatchcase(path.name, first)}
        if all(map(_is_wild, rest)):  # everything below is of interest: a thousand names a request
            parts = (first, *rest)
            depth = len(folder.parts)
            return {
                path: meta
                for path, meta in self._below(folder).items()
                if len(path.parts) == depth + len(parts) and all(map(fnmatchcase, path.parts[depth:], parts))
            }
        found: dict[Path, Any] = {}
        for path, meta in self._children(folder).items():
            if meta is None and fnmatchcase(path.name, first):
                found |= self._matching(path, "/".join(rest))
        return found


def key(path: Path) -> str:
    """The key of an object in its bucket."""
    return "/".join(path.parts[2:])


def url(path: Path) -> str:
    """The URL of an object."""
    return with_urls(path.as_posix())


def _version(meta: "ObjectMeta") -> str:
    return str(meta["e_tag"] or f"{meta['size']}-{meta['last_modified'].timestamp()}")


def _seen(meta: "ObjectMeta") -> Any:
    """The condition that an object is still this one. Google needs its generation, others its ETag."""
    both = {"e_tag": meta["e_tag"], "version": meta["version"]}
    return {name: value for name, value in both.items() if value is not None}


def _is_wild(part: str) -> bool:
    return "*" in part or "[" in part


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
