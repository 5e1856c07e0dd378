"""The policy of arithmetic: what is decided for each kind of device and precision."""

import pytest

from taugrid.workers.accelerator.policy import ATTENTION, Policy, policy

CPU = Policy("channels_last", False, None, None, ATTENTION, pads=False)
BARE = Policy("contiguous", False, None, None, ATTENTION, pads=True)
TENSOR_CORES = BARE._replace(layout="channels_last")


@pytest.mark.parametrize(
    ("asked", "decided"),
    [
        (("cpu",), CPU),
        (("cpu", "float32", "default"), CPU._replace(pads=True)),
        (("cpu", "bf16"), CPU._replace(autocast="bfloat16")),
        (("cpu", "bf16-weights"), CPU._replace(weights="bfloat16")),
        (("cuda",), BARE),
        (("cuda", "float32", "default"), BARE),
        (("cuda", "tf32"), BARE._replace(tf32=True)),
        (("cuda", "bf16"), TENSOR_CORES._replace(autocast="bfloat16")),
        (("cuda", "fp16"), TENSOR_CORES._replace(autocast="float16")),
        (("cuda", "bf16-weights"), TENSOR_CORES._replace(weights="bfloat16")),
        (("rocm",), BARE),
        (("rocm", "bf16"), BARE._replace(autocast="bfloat16")),
        (("mps",), BARE),
        (("mps", "bf16"), BARE._replace(autocast="bfloat16")),
    ],
)
def test_a_kind_of_device_and_a_precision_decide_everything(asked, decided):
    assert policy(*asked) == decided
    assert not decided.benchmark
