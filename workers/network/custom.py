"""One's own network, `model.callable: package.module:function`: making it, and saying plainly what is wrong with it."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from taugrid.hashing import file_sha256
from taugrid.jobs import CustomNetwork
from taugrid.workers.custom import source as own_code

BatchedDenoiser = Callable[[Tensor, Tensor], Tensor]
"""What a network predicts from x, (B, C, H, W) float32, and the index 0..T-1 of each image's time step, (B,) int64."""


class UnusableNetwork(ValueError):
    """What is wrong with one's own network, in one line."""


def load(own: CustomNetwork, device: str) -> BatchedDenoiser:
    """The network of `own` on `device`, for inference: the same that was described where the run was started.

    Raises:
        UnusableNetwork: if the source code, the file of weights or the tensors differ from those described, or the
            function does not return a network. So does a call of the network, see `checked`.
    """
    if source_sha256(own.callable) != own.source_sha256:
        raise UnusableNetwork(f"{own.callable} has other source code on this machine than where the run was started")
    if own.weights is not None:
        _check_weights(Path(own.weights), own.weights_sha256)
    made = make(own.callable, own.weights)
    if own_code.tensors_sha256(tensors(made)) != own.tensors_sha256:
        raise UnusableNetwork(
            f"{own.callable} returns other weights on this machine than where the run was started; have it load them "
            "from files that every worker sees"
        )
    return for_inference(made, own.callable, device)


def _check_weights(path: Path, expected: str) -> None:
    if not path.is_file():
        raise UnusableNetwork(
            f"model.weights: there is no file {path} on this machine; put it where every worker sees it"
        )
    found = file_sha256(path)
    if found != expected:
        raise UnusableNetwork(
            f"model.weights: {path} has SHA-256 {found[:12]}... here, not {expected[:12]}... as planned"
        )


def make(name: str, weights: str | None) -> Any:
    """What the function `name` returns for the path `weights`: an `nn.Module`, or any function of x and t.

    Raises:
        UnusableNetwork: if there is no such function, it takes other arguments, or it returns nothing to be called.
    """
    function = _function(name)
    arguments = () if weights is None else (weights,)
    called_with = "no argument (model.weights is not set)" if weights is None else "one, the path model.weights"
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UnusableNetwork(f"{name} is called with {called_with}, but: {error}") from None
    made = function(*arguments)
    if not callable(made) or isinstance(made, type):
        raise UnusableNetwork(
            f"{name} returned {_kind(made)}, no network: return an nn.Module, or a function of x and t"
        )
    return made


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that it imports is missing
        raise UnusableNetwork(
            f"there is no module {error.name!r}, neither in the current folder {Path.cwd()} nor on Python's path"
        ) from None


def _function(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    module = _module(module_name)
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UnusableNetwork(f"the module {module_name} has no {attribute!r}{hint}")
    found = getattr(module, attribute)
    if isinstance(found, nn.Module) or not callable(found):
        raise UnusableNetwork(f"{name} is {_kind(found)}, but must be a function that returns the network")
    return found


def source_sha256(name: str) -> str:
    """SHA-256 of the source files of the module of `name`, which is imported, and of what it imports.

    Raises:
        UnusableNetwork: if there is no such module, or it has no file.
    """
    module_name = name.partition(":")[0]
    file = _module(module_name).__file__
    if file is None:
        raise UnusableNetwork(f"the module {module_name} has no source file to know it by")
    return own_code.source_sha256({module_name: Path(file)})


def tensors(network: Any) -> dict[str, Any]:
    """The tensors that a network holds, as far as they can be seen from outside, by name.

    Of an `nn.Module` its state. Of any other function: what modules and tensors hold that its body names (in closures
    and among globals), or that are attributes of the object that it is or is a method of.
    """
    if isinstance(network, nn.Module):
        return network.state_dict()
    owner = getattr(network, "__self__", network)
    held: dict[str, Any] = {"self": owner, **getattr(owner, "__dict__", {})}
    if inspect.isfunction(network) or inspect.ismethod(network):
        named = inspect.getclosurevars(network)
        held |= {**named.nonlocals, **named.globals}
    found: dict[str, Any] = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    for name, value in held.items():
        if isinstance(value, nn.Module):
            found |= {f"{name}.{key}": tensor for key, tensor in value.state_dict().items()}
    return found


def for_inference(made: Any, name: str, device: str) -> BatchedDenoiser:
    """`made` as a `BatchedDenoiser` whose every output is `checked`.

    A module is moved to `device`, set to evaluation and called in inference mode. Any other function is left alone: it
    may need gradients, or choose its own devices.
    """
    if not isinstance(made, nn.Module):
        return lambda x, t: checked(made(x, t), x, name)
    module = made.to(device).eval()

    @torch.inference_mode()
    def network(x: Tensor, t: Tensor) -> Tensor:
        return checked(module(x, t), x, name)

    return network


def checked(output: object, x: Tensor, name: str) -> Tensor:
    """`output` as float32, if it can be what a network predicts for x, (B, C, H, W).

    float64 is rounded, which loses nothing that sampling in float32 would keep. Half precision is refused rather than
    converted: samples are recorded as float32's, and a file saved in half is the usual reason.

    Raises:
        UnusableNetwork: if it is no tensor, or of another shape, dtype or device.
    """
    if not isinstance(output, Tensor):
        hint = (
            "return its .sample" if isinstance(getattr(output, "sample", None), Tensor) else "return the tensor alone"
        )
        raise UnusableNetwork(f"the network of {name} returned {_kind(output)}, no tensor: {hint}")
    if output.shape != x.shape:
        doubled = output.dim() == x.dim() and output.shape[1] == 2 * x.shape[1]
        hint = f" (a learned variance? return only [:, :{x.shape[1]}])" if doubled else ""
        raise UnusableNetwork(
            f"the network of {name} returned the shape {tuple(output.shape)} for x of shape {tuple(x.shape)}, which it "
            f"must keep{hint}"
        )
    if output.dtype not in (torch.float32, torch.float64):
        hint = "; end it with .float() if half precision is meant" if output.is_floating_point() else ""
        raise UnusableNetwork(f"the network of {name} returned {output.dtype}, but must return torch.float32{hint}")
    if output.device != x.device:
        raise UnusableNetwork(f"the network of {name} returned a tensor on {output.device} for x on {x.device}")
    return output.float()


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
