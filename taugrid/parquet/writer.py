"""The schemas of Parquet files, and a writer that commits a file in one step, so that a file in place is complete."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from taugrid.errors import DamagedFile
from taugrid.hashing import canonical_json
from taugrid.parquet.reader import PartSummary, inspect, write_seal
from taugrid.retries import retried
from taugrid.storage import ANY, LOCAL, Storage, is_same

PIXEL_FIELD = ("pixels", pa.int64())  # `digests_of` the images, by which comparisons need not decode them

SETTING_FIELDS = (
    ("seed", pa.int64()),
    ("steps", pa.int32()),
    ("eta", pa.float64()),
    *((name, pa.string()) for name in ("sigma", "spacing", "sampler", "clip", "cell", "model")),
)
"""Every setting is a column with one value in a file, so that files of many cells can be read as one table."""

CONDITION_FIELDS = (("label", pa.int32()), ("guidance", pa.float64()))  # of samples of a network with classes

# A row group ends at whichever limit comes first, so that neither writer nor reader holds more in memory
ROWS_PER_GROUP = 1024
BYTES_PER_GROUP = 32 * 2**20

OTHER_BYTES = "has other bytes than those made here"  # of an intact file of the same rows: another device made it


def sample_schema(metadata: Mapping[str, Any], conditional: bool = False, latent: int | None = None) -> pa.Schema:
    """The schema of a sample file; `metadata` goes under the key `taugrid` as JSON. `conditional`: the network takes
    labels. `latent`: the numbers of a latent, if they are kept."""
    conditions = CONDITION_FIELDS if conditional else ()
    kept = [] if latent is None else [("latent", pa.list_(pa.float32(), latent))]
    return _schema_with_pictures(metadata, [PIXEL_FIELD, *SETTING_FIELDS, *conditions, *kept])


def picture_schema(metadata: Mapping[str, Any], numbers: Sequence[str] = ()) -> pa.Schema:
    """The schema of a file of pictures with a float64 column for each of `numbers`."""
    return _schema_with_pictures(metadata, [(name, pa.float64()) for name in numbers])


def _schema_with_pictures(metadata: Mapping[str, Any], columns: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """The metadata under the key `huggingface` declares the first column as images to the library `datasets`."""
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    for name, kind in (("index", pa.int64()), *columns):
        is_list = pa.types.is_fixed_size_list(kind)
        of = str(kind.value_type if is_list else kind)
        features[name] = {"dtype": {"double": "float64", "float": "float32"}.get(of, of), "_type": "Value"}
        if is_list:
            features[name] = {"feature": features[name], "length": kind.list_size, "_type": "Sequence"}
    huggingface = json.dumps({"info": {"features": features}}).encode()
    return _schema(metadata, [("image", image), ("index", pa.int64()), *columns], {b"huggingface": huggingface})


def feature_schema(metadata: Mapping[str, Any], dimensions: int, classes: int | None) -> pa.Schema:
    """The schema of a feature file: index, features (float32, fixed size) and logits, if any."""
    logits = [] if classes is None else [("logits", pa.list_(pa.float32(), classes))]
    return _schema(metadata, [("index", pa.int64()), ("features", pa.list_(pa.float32(), dimensions)), *logits])


def number_schema(metadata: Mapping[str, Any], names: Sequence[str]) -> pa.Schema:
    """The schema of a file of numbers: index, and a float64 column for each of `names`."""
    return _schema(metadata, [("index", pa.int64()), *((name, pa.float64()) for name in names)])


def _schema(metadata: Mapping[str, Any], fields: Sequence[Any], more: Mapping[bytes, bytes] = {}) -> pa.Schema:
    return pa.schema(fields, metadata={**more, b"taugrid": canonical_json(metadata).encode()})


class PartWriter:
    """Writes a Parquet file under a temporary name; `commit` puts it in place; leaving without a commit removes it.
    `check` is called before anything is written and again before the file gets its name."""

    def __init__(
        self, path: Path, schema: pa.Schema, storage: Storage = LOCAL, check: Callable[[], None] = lambda: None
    ) -> None:
        check()
        self._path, self._schema, self._storage, self._check = path, schema, storage, check
        self._rows: tuple[int, int] | None = None  # the first index, and the one after the last
        self._in_order = True
        self.digest = b""  # the SHA-256 in the seal of the file that was made here, once it is complete
        self.size: int | None = None  # the bytes of that file; None: another one is in its place
        self.conflict: str | None = None  # what the kept file is or has, if it is not what was made here
        with ExitStack() as removal:  # removes the temporary file on an error, and names it in Arrow's error
            self._temporary = removal.enter_context(storage.temporary(path))
            self._writer = retried(
                lambda: pq.ParquetWriter(
                    self._temporary,
                    schema,
                    compression="none",  # PNG is compressed already, features don't compress
                    use_dictionary=[name for name, _ in (*SETTING_FIELDS, *CONDITION_FIELDS)],
                    write_page_index=True,
                    write_page_checksum=True,
                )
            )
            self._removal = removal.pop_all()

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(Exception):
            self._writer.close()
        self._removal.__exit__(*error)

    @property
    def content(self) -> PartSummary | None:
        """The result that `inspect` of the file would have, without reading it; None if the file is not in order."""
        if self._rows is None or not self._in_order:
            return None
        return PartSummary(*self._rows, json.loads((self._schema.metadata or {}).get(b"taugrid", b"{}")))

    def write(self, columns: Mapping[str, Any]) -> None:
        """Append one row group; a column is a sequence, or a (B, d) array for a list of fixed size."""
        if len(index := np.asarray(columns["index"])):
            start, stop = int(index[0]), int(index[0]) + len(index)
            follows = self._rows is None or self._rows[1] == start
            self._in_order = self._in_order and follows and np.array_equal(index, np.arange(start, stop))
            self._rows = (start if self._rows is None else self._rows[0], stop)
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=ROWS_PER_GROUP)

    def commit(self, replace: bool) -> bool:
        """Put the file in place, atomically. If a file is already there and `replace` is off, keep it, return False."""
        self._close()
        return self._storage.commit(self._path, self._temporary, ANY) if replace else self._create()

    def commit_over(self, version: str | None) -> bool:
        """Put the file in place of the one that has this version (`Stat.version`), of a shorter one, or of none. Any
        other file is kept; then it returns False."""
        self._close()
        if self._storage.commit(self._path, self._temporary, version):
            return True
        shorter = self._shorter()
        is_replaced = shorter is not None and self._storage.commit(self._path, self._temporary, shorter)
        return is_replaced or self._create()

    def _close(self) -> None:
        self._writer.close()
        self.digest = write_seal(self._temporary)
        self.size = retried(self._temporary.stat).st_size
        self._check()

    def _shorter(self) -> str | None:
        """The version of the file in place if it is an intact one that has fewer of the same rows: it may be the one to
        replace although its version differs, as after a copy, or where inodes differ on each machine that mounts it."""
        if (content := self.content) is None:
            return None
        try:
            version = self._storage.stat(self._path).version
            existing = inspect(self._path, every_byte=False, storage=self._storage)
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            return None
        return version if is_of_same_rows(existing, content) and existing.stop < content.stop else None

    def _create(self) -> bool:
        created = self._storage.commit(self._path, self._temporary)
        self.size = self.size if created else None
        if not created and not is_same(self._path, self._temporary, self._storage):
            self.conflict = self._difference()
        return created

    def _difference(self) -> str | None:
        """What is different about the file that is kept; None: it only has more rows."""
        try:
            kept = inspect(self._path, storage=self._storage)
        except DamagedFile as error:
            return f"is damaged: {error}"
        if (content := self.content) is None or not is_of_same_rows(kept, content):
            return "is of other images or settings"
        return OTHER_BYTES if kept.stop == content.stop else None


def is_of_same_rows(existing: PartSummary, content: PartSummary) -> bool:
    """Whether a file begins with the same rows of the same cell."""
    has_metadata = all(existing.metadata.get(key) == content.metadata[key] for key in content.metadata)
    return existing.start == content.start and has_metadata


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, type=kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.reshape(values, -1), type=kind.value_type), kind.list_size)
