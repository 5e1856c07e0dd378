"""Counts what one call of a network costs a GPU, without a GPU: kernels, bytes moved, and the peak of memory.

The call is traced with tensors of torch's device `meta`, which have shapes and strides and no data. Where CUDA's
kernels differ from what torch would run for `meta`, they are modelled here; each model names its source in torch 2.13.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")

aten = torch.ops.aten

IN_HALF = frozenset((
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
    "_convolution", "addmm", "matmul", "mm", "linear", "baddbmm", "bmm", "einsum", "scaled_dot_product_attention",
))  # fmt: skip
"""What CUDA's autocast computes in half precision (ATen/autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP)."""

IN_FLOAT32 = frozenset((
    "group_norm", "layer_norm", "rms_norm", "exp", "log", "pow", "rsqrt", "reciprocal", "softplus", "softmax", "sum",
    "cumsum", "prod", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
))  # fmt: skip
"""What it computes in float32 (AT_FORALL_FP32, AT_FORALL_FP32_SET_OPT_DTYPE)."""

FREE = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))
"""Calls that reserve memory and launch nothing."""

VIEWS = frozenset(("_unsafe_view", "detach", "alias", "lift_fresh", "_reshape_alias"))
"""Calls that return a view, though not all of their schemas say so."""

FUSED_ATTENTION_BYTES = 16
"""CUDA's fused attention kernels load rows of a head in pieces of this size (cuda/sdp_utils.cpp)."""


@dataclass
class Count:
    """What one call costs."""

    kernels: Counter[str] = field(default_factory=Counter)
    """Kernels launched, by name."""
    bytes: int = 0
    """Bytes of the inputs and outputs of all kernels."""
    peak: int = 0
    """The most bytes that were live at once: x and all that was computed, not the network's weights."""

    @property
    def launches(self) -> int:
        """Kernels launched in all."""
        return self.kernels.total()


def count(call: Callable[..., Any], *inputs: Tensor, autocast: torch.dtype | None = None) -> Count:
    """What `call(*inputs)` costs a GPU in inference mode; inputs are of the device `meta`.

    Tensors that the call finds elsewhere, such as weights, may be on any device: none is read or changed, and what is
    computed from them counts as if it were on the GPU. `autocast`: the type that autocast, which has no effect on
    `meta`, would compute in.

    Raises:
        RuntimeError: or another error, if the call reads values, or an operator can't be traced.
    """
    mode = Counting(autocast)
    mode.memory.hold(inputs)
    with torch.inference_mode(), mode:
        call(*inputs)
    return replace(mode.count, peak=mode.memory.peak)


def without_data(module: nn.Module) -> Any:
    """A copy of a module whose parameters and buffers are of the device `meta`. Calling it changes nothing of it."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    return copy.deepcopy(module, memo)


class LiveMemory:
    """The memory that tensors hold, from when they are made until the last view of it is gone."""

    def __init__(self) -> None:
        self.bytes = 0
        self.peak = 0
        self._held: dict[int, Any] = {}  # id of a storage -> the reference that notices its end

    def hold(self, outputs: Any, inputs: Any = (), workspace: int = 0) -> None:
        """Count memory of `outputs` that is not memory of `inputs`; `workspace` is held only meanwhile."""
        of_inputs = {id(tensor.untyped_storage()) for tensor in _tensors(inputs)}
        for tensor in _tensors(outputs):
            storage = tensor.untyped_storage()
            if id(storage) in of_inputs or id(storage) in self._held:
                continue
            self._held[id(storage)] = ref(storage, partial(self._freed, id(storage), storage.nbytes()))
            self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes + workspace)

    def _freed(self, key: int, size: int, _: Any) -> None:
        del self._held[key]
        self.bytes -= size


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the kernels that CUDA would launch for the calls within the context."""

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = Count()
        self._autocast = autocast
        self.memory = LiveMemory()
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}  # id of a tensor with data -> itself and its meta twin

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What `func` returns, on `meta`. Calls of the host alone, such as tables of constants, stay there."""
        kwargs = kwargs or {}
        if not _is_on_device(args, kwargs):
            return func(*args, **kwargs)
        args, kwargs = tree_map(self._without_data, (args, kwargs))
        name = func.overloadpacket.__name__
        with self._cast(name, args) as args:
            if (model := MODELS.get(name)) is not None:
                return model(self, func, *args, **kwargs)
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
                with self:  # not `func.decompose`, which prefers Python's versions of composites
                    return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
            launches = 0 if func.is_view or name in VIEWS | FREE else 1
            return self.kernel(name, func(*args, **kwargs), (args, kwargs), launches)

    def kernel(self, name: str, outputs: T, inputs: Any, launches: int = 1, workspace: int = 0) -> T:
        """Note a kernel that reads `inputs` and writes `outputs`, which it returns."""
        self.memory.hold(outputs, inputs, workspace)
        if launches:
            self.count.kernels[name] += launches
            self.count.bytes += _bytes((inputs, outputs))
        return outputs

    def copied(self, tensor: Tensor, layout: torch.memory_format) -> Tensor:
        """`tensor` in a memory format, with a kernel if that takes a copy."""
        copy = tensor.contiguous(memory_format=layout)
        return tensor if copy is tensor else self.kernel("to_layout", copy, tensor)

    def _without_data(self, value: Any) -> Any:
        """A tensor without data in place of one that has some; `meta` in place of any device."""
        if isinstance(value, torch.device):
            return torch.device("meta")
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        if id(value) not in self._twins:
            twin = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            twin.requires_grad = value.requires_grad
            self._twins[id(value)] = value, twin
        return self._twins[id(value)][1]

    @contextmanager
    def _cast(self, name: str, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """The arguments of a call in the type that autocast chooses for it; what it calls in turn is not cast."""
        autocast = self._autocast
        if autocast is None or name not in IN_HALF | IN_FLOAT32:
            yield args
            return
        dtype = autocast if name in IN_HALF else torch.float32

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        self._autocast = None
        try:
            with self:
                args = tree_map(cast, args)
            yield args
        finally:
            self._autocast = autocast


def _is_on_device(args: Any, kwargs: Any) -> bool:
    """Whether a call is the GPU's: a tensor of it, or a device that it names, is not the host."""
    values = tree_leaves((args, kwargs))
    devices = [value.device if isinstance(value, Tensor) else value for value in values]
    return any(isinstance(device, torch.device) and device.type != "cpu" for device in devices)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _bytes(values: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(values))


# CUDA's kernels


def _convolution(on: Counting, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    """CuDNN's convolution, then a kernel that adds the bias (native/Convolution.cpp).

    x and weight are both copied to channels_last if one of them has that layout (native/ConvUtils.h,
    `_conv_suggest_memory_format_impl`; native/cudnn/ConvShared.cpp). The workspace is an estimate, for the largest of
    cuDNN's usual kernels: Winograd's F(4 x 4, 3 x 3) in three passes keeps 36 transformed values for each 4 x 4 of x
    and of the output, and for each 3 x 3 of the weight. Kernels for the other layout need a copy of each: less.
    """
    plain = torch.contiguous_format
    layout = next((each for each in map(suggest_memory_format, (x, weight)) if each != plain), plain)
    x, weight = on.copied(x, layout), on.copied(weight, layout)
    output: Tensor = func(x, weight, None, *args).contiguous(memory_format=layout)
    on.kernel("convolution", output, (x, weight), workspace=int(2.25 * _bytes((x, output))) + 4 * _bytes(weight))
    return output if bias is None else on.kernel("add_bias", output, (output, bias))


def _group_norm(
    on: Counting, func: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, C: int, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Three kernels, of contiguous images only (native/group_norm.cpp; cuda/group_norm_kernel.cu)."""
    x = on.copied(x, torch.contiguous_format)
    output, mean, rstd = func(x, weight, bias, N, C, *args)
    factors = torch.empty(2, N, C, device="meta")
    on.kernel("group_norm_moments", (mean, rstd), x)
    on.kernel("group_norm_factors", factors, (mean, rstd, weight, bias))
    on.kernel("group_norm", output, (x, factors))
    return output, mean, rstd


def _linear(on: Counting, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One kernel with the bias in it, or a product and a kernel that adds the bias (native/Linear.cpp, `linear`).

    x that is no matrix to a view is copied if the weight can have gradients, though none are computed; else it is a
    batch of products (native/LinearAlgebra.cpp, `should_fold`).
    """
    output = x.new_empty(*x.shape[:-1], len(weight))
    if bias is not None and (x.dim() == 2 or (x.dim() == 3 and x.is_contiguous())):
        return on.kernel("addmm", output, (x, weight, bias))
    if weight.requires_grad and x.dim() > 2 and not x.is_contiguous():
        x = on.copied(x, torch.contiguous_format)
    on.kernel("mm", output, (x, weight))
    return output if bias is None else on.kernel("add_bias", output, (output, bias))


def _attention(on: Counting, func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One fused kernel, or torch's plain formula (cuda/sdp_utils.cpp): flash in half precision, else mem_efficient."""
    rows = (tensor.shape[-1] * tensor.element_size() for tensor in (q, k, v))
    if q.dim() != 4 or q.dtype == torch.float64 or any(row % FUSED_ATTENTION_BYTES for row in rows):
        with on:
            output: Tensor = aten._scaled_dot_product_attention_math(q, k, v, *args, **kwargs)[0]
        return output
    batch, heads, length, _ = q.shape
    output = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
    return on.kernel("attention", output, (q, k, v))


def _pad(on: Counting, func: Any, x: Tensor, *args: Any) -> Tensor:
    """The whole output is filled, then x copied into it (native/PadNd.cpp, `constant_pad_nd`)."""
    output: Tensor = on.kernel("fill", func(x, *args), ())
    on.kernel("copy", (), (x, x))
    return output


MODELS: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "native_group_norm": _group_norm,
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "constant_pad_nd": _pad,
}
"""Calls whose kernels on CUDA are not torch's own for `meta` -> what CUDA does."""
