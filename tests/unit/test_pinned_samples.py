"""The bytes of samples, pinned: no change of the code behind them may move a bit of an image that exists.

The network is made of sums, products and quotients, which are the same on every machine.
"""

import hashlib

import denoisers
import pytest
import torch

from taugrid.config import Diffusion, Sample
from taugrid.orchestrator.plan.sections import diffusion_section, sample_section
from taugrid.workers import schedules
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.samplers.description import describe_sampler, honoured
from taugrid.workers.samplers.sampler import SamplingSpec, sample_batch

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (2, 3, 4)
ETAS = [0.0, 0.5, 1.0, "sigma_hat"]
SPACINGS = {"linear": 30, "quadratic": 7, "leading": 10, "ermongroup-quad": 30}


@denoisers.of_time
def network(x, t):
    return 0.75 * x - 0.25 * x * x / (1 + x * x) + t / 4096


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def recipe(diffusion, **settings):
    process = diffusion_section(Diffusion(**diffusion))
    resolved = sample_section(Sample(seed=3, **settings), {})
    described = describe_sampler(resolved, process)
    return SamplingSpec(
        Identity(SHAPE), process, honoured(resolved, described.keys), described.tau, described.evaluations
    )


def sampled(diffusion, **settings):
    found = recipe(diffusion, **settings)
    return sample_batch(network, torch.arange(5), found)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", ["none", "x0", "x0_and_eps"])
def test_samples_of_each_eta_clip_and_prediction(prediction, clip):
    diffusion = {"prediction": prediction, "schedule": "cosine" if prediction == "v_prediction" else "linear"}
    found = [
        sampled(diffusion, eta=eta, clip=clip, steps=steps, spacing=spacing, steps_offset=1)
        for eta in ETAS
        for spacing, steps in SPACINGS.items()
    ]
    assert digest(found) == PINNED[prediction, clip]


def test_samples_whose_last_step_does_not_reach_alpha_1():
    diffusion = {"set_alpha_to_one": False, "schedule": "scaled_linear"}
    found = [sampled(diffusion, eta=eta, clip="x0", clip_range=2.0, steps=20) for eta in ETAS]
    assert digest(found) == PINNED["alpha_0 = alpha_1"]


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_encoded_and_decoded_images(prediction):
    found = recipe({"prediction": prediction}, steps=12)
    x0 = torch.linspace(-1, 1, 5 * 24).reshape(5, *SHAPE)
    alpha_bar = schedules.alpha_bar(found.diffusion)
    x_T = denoisers.encode(network, x0, alpha_bar, found.tau, prediction)
    rebuilt = denoisers.decode(network, x_T, alpha_bar, found.tau, prediction)
    assert digest([x_T, rebuilt]) == PINNED[prediction]


PINNED = {
    ("epsilon", "none"): "d5ec1cc9bc9049aa",
    ("epsilon", "x0"): "0608f88cf56449f1",
    ("epsilon", "x0_and_eps"): "9c2b0842bfcc1f21",
    ("sample", "none"): "c891da33f5c5e101",
    ("sample", "x0"): "ba08480af72dcd80",
    ("sample", "x0_and_eps"): "823197493f25dd9c",
    ("v_prediction", "none"): "d29a8966710e9cf1",
    ("v_prediction", "x0"): "4b293782c6733e86",
    ("v_prediction", "x0_and_eps"): "7439a3b779ef2400",
    "alpha_0 = alpha_1": "fcbcf6d9784bf4ea",
    "epsilon": "1c9fb30973ced5b3",
    "sample": "3a0260d5445da222",
    "v_prediction": "99016642e247c99f",
}
