"""Hashes name runs and caches: these were computed with the first version and must never change."""

import hashlib

import numpy as np
import pytest

from taugrid.hashing import canonical_json, digest_of_shape, file_sha256, identity, json_sha256, spaced_json_sha256

VALUE = {"b": [1.0, None, True], "a": {"é": 1e-05, "n": -3}}


def test_canonical_json_is_sorted_compact_and_ascii():
    assert canonical_json(VALUE) == r'{"a":{"n":-3,"\u00e9":1e-05},"b":[1.0,null,true]}'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(number):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": number})


def test_pinned():
    compact = hashlib.sha256(rb'{"a":{"n":-3,"\u00e9":1e-05},"b":[1.0,null,true]}').hexdigest()
    assert (json_sha256(VALUE), identity(VALUE)) == (compact, compact[:10])
    spaced = hashlib.sha256(rb'{"a": {"n": -3, "\u00e9": 1e-05}, "b": [1.0, null, true]}').hexdigest()
    assert spaced_json_sha256(VALUE) == spaced
    assert identity({}) == "44136fa355"


def test_a_file_of_many_reads(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_images_of_another_shape_have_another_digest():
    images = np.arange(24, dtype=np.uint8)
    digests = {(hash_ := digest_of_shape(shape)).update(images) or hash_.hexdigest() for shape in [(2, 12), (12, 2)]}
    assert len(digests) == 2
    bytes_of_shape = (2).to_bytes(8, "little") + (12).to_bytes(8, "little")
    assert digest_of_shape((2, 12)).digest() == hashlib.sha256(bytes_of_shape).digest()
