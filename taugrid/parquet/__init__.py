"""Sealed Parquet files of samples, features and numbers: a file holds one shard, or the features of one."""

from taugrid.parquet.reader import (
    PartSummary,
    check_seal,
    file_end,
    first_pictures,
    first_pngs,
    inspect,
    read_digests,
    read_encoded,
    read_features,
    read_images,
    read_numbers,
    read_png,
    read_table,
)
from taugrid.parquet.samples import SampleWriter, pictures
from taugrid.parquet.writer import (
    OTHER_BYTES,
    ROWS_PER_GROUP,
    PartWriter,
    feature_schema,
    is_of_same_rows,
    number_schema,
    picture_schema,
    sample_schema,
)
