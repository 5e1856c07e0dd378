import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from snapshots import raises
from tiny import UNET

from taugrid import config
from taugrid.errors import UserError
from taugrid.eval import extract as extraction
from taugrid.eval.features.resolve import resolve
from taugrid.eval.reference import Reference
from taugrid.eval.sources import ImageSet
from taugrid.jobs import Hopeless, SavedNetwork, TrainingSpec
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir import provenance
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.work.ode import ReconstructWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.run_id import RunId
from taugrid.storage import write_json
from taugrid.workers import ode
from taugrid.workers.data import load as data
from taugrid.workers.data.load import load_labels
from taugrid.workers.data.published import distribution
from taugrid.workers.device import Device
from taugrid.workers.network.unet import build_unet
from taugrid.workers.training import loop
from taugrid.workers.training.loop import Batches

SCRATCH = config.Unet.model_validate(UNET)


def test_digits_span_the_grey_levels_and_keep_their_order():
    images = data.load_images(config.Data(name="digits"))
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.uint8
    counts = load_digits().data.reshape(1797, 1, 8, 8)
    assert set(np.unique(images)) == {round(k * 255 / 16) for k in range(17)}
    np.testing.assert_array_equal(np.rint(images * (16 / 255)), counts)


def test_splits_of_digits_are_whole_and_apart():
    whole, train, test = (data.load_images(config.Data(split=split)) for split in ("all", "train", "test"))
    np.testing.assert_array_equal(np.concatenate([train, test]), whole)
    assert len(test) == 360
    assert config.Data(split="train", limit=9).held_out == config.Data(split="test"), "a limit is of what is learned"
    assert config.Data(split="test", limit=9).held_out.limit == 9
    assert config.Data().held_out == config.Data(), "nothing is held out: what there is is reconstructed"


@pytest.mark.parametrize("name", ["gaussian", "two-points"])
def test_a_distribution_is_a_data_set_of_draws(name):
    section = config.Data(name=name, shape=(3, 4, 2))
    images, others = data.load_images(section), data.load_images(section.model_copy(update={"split": "test"}))
    assert images.shape == others.shape == (10_000, 3, 4, 2)
    known = distribution(section)
    mean = known.mean if name == "gaussian" else known.weights @ known.points
    found = images.reshape(len(images), -1) / 127.5 - 1
    within = np.abs(mean) < 0.9  # beyond 1 pixels are clipped
    np.testing.assert_allclose(found.mean(axis=0)[within], mean[within], atol=0.01)
    assert data.fingerprint(images) != data.fingerprint(others)
    with raises(ValueError):
        distribution(config.Data())


def test_fingerprint_is_of_shape_and_content():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    fingerprint = data.fingerprint(images)
    assert data.fingerprint(np.asfortranarray(images)) == fingerprint
    changed = images.copy()
    changed[1, 2, 1, 1] += 1
    others = {data.fingerprint(other) for other in (changed, images.reshape(2, 1, 3, 4), images[:1])}
    assert len(others | {fingerprint}) == 4


# Data sets in a run


@pytest.fixture
def pictures(tmp_path, user_cache):
    """A folder of 12 grey images, 8x8, and a cache of the test's own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


def of_folder(root, **keys):
    return {"name": "folder", "root": str(root), "shape": [1, 8, 8]} | keys


def planned(section, **sections):
    values = {"name": "x", "data": section, "model": {"unet": UNET}, "train": {"seed": 0}}
    settings = config.validate(config.Config, values | sections, "test")
    return settings, plan(settings)


def model_id(section):
    return planned(section)[1].models[0].id


def test_a_model_of_ones_own_images_is_known_by_their_pixels(pictures, tmp_path):
    here = model_id(of_folder(pictures))
    for name in ("there", "fewer"):
        (tmp_path / name).mkdir()
        for path in pictures.iterdir():
            shutil.copy(path, tmp_path / name / f"renamed-{path.name}")
    assert model_id(of_folder(tmp_path / "there")) == here
    shutil.copytree(pictures, tmp_path / "split" / "train")
    assert model_id(of_folder(tmp_path / "split", split="train")) == here
    assert model_id(of_folder(pictures, limit=11)) != here
    (tmp_path / "fewer" / "renamed-00.png").unlink()
    assert model_id(of_folder(tmp_path / "fewer")) != here


def test_a_model_of_ones_own_labelled_images_is_known_by_their_labels_too(pictures, tmp_path):
    def labelled(section, classes=2):
        unet = UNET | {"num_classes": classes}
        return planned(section, model={"unet": unet}, sample={"labels": 0, "seed": 0})

    for i, path in enumerate(sorted(pictures.iterdir())):
        (pictures / "ab"[i // 6]).mkdir(exist_ok=True)
        path.rename(pictures / "ab"[i // 6] / path.name)
    section, load_labels_again = of_folder(pictures), load_labels.cache_clear
    first, unconditional = labelled(section)[1].models[0].id, model_id(section)
    (pictures / "b").rename(pictures / "c")
    load_labels_again()
    assert labelled(section)[1].models[0].id == first, "names of folders are no labels"
    (pictures / "a" / "05.png").rename(pictures / "c" / "05.png")
    load_labels_again()
    assert model_id(section) == unconditional
    assert labelled(section)[1].models[0].id != first != unconditional
    with raises(UserError):
        labelled(section, classes=3)


def test_a_run_knows_images_and_labels_that_are_gone_by_what_it_recorded(tmp_path):
    """Else its models would have no id any more, and `status` nothing to say."""
    section = config.Data.model_validate(of_folder(tmp_path / "gone"))
    rundir = RunDir(tmp_path / "run")
    known = section.model_dump(mode="json", exclude={"download"}) | {"num_images": 3}
    write_json(rundir.provenance, {"dataset": known | {"sha256": "ab" * 32, "labels_sha256": "cd"}})
    assert (rundir.fingerprint(section), rundir.fingerprint(section, "labels")) == ("ab" * 32, "cd")
    with raises(UserError):
        rundir.fingerprint(section.model_copy(update={"limit": 2}))
    model = {"unet": UNET | {"num_classes": 2}}
    values = {"name": "x", "data": of_folder(tmp_path / "gone"), "model": model, "sample": {"labels": 0, "seed": 0}}
    found = plan(config.validate(config.Config, values, "test"), Lookups(fingerprint=rundir.fingerprint))
    assert found.models[0].source.data_identity["labels"] == "cd"


def test_identities_of_models_of_ones_own_images_never_change():
    """As in test_grid.py: people have runs under these names."""
    section = config.Data.model_validate(of_folder("/pictures"))
    levels = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
    }
    settings, _ = planned({"name": "digits"}, model={"unet": {**levels, "norm_num_groups": 4}})
    found = plan(settings.model_copy(update={"data": section}), Lookups(fingerprint=lambda _: "ab" * 32))
    assert found.models[0].id == "eb2d215fd6"


def test_a_published_data_set_is_known_by_its_name_wherever_it_lies():
    known = {model_id({"name": "fashion-mnist"} | keys) for keys in ({}, {"root": "/a"}, {"download": True})}
    assert len(known) == 1, "and it need not be here to be planned"
    others = {model_id({"name": "fashion-mnist"} | keys) for keys in ({"split": "train"}, {"limit": 9})}
    assert len(known | others) == 3


def test_a_missing_folder_is_refused_when_a_run_is_planned():
    with raises(UserError):
        planned(of_folder("/nowhere"))


def missing():
    return {"name": "fashion-mnist", "root": "/nowhere"}


@pytest.mark.parametrize("stages", [("train",), ("train", "sample", "evaluate", "report")])
def test_missing_data_is_refused_before_anything_is_started(stages, tmp_path):
    settings, found = planned(missing())
    with raises(UserError):
        Session(Run(settings, found, RunDir(tmp_path / "run")), "local", Progress()).do(stages)
    assert not (tmp_path / "run").exists()


def test_a_split_that_is_missing_is_refused_before_it_is_reconstructed(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "split" / "train")
    settings, found = planned(of_folder(tmp_path / "split", split="train"))
    with raises(UserError):
        ReconstructWork(Survey(Run(settings, found, RunDir(tmp_path)), None, frozenset(), pytest.fail)).check()


def test_a_loaded_model_that_is_compared_with_other_images_needs_no_data_set(tmp_path):
    build_unet(SCRATCH, (1, 28, 28)).save_pretrained(tmp_path / "unet")
    (tmp_path / "real").mkdir()
    for i in range(12):
        Image.fromarray(np.full((28, 28), i, np.uint8)).save(tmp_path / "real" / f"{i:02d}.png")
    reference = {"reference": str(tmp_path / "real"), "metrics": ["fid"]}
    settings, found = planned(missing(), model={"checkpoint": str(tmp_path / "unet")}, evaluate=reference)
    provenance.write(RunDir(tmp_path), found, scoring_of(settings, found))
    written = json.loads((tmp_path / "provenance.json").read_text())
    assert written["dataset"] is None
    assert written["reference"]["num_images"] == 12


def test_provenance_names_the_data_that_a_model_was_trained_on(pictures, tmp_path, monkeypatch):
    _, found = planned(of_folder(pictures))
    rundir = RunDir(tmp_path / "run")
    weights = rundir.models / found.models[0].id / "unet" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    provenance.write(rundir, found, None)
    written = json.loads(rundir.provenance.read_text())["dataset"]
    sha256 = data.content_fingerprint(found.models[0].data)
    expected = {"name": "folder", "split": "all", "root": str(pictures), "num_images": 12, "sha256": sha256}
    assert expected.items() <= written.items()
    monkeypatch.setattr(provenance, "load_images", lambda _: pytest.fail("what is recorded is not read again"))
    provenance.write(rundir, found, None)
    assert json.loads(rundir.provenance.read_text())["dataset"] == written


def test_a_protocol_tells_categories_apart_and_names_no_path():
    section = config.Data(name="lsun", category="bedroom", split="validation")
    described = Reference(ImageSet("dataset", section, 300, section.image_shape, "ab" * 32)).identity()
    assert (described.dataset, described.split) == ("lsun/bedroom", "validation")
    section = config.Data.model_validate(of_folder("/a/folder"))
    images = ImageSet("dataset", section, 12, section.image_shape, "ab" * 32)
    assert "/a/folder" not in str(Reference(images).identity())


def a_spec(section, sha256, folder, **keys):
    train = config.Train(batch_size=32, seed=3)
    return TrainingSpec(section, sha256, SCRATCH, config.DIFFUSION_DEFAULTS, train, "m", str(folder), 1.0, 0.0, **keys)


def test_batches_are_the_same_wherever_the_images_lie(pictures, tmp_path, monkeypatch):
    """On the device, or on the host because they are too large for it."""
    section = config.Data.model_validate(of_folder(pictures))
    spec = a_spec(section, data.content_fingerprint(section), tmp_path)
    on_cpu = Batches(spec, 0, 1, "cpu")
    device = "cpu:0"  # another name of the CPU, which is treated as a device with memory of its own
    on_device = Batches(spec, 0, 1, device)
    monkeypatch.setattr(loop, "DEVICE_BYTES", 12 * 64 - 1)
    for other in (on_device, Batches(spec, 0, 1, device)):
        assert all(torch.equal(a, b) for a, b in zip(other[7][:4], on_cpu[7][:4], strict=True))
    mean = data.load_images(section).mean() / 127.5 - 1
    assert float(torch.cat([on_cpu[step].x0 for step in range(200)]).mean()) == pytest.approx(mean, abs=0.02)


def test_a_worker_refuses_images_that_are_not_the_drivers(pictures, tmp_path):
    """A folder at the same path on another node can hold others, and ids and keys are of the driver's."""
    section = config.Data.model_validate(of_folder(pictures))
    there = "ab" * 32
    network, diffusion = SavedNetwork("unused", "", ""), config.DIFFUSION_DEFAULTS
    along = {"network": network, "batch_size": 4, "diffusion": diffusion, "tau": (1, 2), "metadata": {}}
    with raises(UserError):
        ode.reconstruct_shard(
            ode.ReconstructJob(str(tmp_path / "a"), 0, 12, section, there, **along), lambda x, t: x, Device("cpu")
        )
    pixels = resolve("pixels", "folder", None, section.image_shape)
    images = ImageSet("dataset", section, 12, section.image_shape, there)
    with pytest.raises(UserError, match="have changed"):
        extraction.run(extraction.ExtractJob(str(tmp_path / "b"), images, there, pixels, 4, {}, 0, 12), Device("cpu"))
    spec = a_spec(section, there, tmp_path)
    for refused in (spec, replace(spec, run_id=RunId(str(tmp_path), "0" * 32))):
        with raises(Hopeless):  # which Ray Train does not repeat
            loop.batches_of(refused, 0, 1, "cpu")
    with raises(UserError):
        data.load_known_images(config.Data(), there)
