"""Sampling in memory on a device without float64, as Apple's: the images are those of a CPU."""

import numpy as np
import pytest
import torch
from snapshots import raises
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import taugrid
from taugrid.errors import UserError
from taugrid.workers.diffusion import interpolation, noise
from taugrid.workers.diffusion.process import predict_eps

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (3, 8, 8)


class There(torch.Tensor):
    """A tensor that says that it is on the device `meta`, which torch knows everywhere; its values are on the CPU."""

    @staticmethod
    def __new__(cls, values):
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, device="meta", **layout)

    def __init__(self, values):
        self.values = values

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise NotImplementedError(operation)


class Apple(TorchDispatchMode):
    """A device that computes, but not in float64. The error's text is torch's (aten/src/ATen/mps)."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = []

        def here(x):
            if isinstance(x, There):
                given.append(x)
                return x.values
            return x

        args, kwargs = tree_map(here, (args, dict(kwargs or {})))
        is_there = bool(given)
        if kwargs.get("device") is not None:
            is_there, kwargs["device"] = torch.device(kwargs["device"]).type == "meta", torch.device("cpu")

        def there(x):
            if not is_there or not isinstance(x, torch.Tensor):
                return x
            if x.dtype == torch.float64:
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
                )
            return There(x)

        return tree_map(there, operation(*args, **kwargs))


@pytest.fixture
def apple(monkeypatch):
    tensor = torch.tensor

    def made(*values, device=None, **options):  # torch makes one for `meta` without values
        return tensor(*values, **options) if device is None else tensor(*values, **options).to(device)

    monkeypatch.setattr(torch, "tensor", made)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # torch has none for `meta`
    monkeypatch.setattr(noise, "WITHOUT_FLOAT64", {"meta"})


def network(x, t):
    return x / 2 + t.float()[:, None, None, None] / 1000


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eta": 1.0},
        {"clip": "x0"},
        *({"sampler": name} for name in ("dpm++2m", "dpm++3m", "unipc", "heun")),
        {"model": {"oracle": "gaussian"}},
        {"model": {"oracle": "gaussian"}, "diffusion": {"process": "flow"}, "sampler": "heun"},
        {
            "model": {"oracle": "gaussian"}, "diffusion": {"process": "edm"}, "sampler": "edm-heun",
            "sampler_options": {"S_churn": 1.0},
        },
    ],
    ids=str,
)  # fmt: skip
def test_images_are_those_of_a_cpu(apple, settings):
    """Defect 12: noise in float64 on the device (`WITHOUT_FLOAT64` empty) ends in torch's TypeError."""
    settings = {"model": network, "indices": 5, "shape": SHAPE, "steps": 4} | settings
    expected = taugrid.sample(**settings)
    with Apple():
        found = taugrid.sample(**settings, device="meta")
    assert np.array_equal(found, expected)


def test_so_are_interpolations(apple):
    """Defect 12: `a.double()` in `slerp`, or fractions that are made on the device."""
    ends = noise.normal(0, torch.arange(4), 0, (2, 3))
    alpha_bar = torch.linspace(0.1, 0.9, 4)
    expected = interpolation.rows(ends, 3), interpolation.square(ends, 3), predict_eps(ends, ends / 2, alpha_bar)
    with Apple():
        there, at = ends.to("meta"), alpha_bar.to("meta")
        found = interpolation.rows(there, 3), interpolation.square(there, 3), predict_eps(there, there / 2, at)
    for here, elsewhere in zip(expected, found, strict=True):
        assert elsewhere.device.type == "meta"
        assert torch.equal(elsewhere.values, here)


def test_the_simulated_device_refuses_float64_as_apples_does():
    with Apple(), raises(TypeError):
        torch.arange(3, device="meta").double()


def test_apples_devices_are_known_to_have_none():
    assert {"mps"} == noise.WITHOUT_FLOAT64


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is such a device")
def test_where_there_is_none_one_line_says_so():
    with pytest.raises(UserError, match=r"mps can't be used.*device='cpu'"):
        taugrid.sample(network, 5, shape=SHAPE, steps=4, device="mps")
