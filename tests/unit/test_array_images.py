"""`taugrid.evaluate` takes images as Python code has them, and speaks of its arguments."""

import re

import numpy as np
import pytest
import torch
from snapshots import raises

import taugrid
from taugrid.errors import UserError
from taugrid.orchestrator.external import to_pixels

PIXELS = {"extractor": "pixels", "metrics": ["fid"], "progress": False}
GREY = np.random.default_rng(0).integers(0, 256, (40, 4, 5), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 3), np.uint8)


@pytest.mark.parametrize("same", [
    GREY[..., None], GREY[:, None], torch.tensor(GREY), torch.tensor(GREY)[:, None],
    torch.tensor(GREY / 255, requires_grad=True), (GREY / 255).astype(np.float32)[:, None],
    torch.tensor(GREY / 255).to(torch.float32),
], ids=lambda images: f"{type(images).__name__} {images.dtype} {tuple(images.shape)}")  # fmt: skip
def test_each_form_of_the_same_images_gives_the_same_pixels(same):
    assert np.array_equal(to_pixels("samples", same, (0, 1)), GREY[..., None])
    assert to_pixels("samples", same, (0, 1)).flags.c_contiguous


@pytest.mark.parametrize("images", [COLOUR, COLOUR.transpose(0, 3, 1, 2), torch.tensor(COLOUR).permute(0, 3, 1, 2)])
def test_channels_may_be_first_or_last(images):
    assert np.array_equal(to_pixels("samples", images, None), COLOUR)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floats_are_rounded_to_nearest_and_half_precision_only_where_it_can_not_say_more(dtype):
    values = torch.tensor([[[-1.0, 0.0, 1.0, 0.5]]], dtype=dtype)
    assert to_pixels("samples", values, (-1, 1)).ravel().tolist() == [0, 128, 255, 191]
    assert to_pixels("samples", (values + 1) / 2, (0, 1)).ravel().tolist() == [0, 128, 255, 191]


@pytest.mark.parametrize(("images", "value_range"), [
    (GREY / 255, None), (torch.zeros(2, 1, 4, 4), None), (np.full((2, 4, 4), np.nan), (0, 1)),
    (GREY.astype(np.int64), None), (GREY[0], None), (GREY[:0], None), (np.zeros((2, 4, 4, 4), np.uint8), None),
    (np.zeros((2, 3, 8, 3), np.uint8), None), (GREY, (0, 1)), (GREY / 128, (0, 1)),
])  # fmt: skip
def test_what_would_be_a_guess_is_refused_in_one_line(images, value_range):
    with raises(UserError):
        taugrid.evaluate(images, GREY, value_range=value_range, **PIXELS)


def test_tensors_are_scored_as_the_arrays_that_they_hold():
    by_array = taugrid.evaluate(GREY[:20], GREY[20:], **PIXELS)
    floats = torch.tensor(GREY[:20, None] / 255).float()
    by_tensor = taugrid.evaluate(floats, torch.tensor(GREY[20:]), value_range=(0, 1), **PIXELS)
    assert by_tensor["metrics"] == by_array["metrics"]
    assert by_tensor["samples"] == by_array["samples"]
    assert by_tensor["samples"]["kind"] == "array"


@pytest.mark.parametrize("given", [
    {"reference": "/absent/place"}, {"samples": "/absent/place"}, {"metrics": ["fud"]}, {"metric": ["fid"]},
    {"extractor": "inception-v3-compat", "weights": "/absent.pth"}, {"keep_features": False}, {"precision": "bf16"},
])  # fmt: skip
def test_errors_name_arguments_or_keys_and_no_options_of_the_command_line(given):
    with raises(UserError) as caught:
        taugrid.evaluate(**{"samples": GREY[:20], "reference": GREY[20:]} | PIXELS | given)
    assert re.search(r"--[a-z]", str(caught.value)) is None
