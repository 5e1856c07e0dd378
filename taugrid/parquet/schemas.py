"""The schemas of files of samples, pictures, features and numbers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from taugrid.hashing import canonical_json

SETTING_FIELDS = (
    ("seed", pa.int64()),
    ("steps", pa.int32()),
    ("eta", pa.float64()),
    ("sigma", pa.string()),
    ("spacing", pa.string()),
    ("sampler", pa.string()),
    ("clip", pa.string()),
    ("cell", pa.string()),
    ("model", pa.string()),
)
"""Every setting is a column with one value in a file, so that files of many cells can be read as one table."""


def sample_schema(metadata: Mapping[str, Any]) -> pa.Schema:
    """The schema of a sample file; `metadata` goes under the key `taugrid` as JSON."""
    return _schema_with_pictures(metadata, SETTING_FIELDS)


def picture_schema(metadata: Mapping[str, Any], numbers: Sequence[str] = ()) -> pa.Schema:
    """The schema of a file of pictures with a float64 column for each of `numbers`."""
    return _schema_with_pictures(metadata, [(name, pa.float64()) for name in numbers])


def _schema_with_pictures(metadata: Mapping[str, Any], columns: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """Schema metadata under the key `huggingface` tells `datasets` that the first column holds pictures."""
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [("image", image), ("index", pa.int64()), *columns]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    for name, kind in fields[1:]:
        features[name] = {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
    huggingface = json.dumps({"info": {"features": features}}).encode()
    return pa.schema(fields, metadata={b"huggingface": huggingface, b"taugrid": canonical_json(metadata).encode()})


def feature_schema(metadata: Mapping[str, Any], dimensions: int, classes: int | None) -> pa.Schema:
    """The schema of a feature file: index, features (float32, fixed size) and logits, if any."""
    fields = [pa.field("index", pa.int64()), pa.field("features", pa.list_(pa.float32(), dimensions))]
    if classes is not None:
        fields.append(pa.field("logits", pa.list_(pa.float32(), classes)))
    return pa.schema(fields, metadata={b"taugrid": canonical_json(metadata).encode()})


def number_schema(metadata: Mapping[str, Any], names: Sequence[str]) -> pa.Schema:
    """The schema of a file of numbers: index, and a float64 column for each of `names`."""
    fields = [("index", pa.int64()), *((name, pa.float64()) for name in names)]
    return pa.schema(fields, metadata={b"taugrid": canonical_json(metadata).encode()})
