"""What one's own feature extractor gives: `python -m eval.describe_extractor package.module:Class C H W` prints JSON.

It runs in a process of its own (`eval.extractor_names.resolve`), because the class needs torch and the driver has none.
"""

import argparse
import ast
import hashlib
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch_fidelity

IMAGES = 2
"""How many images the extractor is tried on."""

NOT_ONES_OWN = {*sys.stdlib_module_names, "torch", "torch_fidelity"}
"""Packages whose classes are no part of an extractor's identity."""

TAUGRIDS = ("configs", "eval", "orchestrator", "workers")
"""taugrid's own packages, which are no part of it either, unless they hold the class."""

NOT_ONES_OWN_FOLDERS = [
    Path(sysconfig.get_path("stdlib")),
    *(Path(__file__).parents[1] / package for package in TAUGRIDS),
]
"""Where those lie, so that modules loaded by any name are told apart."""

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
    content = hashlib.sha256(f"{source} {_loaded_sha256()} {_state_sha256(module)}".encode()).hexdigest()
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
    """SHA-256 over the names and source files of the class's module, those of its bases, and all that these import.

    Imports are followed as they are written in the files, wherever in them, so that every process finds the same: into
    one's own modules, not into Python's, installed packages or taugrid. What is imported by a computed name is not
    seen.
    """
    own = [base for base in extractor_class.__mro__ if base.__module__.partition(".")[0] not in NOT_ONES_OWN]
    waiting = {base.__module__: Path(inspect.getfile(base)) for base in own}
    sources: dict[str, bytes] = {}
    while waiting:
        name, path = waiting.popitem()
        sources[name] = path.read_bytes()
        if _is_ones_own(path) and path.suffix == ".py":
            waiting |= {
                other: file for other in _imports(name, path) if other not in sources and (file := _file(other))
            }
    return _digest(sources.items())


def _imports(name: str, path: Path) -> set[str]:
    """The modules that the source file of the module `name` imports, with the packages that hold them and itself.

    What may be a module or a name in one is given too: `from a import b` gives a and a.b.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = {name}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:i]) for parts in (one.split(".") for one in found) for i in range(1, len(parts) + 1)}


def _file(name: str) -> Path | None:
    """The source file of a module of one's own; None for any other, and for what is no module. Imports nothing."""
    top, *parts = name.split(".")
    if not top or top in NOT_ONES_OWN or top in TAUGRIDS or top == "__main__":
        return None
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand, of no file
        return None
    for i in range(len(parts)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *parts[: i + 1]]), spec.submodule_search_locations)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin) if _is_ones_own(Path(spec.origin)) else None


def _is_ones_own(path: Path) -> bool:
    """Whether a file is neither Python's nor an installed package's nor taugrid's."""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return not installed and not any(map(path.is_relative_to, NOT_ONES_OWN_FOLDERS))


def _loaded_sha256() -> str:
    """Of the files of one's own modules that this process has loaded by now, by whatever name or means."""
    files = {name: Path(file) for name, module in sys.modules.items() if (file := getattr(module, "__file__", None))}
    own = {name: path for name, path in files.items() if _is_ones_own(path) and path.is_file()}
    return _digest((name, path.read_bytes()) for name, path in own.items())


def _state_sha256(module: torch.nn.Module) -> str:
    """Of all tensors in a module's state: their names, dtypes, shapes and values."""
    return _digest(_tensors(module))


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, bytes]]:
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            values = tensor.cpu().flatten().view(torch.uint8).numpy()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}", values.tobytes()


def _digest(contents: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names and the SHA-256 of what they name, sorted by name."""
    lines = sorted(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
    """Prints the description as JSON, in the last line."""
    parser = argparse.ArgumentParser(description="Print what a feature extractor gives, as JSON.")
    parser.add_argument("name", help="package.module:Class")
    parser.add_argument("shape", type=int, nargs=3, metavar="SIDE", help="channels, height and width of an image")
    parser.add_argument("--weights", help="its file of weights")
    arguments = parser.parse_args()
    sys.path.append(str(Path.cwd()))  # Ray's workers, too, import from the driver's folder
    channels, height, width = arguments.shape
    print(json.dumps(describe(arguments.name, arguments.weights, (channels, height, width))._asdict()))


if __name__ == "__main__":
    main()
