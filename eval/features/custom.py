"""Custom feature extractors (`evaluate.extractor: package.module:Class`): determines their layers by a trial run.

`eval.features.resolve` runs `describe` in another process, because the class needs torch and the driver must not.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch_fidelity

from taugrid.errors import CustomCodeError
from taugrid.registry.extractors import ExtractorSpec
from taugrid.workers.custom import source
from taugrid.workers.custom.describe import find

IMAGES = 2
"""How many images the extractor is tried on."""

LOGITS = "logits"
"""A custom `isc` layer counts as logits if its name contains this. torch-fidelity requires an `isc` layer of every
extractor, so having one proves nothing, and an Inception Score of plain features is meaningless."""


def describe(name: str, weights: str | None, image_shape: tuple[int, int, int]) -> ExtractorSpec:
    """The extractor `name` (`package.module:Class`), tried on noise of `image_shape` (C, H, W).

    FID, KID and precision/recall are computed from one layer, the class's default for `fid`. Grey images are passed as
    RGB, as in torch-fidelity. Without `weights`, `weights_sha256` covers everything that was loaded for a forward pass.
    A worker has other files loaded, so it checks the `class_source` and the tensors of the new instance.

    Raises:
        CustomCodeError: if it is not a `FeatureExtractorBase`, returns anything but a float (B, d) for each layer, or
            its default layers for `fid`, `kid` and `prc` differ.
    """
    extractor_class = find_class(name)
    defaults = {metric: _default_layer(extractor_class, metric) for metric in ("fid", "kid", "prc", "isc")}
    feature_layer, logits_layer = defaults["fid"], defaults["isc"]
    if feature_layer is None or {defaults["kid"], defaults["prc"]} - {feature_layer, None}:
        raise CustomCodeError(f"the default layers of fid, kid and prc must be the same, not {defaults}")
    if logits_layer is not None and LOGITS not in logits_layer:
        logits_layer = None
    layers = layers_read(feature_layer, logits_layer)
    module = extractor_class(name, layers, feature_extractor_weights_path=weights, verbose=False)
    tensors = source.tensors_sha256(module.state_dict())
    widths = dict(zip(layers, _widths(module, layers, image_shape[1:]), strict=True))
    return ExtractorSpec(
        name=name,
        weights_path=weights,
        feature_layer=feature_layer,
        logits_layer=logits_layer,
        dimensions=widths[feature_layer],
        classes=widths[logits_layer] if logits_layer else None,
        **source.identity_of_code(class_source(extractor_class), tensors, weights),
    )


def _widths(module: Any, layers: list[str], size: Sequence[int]) -> list[int]:
    """The width d of each layer, (B, d), for noise of `size` (height, width)."""
    seeded = torch.Generator().manual_seed(0)  # a module may keep its input, which should not change its identity
    noise = torch.randint(256, (IMAGES, 3, *size), dtype=torch.uint8, generator=seeded)
    with torch.inference_mode():
        outputs = module.eval()(noise)
    if not isinstance(outputs, tuple) or len(outputs) != len(layers) or not all(map(_is_batch, outputs)):
        shapes = [getattr(output, "shape", type(output).__name__) for output in outputs]
        raise CustomCodeError(f"forward must return a tuple of one float (B, d) for each of {layers}, not {shapes}")
    return [output.shape[1] for output in outputs]


def layers_read(feature_layer: str, logits_layer: str | None) -> list[str]:
    """The layers to request from an extractor: features and, if any, logits. One layer may be both."""
    return [feature_layer] if logits_layer in (None, feature_layer) else [feature_layer, str(logits_layer)]


def find_class(name: str) -> Any:
    """The class that `package.module:Class` names; CustomCodeError if it is not a `FeatureExtractorBase`."""
    found = find(name)
    if not (isinstance(found, type) and issubclass(found, torch_fidelity.FeatureExtractorBase)):
        raise CustomCodeError(f"{name} must be a subclass of torch_fidelity.FeatureExtractorBase")
    return found


def class_source(extractor_class: type) -> source.SourceCode:
    """The source of the class's module, those of its bases, and all that these import."""
    modules = {base.__module__ for base in extractor_class.__mro__}
    return source.source_of({m for m in modules if m.partition(".")[0] not in source.NOT_USER_PACKAGES})


def _default_layer(extractor_class: Any, metric: str) -> str | None:
    try:
        layer: str = extractor_class.get_default_feature_layer_for_metric(metric)
    except KeyError:
        return None
    return layer


def _is_batch(output: object) -> bool:
    return (
        isinstance(output, torch.Tensor)
        and output.is_floating_point()
        and output.dim() == 2
        and len(output) == IMAGES
        and output.shape[1] > 0
    )
