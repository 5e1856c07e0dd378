"""Hashes name runs and caches: these must never change."""

import hashlib

import numpy as np
import pytest

from taugrid.hashing import canonical_json, digest_of_shape, identity, json_sha256

VALUE = {"b": [1.0, None, True], "a": {"é": 1e-05, "n": -3}}


def test_pinned_and_numbers_that_json_lacks_are_refused():
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"x": number})
    compact = hashlib.sha256(rb'{"a":{"n":-3,"\u00e9":1e-05},"b":[1.0,null,true]}').hexdigest()
    assert (json_sha256(VALUE), identity(VALUE)) == (compact, compact[:10])
    assert identity({}) == "44136fa355"


def test_images_of_another_shape_have_another_digest():
    images = np.arange(24, dtype=np.uint8)
    digests = {(hash_ := digest_of_shape(shape)).update(images) or hash_.hexdigest() for shape in [(2, 12), (12, 2)]}
    assert len(digests) == 2
    bytes_of_shape = (2).to_bytes(8, "little") + (12).to_bytes(8, "little")
    assert digest_of_shape((2, 12)).digest() == hashlib.sha256(bytes_of_shape).digest()
