"""What a custom feature extractor gives, as JSON: `python -m taugrid.eval.features.custom package.module:Class C H W`.

It runs in a process of its own (`eval.features.names.resolve`), because the class needs torch and the driver has none.
"""

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch_fidelity

from taugrid.workers.custom import source as own_code
from taugrid.workers.custom.process import reply

IMAGES = 2
"""How many images the extractor is tried on."""

LOGITS = "logits"
"""One's own `isc` layer counts as a classifier's logits if this is in its name. torch-fidelity asks every extractor for
an `isc` layer, so that having one says nothing, and an Inception Score of mere features means nothing."""


class Description(NamedTuple):
    """The fields of an `ExtractorSpec` that only the class itself knows."""

    feature_layer: str
    logits_layer: str | None
    dimensions: int
    classes: int | None
    source_sha256: str
    content_sha256: str
    """Of the sources, of every file of one's own that was loaded for a forward pass, and of the weights that it used.
    It can't be known before the class is made, so that workers check `source_sha256` alone."""


def describe(name: str, weights: str | None, image_shape: tuple[int, int, int]) -> Description:
    """The layers and widths of the class `name` (`package.module:Class`), tried on noise of `image_shape` (C, H, W).

    FID, KID and precision/recall are computed from one layer, the class's default for `fid`. Grey images are given as
    RGB, as torch-fidelity does.

    Raises:
        TypeError: if it is no `FeatureExtractorBase`, or gives anything but a float (B, d) for each layer.
        ValueError: if its default layers for `fid`, `kid` and `prc` differ.
    """
    extractor_class = own_class(name)
    defaults = {metric: _default_layer(extractor_class, metric) for metric in ("fid", "kid", "prc", "isc")}
    feature_layer, logits_layer = defaults["fid"], defaults["isc"]
    if feature_layer is None or {defaults["kid"], defaults["prc"]} - {feature_layer, None}:
        raise ValueError(f"the default layers of fid, kid and prc must be one and the same, not {defaults}")
    if logits_layer is not None and LOGITS not in logits_layer:
        logits_layer = None
    layers = layers_read(feature_layer, logits_layer)
    module = extractor_class(name, layers, feature_extractor_weights_path=weights, verbose=False)
    seeded = torch.Generator().manual_seed(0)  # what a module keeps of its input should not change its identity
    noise = torch.randint(256, (IMAGES, 3, *image_shape[1:]), dtype=torch.uint8, generator=seeded)
    with torch.inference_mode():
        outputs = module.eval()(noise)
    if not isinstance(outputs, tuple) or len(outputs) != len(layers) or not all(map(_is_batch, outputs)):
        shapes = [getattr(output, "shape", type(output).__name__) for output in outputs]
        raise TypeError(f"forward must return a tuple of one float (B, d) for each of {layers}, not {shapes}")
    widths = {layer: output.shape[1] for layer, output in zip(layers, outputs, strict=True)}
    classes = widths[logits_layer] if logits_layer else None
    source = source_sha256(extractor_class)
    content = own_code.content_sha256(source, own_code.tensors_sha256(module.state_dict()))
    return Description(feature_layer, logits_layer, widths[feature_layer], classes, source, content)


def layers_read(feature_layer: str, logits_layer: str | None) -> list[str]:
    """What to ask an extractor for: features, and logits if there are any; one layer may be both."""
    return [feature_layer] if logits_layer in (None, feature_layer) else [feature_layer, str(logits_layer)]


def own_class(name: str) -> Any:
    """The class that `package.module:Class` names; TypeError if it is no `torch_fidelity.FeatureExtractorBase`."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, torch_fidelity.FeatureExtractorBase)):
        raise TypeError(f"{name} is no subclass of torch_fidelity.FeatureExtractorBase")
    return found


def source_sha256(extractor_class: type) -> str:
    """Of the class's module, those of its bases, and all that these import: see `own_code.source_sha256`."""
    own = [base for base in extractor_class.__mro__ if base.__module__.partition(".")[0] not in own_code.NOT_ONES_OWN]
    return own_code.source_sha256({base.__module__: Path(inspect.getfile(base)) for base in own})


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


def main() -> None:
    """Prints the description as JSON."""
    parser = argparse.ArgumentParser(description="Print what a feature extractor gives, as JSON.")
    parser.add_argument("name", help="package.module:Class")
    parser.add_argument("shape", type=int, nargs=3, metavar="SIDE", help="channels, height and width of an image")
    parser.add_argument("--weights", help="its file of weights")
    arguments = parser.parse_args()
    sys.path.append(str(Path.cwd()))  # Ray's workers, too, import from the driver's folder
    channels, height, width = arguments.shape
    reply(describe(arguments.name, arguments.weights, (channels, height, width))._asdict())


if __name__ == "__main__":
    main()
