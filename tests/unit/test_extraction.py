"""Extraction keeps a GPU busy: the next batch is begun before the last one is waited for, and no bit depends on it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from taugrid import parquet
from taugrid.eval import extract, standalone
from taugrid.eval.features import load as extractors
from taugrid.eval.features.load import load
from taugrid.eval.features.resolve import resolve
from taugrid.eval.reference import Reference
from taugrid.eval.sources import open_images
from taugrid.registry.extractors import DIGITS_CONVNET
from taugrid.registry.metrics import MetricSettings
from taugrid.workers.accelerator.transfer import Transfer
from taugrid.workers.device import Device

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "seed": 3, "steps": 10, "eta": 1.0, "sigma": "eta", "spacing": "linear", "sampler": "ddim", "clip": "none",
    "cell": "x", "model": "y",
}  # fmt: skip
IMAGES, SIZE = 2300, 250
BATCHES = 5 + 5 + 2


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def shard(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "samples.parquet"
    with parquet.PartWriter(path, parquet.sample_schema({"cell": "x"})) as part:
        writer = parquet.SampleWriter(part, SETTINGS, 7)
        writer.append(images)
        writer.finish()
        part.commit(replace=False)
    return path


@pytest.fixture(scope="module")
def spec():
    return resolve(DIGITS_CONVNET, "digits", None, (1, 8, 8))


class Gpu:
    """An extractor as on a GPU: its features are in memory once a batch was waited for, and NaN until then."""

    def __init__(self, spec, quick=(), room=IMAGES):
        self.extract, self.quick, self.room = load(spec, "cpu"), quick, room
        self.begun, self.waited_for = 0, []

    def __call__(self, batch):
        if len(batch) > self.room:
            raise MemoryError
        found = self.extract(batch)
        there = [torch.full_like(each, torch.nan) for each in (found.features, found.logits)]
        copied = Copied(self, self.begun, there, (found.features, found.logits))
        self.begun += 1
        return replace(found, features=there[0], logits=there[1], copied=copied)


class Copied:
    def __init__(self, gpu, number, there, found):
        self.gpu, self.number, self.there, self.found = gpu, number, there, found
        self.is_there = False

    def query(self):
        if self.number in self.gpu.quick:
            self._copy()
        return self.is_there

    def synchronize(self):
        self._copy()
        self.gpu.waited_for.append((self.number, self.gpu.begun))

    def _copy(self):
        self.is_there = True
        for place, values in zip(self.there, self.found, strict=True):
            place.copy_(values)


def extracted(shard, spec, path, extractor):
    device = Device("cpu")
    device.extractor(spec, lambda: extractor)
    job = extract.ExtractJob(str(path), str(shard), None, spec, SIZE, {"cell": "x"})
    assert extract.run(job, device).images == IMAGES
    return path.read_bytes()


@pytest.mark.parametrize("quick", [(), (0, 4, 5, 11)], ids=["late", "some late"])
def test_files_of_features_have_the_bytes_of_a_cpus_and_a_gpu_always_has_the_next_batch(shard, spec, tmp_path, quick):
    gpu = Gpu(spec, quick)
    assert extracted(shard, spec, tmp_path / "gpu", gpu) == extracted(shard, spec, tmp_path / "cpu", load(spec, "cpu"))
    assert gpu.begun == BATCHES
    assert [number for number, _ in gpu.waited_for] == sorted({*range(BATCHES)}), "each once, in order"
    for number, begun in gpu.waited_for:
        if number not in quick and number + 1 < BATCHES:
            assert begun == number + 2, "one more than that which is waited for, also where a row group ends"


def test_batches_that_do_not_fit_are_halved_while_others_are_under_way(shard, spec, tmp_path):
    """Features may differ in the last bit in other batches, so only what they are of is compared."""
    gpu = Gpu(spec, room=120)
    extracted(shard, spec, tmp_path / "gpu", gpu)
    extracted(shard, spec, tmp_path / "cpu", load(spec, "cpu"))
    (index, found), (_, expected) = (
        map(np.concatenate, zip(*parquet.read_features(tmp_path / name, "features"), strict=True))
        for name in ("gpu", "cpu")
    )
    assert np.array_equal(index, np.arange(7, 7 + IMAGES))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_scores_of_external_images_are_those_of_a_cpu(images, spec, tmp_path, monkeypatch):
    places = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for place, some in zip(places, (images[:900], images[900:]), strict=True):
        np.savez(place, some.transpose(0, 2, 3, 1))
    samples, reference = (open_images(str(place)) for place in places)
    heard, gpu = Counter(), Gpu(spec, quick=(2,))

    def scores(**more):
        options = standalone.Options(versions={}, **more)
        settings = MetricSettings(("fid", "isc"))
        [scored] = standalone.score_sets([samples], Reference(reference), spec, settings, options)
        return scored.document["metrics"]

    expected = scores()
    monkeypatch.setattr(extractors, "load", lambda spec, device: gpu)
    assert scores(progress=lambda what, done, of: heard.update({what: done > 0})) == expected
    assert set(heard) == {"samples", "reference"}
    first_of_samples = 6
    for number, begun in gpu.waited_for:
        if number not in (2, first_of_samples - 1, first_of_samples + 4 - 1):
            assert begun == number + 2


def test_batches_are_of_even_sizes():
    sizes = []
    in_batches = extract.InBatches(lambda batch: sizes.append(len(batch)) or Transfer(), 64, Device("cpu"))
    list(in_batches(torch.zeros(100, 1, 2, 2)))
    assert sizes == [50, 50]
