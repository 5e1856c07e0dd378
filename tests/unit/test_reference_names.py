"""What the text of a reference means."""

import json
from pathlib import Path

import numpy as np
import pytest
from snapshots import raises, recorded

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.eval.reference import ResolvedReference, resolve_reference
from taugrid.orchestrator.external import score_images
from taugrid.orchestrator.progress import Progress
from taugrid.run_id import claim
from taugrid.storage import LOCAL
from taugrid.workers.data import published
from taugrid.workers.data.published import IDX_IMAGES


@pytest.fixture
def idx(tmp_path):
    """A folder with the names of Fashion-MNIST's files; what is in them is not read here."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    for ending, name in (("", IDX_IMAGES["train"]), (".gz", IDX_IMAGES["test"])):
        (folder / f"{name}{ending}").touch()
    return folder


@pytest.mark.parametrize(
    ("text", "values", "extractor"),
    [
        ("digits", {"name": "digits"}, "digits-convnet"),
        ("digits/test", {"name": "digits", "split": "test"}, "digits-convnet"),
        ("cifar10/train", {"name": "cifar10", "split": "train"}, None),
        ("lsun/bedroom/train", {"name": "lsun", "category": "bedroom", "split": "train"}, None),
    ],
)
def test_a_data_set_is_named_with_its_split(text, values, extractor):
    assert resolve_reference(text) == ResolvedReference(Data(**values), extractor)


@pytest.mark.parametrize("text", ["digits/tset", "lsun/train"])
def test_a_wrong_split_is_refused(text):
    with raises(UserError):
        resolve_reference(text)


def test_a_path_comes_before_a_data_set_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert resolve_reference("digits") == ResolvedReference("digits", None)


def test_a_folder_of_idx_files_is_fashion_mnist(idx):
    of_test = Data(name="fashion-mnist", root=str(idx), split="test")
    assert resolve_reference(f"{idx}/test") == ResolvedReference(of_test, "fashion-convnet")
    with raises(UserError):
        resolve_reference(str(idx))
    (idx / IDX_IMAGES["train"]).unlink()
    assert resolve_reference(str(idx)) == ResolvedReference(of_test, "fashion-convnet")
    assert resolve_reference(f"{idx}/validation") == ResolvedReference(f"{idx}/validation", None), "no such split"


def config(folder, **sections):
    folder.mkdir()
    claim(folder, LOCAL)
    values = {"name": "other", "data": {"name": "digits", "split": "train"}, "model": {"oracle": "gaussian"}}
    values |= {"sample": {}, "diffusion": {}, "evaluate": {}}
    (folder / "config.json").write_text(json.dumps(values | sections))
    return str(folder)


def test_a_run_directory_is_what_it_is_scored_against(tmp_path):
    of_data = config(tmp_path / "a")
    assert resolve_reference(of_data) == ResolvedReference(Data(split="train"), "digits-convnet")
    named = config(tmp_path / "b", evaluate={"reference": "digits/test", "extractor": "pixels"})
    assert resolve_reference(named) == ResolvedReference(Data(split="test"), "pixels")
    of_files = config(tmp_path / "c", evaluate={"reference": "some.npz", "extractor": "pixels", "weights": "w"})
    assert resolve_reference(of_files) == ResolvedReference("some.npz", "pixels", str(Path("w").absolute()))
    of_another = config(tmp_path / "d", evaluate={"reference": of_files})
    assert resolve_reference(of_another) == ResolvedReference("some.npz", "digits-convnet")
    of_itself = config(tmp_path / "e", evaluate={"reference": str(tmp_path / "e")})
    with raises(UserError):
        resolve_reference(of_itself)


def test_code_that_a_run_directory_names_is_not_run(tmp_path):
    sent = config(tmp_path / "sent", evaluate={"extractor": "their_code:Features", "reference": "digits/test"})
    with pytest.raises(UserError, match=r"their_code:Features.*give extractor"):
        score_images([np.zeros((2, 8, 8), np.uint8)], sent, {}, (), Progress.silent())


@pytest.mark.parametrize("text", ["fashion-mnist/train", "cifar10/test"])
def test_a_data_set_that_is_not_there_is_asked_for(text, user_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "DEBIAN_FOLDER", tmp_path)
    with pytest.raises(UserError) as caught:
        score_images([np.zeros((2, 28, 28), np.uint8)], text, {}, (), Progress.silent())
    recorded(str(caught.value))
