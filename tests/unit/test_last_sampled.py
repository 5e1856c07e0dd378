"""Features of what a worker has just sampled come from its memory, with the bytes of those from the file."""

import weakref

import numpy as np
import pytest
from denoisers import of_time
from fake_device import job_of
from in_process import CONFIG, drive, results, small_run

from taugrid import parquet
from taugrid.eval import extract
from taugrid.eval.features.resolve import resolve
from taugrid.orchestrator.dispatch.policy.tasks import Backlog
from taugrid.orchestrator.task import Task
from taugrid.registry.extractors import DIGITS_CONVNET
from taugrid.storage import LOCAL, LocalStorage
from taugrid.workers.accelerator.transfer import ImageTransfer
from taugrid.workers.device import Device, LastSampled, row_groups
from taugrid.workers.sample import sample_shard

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "seed": 3, "steps": 10, "eta": 1.0, "sigma": "eta", "spacing": "linear", "sampler": "ddim", "clip": "none",
    "cell": "x", "model": "y",
}  # fmt: skip
IMAGES = 2300
LARGE = CONFIG.replace("num_samples: 20", f"num_samples: {IMAGES}").replace("batch_size: 10", "batch_size: 250")
LARGE = LARGE.replace("shard_evaluations: 20", "shard_evaluations: 5000")
"""Two cells, each of one shard of three row groups."""


def written(path, seed, last_sampled, batch=250):
    images = np.random.default_rng(seed).integers(0, 256, (IMAGES, 1, 8, 8), dtype=np.uint8)
    with parquet.PartWriter(path, parquet.sample_schema({"cell": "x"})) as part:
        with parquet.SampleWriter(part, SETTINGS, 7) as writer:
            for start in range(0, IMAGES, batch):
                writer.append(images[start : start + batch])
            writer.finish()
        part.commit(replace=True)
    last_sampled.add(str(path), part.digest, row_groups(7, writer.counts, [images]))


def features(images, path, device):
    spec = resolve(DIGITS_CONVNET, "digits", None, (1, 8, 8))
    extract.run(extract.ExtractJob(str(path), str(images), None, spec, 250, {"cell": "x"}), device)
    return path.read_bytes()


def unreadable(*arguments, **options):
    pytest.fail("the file was read")


def test_nothing_is_taken_if_the_file_in_place_is_another(tmp_path):
    """With `is_same = sampled is not None` in `LastSampled.take`, the features are of images that are gone."""
    device = Device("cpu")
    written(tmp_path / "shard", 0, device.last_sampled)
    written(tmp_path / "shard", 1, LastSampled())
    from_file = features(tmp_path / "shard", tmp_path / "from file", Device("cpu"))
    assert features(tmp_path / "shard", tmp_path / "asked", device) == from_file


def test_a_run_has_the_same_files_and_reads_no_images(tmp_path, monkeypatch):
    with small_run(tmp_path, LARGE) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(LastSampled, "take", lambda self, path, storage: None)
            drive(opened, tmp_path / "read", LocalStorage(tmp_path / "read"))
        monkeypatch.setattr(parquet, "read_images", unreadable)
        drive(opened, tmp_path / "kept", LocalStorage(tmp_path / "kept"))
    assert results(tmp_path / "kept") == results(tmp_path / "read")
    assert len([name for name in results(tmp_path / "kept") if name.startswith("features") and "S" in name]) == 2


def test_the_last_ones_are_kept_as_far_as_they_fit(tmp_path, monkeypatch):
    size = IMAGES * 64
    monkeypatch.setattr(LastSampled, "max_bytes", 2 * size)
    found = LastSampled()
    for name in "abc":
        written(tmp_path / name, 0, found)
    assert found.take(str(tmp_path / "a"), LOCAL) is None
    assert found.take(str(tmp_path / "c"), LOCAL) is not None
    assert found.take(str(tmp_path / "c"), LOCAL) is None, "it is needed once"


@pytest.mark.parametrize("fits", [True, False])
def test_no_block_that_a_batch_was_copied_to_is_held_on_to(tmp_path, monkeypatch, fits):
    """On a GPU they are pinned memory, which is not held for long. Patch: keep `batch.images` itself.

    Of a shard that is too large nothing is kept.
    """
    given, held, append = [], [], parquet.SampleWriter.append

    def images(self):
        given.append(weakref.ref(found := self.pixels.numpy()))
        return found

    monkeypatch.setattr(ImageTransfer, "images", property(images))
    monkeypatch.setattr(parquet.SampleWriter, "append", lambda self, x, *latents: append(self, x.copy(), *latents))
    monkeypatch.setattr(LastSampled, "max_bytes", 16 * 192 if fits else 16 * 192 - 1)
    device, job = Device("cpu"), job_of(str(tmp_path / "x"), (3, 8, 8), 2, 16)
    kept = device.last_sampled
    device.computed = lambda: held.append(sum(each() is not None for each in given))
    sample_shard(job, of_time(lambda x, t: x), device)
    assert held == [0]
    assert len(given) >= 8
    assert (kept.take(job.path, LOCAL) is not None) == fits


def test_a_worker_extracts_what_it_sampled_the_last_first():
    shards = [Task(f"sample/{i}", "sample", 1.0) for i in range(6)]
    extracts = [Task(f"extract/{i}", "extract", 1.0, frozenset({f"sample/{i}"})) for i in range(6)]
    backlog = Backlog([*shards, *extracts], ("sample", "extract"))
    for i in range(6):
        backlog.complete(f"sample/{i}", f"w{i % 2}")
    order = [backlog.take({"extract"}, None, worker) for worker in ("w1", "w1", "w0", "w2", "w1", "w1", "w1")]
    numbers = [5, 3, 4, 0, 1, 2]
    assert order == [*(f"extract/{number}" for number in numbers), None]


def test_nothing_goes_for_a_shard_that_is_too_large(tmp_path, monkeypatch):
    """Patch: no comparison with `MAX_BYTES` in `sample_shard`."""
    monkeypatch.setattr(LastSampled, "max_bytes", 4 * 192)
    device = Device("cpu")
    for name, images in (("small", 2), ("large", 16)):
        sample_shard(job_of(str(tmp_path / name), (3, 8, 8), 2, images), of_time(lambda x, t: x), device)
    kept = {name: device.last_sampled.take(str(tmp_path / name), LOCAL) is not None for name in ("small", "large")}
    assert kept == {"small": True, "large": False}
