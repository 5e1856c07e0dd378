from dataclasses import replace

import numpy as np
import pytest
from snapshots import raises

from taugrid.errors import DamagedFile, WorkerRefusal
from taugrid.eval.metrics.frechet import Frechet, frechet_distance
from taugrid.eval.metrics.reference_statistics import MomentsFile, load_or_compute, read_moments
from taugrid.eval.metrics.statistics import Moments, symmetric_root
from taugrid.eval.reference import Reference, open_reference
from taugrid.eval.sources import ImageSet
from taugrid.registry.extractors import ExtractorSpec
from taugrid.workers.data.decoding import SourceError

SPEC = ExtractorSpec("pixels", None, "0" * 64, "pixels", None, 4, None)


def features(count=50, dimensions=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def moments_file(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def never():
    raise AssertionError("computed although it was cached")


def test_statistics_are_computed_once(tmp_path):
    moments = Moments.of(features())
    first, root = load_or_compute(tmp_path, "k", lambda: moments)
    assert np.array_equal(root, symmetric_root(moments.covariance))
    again, cached_root = load_or_compute(tmp_path, "k", never)
    assert again.n == 50
    for one, other in [(first.mean, again.mean), (first.scatter, again.scatter), (root, cached_root)]:
        assert np.array_equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["k.npz"], "no temporary file is left"
    for folder, key in ((tmp_path, "another"), (None, "k")):
        with pytest.raises(AssertionError):
            load_or_compute(folder, key, never)


def wrong_bits(data, count, seed=0):
    """`data` with one wrong bit, `count` times: anywhere, and more often in zip's own records at the end."""
    generator = np.random.default_rng(seed)
    records = data.index(b"PK\x01\x02")
    for position in [
        *generator.integers(len(data), size=count // 2),
        *generator.integers(records, len(data), count // 2),
    ]:
        wrong = bytearray(data)
        wrong[position] ^= 1 << int(generator.integers(8))
        yield bytes(wrong)


@pytest.mark.long
def test_moments_with_one_wrong_bit_are_refused_or_are_the_same(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, mu=np.arange(3.0), sigma=np.eye(3))
    refused = 0
    for wrong in wrong_bits(path.read_bytes(), 600):
        path.write_bytes(wrong)
        try:
            moments = read_moments(open_reference(str(path)).given)
        except (DamagedFile, SourceError) as error:  # one bit can hide sigma in a comment of mu
            refused += str(path) in str(error)
        else:
            assert np.array_equal(moments.mean, np.arange(3))
            assert np.array_equal(moments.covariance, np.eye(3))
    assert refused > 300, "most of the bits matter, and the file is named"


def test_a_cached_file_of_other_values_is_computed_anew(tmp_path):
    """A whole `.npz` that numpy reads without complaint, but whose values are not those that were sealed."""
    moments = Moments.of(features())
    load_or_compute(tmp_path, "k", lambda: moments)
    with np.load(tmp_path / "k.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "k.npz", **{**arrays, "mean": arrays["mean"] + 1})
    assert np.array_equal(load_or_compute(tmp_path, "k", lambda: moments)[0].mean, moments.mean)
    (tmp_path / "k.npz").write_bytes(b"")
    assert np.array_equal(load_or_compute(tmp_path, "k", lambda: moments)[0].mean, moments.mean)
    load_or_compute(tmp_path, "k", never)


def test_a_key_changes_with_all_that_determines_features_and_with_nothing_else():
    def key(sha256="a", shape=(3, 8, 8), spec=SPEC, code=None):
        return Reference(ImageSet("npz", "a.npz", 10, shape, sha256)).cache_key(spec, code)

    changes = {"name": "vgg16", "weights_sha256": "1" * 64, "feature_layer": "64", "source_sha256": "1" * 64}
    of_specs = [key(spec=replace(SPEC, **{name: value})) for name, value in changes.items()]
    assert len({key(), key("b"), key(shape=(1, 8, 8)), key(code="1" * 64), *of_specs}) == 8
    assert key(spec=replace(SPEC, weights_path="moved")) == key()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_file_of_moments_gives_the_distance_of_its_features(tmp_path, dtype):
    """pytorch-fid's and EDM's form: np.mean and np.cov of the features."""
    real, samples = features(200, seed=1), Moments.of(features(100, seed=2) + 1)
    mean, covariance = real.mean(0, dtype=np.float64), np.cov(real, rowvar=False)
    path = moments_file(tmp_path / "a.npz", mu=mean.astype(dtype), sigma=covariance.astype(dtype))
    file = open_reference(path).given
    assert isinstance(file, MomentsFile)
    assert (file.path, file.dimensions) == (path, 4)
    distance = frechet_distance(samples, read_moments(file))
    moments_file(tmp_path / "a.npz", mu=mean, sigma=2 * covariance)
    with raises(WorkerRefusal):
        read_moments(file)
    expected = Frechet.of(samples, Moments.of(real)).distance
    assert distance == pytest.approx(expected, rel=1e-12 if dtype is np.float64 else 1e-5)


def test_images_come_before_moments(tmp_path):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    path = moments_file(tmp_path / "a.npz", arr_0=images, mu=np.zeros(4), sigma=np.eye(4))
    assert isinstance(open_reference(path).given, ImageSet)


NOT_SYMMETRIC = np.eye(3) + np.triu(np.ones((3, 3)))


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(4)},
        {"mu": np.zeros((3, 3)), "sigma": np.eye(3)},
        {"mu": np.zeros(3, int), "sigma": np.eye(3)},
        {"mu": np.full(3, np.nan), "sigma": np.eye(3)},
        {"mu": np.zeros(3), "sigma": NOT_SYMMETRIC},
        {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
        {"mu": np.zeros(3), "sigma": np.diag([1, 2, -0.01])},
    ],
)
def test_what_are_no_moments_is_refused(tmp_path, arrays):
    path = moments_file(tmp_path / "a.npz", **arrays)
    with raises(SourceError):
        open_reference(path)


def test_covariances_of_no_full_rank_and_rounded_are_taken(tmp_path):
    """Fewer images than dimensions, in float32: eigenvalues that should be 0 are negative."""
    covariance = np.cov(features(20, 64), rowvar=False).astype(np.float32)
    assert np.linalg.eigvalsh(covariance.astype(np.float64))[0] < 0
    for sigma in (covariance, np.zeros((64, 64))):
        path = moments_file(tmp_path / "a.npz", mu=np.zeros(64), sigma=sigma)
        assert isinstance(open_reference(path).given, MomentsFile)


def test_what_is_no_npz_is_refused(tmp_path):
    """`np.load` ends with an EOFError for an empty file, and takes a `.npy` whatever it is called."""
    np.save(tmp_path / "array.npy", np.eye(3))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}]), sigma=np.eye(1))
    files = [(tmp_path / name).read_bytes() for name in ("array.npy", "pickled.npz")]
    for content in (b"", b"no zip", *files, files[1][:-30]):
        (tmp_path / "a.npz").write_bytes(content)
        with raises(DamagedFile) as caught:
            open_reference(str(tmp_path / "a.npz"))
        assert "\n" not in str(caught.value)
