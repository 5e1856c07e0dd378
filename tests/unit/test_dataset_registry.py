"""The registry of data sets: what an entry says holds in the config, in planning and in the loader."""

import sys
from dataclasses import replace
from pkgutil import resolve_name

import numpy as np
import pytest
from snapshots import raises

from taugrid.config import Config, schema, validate
from taugrid.errors import UserError
from taugrid.eval.features.resolve import resolve
from taugrid.orchestrator.plan.grid import plan
from taugrid.registry.datasets import ALL_SPLITS, DATASETS, KEYS, Dataset
from taugrid.registry.extractors import EXTRACTORS, INCEPTION, PIXELS
from taugrid.workers.data.load import content_fingerprint, load_images

READER = """
import numpy as np

def read(data):
    rows = {"all": slice(None), "train": slice(3), "test": slice(3, None)}[data.split]
    return np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6)[rows]
"""

STRIPES = Dataset(
    name="stripes",
    description="five images of stripes",
    reader="stripes:read",
    shape=(1, 4, 6),
    num_images={"train": 3, "test": 2},
    extractor="pixels",
)


def section(**keys):
    values = {"name": "x", "data": {"name": "stripes"} | keys, "model": {"unet": {}}, "train": {"seed": 0}}
    return validate(Config, values, "test")


@pytest.fixture
def stripes(tmp_path, monkeypatch, user_cache):
    """A new data set: one file, one entry."""
    (tmp_path / "stripes.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DATASETS, "stripes", STRIPES)
    yield
    sys.modules.pop("stripes", None)


def test_a_new_data_set_is_one_file_and_one_entry(stripes):
    train = section(split="train").data
    assert train.image_shape == (1, 4, 6)
    assert np.array_equal(load_images(train), np.arange(72, dtype=np.uint8).reshape(3, 1, 4, 6))
    assert len(load_images(train.held_out)) == 2
    assert content_fingerprint(train) != content_fingerprint(section().data)
    assert resolve(None, "stripes", None, train.image_shape).name == PIXELS
    assert plan(section(root="/a")).models[0].id == plan(section()).models[0].id, "it is known by its name"
    assert schema()["$defs"]["Data"]["properties"]["name"]["enum"][-1] == "stripes"
    with raises(UserError):
        section(name="strips")


def test_a_new_data_set_is_held_to_its_published_size(stripes, monkeypatch):
    monkeypatch.setitem(DATASETS, "stripes", replace(STRIPES, num_images={"train": 9, "test": 2}))
    with raises(UserError):
        load_images(section(split="train", limit=1).data)
    assert len(load_images(section(split="test").data)) == 2


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_every_entry_agrees_with_itself(dataset):
    assert DATASETS[dataset.name] is dataset
    assert callable(resolve_name(dataset.reader))
    assert dataset.required <= dataset.keys <= set(KEYS)
    assert (dataset.shape is None) == ("shape" in dataset.required)
    assert set(dataset.splits) <= set(ALL_SPLITS)
    assert dataset.held_out in dataset.splits
    assert {key.split("/")[-1] for key in dataset.num_images} <= set(dataset.splits) - {"all"}
    assert (dataset.extractor or INCEPTION) in EXTRACTORS
