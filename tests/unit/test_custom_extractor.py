"""Custom extractors: another process finds out what one gives, and it is identified by its content."""

import importlib
import sys

import pytest
import torch
from safetensors.torch import save_file
from snapshots import raises

from taugrid.errors import CustomCodeError, WorkerRefusal
from taugrid.eval.features.load import describe, find_class, load
from taugrid.eval.features.resolve import resolve
from taugrid.hashing import file_sha256

SOURCE = """
import torch
from torch_fidelity import FeatureExtractorBase
from safetensors.torch import load_file

class Means(FeatureExtractorBase):
    LAYERS = {"isc": "my_logits", "fid": "means", "kid": "means", "prc": "means"}

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        path = feature_extractor_weights_path
        self.register_buffer("scale", torch.ones(1) if path is None else load_file(path)["scale"])

    def layers(self, images):
        means = images.double().mean((2, 3)) * self.scale
        return {"means": means, "my_logits": means[:, :2] - 1, "head": means}

    def forward(self, images):
        assert images.shape[1] == 3
        layers = self.layers(images)
        return tuple(layers[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "means", "my_logits", "head"

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric):
        return cls.LAYERS[metric]

class NoLogits(Means):
    LAYERS = Means.LAYERS | {"isc": "head"}

class OldFidelity(Means):
    LAYERS = {"fid": "means", "kid": "means"}  # 0.3 knew no prc

class OnlyLogits(Means):
    LAYERS = dict.fromkeys(("isc", "fid", "kid", "prc"), "my_logits")

class TwoLayers(Means):
    LAYERS = Means.LAYERS | {"kid": "head"}

class Pictures(Means):
    def layers(self, images):
        return dict.fromkeys(("means", "my_logits"), images.float())

class FindsWeights(Means):
    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        self.scale = load_file("found.safetensors")["scale"]

class NoExtractor:
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a package of the user's in it, and one that has the name of taugrid's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "networks.py").write_text(SOURCE)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("raise ImportError('the wrong eval')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


def spec_of(name, module="mine.networks"):
    """What `resolve` makes of a class without weights, without the seconds that another process takes."""
    return describe(f"{module}:{name}", None, (3, 5, 5))


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "mine_too")]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.long
def test_a_custom_class_is_described_by_another_process(folder):
    spec = resolve("mine.networks:Means", "any", None, (3, 5, 5))
    assert (spec.feature_layer, spec.logits_layer, spec.dimensions, spec.classes) == ("means", "my_logits", 3, 2)
    assert spec.weights_path is None
    assert [file.module for file in spec.files] == ["mine", "mine.networks"]
    assert resolve("mine.networks:Means", "any", None, (3, 5, 5)) == spec, "the same in every process"
    assert "mine" not in sys.modules
    images = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    found = load(spec, "cpu")(images)
    assert (found.features.dtype, found.logits.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(found.features, images.float().mean((2, 3)))
    assert torch.allclose(found.logits, found.features[:, :2] - 1)


def test_custom_weights_are_passed_on_and_make_the_identity(folder, asked_here):
    save_file({"scale": torch.tensor([2.0])}, folder / "scale.safetensors")
    spec = resolve("mine.networks:Means", "any", "scale.safetensors", (1, 5, 5))
    assert spec.weights_path == str(folder / "scale.safetensors")
    assert spec.weights_sha256 == file_sha256(folder / "scale.safetensors") != spec.source_sha256
    grey = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
    expected = (2 * grey.double().mean((2, 3))).expand(-1, 3).float()
    assert torch.allclose(load(spec, "cpu")(grey).features, expected)  # given as RGB, as torch-fidelity does
    save_file({"scale": torch.tensor([3.0])}, folder / "scale.safetensors")
    with pytest.raises(WorkerRefusal, match="SHA-256"):
        load(spec, "cpu")
    with raises(ValueError):
        resolve("mine.networks:Means", "any", "absent", (1, 5, 5))


def test_source_that_differs_where_the_work_is_done_is_refused(folder):
    spec = spec_of("Means")
    (folder / "mine" / "networks.py").write_text(SOURCE.replace("mean((2, 3))", "amax((2, 3))"))
    forget()
    with raises(WorkerRefusal):
        load(spec, "cpu")
    changed = spec_of("Means")
    assert changed.weights_sha256 != spec.weights_sha256
    load(changed, "cpu")


HELPERS = {
    "import": "import mine.helper\n",
    "relative package": "from . import helper\n",
    "two steps": "from mine.between import SCALE\n",
    "late": "def scale():\n    from mine.helper import SCALE\n    return SCALE\n",
    "guarded": "try:\n    from mine.helper import SCALE\nexcept ImportError:\n    pass\n",
    "another package": "import mine_too.sub.helper\n",
}


@pytest.mark.long
@pytest.mark.parametrize("imports", HELPERS.values(), ids=HELPERS)
def test_source_of_what_the_class_imports_counts(folder, imports):
    """A scale in a helper that changed left the features of before in use: FID 60078.7 instead of 6.18."""
    (folder / "mine" / "networks.py").write_text(imports + SOURCE)
    (folder / "mine" / "between.py").write_text("from .helper import SCALE\n")
    (folder / "mine_too/sub").mkdir(parents=True)  # without __init__.py
    helpers = [folder / "mine/helper.py", folder / "mine_too/sub/helper.py"]
    for file in (*helpers, folder / "mine/unused.py"):
        file.write_text("SCALE = 1\n")
    before = spec_of("Means")
    forget()
    (folder / "mine" / "unused.py").write_text("SCALE = 2\n")
    assert spec_of("Means") == before
    forget()
    for file in helpers:
        file.write_text("SCALE = 100\n")
    assert spec_of("Means").source_sha256 != before.source_sha256
    assert spec_of("Means").weights_sha256 != before.weights_sha256
    with raises(WorkerRefusal):
        load(before, "cpu")


def test_weights_that_the_class_finds_by_itself_count(folder):
    def found(scale):
        save_file({"scale": torch.tensor(scale)}, folder / "found.safetensors")
        return spec_of("FindsWeights").weights_sha256

    assert found([2.0]) == found([2.0])
    assert len({found([2.0]), found([3.0]), found([2.0, 2.0, 2.0]), found(2.0)}) == 4
    assert spec_of("Means").source_sha256 == spec_of("FindsWeights").source_sha256
    found([2.0])
    planned = spec_of("FindsWeights")
    load(planned, "cpu")
    found([3.0])
    with raises(WorkerRefusal):
        load(planned, "cpu")


@pytest.mark.parametrize(
    ("name", "feature_layer", "logits_layer"),
    [("NoLogits", "means", None), ("OldFidelity", "means", None), ("OnlyLogits", "my_logits", "my_logits")],
)
def test_layers_of_a_custom_class(folder, name, feature_layer, logits_layer):
    spec = spec_of(name)
    width = 3 if feature_layer == "means" else 2
    classes = None if logits_layer is None else 2
    assert (spec.feature_layer, spec.logits_layer, spec.dimensions, spec.classes) == (
        feature_layer, logits_layer, width, classes,
    )  # fmt: skip
    extraction = load(spec, "cpu")(torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8))
    assert extraction.features.shape == (4, width)
    assert (extraction.logits is None) == (classes is None)


def test_classes_that_torch_fidelity_would_read_otherwise_are_refused(folder):
    with raises(CustomCodeError):
        describe("mine.networks:TwoLayers", None, (3, 5, 5))
    with raises(CustomCodeError):
        find_class("mine.networks:NoExtractor")
    with raises(CustomCodeError):
        describe("mine.networks:Pictures", None, (3, 5, 5))
