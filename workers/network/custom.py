"""Custom networks (`model.callable: package.module:function`): describes one by trying it, loads it, checks it.

A network that expects another time, another input or another sign returns finite images of the right shape, and samples
noise. Its error on a few images of `data` shows that (`doubt`).
"""

import inspect
import math
import pickle
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taugrid.config import Data, Diffusion
from taugrid.errors import CustomCodeError, joined_lines, last_line
from taugrid.jobs import A_FUNCTION, NEEDS_MODULE, Conditions, CustomNetwork
from taugrid.workers import schedules
from taugrid.workers.accelerator.arithmetic import cast_weights, kind_of
from taugrid.workers.accelerator.policy import Policy, policy
from taugrid.workers.content import require_same, unchanged
from taugrid.workers.custom.describe import find, find_module
from taugrid.workers.custom.source import identity_of_code, source_of, tensors_sha256
from taugrid.workers.data.load import few_images, few_labels
from taugrid.workers.diffusion.denoiser import Denoise, Denoiser, FromTimes, OfTimes

TOLERANCE = 0.05
"""How far one image's prediction may move when it is computed again or in another batch, relative to the largest
output. Rounding in half precision moves it by 0.01, dropout or batch norm in training mode by about 1."""

MIXED_TYPES = re.compile(r"same d?type|should be the same|scalar type|mixed dtype|BFloat16")
"""Matches what torch says of a layer whose weights and input have different types."""


def load(network: CustomNetwork, device: str, how: Policy | None = None) -> Denoiser:
    """The network that was described when the run was planned, for inference on `device`.

    Raises:
        WorkerRefusal: if the source code, the file of weights or the network's tensors differ from the driver's.
        CustomCodeError: if the function does not return a network. Calling the network can raise it too, see `checked`.
    """
    name = network.callable
    module = name.partition(":")[0]
    find_module(module)
    source_of([module]).require(network.source_sha256, network.files, name)
    weights = nullcontext() if network.weights is None else unchanged(Path(network.weights), network.weights_sha256)
    with weights:  # the function opens the file itself
        made = make(name, network.weights)
    loaded = tensors_sha256(tensors(made))
    require_same(f"the network that {name} returns, by its weights,", loaded, network.tensors_sha256)
    return FromTimes(for_inference(made, name, device, how))


def make(name: str, weights: str | None) -> Any:
    """What the function `name` returns for the path `weights`: an `nn.Module`, or any function of x and t.
    `CustomCodeError` if there is no such function, it takes other arguments, or it returns something not callable."""
    function = find(name)
    if isinstance(function, nn.Module) or not callable(function):
        raise CustomCodeError(f"{name} is {type(function).__name__}, but must be a function that returns the network")
    arguments = () if weights is None else (weights,)
    called_with = "no argument (model.weights is not set)" if weights is None else "one, the path model.weights"
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise CustomCodeError(f"{name} is called with {called_with}, but: {error}") from None
    try:
        made = function(*arguments)
    except pickle.UnpicklingError as error:  # torch's text advises to open it all the same
        raise CustomCodeError(
            f"{name} can't open {weights or 'its file'} as tensors: it is a pickle of more than these, or none; where "
            "it was made, torch.save the network's state_dict(), and load that"
        ) from error
    if not callable(made) or isinstance(made, type):
        raise CustomCodeError(f"{name} returned {type(made).__name__}, not an nn.Module or a function of x and t")
    return made


def describe(
    name: str,
    weights: str | None,
    image_shape: tuple[int, int, int],
    diffusion: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> CustomNetwork:
    """What the function `name` returns, tried on the CPU on two images of noise of `image_shape` (C, H, W).

    `diffusion` is resolved. With the section `data`, the network's error on noised images is looked at too (`doubt`).

    Raises `CustomCodeError` if it can't be used as a network of this process, or differs from one process of the system
    to another: see `_try`, `make` and `checked`."""
    section = Diffusion.model_validate(diffusion)
    inputs = _inputs(image_shape, section)
    made = make(name, weights)
    takes = conditions_of(made, name, len(inputs) - 1)
    state = tensors_sha256(tensors(made))
    network = for_inference(made, name, "cpu")
    unlabelled, inputs = inputs, inputs if takes is None else (*inputs, torch.tensor([0, takes.classes - 1]))
    output = _try(network, name, expected(section), *inputs)
    if takes is not None and takes.null_label is not None:
        _try(network, name, expected(section), *unlabelled, torch.tensor([takes.null_label, 0]))
    identity = identity_of_code(source_of([name.partition(":")[0]]), state, weights)
    T, summary = section.timesteps or 1, A_FUNCTION
    if isinstance(made, nn.Module):
        summary = f"{type(made).__name__}, {sum(each.numel() for each in made.parameters()):,} parameters"
    description = CustomNetwork(
        callable=name,
        weights=weights,
        image_shape=image_shape,
        summary=summary,
        takes_fractions=section.process is not None or T == 1 or _takes_fractions(network, T, *inputs),
        conditions=takes,
        doubt=None if data is None else doubt(network, name, section, Data.model_validate(data), takes),
        **identity,
    )
    del made, network  # two large networks may not fit into memory
    again = make(name, weights)
    same_tensors = tensors_sha256(tensors(again)) == state
    with torch.no_grad():
        same_output = _is_close(for_inference(again, name, "cpu")(*inputs), output)
    if not (same_tensors and same_output):
        raise CustomCodeError(
            f"{name} returned two different networks when it was called twice, so workers would get different ones: "
            "have it load its weights, or call torch.manual_seed first"
        )
    return description


def conditions_of(made: Any, name: str, times: int = 1) -> Conditions | None:
    """The labels that a network takes: a result that has `num_classes` and `null_label` and takes (x, t, label). None:
    it is a function of x and t. Flow maps have two `times`, t and r. `CustomCodeError` if it can be called with one
    more argument alone and says no classes, or says impossible ones."""
    classes, null_label = (getattr(made, key, None) for key in ("num_classes", "null_label"))
    takes_labels = _takes(made, times + 2)
    if classes is None or not hasattr(made, "null_label"):
        if _takes(made, times + 1) or not takes_labels:
            return None
        flow_map = "; for a flow map of (x, t, r), set diffusion.prediction: average_velocity" if times == 1 else ""
        raise CustomCodeError(
            f"the network of {name} takes {('three', 'four')[times - 1]} arguments: for labels, give what the function "
            f"returns the attributes num_classes and null_label (None, if it was not trained with one){flow_map}"
        )
    if not takes_labels:
        return None
    if type(classes) is not int or not 0 < classes < 2**31:
        raise CustomCodeError(f"num_classes of the network of {name} must be a positive whole number, not {classes!r}")
    if null_label is not None and (type(null_label) is not int or 0 <= null_label < classes):
        raise CustomCodeError(
            f"null_label of the network of {name} must be None or a whole number that is no class, such as "
            f"num_classes = {classes}, not {null_label!r}"
        )
    return Conditions(classes, null_label)


def _takes(made: Any, count: int) -> bool:
    """Whether a network can be called with so many arguments, as far as its signature says."""
    try:
        inspect.signature(made.forward if isinstance(made, nn.Module) else made).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # it has none, as some that are written in C
        return True
    return True


@torch.no_grad()  # as the sampler does
def _try(network: OfTimes, name: str, call: str, x: Tensor, t: Tensor, *others: Tensor) -> Tensor:
    """The network's output for `_inputs`; CustomCodeError unless each image's depends only on its x, t and label.
    `call` says how it is called."""
    before, labels = [value.clone() for value in (x, *others)], [each for each in others if each.dtype == torch.int64]
    told = f"at the times {t.tolist()}, {t.dtype}" + "".join(f", and the labels {each.tolist()}" for each in labels)
    try:
        output = network(x, t, *others)
    except (IndexError, RuntimeError, TypeError) as error:
        said = re.sub(r"^\S*<locals>\.", "", joined_lines(error))[:200]
        raise CustomCodeError(f"the network of {name} can't be called as {call}, {told} ({said})") from error
    if not output.isfinite().all():
        raise CustomCodeError(f"the network of {name} returned nan or infinity for noise, called as {call}, {told}")
    if not all(map(torch.equal, (x, *others), before)):
        raise CustomCodeError(
            f"the network of {name} changed in place what it was given, but sampling still needs it: use x.clone()"
        )
    alone = torch.cat([network(*(each[i : i + 1] for each in (x, t, *others))) for i in range(len(x))])
    if not _is_close(alone, output):
        other_class, or_label = (" and of another class", "or label ") if labels else ("", "")
        raise CustomCodeError(
            f"the network of {name} predicts something different for an image when it is called again, or alone than "
            f"in a batch with an image at a different time{other_class}: is dropout on, batch norm in training mode, "
            f"or one t {or_label}used for all images? taugrid calls eval() only on an nn.Module that the function "
            "returns"
        )
    return output


@torch.no_grad()
def _takes_fractions(network: OfTimes, timesteps: int, x: Tensor, t: Tensor, *labels: Tensor) -> bool:
    """Whether a network works between whole times, and rounds none of them to a neighbour."""
    before = torch.tensor([0, timesteps - 2])
    try:
        between = network(x, before + 0.5, *labels)
    except Exception:  # user code, and an embedding of integers fails in many ways
        return False
    low, high = network(x, before, *labels), network(x, before + 1, *labels)
    return torch.equal(low, high) or not (torch.equal(between, low) or torch.equal(between, high))


def _inputs(image_shape: tuple[int, int, int], diffusion: Diffusion) -> tuple[Tensor, ...]:
    """Two images of noise, (2, C, H, W) float32, and two times that the network is told, (2,), int64 for indices.

    Those are the first and last index of DDPM's process, and else of a path of two steps, as float32. A flow map is
    told where these lead too.

    One image has less contrast. Otherwise, a batch norm that takes its statistics from the batch would hardly show."""
    seeded = torch.Generator().manual_seed(0)  # a network may keep its input, which should not change its identity
    x = torch.randn(2, *image_shape, generator=seeded)
    times: tuple[Tensor, ...]
    times, contrast = (torch.tensor([0, (diffusion.timesteps or 1) - 1]),), torch.tensor([0.5, 1.0])
    if diffusion.process is not None:
        process = schedules.process(diffusion)
        points = [process.at(t) for t in process.spaced("linear", 2)]
        contrast = torch.tensor([0.5, 1.0 if process.preconditioning(points[1]) else points[1].sigma])
        times = (torch.tensor([at.time for at in points], dtype=torch.float32),)
    if diffusion.prediction == "average_velocity":
        times += (times[0] / 2,)
    return x * contrast.view(2, 1, 1, 1), *times


def _is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


def tensors(network: Any) -> dict[str, Any]:
    """The tensors that a network holds, by name, as far as they are visible from outside. Of an `nn.Module` that is its
    state; of any other function the tensors, and the states of modules, that its body names (in closures and among
    globals) or that are attributes of its object."""
    if isinstance(network, nn.Module):
        return network.state_dict()
    owner = getattr(network, "__self__", network)
    reached: dict[str, Any] = {"self": owner, **getattr(owner, "__dict__", {})}
    if inspect.isfunction(network) or inspect.ismethod(network):
        named = inspect.getclosurevars(network)
        reached |= {**named.nonlocals, **named.globals}
    tensors_by_name: dict[str, Any] = {name: value for name, value in reached.items() if isinstance(value, Tensor)}
    for name, value in reached.items():
        if isinstance(value, nn.Module):
            tensors_by_name |= {f"{name}.{key}": tensor for key, tensor in value.state_dict().items()}
    return tensors_by_name


def for_inference(made: Any, name: str, device: str, how: Policy | None = None) -> OfTimes:
    """`made` as an `OfTimes` whose every output is `checked`. A module is moved to `device`, set to evaluation mode,
    called in inference mode, and its weights are cast, if `how` says so. Any other function is left alone: it may need
    gradients, or choose its devices itself. The memory format stays: not every network works with another one."""
    how = how or policy(kind_of(device))
    if how.weights is not None:
        if not isinstance(made, nn.Module):
            raise CustomCodeError(f"{name} {NEEDS_MODULE}")
        cast_weights(made, how.weights)
    function = made.to(device).eval() if isinstance(made, nn.Module) else made
    if how.compile != "none":
        from taugrid.workers.accelerator.compiled import by_torch

        function = by_torch(function, how.layout)

    def network(x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        try:
            return checked(function(x, t, *labels), x, name)
        except RuntimeError as error:
            if how.weights is None or not MIXED_TYPES.search(str(error)):
                raise
            raise CustomCodeError(
                f"the network of {name} does not compute with weights in bf16 ({last_line(error)[:200]}): cast what it "
                "makes of t to x.dtype before its layers, or set sample.precision: bf16, which is autocast"
            ) from error

    return torch.inference_mode()(network) if isinstance(made, nn.Module) else network


def checked(output: object, x: Tensor, name: str) -> Tensor:
    """`output` as float32, if it is a possible prediction for x, (B, C, H, W).

    float64 is rounded, which loses nothing that sampling in float32 would keep. Half precision is refused rather than
    converted: samples are recorded as coming from a float32 network, and weights saved in half precision are usually a
    mistake. With `sample.precision: bf16` and the like, the type of autocast or of x is what was asked for.
    `CustomCodeError` if it is not a tensor, or its shape, dtype or device is wrong."""
    device = x.device.type
    of_autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    found = type(output).__name__
    if isinstance(output, Tensor):
        is_like_x = (output.shape, output.device) == (x.shape, x.device)
        if is_like_x and output.dtype in (torch.float32, torch.float64, x.dtype, of_autocast):
            return output.float()
        found = f"{tuple(output.shape)} {output.dtype} on {output.device}"
    wanted = f"{tuple(x.shape)} {torch.float32} on {x.device}"
    raise CustomCodeError(f"the network of {name} returned {found}, but must return one tensor, {wanted}")


LEVELS = (0.5, 1.0, 2.0)
"""Noise levels sigma / alpha, in standard deviations of the images. At much more noise no network does better than a
guess, and at much less EDM's does well whatever it is told."""

POOR = 1.1
"""The mean error above which a network is doubted. A trained one of Fashion-MNIST has 0.13, and 1.2 to 4.4 if its
output or its input is another process's. Told a wrong time it may see the noise, and has 0.24 to 0.35."""


def expected(diffusion: Diffusion) -> str:
    """How a network of a resolved `diffusion` is called, and what it returns, in a few words."""
    predicts = diffusion.predicts
    if diffusion.process == "flow":
        scale = "" if diffusion.timesteps == 1 else f"{diffusion.timesteps} "
        times = f"{scale}t, {scale}r" if predicts == "average_velocity" else f"{scale}t"
        end = {"sample": "x_0", "average_velocity": "u"}.get(predicts, "eps - x_0")
        return f"network(x, {times}) = {end} with t in [0, 1] and t = 0 at the image"
    if diffusion.process == "edm":
        sigma_data = f"with sigma_data {diffusion.sigma_data:g}"
        return {
            "sample": "network(x, sigma) = x_0",
            "edm": f"network(c_in x, ln(sigma) / 4) = F {sigma_data}",
            "v_prediction": f"network(c_in x, ln(sigma) / 4) = -F {sigma_data}",
            "consistency": f"network(c_in x, 250 ln(sigma)) = F {sigma_data}",
        }[predicts]
    return f"network(x, index) = {predicts} with the index in 0..{(diffusion.timesteps or 1) - 1}"


def doubt(network: OfTimes, name: str, diffusion: Diffusion, data: Data, takes: Conditions | None) -> str | None:
    """A line that says how the network is called and its errors, if it does not denoise images of `data`; else None.

    An error is the squared error of x_0 over that of the best linear estimate, which moves x towards the images' mean.
    The mean alone would be too easy to beat: EDM's c_skip x does that with any network.

    Images that are not here, and distilled networks, whose x_0 is the end of a path, are not judged. `network` is for
    inference on the CPU, `diffusion` resolved."""
    channels, height, width = data.image_shape
    count = min(64, max(4, 4096 // (channels * height * width)))
    is_distilled = diffusion.predicts in ("consistency", "average_velocity")
    if is_distilled or (pixels := few_images(data, count)) is None or pixels.min() == pixels.max():
        return None
    x0 = torch.from_numpy(pixels).float() / 127.5 - 1
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    process, variance, errors = schedules.process(diffusion), float(x0.var()), list[float]()
    condition = None
    if takes is not None and takes.null_label is not None:
        condition = torch.full((len(x0),), takes.null_label)
    elif takes is not None:
        own = few_labels(data, len(x0))
        condition = (torch.arange(len(x0)) if own is None else torch.from_numpy(own).long()) % takes.classes
    denoise = Denoise(FromTimes(network), process, condition=condition)
    for deviations in LEVELS:
        level = deviations * math.sqrt(variance)  # or else the least that the process has
        told = process.told_within([0, level])[-1:] or process.told_within([level, 1e9])[:1]
        at = process.told(told[0])
        try:
            error = float((denoise(at.alpha * x0 + at.sigma * eps, at).x0 - x0).square().mean())
        except Exception:  # user code may fail in any way where it is not called as it expects
            error = math.nan
        errors.append(error * (variance + at.ratio**2) / (variance * at.ratio**2))
    if sum(errors) <= POOR * len(errors):
        return None
    levels, shown = (", ".join(f"{number:.2g}" for number in numbers) for numbers in (LEVELS, errors))
    return (
        f"the network of {name} does not denoise: called as {expected(diffusion)}, on images of {data.full_name} with "
        f"noise of {levels} standard deviations, its squared error of x_0 is {shown} times that of a linear estimate; "
        "is it trained, and is it to be called so?"
    )
