"""Arrow arrays from buffers are those that `pa.array` makes, without pandas."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taugrid.parquet.arrays import arrow_array

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def same(values, kind):
    found, expected = arrow_array(values, kind), pa.array(values, type=kind)
    found.validate(full=True)
    return found.equals(expected) and found.null_count == expected.null_count


@given(st.lists(st.binary(max_size=20)), st.lists(st.none() | st.text(max_size=9)), st.lists(st.integers(-9, 2**40)))
def test_sequences(data, texts, numbers):
    assert same(data, pa.binary())
    assert same(texts, pa.string())
    assert same(numbers, pa.int64())
    assert same([{"bytes": each, "path": f"{i}.png"} for i, each in enumerate(data)], PICTURE)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (range(5, 9), pa.int64()),
        ([None, None], pa.float64()),
        ([0.5, None], pa.float64()),
        (["ä", "", "x"], pa.string()),
        (np.arange(6.0)[::2], pa.float64()),
        (np.arange(3, dtype=np.float32), pa.float64()),
        ([10, 20], pa.int32()),
        ((0.5, None), pa.float64()),
        ((None, "x"), pa.string()),
        (np.array([1, None], object), pa.int64()),
        (np.array([True, False, True]), pa.bool_()),
        ([1, 2], pa.float64()),
        ([0.1, float("inf")], pa.float32()),
        (np.array([2**31 - 1, -(2**31)]), pa.int32()),
        ([], pa.int64()),
    ],
    ids=repr,
)
def test_what_columns_hold(values, kind):
    assert same(values, kind)


def test_rows_of_a_fixed_size():
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)[:, ::2]
    found = arrow_array(rows, pa.list_(pa.float32(), 3))
    assert found.to_pylist() == rows.tolist()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**31], pa.int32()),
        (np.array([2**31 + 5]), pa.int32()),
        (np.array([2**63], np.uint64), pa.int64()),
        ([float("nan")], pa.int64()),
        (np.array([1.5]), pa.int64()),
    ],
    ids=repr,
)
def test_a_number_that_does_not_fit_is_no_other_number(values, kind):
    with pytest.raises(pa.ArrowInvalid):
        arrow_array(values, kind)


def test_a_worker_that_writes_samples_does_not_import_pandas(tmp_path):
    code = f"""if True:
        import sys
        from pathlib import Path
        import numpy as np
        from taugrid import parquet
        settings = dict(seed=0, steps=1, eta=None, sigma='s', spacing='s', sampler='s', clip='s', cell='c', model='m')
        with parquet.PartWriter(Path({str(tmp_path / "part")!r}), parquet.sample_schema({{}})) as part:
            writer = parquet.SampleWriter(part, settings, 0)
            writer.append(np.zeros((2, 1, 4, 4), np.uint8))
            writer.flush()
            part.commit(replace=False)
        print('pandas' in sys.modules)"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "False"
